"""Building releases: immutable folders, created once or not at all, each with its whole story."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.corpus.images import STORED
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.releases.card import dataset_card
from curation_assets.releases.manifest import provenance, release_manifest
from curation_assets.releases.step_columns import step_columns, steps_digest
from curation_assets.settings import Subset
from curation_assets.subsets.select import select, wanted_fingerprint
from curation_assets.workspace import Workspace
from resources.digests import bytes_digest
from resources.errors import UserError
from resources.landing import file_name, printable
from resources.warehouse import Warehouse

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
PROVENANCE = "provenance.json"
DATA_PARQUET = "data/train.parquet"
DATA_JSONL = "data/train.jsonl"
IMAGES = "images"
IN_EVERY_MANIFEST = ("subset", "number", "rows", "content_digest", "subset_digest", "parameters", "checkpoints")
"""What other parts of the project read of a manifest."""


class ReleaseError(UserError):
    """A release cannot be made, or is damaged."""


@dataclass(frozen=True)
class Release:
    """A release that exists: its subset, number, folder (as people know it) and manifest."""

    subset: str
    number: int
    folder: str
    manifest: Mapping[str, Any]


def release_numbers(workspace: Workspace, subset: Subset) -> list[int]:
    """Numbers of the subset's releases, ascending."""
    names = workspace.warehouse.made_folders(tables.release_dir(subset.name), MANIFEST)
    return sorted(int(name) for name in names if name.isdigit())


def read_release(workspace: Workspace, subset: Subset, number: int) -> Release:
    """An existing release.

    Raises:
        ReleaseError: it is not there, or its manifest is damaged.
    """
    folder = f"{tables.release_dir(subset.name)}/{number}"
    manifest = read_manifest(workspace.warehouse, folder)
    return Release(subset.name, number, workspace.warehouse.storage.shown(folder), manifest)


def read_manifest(warehouse: Warehouse, folder: str) -> dict[str, Any]:
    """The manifest of the release in a folder of the warehouse.

    Raises:
        ReleaseError: it is not there, is no JSON, or lacks what every manifest holds.
    """
    shown = warehouse.storage.shown(f"{folder}/{MANIFEST}")
    mend = f"see `curate verify {warehouse.storage.shown(folder)}`; put the folder back from a copy, or delete it"
    try:
        manifest = warehouse.read_json(f"{folder}/{MANIFEST}")
    except ValueError as error:
        raise ReleaseError(f"{shown} is no JSON ({error}): {mend}") from error
    lacking = [key for key in IN_EVERY_MANIFEST if not isinstance(manifest, dict) or key not in manifest]
    if lacking:
        raise ReleaseError(f"{shown} does not say its {', '.join(lacking)}: {mend}")
    found: dict[str, Any] = manifest
    return found


def latest_release(workspace: Workspace, subset: Subset) -> Release | None:
    """The newest release that exists, or None."""
    numbers = release_numbers(workspace, subset)
    return read_release(workspace, subset, numbers[-1]) if numbers else None


def next_release(workspace: Workspace, subset: Subset) -> int:
    """The number that releasing the current subset gives: the last one's if the content is equal.

    Raises:
        ReleaseError: the subset has not been made, or not from the current scores.
    """
    _check_current(workspace, subset)
    latest = latest_release(workspace, subset)
    if latest is None:
        return 1
    stored = workspace.warehouse.table_metadata(tables.subset_path(subset.name))
    if latest.manifest["subset_digest"] == stored["content_digest"]:
        # The same samples by the same scores: a sample_id stands for its content, though not for its steps.
        ids = workspace.warehouse.read_table(tables.subset_path(subset.name))["sample_id"]
        if latest.manifest.get("steps_digest") == steps_digest(step_columns(workspace, subset, ids)):
            return latest.number
    same = latest.manifest["content_digest"] == _content_digest(_release_rows(workspace, subset))
    return latest.number if same else latest.number + 1


def make_release(workspace: Workspace, subset: Subset, number: int, run_id: str) -> Release:
    """Create the release of that number, or give it if it exists; then move LATEST to it.

    Raises:
        ReleaseError: the number is not the next one, or someone else made it of other content.
    """
    numbers = release_numbers(workspace, subset)
    if number not in numbers:
        if number != (numbers[-1] if numbers else 0) + 1:
            raise ReleaseError(
                f"release {subset.name}@{number} is not the next one: releases are {numbers or 'none yet'}; "
                f"use `curate release {subset.name}`"
            )
        _create(workspace, subset, number, run_id)
    _move_latest(workspace, subset)
    release = read_release(workspace, subset, number)
    refuse_broken(workspace, release)
    return release


def refuse_broken(workspace: Workspace, release: Release) -> None:
    """See that a release's files are those of its checksums.

    Raises:
        ReleaseError: some are not.
    """
    broken = broken_files(workspace, release)
    if broken:
        raise ReleaseError(
            f"release {release.folder}: checksums do not match for {', '.join(broken)}: see `curate verify "
            f"{release.subset}@{release.number}`; put the folder back from a copy, or delete it and release again"
        )


def broken_files(workspace: Workspace, release: Release) -> list[str]:
    """Files of a release whose bytes are not those of its checksums, or that are missing."""
    storage = workspace.warehouse.storage
    folder = f"{tables.release_dir(release.subset)}/{release.number}"
    broken = []
    try:
        sums = storage.read(f"{folder}/{CHECKSUMS}").decode()
    except (FileNotFoundError, UnicodeDecodeError):
        return [CHECKSUMS]
    for line in filter(None, sums.splitlines()):
        expected, _, name = line.partition("  ")
        try:
            found = hashlib.sha256(storage.read(f"{folder}/{name}")).hexdigest()
        except FileNotFoundError:
            found = None
        if found != expected:
            broken.append(name)
    return broken


def _check_current(workspace: Workspace, subset: Subset) -> None:
    wanted = wanted_fingerprint(workspace, subset)
    stored = workspace.warehouse.table_metadata(tables.subset_path(subset.name)).get("fingerprint")
    if wanted is None or stored != wanted:
        raise ReleaseError(
            f"subset {subset.name} is not up to date with its scores: materialize subsets/{subset.name}, "
            "or use `curate run`"
        )


def _release_rows(workspace: Workspace, subset: Subset) -> pl.DataFrame:
    """The rows of a release: the subset with the samples' content, best first."""
    chosen = workspace.warehouse.read_table(tables.subset_path(subset.name))
    content = corpus_rows(workspace, chosen["sample_id"].to_list())
    rows = chosen.join(content, on="sample_id", how="left", maintain_order="left")
    if rows.is_empty():
        raise ReleaseError(f"subset {subset.name} holds no sample: an empty release is never made")
    if rows["response"].null_count():
        raise ReleaseError(f"subset {subset.name} names samples that the corpus does not hold: run `curate run`")
    return rows.join(
        step_columns(workspace, subset, rows["sample_id"]), on="sample_id", how="left", maintain_order="left"
    )


def _content_digest(rows: pl.DataFrame) -> str:
    return bytes_digest(rows.write_ndjson().encode())


def _create(workspace: Workspace, subset: Subset, number: int, run_id: str) -> None:
    _check_current(workspace, subset)
    rows = _release_rows(workspace, subset)
    selection = select(workspace, subset)
    folder = f"{tables.release_dir(subset.name)}/{number}"

    def fill(place: Path) -> None:
        _write_data(place, _with_images(workspace, place, rows))
        manifest = release_manifest(
            workspace, subset, number, selection, rows, _content_digest(rows), _sizes_and_sums(place)
        )
        _write(place / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        _write(place / "README.md", dataset_card(manifest))
        sums = _sizes_and_sums(place)
        lines = [f"{facts['sha256']}  {name}\n" for name, facts in sums.items()]
        _write(place / CHECKSUMS, "".join(lines))
        _write(place / PROVENANCE, json.dumps(provenance(run_id), indent=1, sort_keys=True) + "\n")

    if not workspace.warehouse.create_folder(folder, fill, last=MANIFEST):
        found = read_release(workspace, subset, number)
        if found.manifest["content_digest"] != _content_digest(rows):
            raise ReleaseError(f"release {subset.name}@{number} was made by someone else in the meantime: try again")


def _with_images(workspace: Workspace, place: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows, naming copies in the release of the images whose bytes were inside landing files' rows."""
    shown = rows.select("shard", "images").explode("images").filter(pl.col("images").str.starts_with(STORED))
    for shard, reference in shown.unique("images", keep="first", maintain_order=True).iter_rows():
        name = reference.removeprefix(STORED)
        _write_bytes(place / IMAGES / name, _kept_image(workspace, name, shard))
    named = pl.element().str.replace(f"^{STORED}", f"{IMAGES}/")
    return rows.with_columns(pl.col("images").list.eval(named))


def _kept_image(workspace: Workspace, name: str, shard: str) -> bytes:
    """The bytes of an image that was inside a row of the shard.

    Raises:
        ReleaseError: the warehouse has lost the image, or has other bytes under its name.
    """
    storage = workspace.warehouse.storage
    path = storage.shown(f"{tables.images_dir()}/{name}")
    table = storage.shown(f"{tables.raw_corpus_dir()}/{shard}.parquet")
    try:
        data = storage.read(f"{tables.images_dir()}/{name}")
    except OSError as error:
        raise ReleaseError(
            f"image {path} cannot be read ({type(error).__name__}): put it back, or delete {table} and use "
            f"`curate run`, which reads {printable(file_name(shard))} again and keeps its images anew"
        ) from error
    if bytes_digest(data) != name:
        raise ReleaseError(
            f"image {path} is damaged, its bytes do not match its name: delete it and {table}, and use `curate run`, "
            f"which reads {printable(file_name(shard))} again and keeps its images anew"
        )
    return data


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _write_data(place: Path, rows: pl.DataFrame) -> None:
    (place / "data").mkdir()
    records = [trainer_record(row) for row in rows.iter_rows(named=True)]
    messages = pl.Series("messages", [record["messages"] for record in records], dtype=MESSAGES_TYPE)
    rows.with_columns(messages).write_parquet(place / DATA_PARQUET)
    with (place / DATA_JSONL).open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


MESSAGES_TYPE = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def trainer_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the messages export: prompt turns and the response as trainers read them, and the id."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in json.loads(row["messages"])]
    record: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": row["response"]}]}
    if row["images"]:
        record["images"] = list(row["images"])
    return record | {"sample_id": row["sample_id"]}


def _sizes_and_sums(place: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {
        path.relative_to(place).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _move_latest(workspace: Workspace, subset: Subset) -> None:
    """Point LATEST at the newest release; also after a kill between creating one and pointing at it."""
    path = f"{tables.release_dir(subset.name)}/LATEST"
    while True:
        newest = str(release_numbers(workspace, subset)[-1])
        current = workspace.warehouse.read_text(path)
        if current == newest or workspace.warehouse.compare_and_swap(path, current, newest):
            return
