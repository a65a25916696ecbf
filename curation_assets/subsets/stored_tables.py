"""Read any stored table as one frame, for `curate table` and `curate show`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.methods.registry import method_of
from curation_assets.signals.store import SignalStore, signal_dir
from curation_assets.tables import audit as audit_tables
from curation_assets.tables import evaluation as evaluation_tables
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.sections import unknown

SUFFIXES = (".parquet", ".csv", ".jsonl")


NEEDS = {
    "sample_quality": "corpus.filters",
    "pool": "corpus.filters",
    "preference": "a method that compares models",
}
"""What the configuration needs before a run makes a table that not every configuration has."""


class TableRequestError(UserError):
    """A requested table does not exist or the request is ambiguous."""


def read_stored(
    workspace: Workspace, name: str, *, target: str | None = None, score: str | None = None, subset: str | None = None
) -> pl.LazyFrame:
    """Return a stored table.

    Args:
        workspace: the configuration.
        name: a name of `curation_assets.tables`.
        target: for tables that exist once per target; optional if there is one target.
        score: for `step_scores`; optional if the target has one score.
        subset: for `subset`; optional if there is one subset.

    Raises:
        TableRequestError: the name is unknown or ambiguous, or nothing has been stored yet.
    """
    if name not in tables.ALL_TABLES:
        raise TableRequestError(f"there is no table {name!r}; tables are {', '.join(tables.ALL_TABLES)}")
    frame = _scan(workspace, name, target, score, subset)
    if frame is None:
        commands = dict.fromkeys(evaluation_tables.EVALUATION_TABLES, "curate evaluate")
        commands |= dict.fromkeys(("method_audit", "audit_samples"), "curate audit")
        command = commands.get(name, "curate run")
        needs = f" It needs {NEEDS[name]}." if name in NEEDS else ""
        raise TableRequestError(f"table {name} has not been made yet. Run `{command}`.{needs}")
    return frame


def _scan(
    workspace: Workspace, name: str, target: str | None, score: str | None, subset: str | None
) -> pl.LazyFrame | None:
    warehouse, settings = workspace.warehouse, workspace.settings
    folders = {
        "raw_corpus": tables.raw_corpus_dir(),
        "rejected_rows": tables.rejected_rows_dir(),
        "post_training_answers": evaluation_tables.answers_dir(),
        "post_training_losses": evaluation_tables.losses_dir(),
    }
    files = {
        "pool": tables.pool_path(),
        "subset_comparison": tables.subset_comparison_path(),
        "preference": tables.preference_path(),
        "spectra_by_layer": tables.spectra_by_layer_path(),
        "spectra_correlations": tables.spectra_correlations_path(),
        "post_training_eval": evaluation_tables.post_training_eval_path(),
        "post_training_runs": evaluation_tables.post_training_runs_path(),
        "method_audit": audit_tables.method_audit_path(),
        "audit_samples": audit_tables.audit_samples_path(),
        "post_training_spread": evaluation_tables.post_training_spread_path(),
        "post_training_differences": evaluation_tables.post_training_differences_path(),
    }
    if name in folders:
        return warehouse.scan(folders[name])
    if name in files:
        return warehouse.scan_table(files[name])
    if name == "sample_quality":
        return _once(warehouse.scan(tables.sample_quality_dir()), ["sample_id"])
    if name == "segmented_steps":
        return _once(warehouse.scan(tables.segmented_steps_dir()), ["sample_id", "step_index"])
    if name == "subset":
        chosen = pick("subset", subset, [item.name for item in settings.subsets])
        return warehouse.scan_table(tables.subset_path(chosen))
    return _scan_target(workspace, name, target, score)


def _scan_target(workspace: Workspace, name: str, target: str | None, score: str | None) -> pl.LazyFrame | None:
    """Return a table that exists once per target."""
    warehouse, settings = workspace.warehouse, workspace.settings
    of = settings.target(pick("target", target, [item.name for item in settings.targets]))
    if name == "score_manifest":
        return warehouse.scan_table(tables.score_manifest_path(of.name))
    if name == "sample_scores":
        return warehouse.scan(tables.sample_scores_dir(of.name))
    if name == "step_scores":
        named = scores_with_steps(workspace, of.name)
        if not named:
            raise TableRequestError(f"target {of.name} has no score of single steps. Add one with method: grace.")
        if score not in (None, *named) and score in [item.name for item in settings.scores]:
            raise TableRequestError(
                f"score {score} has no scores of single steps. Scores of target {of.name} that do: {', '.join(named)}."
            )
        chosen = pick("score", score, named)
        return _once(warehouse.scan(tables.step_scores_dir(of.name, chosen)), ["sample_id", "step_index"])
    return _measured(workspace, of, next(signal for signal in SIGNALS if signal == name))


def _measured(workspace: Workspace, target: Target, signal: SignalName) -> pl.LazyFrame | None:
    """Return a signal as stored under the current fingerprint, even if the target no longer lists it."""
    stored = None
    if signal_dir(workspace, target, signal) is not None:
        stored = SignalStore.of(workspace, target, signal).scan()
    if stored is None and signal not in workspace.settings.measured_signals(target):
        raise TableRequestError(
            f"target {target.name} does not measure {signal}. Add it to targets.signals in curation.yaml."
        )
    return _once(stored, ["sample_id"])


def _once(frame: pl.LazyFrame | None, key: list[str]) -> pl.LazyFrame | None:
    """Deduplicate by key: a sample in several shards or parts has equal rows in each."""
    return None if frame is None else frame.unique(key, keep="first").sort(key)


def pick(kind: str, given: str | None, names: list[str], how: str | None = None) -> str:
    """Return the given name if it exists, or the only name there is.

    Args:
        kind: the kind of thing, for messages.
        given: the name, if one was given.
        names: the existing names.
        how: the option that names it, if not `--KIND`.

    Raises:
        TableRequestError: the name is unknown, or there are several and none was given.
    """
    if given is None and len(names) == 1:
        return names[0]
    if given is None:
        raise TableRequestError(f"choose a {kind} with {how or f'--{kind}'}: {', '.join(names) or '(none)'}")
    if given not in names:
        raise TableRequestError(unknown(kind, given, names))
    return given


def pick_columns(frame: pl.LazyFrame, columns: str) -> pl.LazyFrame:
    """Select columns by a comma-separated list, as in `sample_id,grace`.

    Raises:
        TableRequestError: a column does not exist.
    """
    known = frame.collect_schema().names()
    names = [name.strip() for name in columns.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise TableRequestError(unknown("column", name, known))
    return frame.select(names)


def write_frame(frame: pl.LazyFrame, path: Path) -> int:
    """Write a frame as Parquet, CSV or JSON lines, depending on the file extension; return the number of rows.

    CSV cannot hold lists and structs, so they are written as JSON.

    Raises:
        TableRequestError: the extension is not supported.
    """
    if path.suffix not in SUFFIXES:
        raise TableRequestError(f"{path}: unsupported file extension. Use one of {', '.join(SUFFIXES)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    collected = frame.collect()
    if path.suffix == ".parquet":
        collected.write_parquet(path)
    elif path.suffix == ".jsonl":
        collected.write_ndjson(path)
    else:
        nested = [name for name, dtype in collected.schema.items() if dtype.is_nested()]
        collected.with_columns(_as_json(collected[name]) for name in nested).write_csv(path)
    return len(collected)


def _as_json(nested: pl.Series) -> pl.Series:
    texts = [None if value is None else orjson.dumps(value).decode() for value in nested.to_list()]
    return pl.Series(nested.name, texts, dtype=pl.String)


@dataclass(frozen=True)
class Trace:
    """A sample with everything known about it.

    Attributes:
        row: its row of `raw_corpus`.
        steps: its rows of `segmented_steps`.
        scores: its rows of `step_scores`.
        facts: its row of `sample_scores`; empty if it has not been scored.
        score: the score of its steps; None if the target has none.
    """

    row: dict[str, Any]
    steps: pl.DataFrame
    scores: pl.DataFrame
    facts: dict[str, Any]
    score: str | None = None


def find_trace(workspace: Workspace, sample_id: str, *, target: str | None = None, score: str | None = None) -> Trace:
    """Find the sample whose id begins with the given characters.

    Raises:
        TableRequestError: no sample, or more than one, matches.
    """
    corpus = read_stored(workspace, "raw_corpus")
    rows = corpus.filter(pl.col("sample_id").str.starts_with(sample_id)).collect()
    ids = rows["sample_id"].unique().sort().to_list()
    if len(ids) != 1:
        found = (
            f"matches {len(ids)} samples ({', '.join(ids[:5])}). Give more characters."
            if ids
            else "no sample has such an id."
        )
        raise TableRequestError(f"{sample_id}: {found}")
    mine = pl.col("sample_id") == ids[0]
    of, named = settings_names(workspace, target, score)
    absent = {"step_scores"} if named is None else set()
    frames = {}
    for name in ("segmented_steps", "step_scores", "sample_scores"):
        table = tables.ALL_TABLES[name]
        stored = None if name in absent else _scan(workspace, name, of, named, subset=None)
        frames[name] = table.empty() if stored is None else stored.filter(mine).collect()
    facts = next(frames["sample_scores"].iter_rows(named=True), {"sample_id": ids[0], "flags": "not scored"})
    pool = workspace.warehouse.scan_table(tables.pool_path()) if workspace.settings.corpus.filters.any else None
    if pool is not None:
        filtered = pool.filter(mine & pl.col("reason").is_not_null()).collect()
        if len(filtered):
            facts["left out of the pool"] = filtered["reason"][0]
    row = next(rows.iter_rows(named=True))
    return Trace(row, frames["segmented_steps"], frames["step_scores"], facts, named)


def settings_names(workspace: Workspace, target: str | None, score: str | None) -> tuple[str, str | None]:
    """Return the named target and step-scoring score, or the first of each; None if the target has no such score."""
    settings = workspace.settings
    first = pick("target", target, [t.name for t in settings.targets]) if target else settings.targets[0].name
    scores = scores_with_steps(workspace, first)
    return first, pick("score", score, scores) if score else next(iter(scores), None)


def scores_with_steps(workspace: Workspace, target: str) -> list[str]:
    """Return the target's named scores whose method scores steps."""
    return [score.name for score in workspace.settings.scores_of(target) if method_of(score).scores_steps]
