"""`curate audit`: does a method tell sound traces from flawed ones, for this model and this corpus?

Samples of the pool and their flawed twins (`audit_samples`) are measured as the pool is, in a folder of their own, and
scored by every score that the targets' signals allow. `audit_report` turns the scores into table `method_audit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl
from pydantic import ValidationError

from curation_assets.config.evaluation_settings import Audit
from curation_assets.config.settings import Target
from curation_assets.evaluation.audit_samples import ORIGINAL, AuditError, samples_in_turns, write_audit_samples
from curation_assets.methods.method import ScoreInputs, ScoreSection
from curation_assets.methods.registry import METHODS, method_of
from curation_assets.signals.engine import Stores, open_engine, stores_of
from curation_assets.signals.held_out import validation_vectors
from curation_assets.signals.measure import ShardSamples, measure_all
from curation_assets.signals.store import MeasuringError, SignalStore
from curation_assets.steps.segmentation import segment_frame
from curation_assets.subsets.shard_scores import facts_of
from curation_assets.tables.audit import AUDIT
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.limits import Allowance
from curation_assets.workspace.workspace import Workspace

ORIGINALS_AT_A_TIME = 20
"""Originals that are measured with their twins before the next: what a limit leaves unfinished is small."""
NOT_OF_TWINS: frozenset[SignalName] = frozenset({"in_run_influence"})
"""Signals that are recorded during the training run, which saw no twin."""


@dataclass(frozen=True)
class TargetScores:
    """The scores of samples under one target.

    Attributes:
        target: the target.
        facts: the columns of `sample_scores` other than scores, one row per measured sample.
        values: by score, sample_id and value of the samples that have one.
        steps: by score, rows of `step_scores`, if the method scores steps.
        sections: the scores.
        configured: names of those in the configuration.
        stores: where the signals are.
    """

    target: Target
    facts: pl.DataFrame
    values: Mapping[str, pl.DataFrame]
    steps: Mapping[str, pl.DataFrame]
    sections: Sequence[ScoreSection]
    configured: frozenset[str]
    stores: Stores


@dataclass
class Audited:
    """The samples of an audit, measured and scored.

    Attributes:
        samples: table `audit_samples`.
        scores: one per audited target.
        tokens: tokens that this call ran through models.
        unfinished: the limit that stopped it; None if everything is measured.
        skipped: targets that are not audited, and why.
    """

    samples: pl.DataFrame
    scores: list[TargetScores] = field(default_factory=list)
    tokens: int = 0
    unfinished: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def audit_scores(workspace: Workspace, settings: Audit, allowance: Allowance) -> Audited:
    """Draw and spoil samples, measure what is missing of them with every target, and score them.

    Raises:
        AuditError: the pool has no sample that can be audited, or no target can measure now.
    """
    samples = write_audit_samples(workspace, settings)
    audited = Audited(samples)
    for target in workspace.settings.targets:
        if target.kind == "judge":
            audited.skipped[target.name] = "an audit sends no requests to endpoints"
            continue
        try:
            stores = audit_stores(workspace, target)
        except MeasuringError as error:
            audited.skipped[target.name] = str(error)
            continue
        _copy_from_pool(workspace, target, samples.filter(pl.col("kind") == ORIGINAL)["sample_id"], stores)
        audited.tokens += sum(measure_audit(workspace, target, samples, stores, allowance))
        audited.scores.append(score_samples(workspace, target, samples, stores))
    if not audited.scores:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in audited.skipped.items())
        raise AuditError(f"no target can be audited ({reasons})")
    audited.unfinished = allowance.reached() if allowance.unfinished else None
    return audited


def audit_stores(workspace: Workspace, target: Target) -> Stores:
    """Return where an audit keeps a target's signals.

    Raises:
        MeasuringError: a checkpoint has not been trained yet.
    """
    return stores_of(workspace, target, [one for one in target.signals if one not in NOT_OF_TWINS], AUDIT)


def measure_audit(
    workspace: Workspace, target: Target, samples: pl.DataFrame, stores: Stores, allowance: Allowance
) -> Iterator[int]:
    """Measure what is missing of an audit's samples, and yield the tokens of each visit."""
    turns = [
        (f"audit samples {start + 1:,} to {start + part['original'].n_unique():,}", _inputs(workspace, part))
        for start, part in zip(
            range(0, samples["original"].n_unique(), ORIGINALS_AT_A_TIME),
            samples_in_turns(samples, ORIGINALS_AT_A_TIME),
            strict=True,
        )
    ]
    workspace = replace(workspace, allowance=allowance)
    with open_engine(workspace, target, stores, AUDIT) as engine:
        for visit in measure_all(workspace, target, turns, stores, engine):
            yield visit.tokens
    yield allowance.tokens.get(target.name, 0)


def _inputs(workspace: Workspace, part: pl.DataFrame) -> ShardSamples:
    rows = part.unique("sample_id", keep="first", maintain_order=True)
    return ShardSamples(rows, segment_frame(rows, workspace.settings.corpus.segmentation), "", "")


def _copy_from_pool(workspace: Workspace, target: Target, ids: pl.Series, stores: Stores) -> None:
    """Copy what a run has measured of the originals, so that it is not measured again."""
    for signal, store in stores.items():
        lacking = pl.Series(sorted(store.missing(ids)), dtype=pl.String)
        found = SignalStore.of(workspace, target, signal).rows(lacking) if len(lacking) else None
        if found is not None and not found.is_empty():
            store.append(found)


def score_samples(workspace: Workspace, target: Target, rows: pl.DataFrame, stores: Stores) -> TargetScores:
    """Score samples by every score that a target's signals allow; samples that lack a signal are left out.

    Args:
        workspace: the configuration.
        target: the target.
        rows: rows of `raw_corpus`.
        stores: the store of each of its signals.
    """
    rows = rows.unique("sample_id", keep="first", maintain_order=True)
    sections = scores_of_target(workspace, target, tuple(stores))
    wanted = {signal for section in sections for signal in method_of(section).signals(section)} or set(list(stores)[:1])
    signals = {signal: _rows(stores[signal], signal, rows["sample_id"]) for signal in stores if signal in wanted}
    for own in signals.values():
        rows = rows.join(own, on="sample_id", how="semi", maintain_order="left")
    signals = {signal: own.join(rows, on="sample_id", how="semi") for signal, own in signals.items()}
    steps = segment_frame(rows, workspace.settings.corpus.segmentation)
    facts = facts_of(rows, steps, signals)
    values: dict[str, pl.DataFrame] = {}
    step_scores: dict[str, pl.DataFrame] = {}
    for section in sections:
        vectors = validation_vectors(workspace, target, section)
        found = method_of(section).score(ScoreInputs(facts, signals, validation=vectors), section)
        enough = facts.filter(pl.col("n_steps") >= section.min_steps).select("sample_id")
        finite = found.values.filter(pl.col("value").is_not_null() & pl.col("value").is_finite())
        values[section.name] = finite.join(enough, on="sample_id", how="semi").select("sample_id", "value")
        if found.steps is not None:
            step_scores[section.name] = found.steps.filter(pl.col("step_score").is_finite())
    configured = frozenset(section.name for section in workspace.settings.scores_of(target.name))
    return TargetScores(target, facts, values, step_scores, sections, configured, stores)


def _rows(store: SignalStore, signal: SignalName, ids: pl.Series) -> pl.DataFrame:
    rows = store.rows(ids)
    return SIGNALS[signal].table.empty() if rows is None else rows


def scores_of_target(workspace: Workspace, target: Target, signals: Sequence[SignalName]) -> list[ScoreSection]:
    """Return the configured scores of a target, and those of other methods, with defaults, that its signals allow."""
    configured = [
        section
        for section in workspace.settings.scores_of(target.name)
        if set(method_of(section).signals(section)) <= set(signals)
    ]
    found = list(configured)
    taken = {section.name for section in configured}
    for method in METHODS.values():
        if method.name in taken or any(section.method == method.name for section in configured):
            continue
        try:
            section = method.section.model_validate({"name": method.name, "target": target.name, "method": method.name})
        except ValidationError:
            # It has no defaults for everything, such as the validation sets to compare with.
            continue
        if set(method.signals(section)) <= set(signals) and not method.validation(section):
            found.append(section)
    return found
