"""The facts about a selection: rows of table `subset`, their digest, and statistics of the pool and the subset.

They are identical to the bit regardless of the order of rows and of how these are cut into pieces, and their size does
not grow with the pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.methods.exact_sums import ExactSum
from curation_assets.subsets.thresholds import Stage
from curation_resources.plots import BINS, wide_range
from curation_resources.storage.digests import RunningDigest, digest

POINTS = 10_000
"""Maximum number of samples in a scatter plot: those with the lowest ids, which are hashes."""

MOST_SOURCES = 1000
"""Maximum number of sources whose share of the variance is computed: each takes an exact sum of its own."""

LENGTHS = ("n_steps", "response_tokens")
POOL_FACTS = ("source", "score", "eligible", "marked_right", *LENGTHS)
"""Columns of the pool that a summary reads; of chosen rows it reads CHOSEN_FACTS."""
CHOSEN_FACTS = ("source", "score", "low_signal", "marked_right", "response_tokens")

SOURCES: dict[str, Any] = {"source": pl.String, "pool": pl.Int64, "selected": pl.Int64}
POINT_FACTS: dict[str, Any] = {"response_tokens": pl.Int32, "score": pl.Float64}
"""Columns of a summary's two frames."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Marks:
    """Numbers of samples that are marked, and of those marked right (`eligibility.marked_right`)."""

    marked: int = 0
    right: int = 0

    @property
    def share(self) -> float | None:
        """The share of marked samples that are marked right; None without any."""
        return self.right / self.marked if self.marked else None

    def adding(self, marks: pl.Series) -> Marks:
        """Return the numbers with those of further samples."""
        return Marks(self.marked + marks.count(), self.right + int(marks.sum() or 0))


@dataclass(frozen=True)
class Summary:
    """Summary of a pool and a subset of it.

    Attributes:
        pool: number of samples.
        eligible: samples that pass filters and `min_steps`.
        ranked: eligible samples with a finite score.
        selected: samples of the subset.
        low_signal: samples of the subset whose answer has almost no gradient.
        mean: mean of all finite scores of the pool; None without any.
        deviation: their standard deviation (n - 1); None for fewer than two.
        mean_ranked: mean score of ranked samples.
        mean_selected: mean score of the subset.
        correlations: Pearson's r of the score with each of LENGTHS over ranked samples; None if either is constant.
        variance_by_source: share of the variance of ranked scores that the source explains, corrected for the number of
            sources (epsilon squared); None if there is one source or more than MOST_SOURCES, or nothing varies.
        edges: bin edges of a histogram of finite scores [BINS + 1].
        pool_counts: scores of the pool in each bin.
        selected_counts: scores of the subset in each bin.
        marks: marks of the pool.
        selected_marks: marks of the subset.
        sources: one row per source: `source`, samples in the `pool`, samples `selected`; sorted by source.
        points: `response_tokens` and `score` of up to POINTS samples with a finite score.
    """

    pool: int
    eligible: int
    ranked: int
    selected: int
    low_signal: int
    mean: float | None
    deviation: float | None
    mean_ranked: float | None
    mean_selected: float | None
    correlations: dict[str, float | None]
    variance_by_source: float | None
    edges: list[float]
    pool_counts: list[int]
    selected_counts: list[int]
    marks: Marks
    selected_marks: Marks
    sources: pl.DataFrame
    points: pl.DataFrame

    def document(self) -> dict[str, Any]:
        """Return the summary as JSON; `of_document` is the inverse."""
        frames = {"sources": self.sources, "points": self.points}
        columns = {name: frame.to_dict(as_series=False) for name, frame in frames.items()}
        marks = {name: asdict(getattr(self, name)) for name in ("marks", "selected_marks")}
        return {field.name: getattr(self, field.name) for field in fields(self)} | columns | marks

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Summary:
        """Return a stored summary."""
        sources, points = (
            pl.DataFrame(document[name], schema) for name, schema in (("sources", SOURCES), ("points", POINT_FACTS))
        )
        marks = {name: Marks(**document[name]) for name in ("marks", "selected_marks")}
        return cls(**{**document, **marks, "sources": sources, "points": points})


class Bins:
    """Incremental histogram with bins of equal width between two ends."""

    def __init__(self, low: float, high: float) -> None:
        self.range = wide_range(low, high)
        self.counts = np.zeros(BINS, dtype=np.int64)

    def add(self, values: Numbers) -> None:
        """Count finite numbers [n] between the ends."""
        self.counts += np.histogram(values, BINS, self.range)[0]

    def edges(self) -> list[float]:
        """Return the bin edges, ascending [BINS + 1]."""
        return [float(edge) for edge in np.linspace(*self.range, BINS + 1)]


class Summing:
    """Builds a summary: the pool immediately, the subset as its pieces arrive.

    Args:
        pool: returns the pool's rows (POOL_FACTS), in pieces; it is called twice.
        points: see `Summary`.

    Attributes:
        tokens: response tokens of the rows of the subset so far.
    """

    def __init__(self, pool: Callable[[], Iterable[pl.DataFrame]], points: pl.DataFrame) -> None:
        self._points = points
        self._pool = self._eligible = self._low_signal = 0
        self.tokens = 0
        self._scores, self._ranked, self._selected = ExactSum(), ExactSum(), ExactSum()
        self._marks = self._selected_marks = Marks()
        self._pairs = {name: (ExactSum(), ExactSum()) for name in LENGTHS}
        self._by_source: dict[str | None, ExactSum] = {}
        self._sources = {"pool": _no_sources(), "selected": _no_sources()}
        low, high = math.inf, -math.inf
        for rows in pool():
            self._first_look(rows)
            scores = _finite(rows["score"])
            low, high = min(low, scores.min(initial=math.inf)), max(high, scores.max(initial=-math.inf))
        ends = (low, high) if self._scores.count else (0.0, 1.0)
        self._pool_bins, self._selected_bins = Bins(*ends), Bins(*ends)
        self._squares, self._ranked_squares = ExactSum(), ExactSum()
        self._products = {name: (ExactSum(), ExactSum(), ExactSum()) for name in LENGTHS}
        for rows in pool():
            self._second_look(rows)

    def _first_look(self, rows: pl.DataFrame) -> None:
        self._pool += len(rows)
        self._eligible += int(rows["eligible"].sum())
        self._marks = self._marks.adding(rows["marked_right"])
        self._count_sources("pool", rows)
        self._scores.add(_finite(rows["score"]))
        ranked = _ranked(rows)
        self._ranked.add(ranked["score"].to_numpy())
        if len(self._by_source) <= MOST_SOURCES:
            for (source,), own in ranked.select("source", "score").group_by("source"):
                self._by_source.setdefault(source, ExactSum()).add(own["score"].to_numpy())
        for name, sums in self._pairs.items():
            for sum_, values in zip(sums, _pairs(ranked, name), strict=True):
                sum_.add(values)

    def _second_look(self, rows: pl.DataFrame) -> None:
        """Add squared distances from the means, which the first pass computed."""
        scores, mean = _finite(rows["score"]), self._scores.mean()
        self._pool_bins.add(scores)
        if mean is not None:
            self._squares.add(_product(scores - mean, scores - mean))
        ranked = _ranked(rows)
        if (centre := self._ranked.mean()) is not None:
            distances = ranked["score"].to_numpy() - centre
            self._ranked_squares.add(_product(distances, distances))
        for name, sums in self._pairs.items():
            of_score, of_length = (sum_.mean() for sum_ in sums)
            if of_score is None or of_length is None:
                continue
            score, length = _pairs(ranked, name)
            x, y = score - of_score, length - of_length
            for sum_, values in zip(self._products[name], ((x, x), (y, y), (x, y)), strict=True):
                sum_.add(_product(*values))

    def choose(self, rows: pl.DataFrame) -> None:
        """Add rows of the subset (CHOSEN_FACTS)."""
        self._low_signal += int(rows["low_signal"].sum())
        self.tokens += int(rows["response_tokens"].sum() or 0)
        self._selected_marks = self._selected_marks.adding(rows["marked_right"])
        self._count_sources("selected", rows)
        scores = rows["score"].to_numpy()
        self._selected.add(scores)
        self._selected_bins.add(scores)

    def summary(self) -> Summary:
        """Return the complete summary."""
        count = self._scores.count
        variance = self._squares.value() / (count - 1) if count > 1 else None
        sources = self._sources["pool"].rename({"count": "pool"})
        chosen = self._sources["selected"].rename({"count": "selected"})
        return Summary(
            pool=self._pool,
            eligible=self._eligible,
            ranked=self._ranked.count,
            selected=self._selected.count,
            low_signal=self._low_signal,
            mean=self._scores.mean(),
            deviation=None if variance is None else math.sqrt(variance),
            mean_ranked=self._ranked.mean(),
            mean_selected=self._selected.mean(),
            correlations={name: _correlation(*sums) for name, sums in self._products.items()},
            variance_by_source=self._variance_by_source(),
            edges=self._pool_bins.edges(),
            pool_counts=self._pool_bins.counts.tolist(),
            selected_counts=self._selected_bins.counts.tolist(),
            marks=self._marks,
            selected_marks=self._selected_marks,
            sources=sources.join(chosen, on="source", how="left", nulls_equal=True)
            .with_columns(pl.col("selected").fill_null(0))
            .sort("source"),
            points=self._points,
        )

    def _variance_by_source(self) -> float | None:
        total, centre = self._ranked_squares.value() if self._ranked.count else 0.0, self._ranked.mean()
        count, groups = self._ranked.count, len(self._by_source)
        if groups > MOST_SOURCES or centre is None or groups < 2 or count <= groups or not total > 0.0:
            return None
        means = [(own.count, own.mean() or 0.0) for own in self._by_source.values()]
        # Sorted, so that the sum does not depend on the order of rows.
        between = math.fsum(sorted(size * (mean - centre) ** 2 for size, mean in means))
        return epsilon_squared(total - between, total, count, groups)

    def _count_sources(self, of: str, rows: pl.DataFrame) -> None:
        found = rows.group_by("source").agg(count=pl.len().cast(pl.Int64))
        self._sources[of] = pl.concat([self._sources[of], found]).group_by("source").agg(pl.col("count").sum())


def epsilon_squared(within: float, total: float, count: int, groups: int) -> float:
    """Return the share of a variance that groups explain, corrected for their number.

    Args:
        within: sum of squared distances from the means of the groups.
        total: sum of squared distances from the mean of all.
        count: how many values there are, more than groups.
        groups: number of groups.
    """
    return max(0.0, 1.0 - within / total * (count - 1) / (count - groups))


def _no_sources() -> pl.DataFrame:
    return pl.DataFrame(schema={"source": pl.String, "count": pl.Int64})


def _finite(scores: pl.Series) -> Numbers:
    found: Numbers = scores.drop_nulls().to_numpy()
    return found[np.isfinite(found)]


def _ranked(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("eligible") & pl.col("score").is_finite())


def _pairs(ranked: pl.DataFrame, length: str) -> tuple[Numbers, Numbers]:
    """Return scores and lengths of the rows that have both."""
    both = ranked.select("score", pl.col(length).cast(pl.Float64)).drop_nulls()
    return both["score"].to_numpy(), both[length].to_numpy()


def _product(left: Numbers, right: Numbers) -> Numbers:
    # An overflow makes the sum NaN, which the summary shows.
    with np.errstate(over="ignore"):
        return left * right


def _correlation(of_score: ExactSum, of_length: ExactSum, of_both: ExactSum) -> float | None:
    scale = math.sqrt(of_score.value()) * math.sqrt(of_length.value())
    return of_both.value() / scale if scale else None


PIECE_ROWS = 500_000
"""Rows of a subset to write, or hash, at a time."""


@dataclass(frozen=True)
class Selection:
    """The facts about a selection.

    Attributes:
        summary: summary of the pool and of the subset.
        content_digest: digest of the rows; equal for equal subsets.
        duplicates: rows of the corpus that are exact copies of a row in the pool.
        filtered: samples removed from the pool by the corpus' filters, by reason.
        left_out: eligible samples with a score that the selector takes under no budget, by reason.
        whole: whether the budget is larger than everything that could be chosen.
        held_out: samples of the pool whose prompt is in a validation set of the score; None without a set.
        warnings: properties of the pool that the method's source excludes, each as a clause.
        standardised_sources: number of sources within which scores were standardised before ranking; None: they were
            not. The summary is of scores as they are.
        flat_sources: those in which z is 0 for all samples: with one sample, or equal scores.
        funnel: what each stage left, from the whole pool to the subset, through all subsets that it is chosen from.
    """

    summary: Summary
    content_digest: str
    duplicates: int
    filtered: Mapping[str, int]
    left_out: Mapping[str, int]
    whole: bool
    held_out: int | None = None
    warnings: Sequence[str] = ()
    standardised_sources: int | None = None
    flat_sources: int = 0
    funnel: Sequence[Stage] = ()

    def document(self) -> dict[str, Any]:
        """Return everything as JSON; `of_document` is the inverse."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        funnel = [asdict(stage) for stage in self.funnel]
        return own | {"summary": self.summary.document(), "warnings": list(self.warnings), "funnel": funnel}

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Selection:
        """Return a stored selection."""
        summary, warnings = Summary.of_document(document["summary"]), tuple(document.get("warnings", ()))
        funnel = tuple(Stage(**stage) for stage in document["funnel"])
        return cls(**{**document, "summary": summary, "warnings": warnings, "funnel": funnel})

    def score_distribution(self) -> dict[str, float | None]:
        """Return mean and standard deviation of the pool's scores."""
        return {"mean": self.summary.mean, "std": self.summary.deviation}

    def facts(self) -> dict[str, float | int | None]:
        """Return counts, the shares marked right if any sample of the pool is marked, and the biases known of GRACE:
        corr(V, K) and corr(V, tokens)."""
        summary = self.summary
        return {
            "pool": summary.pool,
            "duplicates_left_out": self.duplicates,
            **{f"filtered_{reason}": count for reason, count in sorted(self.filtered.items())},
            "eligible": summary.eligible,
            "without_score": summary.eligible - summary.ranked,
            **({} if self.held_out is None else {"prompts_in_validation_sets": self.held_out}),
            **self._standardised(),
            "selected": summary.selected,
            "low_signal_selected": summary.low_signal,
            **{f"left_out_{reason}": count for reason, count in sorted(self.left_out.items())},
            **right_facts(summary.marks, summary.selected_marks),
            "correlation_with_steps": summary.correlations["n_steps"],
            "correlation_with_tokens": summary.correlations["response_tokens"],
            "variance_by_source": summary.variance_by_source,
            "mean_score_selected": summary.mean_selected,
            "mean_score_pool": summary.mean_ranked,
        }

    def _standardised(self) -> dict[str, float | int | None]:
        if self.standardised_sources is None:
            return {}
        return {"standardised_sources": self.standardised_sources, "sources_without_deviation": self.flat_sources}


FUNNEL_COLUMNS = ("subset", "stage", "samples", "tokens", "marked right")


def funnel_rows(funnel: Sequence[Stage]) -> list[tuple[str, str, str, str, str]]:
    """Return a funnel as texts: what each stage left, and which samples a threshold dropped for want of a score."""
    return [
        (
            stage.subset,
            f"{stage.name} ({stage.no_value:,} without this score)" if stage.no_value else stage.name,
            f"{stage.samples:,}",
            f"{stage.tokens:,}",
            "" if stage.share_right is None else f"{stage.share_right:.1%}",
        )
        for stage in funnel
    ]


def emptied(funnel: Sequence[Stage]) -> str | None:
    """Return which stage left no sample; None if some are left at the end."""
    for before, stage in zip([None, *funnel], funnel, strict=False):
        if not stage.samples:
            return (
                "the pool is empty" if before is None else f"{stage.name}: none of {before.samples:,} samples is left"
            )
    return None


MUCH = 0.2
"""Share of a score's variance from which its source is worth a warning."""


def source_advice(score: str, share: float | None, within_sources: bool = False) -> str | None:
    """Return advice about a score that depends on the source; None if it does not, or if the subset allows for it.

    Args:
        score: its name.
        share: the share of its variance that the source explains.
        within_sources: whether the subset is stratified by source, or the score standardised within it.
    """
    if share is None or share <= MUCH or within_sources:
        return None
    return (
        f"the source explains {share:.0%} of the variance of score {score}, so that a selection by it is mostly one of "
        "sources: set stratify: [source] or standardise: source on the subset"
    )


def standardised_text(score: str) -> str:
    """Return what a selection ranks by that standardises scores within sources."""
    return f"z of {score} among the eligible samples of the same source (standardise: source)"


def right_facts(pool: Marks, selected: Marks) -> dict[str, float | int | None]:
    """Return the shares marked right; nothing if no sample of the pool is marked."""
    if not pool.marked:
        return {}
    return {
        "marked_right_or_wrong": pool.marked,
        "share_right_pool": pool.share,
        "share_right_selected": selected.share,
    }


def right_text(facts: Mapping[str, Any]) -> str | None:
    """Return the shares marked right of subset and pool, from `Selection.facts`; None if no sample is marked."""
    if facts.get("share_right_pool") is None:
        return None
    selected = facts.get("share_right_selected")
    return (
        f"{'–' if selected is None else f'{selected:.1%}'} of the subset, {facts['share_right_pool']:.1%} of the pool "
        f"({facts['marked_right_or_wrong']:,} samples of it are marked)"
    )


class SubsetDigest:
    """Digest of a table `subset` whose rows arrive in pieces, best first; independent of the pieces' sizes."""

    def __init__(self) -> None:
        self._rows = RunningDigest()

    def add(self, rows: pl.DataFrame) -> None:
        """Add the next rows."""
        self._rows.add(rows.write_ndjson().encode())

    def value(self) -> str:
        """Return the digest of all rows so far."""
        return digest("subset_rows", self._rows.value())


def subset_digest(rows: pl.DataFrame) -> str:
    """Return the digest of the rows of a table `subset`."""
    found = SubsetDigest()
    for piece in pieces(rows):
        found.add(piece)
    return found.value()


def pieces(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Split the rows of a subset into the pieces in which they are written."""
    return rows.iter_slices(PIECE_ROWS)


def subset_rows(chosen: pl.DataFrame, score: str, before: int = 0) -> pl.DataFrame:
    """Return rows of table `subset`.

    Args:
        chosen: `sample_id`, `score` and `low_signal` of samples in the order of choice; and `z`, if scores were
            standardised within sources.
        score: name of the score.
        before: number of samples chosen before these.
    """
    rank = pl.int_range(before + 1, before + pl.len() + 1, dtype=pl.Int64)
    flags = pl.when("low_signal").then(pl.lit("; low_signal")).otherwise(pl.lit(""))
    if "z" in chosen.columns:
        flags = pl.format(" (z = {} within its source){}", pl.col("z").round(4), flags)
    rows = chosen.with_columns(rank=rank, weight=pl.lit(1.0)).with_columns(
        # No pool sizes in the text: an unchanged subset must yield an identical release.
        reason=pl.format("rank {} by " + score + " = {}{}", "rank", pl.col("score").round(4), flags)
    )
    return tables.SUBSET.conform(rows.select(tables.SUBSET.columns.keys()))
