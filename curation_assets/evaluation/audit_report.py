"""Table `method_audit`: what the scores of an audit say about each method, with intervals and verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError

from curation_assets.config.corpus_settings import Segmentation
from curation_assets.config.evaluation_settings import Audit
from curation_assets.config.settings import names_of
from curation_assets.corpus.explicit_steps import locate_steps
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.evaluation.audit import Audited, TargetScores, audit_scores, score_samples
from curation_assets.evaluation.audit_samples import ORIGINAL, AuditError, drawn_ids, kinds_of, step_at, step_spans
from curation_assets.evaluation.concordance import (
    LEVEL,
    Estimate,
    Labels,
    concordance,
    explained_share,
    win_rate,
)
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.candidates import Candidates, SelectorSection
from curation_assets.methods.selectors.registry import selector_of
from curation_assets.signals.engine import stores_of
from curation_assets.steps.segmentation import segment_frame
from curation_assets.subsets.audited import MEASURES, OF_WHAT, ORIGINALS, of_what
from curation_assets.subsets.select import features_of
from curation_assets.tables.audit import AUDIT, METHOD_AUDIT, method_audit_path
from curation_assets.workspace.limits import launched_allowance
from curation_assets.workspace.workspace import Workspace

REFERENCE = 2000
"""Samples of the pool, in the order of the draw, behind correlations and the source's share."""
LABELLED = 1200
"""Most samples, or steps, that are compared by their labels: time is quadratic in them."""
LEAST = 8
"""Prompts, on the side that has fewer of them, below which nothing is said."""
MOST_STEPS = 3000
"""Most steps of twins that are compared with one another."""
MOST_EXCLUDED = 0.9
"""Share of twins without a score from which a method excludes them, rather than ranking them."""
ALL = "all"
NO_KIND = ""
SAMPLE_LABELS = ("correct", "verified", "reward")


@dataclass(frozen=True)
class Cell:
    """A row of the table before its verdict."""

    target: str
    section: ScoreSection
    configured: bool
    kind: str
    measure: str
    within: str = ALL
    estimate: Estimate | None = None
    value: float | None = None
    samples: int = 0
    without_score: int = 0
    excluded: bool = False
    flawed_is_high: bool = False
    """For shares of flawed samples: a high value means that the method takes them."""


@dataclass(frozen=True)
class AuditResult:
    """An audit that was made.

    Attributes:
        table: table `method_audit`.
        tokens: tokens that were run through models for it.
        unfinished: the limit that stopped it; None if everything is measured.
        skipped: targets that were not audited, and why.
    """

    table: pl.DataFrame
    tokens: int
    unfinished: str | None
    skipped: Mapping[str, str]


def settings_of(workspace: Workspace, samples: int | None = None, kinds: Sequence[str] = ()) -> Audit:
    """Return the settings of an audit: those of the configuration, unless others are given.

    Raises:
        AuditError: a kind is unknown, or the number of samples is not between 1 and 2,000.
    """
    settings = workspace.settings.audit
    changes = {"samples": samples, "kinds": list(kinds) or None}
    given = settings.model_dump() | {name: value for name, value in changes.items() if value is not None}
    try:
        settings = Audit.model_validate(given)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise AuditError(f"these settings of an audit are not possible: {reasons}") from error
    kinds_of(settings)
    return settings


def write_audit(
    workspace: Workspace, settings: Audit, budget_minutes: float | None = None, labelled: int = LABELLED
) -> AuditResult:
    """Measure what is missing, and write table `method_audit`.

    Args:
        workspace: the configuration.
        settings: what to audit.
        budget_minutes: minutes of measuring on each device; None: as the configuration's limits allow.
        labelled: most samples, or steps, that are compared by their labels.

    Raises:
        AuditError: the pool has no sample that can be audited, or no target can measure now.
    """
    allowance = workspace.allowance or launched_allowance(workspace.settings.limits, workspace.warehouse)
    if budget_minutes is not None:
        if not budget_minutes >= 0.0:
            raise AuditError(f"{budget_minutes} minutes are no budget. Give a number that is not negative.")
        allowance.allow(60 * budget_minutes)
    audited = audit_scores(workspace, settings, allowance)
    if audited.unfinished and all(scores.facts.is_empty() for scores in audited.scores):
        raise AuditError(
            f"nothing was measured before the limit of {audited.unfinished}. What an earlier audit found stays."
        )
    table = report(workspace, audited, labelled)
    known = {one.target.name: of_what(workspace, one.target, tuple(one.stores), one.sections) for one in audited.scores}
    originals = audited.samples["original"].unique().sort().to_list()
    metadata = {OF_WHAT: json.dumps(known), ORIGINALS: json.dumps(originals)}
    workspace.warehouse.write_table(method_audit_path(), table, metadata)
    return AuditResult(table, audited.tokens, audited.unfinished, audited.skipped)


def report(workspace: Workspace, audited: Audited, labelled: int = LABELLED) -> pl.DataFrame:
    """Return table `method_audit`."""
    cells: list[Cell] = []
    drawn = corpus_rows(workspace, drawn_ids(workspace, workspace.settings.audit.seed).head(REFERENCE).to_list())
    for scores in audited.scores:
        pool = _reference(workspace, scores, drawn)
        for section in scores.sections:
            if _ranks(section):
                cells += _against_twins(audited.samples, scores, section)
                cells += _steps_against_twins(audited.samples, scores, section)
                cells += _against_labels(pool, section, labelled)
                cells += _explained(pool, section)
            cells += _taken(workspace, audited.samples, scores, section)
        cells += _agreement(pool)
    judged = sum(cell.estimate is not None for cell in cells)
    level = 1.0 - (1.0 - LEVEL) / max(1, judged)
    rows = [_row(cell, level) for cell in cells]
    return METHOD_AUDIT.conform(pl.DataFrame(rows, schema=METHOD_AUDIT.schema))


def _row(cell: Cell, level: float) -> dict[str, Any]:
    """Return a row with its interval and verdict; `level` is corrected for the number of cells."""
    estimate = cell.estimate
    row: dict[str, Any] = {
        "target": cell.target,
        "score": cell.section.name,
        "method": cell.section.method,
        "configured": cell.configured,
        "kind": cell.kind,
        "measure": cell.measure,
        "within": cell.within,
        "value": cell.value if estimate is None else estimate.value,
        "samples": cell.samples,
        "without_score": cell.without_score,
    }
    if cell.excluded:
        return row | {"verdict": "excluded"}
    if estimate is None:
        return row | {"verdict": "too_few" if cell.measure in MEASURES else None}
    low, high = estimate.interval()
    row |= {"low": low, "high": high, "detectable": estimate.detectable(level)}
    return row | {"verdict": verdict(estimate, level, cell.samples, cell.flawed_is_high)}


def verdict(estimate: Estimate, level: float, samples: int, flawed_is_high: bool = False) -> str:
    """Return what an estimate shows at a level: separates, at_chance, inverted or too_few."""
    if min(samples, estimate.clusters) < LEAST:
        return "too_few"
    low, high = estimate.interval(level)
    if low <= 0.5 <= high:
        return "at_chance"
    return "separates" if (low > 0.5) != flawed_is_high else "inverted"


def _ranks(section: ScoreSection) -> bool:
    """Return whether a method gives each sample a score of its own, which does not depend on the other samples."""
    selector = method_of(section).default_selector(section)
    return not _compares(selector) or selector_of(selector).validation


def _compares(selector: SelectorSection) -> bool:
    """Return whether a selector chooses a set by comparing samples, instead of ranking each by its score."""
    return selector_of(selector).order is not None


def _cell(scores: TargetScores, section: ScoreSection, kind: str, measure: str, **more: Any) -> Cell:
    return Cell(scores.target.name, section, section.name in scores.configured, kind, measure, **more)


def _oriented(scores: TargetScores, section: ScoreSection) -> pl.DataFrame:
    """Return sample_id and the value by which higher is better for the method."""
    sign = 1.0 if method_of(section).highest_first else -1.0
    return scores.values[section.name].with_columns(pl.col("value") * sign)


def pairs_of(samples: pl.DataFrame, scores: TargetScores, section: ScoreSection, kind: str) -> tuple[pl.DataFrame, int]:
    """Return prompt, original and twin with both scores; and the number of twins that have none, unlike theirs."""
    own = _oriented(scores, section)
    measured = scores.facts.select("sample_id")
    twins = samples.filter(pl.col("kind") == kind).select("sample_id", "original", "prompt_id")
    twins = twins.join(measured, on="sample_id", how="semi")
    joined = (
        twins.join(own.rename({"value": "twin"}), on="sample_id", how="left")
        .join(own.rename({"sample_id": "original", "value": "sound"}), on="original", how="inner")
        .sort("original")
    )
    return joined.drop_nulls("twin"), joined["twin"].null_count()


def _kinds(samples: pl.DataFrame) -> list[str]:
    return [kind for kind in samples["kind"].unique(maintain_order=True).sort() if kind != ORIGINAL]


def _against_twins(samples: pl.DataFrame, scores: TargetScores, section: ScoreSection) -> Iterator[Cell]:
    for kind in _kinds(samples):
        pairs, without = pairs_of(samples, scores, section, kind)
        count = len(pairs) + without
        excluded = count >= LEAST and without >= MOST_EXCLUDED * count
        sound, twin = pairs["sound"].to_numpy(), pairs["twin"].to_numpy()
        prompt = codes(pairs["prompt_id"])
        label = np.concatenate([np.ones(len(pairs)), np.zeros(len(pairs))])
        both = np.concatenate([sound, twin])
        found = {
            "auroc": concordance(both, label, np.concatenate([prompt, prompt])) if len(pairs) else None,
            "win_rate": win_rate(sound, twin, prompt),
        }
        for measure, estimate in found.items():
            yield _cell(
                scores,
                section,
                kind,
                measure,
                estimate=None if excluded else estimate,
                samples=len(pairs),
                without_score=without,
                excluded=excluded,
            )


def _steps_against_twins(samples: pl.DataFrame, scores: TargetScores, section: ScoreSection) -> Iterator[Cell]:
    """Compare changed steps with the others of their traces; a twin whose every step is changed has no others."""
    if section.name not in scores.steps:
        return
    steps = scores.steps[section.name].select("sample_id", "step_index", score="step_score")
    for kind in _kinds(samples):
        twins = samples.filter((pl.col("kind") == kind) & (pl.col("changed_steps").list.len() > 0))
        own = steps.join(twins.select("sample_id", "prompt_id", "changed_steps"), on="sample_id", how="inner")
        own = own.with_columns(changed=pl.col("step_index").is_in(pl.col("changed_steps")))
        mixed = pl.col("changed").any().over("sample_id") & ~pl.col("changed").all().over("sample_id")
        own = own.filter(mixed).sort("sample_id", "step_index").head(MOST_STEPS)
        if own.is_empty():
            continue
        sound = (~own["changed"]).cast(pl.Float64).to_numpy()
        score, prompt, trace = own["score"].to_numpy(), codes(own["prompt_id"]), codes(own["sample_id"])
        traces = int(own["sample_id"].n_unique())
        for measure, group in (("step_auroc", None), ("step_rank", trace)):
            estimate = concordance(score, sound, prompt, group)
            yield _cell(scores, section, kind, measure, estimate=estimate, samples=traces)


@dataclass(frozen=True)
class Reference:
    """Samples of the pool with their scores: those that a run has measured, or at least an audit's originals.

    Attributes:
        scores: the scores.
        rows: `prompt_id`, `source`, lengths and labels by sample_id.
        step_labels: sample_id, step_index and label, for samples whose rows label their steps.
    """

    scores: TargetScores
    rows: pl.DataFrame
    step_labels: pl.DataFrame


def _reference(workspace: Workspace, scores: TargetScores, rows: pl.DataFrame) -> Reference:
    """Score rows of the pool that are measured already; the audit's originals instead, if these are more."""
    found = score_samples(workspace, scores.target, rows, stores_of(workspace, scores.target, tuple(scores.stores)))
    audited = corpus_rows(workspace, scores.facts["sample_id"].to_list())
    if len(found.facts) < len(audited):
        found, rows = score_samples(workspace, scores.target, audited, scores.stores), audited
    return Reference(found, found.facts, step_labels(rows, workspace.settings.corpus.segmentation))


def step_labels(rows: pl.DataFrame, settings: Segmentation) -> pl.DataFrame:
    """Return the labels of steps that rows state beside their list of steps, as PRM800K and TRL's stepwise rows do.

    Args:
        rows: rows of `raw_corpus`. Labels are a list `labels` or `ratings` in `extra`, as long as `steps`.
        settings: how responses are cut. A step made of several listed ones has the lowest of their labels.

    Returns:
        sample_id, step_index and label.
    """
    stated = rows.filter(pl.col("steps").is_not_null())
    cut = step_spans(segment_frame(stated, settings))
    lowest: dict[tuple[str, int], float] = {}
    for sample_id, response, steps, extra in stated.select("sample_id", "response", "steps", "extra").iter_rows():
        document = json.loads(extra)
        labels = document.get("labels", document.get("ratings"))
        if not isinstance(labels, list) or len(labels) != len(steps):
            continue
        listed = [(step, label) for step, label in zip(steps, labels, strict=True) if step.strip()]
        spans = locate_steps(response, [step for step, _ in listed]) or ()
        for span, (_, label) in zip(spans, listed, strict=bool(spans)):
            index = step_at(cut.get(sample_id, []), span)
            if index is not None and isinstance(label, bool | int | float):
                lowest[sample_id, index] = min(lowest.get((sample_id, index), float(label)), float(label))
    found = [(sample_id, index, label) for (sample_id, index), label in lowest.items()]
    schema = {"sample_id": pl.String, "step_index": pl.Int32, "label": pl.Float64}
    return pl.DataFrame(found, schema=schema, orient="row")


def _against_labels(pool: Reference, section: ScoreSection, most: int) -> Iterator[Cell]:
    own = _oriented(pool.scores, section)
    rows = pool.rows.join(own, on="sample_id", how="inner").sort("sample_id")
    for name in SAMPLE_LABELS:
        labelled = rows.with_columns(label=pl.col(name).cast(pl.Float64)).drop_nulls("label").head(most)
        for within in (ALL, "source", "prompt"):
            yield from _labelled(pool, section, name, "auroc", within, labelled)
    if section.name in pool.scores.steps and not pool.step_labels.is_empty():
        steps = pool.scores.steps[section.name].join(pool.step_labels, on=["sample_id", "step_index"], how="inner")
        steps = steps.join(pool.rows.select("sample_id", "prompt_id", "source"), on="sample_id")
        labelled = steps.rename({"step_score": "value"}).sort("sample_id", "step_index").head(most)
        for within in (ALL, "source", "position", "trace"):
            yield from _labelled(pool, section, "steps", "step_auroc", within, labelled)


GROUPS = {"source": "source", "prompt": "prompt_id", "position": "step_index", "trace": "sample_id"}
"""By `within`, the column of what is compared."""


def _labelled(
    pool: Reference, section: ScoreSection, name: str, measure: str, within: str, rows: pl.DataFrame
) -> Iterator[Cell]:
    if rows.is_empty() or rows["label"].n_unique() < 2:
        return
    column = GROUPS.get(within)
    if column is not None and rows[column].n_unique() < 2:
        return
    group = None if column is None else codes(rows[column])
    value, label = rows["value"].to_numpy(), rows["label"].to_numpy()
    estimate = concordance(value, label, codes(rows["prompt_id"]), group)
    if estimate is not None:
        yield _cell(pool.scores, section, name, measure, within=within, estimate=estimate, samples=len(rows))


def _explained(pool: Reference, section: ScoreSection) -> Iterator[Cell]:
    """Yield what else explains a score: its source, its length, its number of steps."""
    rows = pool.rows.join(pool.scores.values[section.name], on="sample_id", how="inner")
    share = explained_share(rows["value"].to_numpy(), codes(rows["source"])) if len(rows) else None
    yield _cell(pool.scores, section, NO_KIND, "source_share", value=share, samples=len(rows))
    for measure, column in (("tokens", "response_tokens"), ("steps", "n_steps")):
        found = spearman(rows["value"], rows[column])
        yield _cell(pool.scores, section, NO_KIND, measure, value=found, samples=len(rows))


def spearman(left: pl.Series, right: pl.Series) -> float | None:
    """Return Spearman's correlation; None if either side is constant."""
    if len(left) < 3 or left.n_unique() < 2 or right.n_unique() < 2:
        return None
    found = pl.select(pl.corr(pl.lit(left), pl.lit(right), method="spearman")).item()
    return None if found is None or not np.isfinite(found) else float(found)


def _agreement(pool: Reference) -> Iterator[Cell]:
    """Yield Spearman's correlation of each pair of scores of samples."""
    ranked = [section for section in pool.scores.sections if _ranks(section)]
    for left, right in combinations(ranked, 2):
        both = pool.scores.values[left.name].join(pool.scores.values[right.name], on="sample_id", suffix="_right")
        found = spearman(both["value"], both["value_right"])
        yield _cell(pool.scores, left, NO_KIND, "agreement", within=right.name, value=found, samples=len(both))


def _taken(workspace: Workspace, samples: pl.DataFrame, scores: TargetScores, section: ScoreSection) -> Iterator[Cell]:
    """Let selectors that compare samples take half of originals and twins together, and count the twins."""
    method = method_of(section)
    chosen_by = [method.default_selector(section)]
    for subset in workspace.settings.subsets:
        if section.name in names_of(subset.score) and subset.selector is not None:
            chosen_by.append(subset.selector)
    for selector in {one.model_dump_json(): one for one in chosen_by if _compares(one)}.values():
        for kind in _kinds(samples):
            pairs, without = pairs_of(samples, scores, section, kind)
            if pairs.is_empty():
                continue
            share = _flawed_share(workspace, scores, section, selector, pairs)
            if share is None:
                continue
            # Half of twice as many are drawn without replacement: their variance is that of 2 n - 1 draws.
            half = len(pairs)
            estimate = Estimate(share, 0.5 / float(np.sqrt(2 * half - 1)), 2 * half - 1, half)
            yield _cell(
                scores,
                section,
                kind,
                "flawed_share",
                within=selector.kind,
                estimate=estimate,
                samples=half,
                without_score=without,
                flawed_is_high=True,
            )


def _flawed_share(
    workspace: Workspace, scores: TargetScores, section: ScoreSection, selector: SelectorSection, pairs: pl.DataFrame
) -> float | None:
    """Return the share of twins in the first half of a selector's order; None if it takes nothing."""
    method, half, order = method_of(section), len(pairs), selector_of(selector).order
    assert order is not None
    ids = pl.concat([pairs["original"], pairs["sample_id"]])
    pool = pl.DataFrame({"sample_id": ids}).join(scores.facts, on="sample_id", how="left", maintain_order="left")
    own = scores.values[section.name]
    score = pool.select("sample_id").join(own, on="sample_id", how="left", maintain_order="left")["value"].to_numpy()
    features, may = features_of(workspace, section, AUDIT), np.ones(len(pool), dtype=np.bool_)
    taken = order(selector, Candidates(pool, score, may, method.highest_first, half, features)).order[:half]
    return float((taken >= half).mean()) if len(taken) else None


def codes(column: pl.Series) -> Labels:
    """Return each value's number, from 0, in the order of first occurrence."""
    found: Labels = column.cast(pl.String).rank("dense").cast(pl.Int64).to_numpy() - 1
    return found
