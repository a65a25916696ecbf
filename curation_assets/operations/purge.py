"""Remove a sample from everywhere: every stored table, its measurements, and the images that only it uses.

The sample first goes on the list of purged samples, so that purging it again completes an interrupted purge. Tables
that held it are rewritten without it. Their new fingerprints mark everything that depends on them as outdated, and the
next run recomputes that from stored measurements, without a model. Releases and trained checkpoints never change; they
are reported.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from curation_assets import tables
from curation_assets.corpus.ingest import stored_shard_rows, write_shard_rows
from curation_assets.corpus.purging import drop_images, kept_images, rows_without_purged
from curation_assets.corpus.samples import samples_of
from curation_assets.releases.file_names import DATA_PARQUET
from curation_assets.steps.segmentation import EXAMPLES, without_answer
from curation_assets.tables.audit import AUDIT, audit_samples_path
from curation_assets.workspace.fingerprints import corpus_fingerprint, judge_spec, steps_fingerprint
from curation_assets.workspace.purge_list import PurgedList, add_purged
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.models.judge import JudgeScorer
from curation_resources.progress import track
from curation_resources.storage.digests import digest
from curation_resources.storage.landing import file_name
from curation_resources.storage.part_store import Measurements
from curation_resources.storage.warehouse import DOCUMENT, TABLE, Warehouse, WarehouseError
from curation_resources.training.files import TRAINED_ON

LEAST_PREFIX = 8
NEAR = 2
SIGNAL_DEPTH = 5
"""Number of names in the path of a signal's fingerprint folder: signals/TARGET/ROLE/SIGNAL/FINGERPRINT."""


class PurgeError(UserError):
    """A sample cannot be purged: its id is unknown or ambiguous."""


@dataclass(frozen=True)
class Purged:
    """The result of purging a sample: the changes made, and the places that cannot be changed.

    Attributes:
        sample_id: the sample.
        tables: rewritten tables, with the number of rows removed from each.
        images: removed images, which no other row uses.
        replies: number of replies from configured judges removed from this machine's cache.
        files: landing files that still hold it, with the row in each; these belong to the user.
        releases: releases that hold it, as `subset@version` with the folder of each.
        checkpoints: folders of checkpoints that were trained on it.
    """

    sample_id: str
    tables: dict[str, int]
    images: list[str]
    replies: int
    files: list[tuple[str, int]]
    releases: dict[str, str]
    checkpoints: list[str]


def find_sample(workspace: Workspace, prefix: str) -> str:
    """Find the one sample, stored or already purged, whose id begins with `prefix`.

    Raises:
        PurgeError: no sample matches, several do, or the prefix is shorter than 8 characters.
    """
    if len(prefix) < LEAST_PREFIX:
        raise PurgeError(
            f"{prefix!r} is too short to identify a sample. "
            f"Give its id, or at least its first {LEAST_PREFIX} characters."
        )
    known = _known_ids(workspace.warehouse)
    found = [sample_id for sample_id in known if sample_id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise PurgeError(f"{prefix} matches {len(found)} samples: {', '.join(found[:5])}. Give more characters.")
    place = bisect_left(known, prefix)
    near = known[max(0, place - NEAR) : place + NEAR]
    hint = f" The nearest ids are {', '.join(near)}." if near else ""
    raise PurgeError(f"no sample id begins with {prefix!r}.{hint} List ids with `curate table raw_corpus`.")


def _known_ids(warehouse: Warehouse) -> list[str]:
    """Return the sorted ids of all samples that occur in any table or in the purge list."""
    ids: set[str] = set(PurgedList.read(warehouse).samples)
    # Flawed twins have ids of their own, which stand for no sample.
    everything = [path for path in _tables(warehouse, "") if not path.startswith(AUDIT)]
    with_ids = [path for path in everything if _has_ids(warehouse, path)]
    with track("looking for the sample", len(with_ids)) as advance:
        for path in with_ids:
            ids.update(warehouse.read_columns(path, "sample_id")["sample_id"].to_list())
            advance(1)
    return sorted(ids)


def purge(workspace: Workspace, sample_id: str, reason: str = "") -> Purged:
    """Remove a sample from everything that can change; see `Purged`. Repeating it completes an interrupted purge."""
    warehouse = workspace.warehouse
    holding = {
        folder: [path for path in _tables(warehouse, folder) if _holds(warehouse, path, sample_id)]
        for folder in ("corpus", "validation", "steps", "signals", "scores", "subsets", "releases", "checkpoints")
    }
    corpus = [path for path in holding["corpus"] if path.startswith(f"{tables.raw_corpus_dir()}/")]
    shards = [_name(path) for path in corpus]
    sets = [workspace.validation_shard(_name(path)) for path in holding["validation"]]
    files = [place for path in corpus for place in _places(warehouse, path, sample_id)]
    images = _images(warehouse, [*corpus, *holding["validation"]], sample_id)
    # Replies are looked up by the prompt, which is lost once the rows are gone.
    replies = _forget_replies(workspace, [*corpus, *holding["validation"]], sample_id)
    add_purged(warehouse, sample_id, reason, [*shards, *sets])
    done: dict[str, int] = {}
    done |= _drop_audit(warehouse, sample_id)
    for path in holding["signals"]:
        done[path] = _rewrite_part(warehouse, path, sample_id)
    stale = [path for path in holding["corpus"] if path not in corpus] + holding["validation"] + holding["scores"]
    for path in [*stale, *holding["subsets"]]:
        done[path] = _drop_rows(warehouse, path, sample_id, due=path in holding["subsets"])
    for path in corpus:
        steps = f"{tables.segmented_steps_dir()}/{_name(path)}{TABLE}"
        done[path] = _rewrite_shard(workspace, _name(path), sample_id)
        if steps in holding["steps"]:
            done[steps] = _rows(warehouse, steps, sample_id)
            _rewrite_steps(workspace, _name(path), sample_id)
    for path in holding["steps"]:
        if path not in done:
            done[path] = _drop_rows(warehouse, path, sample_id, due=True)
    return Purged(
        sample_id,
        done,
        drop_images(warehouse, images),
        replies,
        files,
        _releases(workspace, holding["releases"]),
        [path.rsplit("/", 1)[0] for path in holding["checkpoints"] if path.endswith(f"/{TRAINED_ON}")],
    )


def _drop_audit(warehouse: Warehouse, sample_id: str) -> dict[str, int]:
    """Remove everything that an audit measured, if the sample or a part of its text is in it; the next one starts anew.

    Twins hold the text of their original and of the trace that parts of them were taken from.
    """
    if not warehouse.files(AUDIT.rstrip("/")):
        return {}
    try:
        rows = warehouse.read_columns(audit_samples_path(), "original", "donor")
        held = len(rows.filter((pl.col("original") == sample_id) | (pl.col("donor") == sample_id)))
    except (FileNotFoundError, WarehouseError):
        # What is left of an audit may hold anything.
        held = 1
    if not held:
        return {}
    warehouse.storage.remove_folder(AUDIT.rstrip("/"))
    return {AUDIT: held}


def _tables(warehouse: Warehouse, folder: str) -> list[str]:
    return [file.path for file in warehouse.files(folder) if file.name.endswith(TABLE)]


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(TABLE)


def _has_ids(warehouse: Warehouse, path: str) -> bool:
    return "sample_id" in warehouse.columns(path)


def _holds(warehouse: Warehouse, path: str, sample_id: str) -> bool:
    return _has_ids(warehouse, path) and _rows(warehouse, path, sample_id) > 0


def _rows(warehouse: Warehouse, path: str, sample_id: str) -> int:
    return int((warehouse.read_columns(path, "sample_id")["sample_id"] == sample_id).sum())


def _without(warehouse: Warehouse, path: str, sample_id: str) -> tuple[pl.DataFrame, int]:
    """Return a table without the sample, and the number of rows removed."""
    table = warehouse.read_table(path)
    kept = table.filter(pl.col("sample_id") != sample_id)
    return kept, len(table) - len(kept)


def _drop_rows(warehouse: Warehouse, path: str, sample_id: str, due: bool = False) -> int:
    """Write a table without the sample. If `due`, set a fingerprint that never matches, so that it becomes outdated."""
    facts = warehouse.table_metadata(path)
    kept, left = _without(warehouse, path, sample_id)
    if due:
        facts["fingerprint"] = digest("purged", facts.get("fingerprint"), sample_id)
    if "rows" in facts:
        facts["rows"] = str(len(kept))
    warehouse.write_table(path, kept, facts)
    return left


def _rewrite_shard(workspace: Workspace, shard: str, sample_id: str) -> int:
    """Write `raw_corpus` and `rejected_rows` of a shard with the sample moved to the rejected rows."""
    warehouse = workspace.warehouse
    facts = warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}{TABLE}")
    purged = PurgedList.read(warehouse)
    now = purged.ids_of(shard)
    former = [known for known in now if known != sample_id]
    content = facts["content_digest"]
    # Outdated tables stay outdated: only a current table gets the fingerprint of a current one.
    if facts["fingerprint"] in {corpus_fingerprint(workspace, content, ids) for ids in (former, now)}:
        fingerprint = corpus_fingerprint(workspace, content, now)
    else:
        fingerprint = digest("purged", facts["fingerprint"], sample_id)
    before = stored_shard_rows(workspace, shard, facts)
    after = rows_without_purged(before, [sample_id])
    write_shard_rows(workspace, shard, after, fingerprint, content)
    return len(before.accepted) - len(after.accepted)


def _rewrite_steps(workspace: Workspace, shard: str, sample_id: str) -> None:
    """Write `segmented_steps` of a shard without the sample; a current table stays current."""
    warehouse = workspace.warehouse
    path = f"{tables.segmented_steps_dir()}/{shard}{TABLE}"
    corpus = warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}{TABLE}")
    stored = warehouse.table_metadata(path)
    kept, _ = _without(warehouse, path, sample_id)
    ids = PurgedList.read(warehouse).ids_of(shard)
    former = corpus_fingerprint(workspace, corpus["content_digest"], [known for known in ids if known != sample_id])
    if stored["fingerprint"] == steps_fingerprint(workspace, former):
        own = {"fingerprint": steps_fingerprint(workspace, corpus["fingerprint"]), "images": corpus["images"]}
        facts = stored | own
    else:
        facts = stored | {"fingerprint": digest("purged", stored["fingerprint"], sample_id)}
    warehouse.write_table(
        path, kept, {key: own for key, own in facts.items() if key != EXAMPLES} | without_answer(kept)
    )
    earlier = f"{tables.earlier_steps_dir()}/{shard}{TABLE}"
    if earlier_facts := warehouse.table_metadata(earlier):
        warehouse.write_table(earlier, _without(warehouse, earlier, sample_id)[0], earlier_facts)


def _rewrite_part(warehouse: Warehouse, path: str, sample_id: str) -> int:
    """Replace a part by one without the sample: write the new part, update the records that name it, delete the old."""
    folder = path.rsplit("/", 1)[0]
    kept, left = _without(warehouse, path, sample_id)
    name = None if kept.is_empty() else Measurements(warehouse, folder).append(kept)
    _rename_in_records(warehouse, "/".join(path.split("/")[:SIGNAL_DEPTH]), _name(path), name)
    warehouse.storage.remove(path)
    return left


def _rename_in_records(warehouse: Warehouse, folder: str, old: str, new: str | None) -> None:
    """Replace the name of a part in the records of a fingerprint's shards and validation sets.

    Shards without the sample count as measured, as before. Records of shards that held it no longer match their table.
    """
    for file in warehouse.files(folder):
        if not file.name.endswith(DOCUMENT):
            continue
        record = warehouse.read_json(file.path)
        if old in record.get("parts", []):
            parts = {part for part in record["parts"] if part != old} | ({new} if new is not None else set())
            warehouse.write_json(file.path, record | {"parts": sorted(parts)})


def _places(warehouse: Warehouse, path: str, sample_id: str) -> list[tuple[str, int]]:
    rows = warehouse.read_table(path).filter(pl.col("sample_id") == sample_id)["row"].unique().sort()
    return [(file_name(_name(path)), row) for row in rows.to_list()]


def _images(warehouse: Warehouse, paths: Collection[str], sample_id: str) -> set[str]:
    """Return the names of the stored images that the sample uses."""
    rows = [warehouse.read_table(path).filter(pl.col("sample_id") == sample_id) for path in paths]
    return set().union(*(kept_images(frame) for frame in rows))


def _forget_replies(workspace: Workspace, paths: Collection[str], sample_id: str) -> int:
    """Remove the cached replies of configured judges to the sample's prompt; return the number of replies removed."""
    rows = [workspace.warehouse.read_table(path).filter(pl.col("sample_id") == sample_id) for path in paths]
    judges = [JudgeScorer(judge_spec(one)) for one in workspace.settings.targets if one.endpoint is not None]
    found = pl.concat(rows).unique("sample_id") if rows and judges else pl.DataFrame()
    if found.is_empty():
        return 0
    samples = samples_of(workspace, found)
    return sum(judge.forget(sample) for judge in judges for sample in samples)


def _releases(workspace: Workspace, paths: Collection[str]) -> dict[str, str]:
    """Return the folders of the releases with these data files, by subset and version."""
    found = {}
    for path in paths:
        if path.endswith(f"/{DATA_PARQUET}"):
            folder = path.removesuffix(f"/{DATA_PARQUET}")
            _, subset, number = folder.split("/")
            found[f"{subset}@{number}"] = workspace.warehouse.storage.shown(folder)
    return found
