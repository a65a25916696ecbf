"""Preview a subset with another score, selector or budget, from stored signals: no model, and nothing is stored.

A change names a parameter of the subset's score (`alpha=0.5`, `method=grape`), or, prefixed with its section, one of
the subset (`selector.k=2`, `filters.correct=true`, `stratify=[source]`, `from=other`). Values are YAML.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from curation_assets import tables
from curation_assets.config.config_file import mistakes
from curation_assets.config.settings import Budget, Filters, Settings, Subset, Target
from curation_assets.corpus.duplicates import all_distinct, resolve_duplicates
from curation_assets.methods.combined import Combined
from curation_assets.methods.method import ScoreInputs, ScoreSection
from curation_assets.methods.registry import METHODS, method_of
from curation_assets.quality.filtered_pool import pool_table
from curation_assets.signals.held_out import validation_vectors
from curation_assets.signals.store import SignalStore
from curation_assets.subsets.choose_in_duckdb import POOL_COLUMNS
from curation_assets.subsets.eligibility import marked_right
from curation_assets.subsets.facts import LENGTHS, Selection, emptied, source_advice, standardised_text
from curation_assets.subsets.select import (
    SelectionError,
    beside_of,
    in_pieces,
    narrowed,
    present_rows,
    select_from,
    values_beside,
)
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.sections import unknown

OF_SUBSET = ("from", "score", "selector", "filters", "stratify", "standardise", "budget")

CONDITION = re.compile(
    r"(?P<score>[a-z][a-z0-9_]*)\s*(?:(?P<sign>>=|<=)\s*(?P<bound>[-+.\w]+)"
    r"|:?\s+(?P<end>top|bottom)\s+(?P<share>[.\deE-]+\s*%?)(?:\s+within\s+(?P<within>\w+))?)"
)
"""A threshold as a command takes it: `difficulty >= 3`, `grape top 50% within prompt`."""


@dataclass(frozen=True)
class WhatIf:
    """A preview of a subset.

    Attributes:
        subset: the subset with the changes.
        score: its score with the changes.
        rows: table `subset` as it would be.
        selection: the facts about its selection.
        current: table `subset` as stored; None if it has not been made.
        samples: `sample_id`, `source`, LENGTHS and `marked_right` of the samples in either.
        unknown: names in the filters of sources or generators that no sample has: column and name.
        unfaithful: differences between target, parameters or pool and the method's source.
    """

    subset: Subset
    score: ScoreSection
    rows: pl.DataFrame
    selection: Selection
    current: pl.DataFrame | None
    samples: pl.DataFrame
    unknown: Sequence[tuple[str, str]] = ()
    unfaithful: Sequence[str] = ()

    def difference(self) -> dict[str, int | float | None]:
        """Return how the subset would differ from the current one; None for values that do not exist."""
        found: dict[str, int | float | None] = {"selected": len(self.rows), **self._means(self.rows, "")}
        if self.current is None:
            return found
        kept = len(self.rows.join(self.current, on="sample_id", how="semi"))
        union = len(self.rows) + len(self.current) - kept
        return found | {
            "selected_now": len(self.current),
            **self._means(self.current, "_now"),
            "kept": kept,
            "added": len(self.rows) - kept,
            "removed": len(self.current) - kept,
            "overlap_jaccard": kept / union if union else None,
        }

    def _means(self, rows: pl.DataFrame, suffix: str) -> dict[str, float | None]:
        """Return mean lengths, and the share marked right if any sample of the pool is marked."""
        own = self.samples.join(rows, on="sample_id", how="semi")
        means = {"mean_tokens": own["response_tokens"].mean(), "mean_steps": own["n_steps"].mean()}
        if self.selection.summary.marks.marked:
            means["share_right"] = own["marked_right"].mean()
        return {f"{name}{suffix}": float(mean) if isinstance(mean, float) else None for name, mean in means.items()}

    def side_by_side(self) -> list[tuple[str, int | float | None, int | float | None]]:
        """Return the properties of the current subset next to those of the preview."""
        found, facts = self.difference(), self.selection.facts()
        rows: list[tuple[str, int | float | None, int | float | None]] = [
            (name.replace("_", " "), found.get(f"{name}_now"), found[name])
            for name in ("selected", "mean_tokens", "mean_steps", "share_right")
            if name in found
        ]
        facts.pop("share_right_selected", None)
        now = None if self.current is None else self.current["score"].mean()
        rows.append(("mean score", now if isinstance(now, float) else None, facts.pop("mean_score_selected")))
        return rows + [(name.replace("_", " "), None, value) for name, value in facts.items() if name != "selected"]

    def remarks(self) -> list[str]:
        """Return remarks about the selection that the user should know."""
        found = [f"no sample in the pool has {column} {name!r}" for column, name in self.unknown]
        nothing = emptied(self.selection.funnel)
        if nothing is not None:
            found.append(nothing)
        elif self.selection.whole:
            found.append("the budget is larger than everything that can be chosen; all of it is shown")
        share, within_sources = self.selection.summary.variance_by_source, self.subset.compares_within_sources
        advice = source_advice(self.score.name, share, within_sources)
        found += [] if advice is None else [advice]
        if self.subset.standardise is not None:
            found.append(f"ranked by {standardised_text(self.score.name)}")
        return found + [f"differs from the source: {reason}" for reason in self.unfaithful]

    def difference_line(self) -> str:
        """Return a one-line summary of samples kept, added and removed."""
        found = self.difference()
        if self.current is None:
            return "the subset has not been made yet, so there is nothing to compare with"
        return (
            f"{found['kept']} kept, {found['added']} added, {found['removed']} removed "
            f"(Jaccard overlap {found['overlap_jaccard'] or 0.0:.2f})"
        )

    def sources(self) -> pl.DataFrame:
        """Return sample counts by source: in the pool, in the current subset, and in the preview."""
        counts = self.selection.summary.sources
        current = self.samples.clear() if self.current is None else self.current
        now = self.samples.join(current, on="sample_id", how="semi").group_by("source").agg(now=pl.len())
        counts = counts.join(now, on="source", how="left", nulls_equal=True).with_columns(pl.col("now").fill_null(0))
        counts = counts.select("source", "pool", pl.col("now").cast(pl.Int64), "selected")
        return counts.sort("pool", "source", descending=[True, False])


def what_if(
    workspace: Workspace,
    name: str,
    changes: Sequence[str] = (),
    budget: str | None = None,
    conditions: Sequence[str] = (),
) -> WhatIf:
    """Preview a subset with changed parameters, from stored signals.

    Args:
        workspace: the configuration.
        name: the subset to change.
        changes: changes as `parameter=value`; see the head of this module.
        budget: `10%`, `1000` (samples) or `500000 tokens` instead of the subset's.
        conditions: thresholds after those of the subset: `difficulty >= 3`, `grape top 50% within prompt`.

    Raises:
        SelectionError: there is no such subset or parameter, a value is not allowed, or a signal is not measured.
    """
    subset, score = changed(workspace.settings, name, changes, budget, conditions)
    target = workspace.settings.target(score.target)
    pieces = [tables.SUBSET.empty()]
    present, count = present_rows(workspace, target)
    rows_read = present.select(*POOL_COLUMNS, *values_beside(workspace, subset, target.name))
    rows_read, beside = narrowed(workspace, rows_read, beside_of(workspace, subset))
    scored, duplicates = _scored(workspace, target, score, rows_read, count)
    selection = select_from(workspace, subset, score, scored, pieces.append, beside, duplicates)
    rows, path = pl.concat(pieces), tables.subset_path(name)
    stored = workspace.warehouse.read_table(path) if workspace.warehouse.table_metadata(path) else None
    ids = pl.concat([rows.select("sample_id"), *([] if stored is None else [stored.select("sample_id")])])
    facts = present.select("sample_id", "source", *LENGTHS, marked_right=marked_right())
    samples = facts.join(ids.lazy(), on="sample_id", how="semi").unique("sample_id").collect(engine="streaming")
    unfaithful = [*method_of(score).unfaithful(target.facts(), score), *selection.warnings]
    unknown_names = [
        *(
            ("source", name)
            for name in sorted({*(subset.filters.sources or ())} - {*selection.summary.sources["source"]})
        ),
        *(("generator", name) for name in _unknown_generators(workspace, present, subset.filters)),
    ]
    return WhatIf(subset, score, rows, selection, stored, samples, unknown_names, unfaithful)


def _unknown_generators(workspace: Workspace, present: pl.LazyFrame, filters: Filters) -> list[str]:
    """Return the generators in a subset's filters that no sample of the pool has."""
    named = {*(filters.generators or ()), *(filters.exclude_generators or ())}
    if not named:
        return []
    filtered = pool_table(workspace)
    if filtered is not None:
        present = present.join(filtered.filter(pl.col("reason").is_not_null()), on="sample_id", how="anti")
    return sorted(named - {*present.select(pl.col("generator").unique()).collect(engine="streaming")["generator"]})


def changed(
    settings: Settings, name: str, changes: Sequence[str], budget: str | None, conditions: Sequence[str] = ()
) -> tuple[Subset, ScoreSection]:
    """Return the subset and its score with changes applied; see `what_if`."""
    names = [subset.name for subset in settings.subsets]
    if name not in names:
        raise SelectionError(unknown("subset", name, names))
    # Only explicitly set values: a preset must not be overridden by a default.
    document = settings.model_dump(exclude_unset=True)
    place_of_subset = names.index(name)
    of_subset = document["subsets"][place_of_subset]
    for written, score in zip(document["scores"], settings.scores, strict=True):
        written["method"] = score.method
    parsed = [_parsed(change) for change in changes]
    for path, value in parsed:
        # Another score first: it has the parameters that other changes mean.
        if path[0] == "score":
            _put(of_subset, path, value)
    places = {("subsets", place_of_subset)}
    names = [score.name for score in settings.scores]
    if of_subset["score"] in names:
        place_of_score = names.index(of_subset["score"])
        places.add(("scores", place_of_score))
        _apply(of_subset, document["scores"][place_of_score], parsed)
    else:
        # A combination, or a score that does not exist, which the validation reports.
        _apply(of_subset, None, parsed)
    if budget is not None:
        of_subset["budget"] = parse_budget(budget).model_dump(exclude_none=True)
    if conditions:
        filters = of_subset.get("filters") or {}
        thresholds = [*filters.get("scores", []), *(parse_condition(text) for text in conditions)]
        of_subset["filters"] = filters | {"scores": thresholds}
    made = _validated(document, places)
    subset = made.subsets[place_of_subset]
    score = made.score_of(subset)
    _check_validation(settings, score)
    return subset, score


def _apply(of_subset: dict[str, Any], of_score: dict[str, Any] | None, parsed: Sequence[tuple[list[str], Any]]) -> None:
    """Apply changes to the sections of a subset and of its score; None: a combination, which has no section."""
    if of_score is None:
        for path, value in parsed:
            if path[0] not in OF_SUBSET:
                raise SelectionError(
                    f"{unknown('parameter', path[0], OF_SUBSET)} (the score is a combination, whose parameters are "
                    "score.combine.NAME, score.by and score.within)"
                )
            if path[0] != "score":
                _put(of_subset, path, value)
        return
    methods = [value for path, value in parsed if path == ["method"]]
    method = METHODS.get(str(methods[-1] if methods else of_score["method"]))
    if method is None:
        raise SelectionError(unknown("method", str(methods[-1]), METHODS))
    if method.name != of_score["method"]:
        # Another method has its own parameters; keep those that both share.
        for key in set(of_score) - set(method.section.model_fields):
            del of_score[key]
        of_score["method"] = method.name
        of_subset.pop("selector", None)
    if any(path == ["selector", "kind"] for path, _ in parsed):
        # Another kind has its own parameters.
        of_subset.pop("selector", None)
    elif any(path[0] == "selector" for path, _ in parsed) and not of_subset.get("selector"):
        of_subset["selector"] = method.selector.model_dump()
    for path, value in parsed:
        if path[0] == "score":
            continue
        known = OF_SUBSET if path[0] in OF_SUBSET else tuple(method.section.model_fields)
        if path[0] not in known:
            parameters = [name for name in known if name not in ("name", "target")]
            raise SelectionError(
                f"{unknown('parameter', path[0], [*parameters, *OF_SUBSET])} (of method {method.name}, or of the "
                f"subset: {', '.join(OF_SUBSET)})"
            )
        _put(of_subset if path[0] in OF_SUBSET else of_score, path, value)


def _validated(document: dict[str, Any], places: Container[tuple[object, object]]) -> Settings:
    """Validate a document as settings; report errors by the keys below the changed sections."""
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        reasons = [
            f"{'.'.join(map(str, keys[2:] if tuple(keys[:2]) in places else keys))}: {reason}"
            for keys, _, reason in mistakes(error, document)
        ]
        raise SelectionError("\n".join(dict.fromkeys(reasons))) from error


def _check_validation(settings: Settings, score: ScoreSection) -> None:
    """Reject a set that no configured score uses with the same signal, since no run would measure it."""
    method = method_of(score)
    signal = method.validation_signals(score)[0] if method.validation(score) else None
    measured = {
        (name, method_of(other).validation_signals(other)[0])
        for other in settings.scores_of(score.target)
        for name in method_of(other).validation(other)
    }
    for validation in method.validation(score):
        if (validation, signal) not in measured:
            raise SelectionError(
                f"no score of target {score.target!r} measures {signal} of validation set {validation!r}. Add a score "
                f"with method: {method.name} and validation: {validation} to curation.yaml, and run `curate run`."
            )


def parse_budget(text: str) -> Budget:
    """Parse a budget such as `10%`, `0.1`, `1000` or `500000 tokens`.

    Raises:
        SelectionError: the text is not a budget.
    """
    said = text.strip().lower().replace(",", "").replace("_", "")
    try:
        if said.endswith("%"):
            # Parse the decimal as written: 7% is 0.07, not 0.07000000000000001.
            return Budget(fraction=float(f"{said[:-1].strip()}e-2"))
        if said.endswith("tokens"):
            return Budget(tokens=int(said.removesuffix("tokens")))
        number = said.removesuffix("samples").strip()
        return Budget(samples=int(number)) if number.isdigit() else Budget(fraction=float(number))
    except ValueError:
        raise SelectionError(
            f"{text!r} is not a budget. Write a fraction (10%), a number of samples (1000) or tokens (500000 tokens)."
        ) from None


def parse_condition(text: str) -> dict[str, Any]:
    """Parse a threshold such as `difficulty >= 3` or `grape top 50% within prompt`, as configuration holds it.

    Raises:
        SelectionError: the text is not a threshold.
    """
    found = CONDITION.fullmatch(text.strip())
    wrong = SelectionError(
        f"{text!r} is not a condition. Write SCORE >= NUMBER, SCORE <= NUMBER, or SCORE top 50% (or bottom 50%), "
        "followed by 'within source', 'within domain' or 'within prompt' if it is a share of each."
    )
    if found is None:
        raise wrong
    try:
        if found["sign"]:
            return {"score": found["score"], "at_least" if found["sign"] == ">=" else "at_most": float(found["bound"])}
        share = found["share"]
        # Parse the decimal as written: 7% is 0.07, not 0.07000000000000001.
        part = float(f"{share[:-1].strip()}e-2") if share.endswith("%") else float(share)
        if not share.endswith("%") and part > 1:
            raise SelectionError(f"{text!r}: a share is at most 1. For a percentage, write {share}%.")
    except ValueError:
        raise wrong from None
    within = {"within": found["within"]} if found["within"] else {}
    return {"score": found["score"], found["end"]: part} | within


def _parsed(change: str) -> tuple[list[str], Any]:
    path, equals, value = change.partition("=")
    if not equals or not path.strip():
        raise SelectionError(f"{change!r} is not a change. Write parameter=value, as in alpha=0.5 or selector.k=2.")
    try:
        return path.strip().split("."), YAML(typ="safe").load(value)
    except YAMLError as error:
        raise SelectionError(f"{change!r}: the value is not valid YAML: {error}") from error


def _put(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        inner = document.get(key)
        document[key] = inner if isinstance(inner, dict) else {}
        document = document[key]
    document[path[-1]] = value


def _scored(
    workspace: Workspace, target: Target, score: ScoreSection, facts: pl.LazyFrame, count: int
) -> tuple[Iterable[pl.DataFrame], int | None]:
    """Return rows with the score in column `score`, recomputed from stored signals, as `select_from` takes them.

    Up to `engine.rows_in_memory` rows, copies are removed and each signal is read once as a whole. Beyond, copies stay,
    and signals are read for a batch of rows at a time.
    """
    if isinstance(score, Combined):
        return in_pieces(facts.with_columns(score=pl.lit(None, dtype=pl.Float64))), None
    stores = {signal: SignalStore.of(workspace, target, signal) for signal in method_of(score).signals(score)}
    stored: dict[SignalName, pl.LazyFrame] = {}
    for signal, store in stores.items():
        scan = store.scan()
        if scan is None:
            raise SelectionError(f"target {target.name} has no {signal} yet. Run `curate run`.")
        stored[signal] = scan.select("sample_id", *method_of(score).reads[signal])
    validation = validation_vectors(workspace, target, score)
    if count <= workspace.settings.engine.rows_in_memory:
        pool = resolve_duplicates(facts)
        signals = {signal: _once(scan.collect()) for signal, scan in stored.items()}
        return [derive(pool.rows, signals, score, validation)], pool.duplicates

    def batches() -> Iterator[pl.DataFrame]:
        for rows in in_pieces(facts):
            samples, found = _once(rows), dict[SignalName, pl.DataFrame]()
            for signal, scan in stored.items():
                own = stores[signal].rows(samples["sample_id"])
                columns = scan.collect_schema()
                found[signal] = pl.DataFrame(schema=columns) if own is None else own.select(columns.names())
            values = derive(samples, found, score, validation).select("sample_id", "score")
            yield rows.join(values, on="sample_id", how="left")

    return batches(), None


def derive(
    samples: pl.DataFrame,
    signals: Mapping[SignalName, pl.DataFrame],
    score: ScoreSection,
    validation: Mapping[str, NDArray[np.float32]] | None = None,
) -> pl.DataFrame:
    """Compute a score; return the samples with it in column `score`.

    Args:
        samples: rows of `sample_scores` (POOL_COLUMNS), each sample once.
        signals: the signals that the score is computed from, each sample once.
        score: the method and its parameters.
        validation: embeddings of the validation sets that the score compares with.
    """
    inputs = ScoreInputs(samples, signals, steps=False, validation=validation or {})
    values = method_of(score).score(inputs, score).values
    # Only ids are joined, so that the other columns are not gathered again.
    found = samples.select("sample_id").join(values, on="sample_id", how="left", maintain_order="left")
    return samples.with_columns(score=found["value"])


def _once(rows: pl.DataFrame) -> pl.DataFrame:
    """Return each sample once: two processes may have measured the same one."""
    return rows if all_distinct(rows["sample_id"]) else rows.unique("sample_id", keep="first")
