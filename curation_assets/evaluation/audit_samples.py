"""The samples of an audit: a draw of the pool, and a flawed twin of each by every corruption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import polars as pl

from curation_assets.config.evaluation_settings import Audit
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.evaluation.corruptions import Corruption, Trace, corruptions
from curation_assets.methods.apportionment import largest_remainders
from curation_assets.methods.random_draws import draw_bits
from curation_assets.signals.warmup import pool_of
from curation_assets.steps.correctness import verified
from curation_assets.steps.segmentation import segment_frame
from curation_assets.tables.audit import AUDIT_SAMPLES, audit_samples_path
from curation_assets.workspace.fingerprints import segmentation_key
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.sections import unknown
from curation_resources.storage.digests import digest

AUDIT_VERSION = 2
"""Raised when the same pool and settings give other samples or twins."""
Span = tuple[int, int]
ORIGINAL = "original"
NOTHING = Trace((), ("",))
"""Stands for a trace of another prompt where there is none."""
SALT = 0x6175646974
"""Added to the seed, so that what method `random` prefers is not what is drawn."""
CANDIDATES = 20
"""Times the number of samples that the draw looks at, so that a large pool is not read whole."""


class AuditError(UserError):
    """An audit cannot be made."""


def write_audit_samples(workspace: Workspace, settings: Audit) -> pl.DataFrame:
    """Draw samples and make their twins, unless the stored ones are of the same pool and settings.

    Raises:
        AuditError: the pool has no sample that an audit could use, or a kind is unknown.
    """
    kinds = kinds_of(settings)
    ids = drawn_ids(workspace, settings.seed)
    if ids.is_empty():
        raise AuditError("the pool is empty, so there is nothing to audit. Add traces, or see corpus.filters.")
    candidates = corpus_rows(workspace, ids.head(CANDIDATES * settings.samples).to_list())
    # What the draw and the twins rest on: ids stand for the texts, but not for what rows say about them.
    rows = candidates.select("sample_id", "source", "correct").rows()
    facts = [[(one.name, one.summary) for one in kinds.values()], segmentation_key(workspace), rows]
    wanted = digest("audit_samples", AUDIT_VERSION, settings.samples, settings.seed, facts)
    path = audit_samples_path()
    if workspace.warehouse.table_metadata(path).get("fingerprint") == wanted:
        return workspace.warehouse.read_table(path)
    frame = twins_of(workspace, _drawn(workspace, candidates, settings), kinds, settings.seed)
    workspace.warehouse.write_table(path, frame, {"fingerprint": wanted})
    return frame


def kinds_of(settings: Audit) -> dict[str, Corruption]:
    """Return the corruptions of an audit, by name.

    Raises:
        AuditError: a name is unknown.
    """
    known = corruptions()
    for name in settings.kinds or ():
        if name not in known:
            raise AuditError(unknown("kind of flaw", name, known, plural="kinds of flaws"))
    return {name: known[name] for name in settings.kinds or known}


def drawn_ids(workspace: Workspace, seed: int) -> pl.Series:
    """Return the pool's samples in the order of the draw: by a number made of their id and the seed."""
    ids = pool_of(workspace)["sample_id"]
    order = pl.DataFrame({"sample_id": ids, "draw": draw_bits(ids, SALT + seed)})
    return order.sort("draw", "sample_id")["sample_id"]


def _drawn(workspace: Workspace, candidates: pl.DataFrame, settings: Audit) -> pl.DataFrame:
    """Return the rows to audit: known to be right before unknown, with steps and answer before others, one per prompt
    before several, and from each source its share.

    Raises:
        AuditError: no candidate has steps, or all are known to be wrong.
    """
    segmented = segment_frame(candidates, workspace.settings.corpus.segmentation)
    own = segmented.group_by("sample_id").agg(
        n_steps=(pl.col("kind") == "step").sum(), answered=(pl.col("kind") == "answer").any()
    )
    right = pl.coalesce("correct", "verified")
    rows = (
        candidates.with_columns(
            verified=verified(candidates), draw=draw_bits(candidates["sample_id"], SALT + settings.seed)
        )
        .join(own, on="sample_id", how="inner")
        .filter((pl.col("n_steps") > 0) & right.ne_missing(False))
        .with_columns(later=(right.is_null().cast(pl.Int8) * 2 + ((pl.col("n_steps") < 2) | ~pl.col("answered"))))
        .sort("later", "draw", "sample_id")
    )
    if rows.is_empty():
        raise AuditError(
            f"none of the {len(candidates)} samples that were drawn from the pool can be audited: an audit needs "
            "samples with steps that are not marked wrong. Add some, or see `curate table segmented_steps`."
        )
    # The first of each prompt come first.
    rows = rows.with_columns(turn=pl.int_range(pl.len()).over("prompt_id")).sort("turn", "later", "draw", "sample_id")
    sources = candidates.group_by("source").len().sort("source")
    shares = dict(zip(sources["source"], largest_remainders(settings.samples, sources["len"].to_list()), strict=True))
    place = pl.int_range(pl.len()).over("source")
    within = rows.with_columns(first=place < pl.col("source").replace_strict(shares, return_dtype=pl.Int64))
    # What a source cannot give is filled up from the others.
    chosen = within.sort(pl.col("first"), descending=True, maintain_order=True).head(settings.samples)
    return chosen.select(candidates.columns)


def twins_of(workspace: Workspace, rows: pl.DataFrame, kinds: Mapping[str, Corruption], seed: int) -> pl.DataFrame:
    """Return table `audit_samples`: the rows, and their twins.

    Args:
        workspace: the configuration.
        rows: rows of `raw_corpus`, each sample once.
        kinds: the corruptions.
        seed: of the draws.
    """
    settings = workspace.settings.corpus.segmentation
    parts, donors = traces_of(rows, segment_frame(rows, settings)), _donors(rows, seed)
    made: list[dict[str, Any]] = []
    spans: list[list[Span]] = []
    for row in rows.iter_rows(named=True):
        own = row["sample_id"]
        made.append(row | {"original": own, "kind": ORIGINAL, "donor": None})
        spans.append([])
        donor = donors.get(own)
        other = NOTHING if donor is None else parts[donor]
        for name, corruption in kinds.items():
            twin = corruption.apply(parts[own], other, Random(digest("twin", seed, name, own)))
            if twin is not None and twin.response.strip() and twin.response != row["response"]:
                made.append(_twin_row(row, twin) | {"original": own, "kind": name, "donor": donor})
                spans.append([twin.span(place) for place in twin.changed])
    schema = {name: dtype for name, dtype in AUDIT_SAMPLES.schema.items() if name != "changed_steps"}
    frame = pl.DataFrame(made, schema=schema)
    changed = _changed_steps(frame["sample_id"], segment_frame(frame, settings), spans)
    return AUDIT_SAMPLES.conform(frame.with_columns(changed_steps=pl.Series(changed, dtype=pl.List(pl.Int32))))


def traces_of(rows: pl.DataFrame, segmented: pl.DataFrame) -> dict[str, Trace]:
    """Return the responses of samples taken apart, by sample_id."""
    steps = step_spans(segmented)
    answers = segmented.filter(kind="answer").select("sample_id", "start", "end").iter_rows()
    stated = {sample_id: (start, end) for sample_id, start, end in answers}
    return {
        sample_id: _trace(response, [span[1:] for span in steps.get(sample_id, [])], stated.get(sample_id))
        for sample_id, response in rows.select("sample_id", "response").iter_rows()
    }


def _trace(response: str, spans: Sequence[tuple[int, int]], answer: tuple[int, int] | None) -> Trace:
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(response)]
    gaps = tuple(response[end:start] for end, start in zip(ends, starts, strict=True))
    # An answer inside a step (a plugin's segmentation could give one) cannot be exchanged by itself.
    inside = None if answer is None or answer[0] < ends[-1] else (answer[0] - ends[-1], answer[1] - ends[-1])
    return Trace(tuple(response[start:end] for start, end in spans), gaps, inside)


def _donors(rows: pl.DataFrame, seed: int) -> dict[str, str]:
    """Return another prompt's sample for each, of the same source if there is one; none in a pool of one prompt."""
    found: dict[str, str] = {}
    triples = list(rows.select("sample_id", "prompt_id", "source").iter_rows())
    of_source: dict[str, list[tuple[str, str]]] = {}
    for other, asked, source in triples:
        of_source.setdefault(source, []).append((other, asked))
    every = [(other, asked) for other, asked, _ in triples]
    several = {source for source, own in of_source.items() if len({asked for _, asked in own}) > 1}
    if len({asked for _, asked in every}) < 2:
        return {}
    for sample_id, prompt, source in triples:
        draw, among = Random(digest("donor", seed, sample_id)), of_source[source] if source in several else every
        other, asked = draw.choice(among)
        while asked == prompt:
            other, asked = draw.choice(among)
        found[sample_id] = other
    return found


def _twin_row(row: Mapping[str, Any], twin: Trace) -> dict[str, Any]:
    """Return the row of a twin."""
    response, stated = twin.response, twin.stated_answer()
    steps = None if row["steps"] is None else [step for step in twin.steps if step.strip()]
    # The row's answer is where the twin's answer is found, as it was the original's.
    answer = row["answer"] if row["answer"] is None or stated is None else stated
    sample_id = digest("twin of", row["sample_id"], response, answer, steps)
    # What the row says of the original is not known of the twin.
    unknown_of_twin = {"correct": None, "reward": None}
    texts = {"sample_id": sample_id, "response": response, "answer": answer, "steps": steps}
    return dict(row) | texts | unknown_of_twin


def _changed_steps(ids: pl.Series, segmented: pl.DataFrame, spans: Sequence[Sequence[Span]]) -> list[list[int]]:
    """Return the step_index of each twin's changed steps, by its own segmentation, which may cut it anew."""
    own = step_spans(segmented)
    found = []
    for sample_id, changed in zip(ids, spans, strict=True):
        indices = {step_at(own.get(sample_id, []), span) for span in changed}
        found.append(sorted(index for index in indices if index is not None))
    return found


def step_spans(segmented: pl.DataFrame) -> dict[str, list[tuple[int, int, int]]]:
    """Return step_index, start and end of each sample's steps."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    steps = segmented.filter(pl.col("kind") == "step").sort("sample_id", "step_index")
    for sample_id, *step in steps.select("sample_id", "step_index", "start", "end").iter_rows():
        found.setdefault(sample_id, []).append((step[0], step[1], step[2]))
    return found


def step_at(steps: Sequence[tuple[int, int, int]], span: Span) -> int | None:
    """Return the step_index of the step that shares most characters with a span; None if none shares any."""
    low, high = span
    shared = [(min(high, end) - max(low, start), -index) for index, start, end in steps]
    most = max(shared, default=(0, 0))
    return -most[1] if most[0] > 0 else None


def samples_in_turns(frame: pl.DataFrame, originals: int) -> Iterator[pl.DataFrame]:
    """Yield an audit's samples, some originals with all their twins at a time, so that a part of it is of use."""
    ids = frame["original"].unique().sort()
    for start in range(0, len(ids), originals):
        yield frame.filter(pl.col("original").is_in(ids[start : start + originals].implode()))
