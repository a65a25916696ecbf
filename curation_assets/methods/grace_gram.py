"""GRACE's scores from stored Gram matrices (arXiv 2605.13130, Eq. 6-8, 12, 13; docs/methods.md, "GRACE").

Let g_k be the proxy gradient of step k, and M the Gram matrix of the K steps and the answer. A step's alignment is
cos(g_k, a), where a is the answer's gradient (or the mean over the tokens of several segments). Its consistency is
cos(g_k, r_k) with r_k = sum_{j<k} w_kj g_j. Numerators and squared norms are sums of M's entries, computed as
running sums over the steps, so a million samples take about as long as reading their matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from curation_resources.sections import Section

ZERO_NORM_SQUARED = 1e-24
CHUNK = 2048
"""Samples per batch: intermediate results stay in the processor's cache."""

Array = NDArray[np.float64]
Reference = Literal["answer", "cot_and_answer", "suffix"]
Aggregate = Literal["mean", "token_weighted", "min", "quantile"]
Reduce = Literal["mean", "sum"]


class History(Section):
    """Weights of earlier steps: exactly one of the two."""

    window: int | None = Field(None, ge=1, description="equal weights on the last W steps")
    ema: float | None = Field(None, gt=0, lt=1, description="weights beta^(k-1-j), normalised")

    @model_validator(mode="after")
    def _one_of(self) -> History:
        if (self.window is None) == (self.ema is None):
            raise ValueError("set exactly one of window and ema, or history: uniform")
        return self


@dataclass(frozen=True)
class GramOptions:
    """Parameters of the scores computed from a Gram matrix.

    Attributes:
        alpha: weight of answer alignment; consistency gets the rest.
        history: `uniform` (1/(k-1)), a window (1/min(W, k-1) on the last W steps) or EMA (beta^(k-1-j), normalised).
        history_normalize_steps: scale earlier steps to unit norm before summing them.
        align_with: `answer`; `cot_and_answer`: the mean gradient over all segments' tokens; `suffix`: the mean over the
            segments after the step.
        aggregate: `mean`, `token_weighted`, `min` or `quantile` of the step scores.
        quantile: the quantile, interpolated linearly between ranks.
        segment_reduce: whether a segment's gradient is the mean or the sum of its tokens' gradients.
    """

    alpha: float = 0.7
    history: History | Literal["uniform"] = "uniform"
    history_normalize_steps: bool = False
    align_with: Reference = "answer"
    aggregate: Aggregate = "mean"
    quantile: float = 0.1
    segment_reduce: Reduce = "mean"


@dataclass(frozen=True)
class StepScores:
    """Scores of steps: arrays of equal shape, by sample and step.

    `trajectory_consistency` is NaN for the first step, which has no history.
    """

    answer_alignment: Array
    trajectory_consistency: Array
    step_score: Array


@dataclass(frozen=True)
class GramScores:
    """V [n] of n samples and, if requested, the concatenated scores of all their steps."""

    sample: Array
    steps: StepScores | None


def history_weights(steps: int, history: History | Literal["uniform"]) -> Array:
    """Return weights w_kj of earlier step j for step k [K, K]; rows sum to one, and the first row is zero."""
    weights = np.zeros((steps, steps))
    for k in range(1, steps):
        row = np.ones(k)
        if isinstance(history, History) and history.window is not None:
            row[: max(0, k - history.window)] = 0.0
        elif isinstance(history, History) and history.ema is not None:
            row = history.ema ** np.arange(k - 1, -1, -1, dtype=np.float64)
        weights[k, :k] = row / row.sum()
    return weights


def sample_and_step_scores(
    gram: pl.Series, n_steps: NDArray[np.int32], segment_tokens: pl.Series, options: GramOptions, steps: bool
) -> GramScores:
    """Return the scores of n samples, each with any number of steps.

    Args:
        gram: upper triangles of M over steps 1..K and the answer, packed row by row [n lists], without nulls.
        n_steps: K of every sample [n].
        segment_tokens: tokens of the same segments [n lists].
        options: parameters of the scores.
        steps: whether to return step scores as well.
    """
    counts = n_steps.astype(np.int64)
    packed = gram.explode().to_numpy()
    tokens = segment_tokens.explode().to_numpy()
    packed_at = _starts((counts + 1) * (counts + 2) // 2)
    tokens_at = _starts(counts + 1)
    steps_at = _starts(counts)
    sample = np.empty(len(counts))
    flat = StepScores(*(np.empty(counts.sum()) for _ in range(3))) if steps else None
    for k in np.unique(counts):
        scorer = _Scorer(int(k), options)
        members = np.flatnonzero(counts == k)
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            own_tokens = tokens[_spans(tokens_at[rows], scorer.k + 1)]
            found = scorer.steps(packed[_spans(packed_at[rows], scorer.size)], own_tokens)
            sample[rows] = scorer.sample(found, own_tokens[:, : scorer.k])
            if flat is not None:
                places = _spans(steps_at[rows], scorer.k)
                flat.answer_alignment[places] = found.answer_alignment.T
                flat.trajectory_consistency[places] = found.trajectory_consistency.T
                flat.step_score[places] = found.step_score.T
    return GramScores(sample, flat)


class _Scorer:
    """Scores samples with K steps.

    It holds M as [K+1, K+1, n], so that every operation is elementwise over n samples. A sample's scores are then
    bitwise identical whatever other samples are in the batch, which matrix products do not guarantee.
    """

    def __init__(self, k: int, options: GramOptions) -> None:
        self.k, self.options, self._weights = k, options, history_weights(k, options.history)
        row, column = np.triu_indices(k + 1)
        self.size = len(row)
        self._place = np.empty((k + 1, k + 1), dtype=np.int64)
        self._place[row, column] = self._place[column, row] = np.arange(self.size)

    def steps(self, packed: NDArray[np.float32], tokens: NDArray[np.int32]) -> StepScores:
        """Return scores [K, n] from packed matrices [n, P] and the segments' tokens [n, K+1]."""
        matrix = np.ascontiguousarray(packed.T, dtype=np.float64)[self._place]
        counts = np.ascontiguousarray(tokens.T, dtype=np.float64)
        alignment = self._alignment(matrix, counts)
        consistency = self._consistency(matrix, counts)
        score = self.options.alpha * alignment + (1.0 - self.options.alpha) * consistency
        score[0] = alignment[0]
        return StepScores(alignment, consistency, score)

    def _alignment(self, matrix: Array, counts: Array) -> Array:
        """Return cos(g_k, a_k) [K, n], where a_k is the mean gradient over the reference tokens of step k."""
        k, squared = self.k, _diagonal(matrix)
        if self.options.align_with == "answer":
            return _cosine(matrix[:k, k], squared[:k], squared[k])
        # The mean over a union of segments has the direction of the sum over their tokens' gradients.
        matrix = _scaled(matrix, counts)
        own = _diagonal(matrix)
        products, references = np.empty((2, k, matrix.shape[-1]))
        summed, first = matrix[k].copy(), k
        for step in reversed(range(k)):
            begin = 0 if self.options.align_with == "cot_and_answer" else step + 1
            for segment in reversed(range(begin, first)):
                summed += matrix[segment]
            first = begin
            products[step], references[step] = summed[step], _added(summed[begin:])
        return _cosine(products, own[:k], references, squared[:k])

    def _consistency(self, matrix: Array, counts: Array) -> Array:
        """Return cos(g_k, r_k) [K, n], where r_k is the weighted sum of earlier steps; NaN for the first step."""
        k, options = self.k, self.options
        squared = _diagonal(matrix)
        if options.history_normalize_steps:
            matrix = _scaled(matrix, 1.0 / np.sqrt(np.maximum(squared, ZERO_NORM_SQUARED)))
        elif options.segment_reduce == "sum":
            matrix = _scaled(matrix, counts)
        own = _diagonal(matrix)
        products, histories = np.empty((2, max(k - 1, 0), matrix.shape[-1]))
        running = np.zeros_like(matrix[0])
        for step in range(1, k):
            row = self._weights[step]
            if isinstance(options.history, History) and options.history.window is not None:
                begin = max(0, step - options.history.window)
                running, scale = _added(matrix[begin:step]), row[step - 1]
            else:
                decay = options.history.ema if isinstance(options.history, History) else None
                running = matrix[step - 1] + (running if decay is None else decay * running)
                begin, scale = 0, row[step - 1]
            # running is r_k G' up to the scale that gives the newest step its weight.
            past = zip(row[begin:step], running[begin:step], strict=True)
            with_history = _added([weight * product for weight, product in past])
            products[step - 1], histories[step - 1] = scale * running[step], scale * with_history
        first = np.full((min(k, 1), matrix.shape[-1]), np.nan)
        return np.concatenate([first, _cosine(products, own[1:k], histories, squared[1:k])])

    def sample(self, found: StepScores, tokens: NDArray[np.int32]) -> Array:
        """Return V [n] from step scores [K, n] and the steps' tokens [n, K]."""
        score, aggregate = found.step_score, self.options.aggregate
        if aggregate == "min":
            lowest: Array = score.min(axis=0)
            return lowest
        if aggregate == "quantile":
            return np.asarray(np.quantile(score, self.options.quantile, axis=0), dtype=np.float64)
        if aggregate == "token_weighted":
            counts = tokens.T.astype(np.float64)
            return _added(score * counts) / _added(counts)
        return _added(score) / self.k


def _diagonal(matrix: Array) -> Array:
    """Return squared norms [K+1, n]."""
    return np.stack([matrix[place, place] for place in range(len(matrix))])


def _scaled(matrix: Array, scale: Array) -> Array:
    """Return M with each segment's gradient multiplied by its scale [K+1, n]."""
    scaled: Array = matrix * scale[:, None] * scale[None, :]
    return scaled


def _added(rows: Sequence[Array] | Array) -> Array:
    """Return the sum over the first axis, adding row by row so that the order never depends on the length."""
    return reduce(np.add, rows)


def _cosine(product: Array, left_squared: Array, right_squared: Array, unscaled_squared: Array | None = None) -> Array:
    """Return cosines from products and squared norms, of shapes that broadcast; 0 if either norm is zero.

    `unscaled_squared` decides whether the left norm is zero if its gradient has been scaled.
    """
    left = left_squared if unscaled_squared is None else unscaled_squared
    usable = (left >= ZERO_NORM_SQUARED) & (right_squared >= ZERO_NORM_SQUARED)
    norms = np.sqrt(np.where(usable, left_squared * right_squared, 1.0))
    return np.clip(np.where(usable, product / norms, 0.0), -1.0, 1.0)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the start of each of consecutive spans."""
    starts: NDArray[np.int64] = np.cumsum(lengths) - lengths
    return starts


def _spans(starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return the indices [n, length] of spans of equal length."""
    indices: NDArray[np.int64] = starts[:, None] + np.arange(length)
    return indices
