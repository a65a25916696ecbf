"""GRACE's scores from stored Gram matrices (arXiv 2605.13130, Eq. 6-8, 12, 13; docs/methods.md, section 1).

With g_k the proxy gradient of step k and M the Gram matrix of the steps and the answer:
answer_alignment = cos(g_k, g_ans); trajectory_consistency = cos(g_k, r_k) with r_k the weighted sum of
earlier steps; step_score = alpha * alignment + (1 - alpha) * consistency, and the alignment alone for k = 1;
V = mean of the step scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.settings import History, Score

ZERO_NORM_SQUARED = 1e-24

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StepScores:
    """Scores of n samples of K steps each; all arrays [n, K]."""

    answer_alignment: Array
    trajectory_consistency: Array
    """NaN for the first step, which has no history."""
    step_score: Array

    def sample_score(self) -> Array:
        """V [n]: the mean over steps (Eq. 13)."""
        mean: Array = self.step_score.mean(axis=1)
        return mean


def history_weights(steps: int, history: History | str) -> Array:
    """Weights w_kj of earlier step j for step k [K, K]; rows sum to one, the first row is zero.

    Args:
        steps: K.
        history: `uniform` (1/(k-1)), a window (1/min(W, k-1) on the last W steps), or EMA
            (beta^(k-1-j), normalised).
    """
    weights = np.zeros((steps, steps))
    for k in range(1, steps):
        row = np.ones(k)
        if isinstance(history, History) and history.window is not None:
            row[: max(0, k - history.window)] = 0.0
        elif isinstance(history, History) and history.ema is not None:
            row = history.ema ** np.arange(k - 1, -1, -1, dtype=np.float64)
        weights[k, :k] = row / row.sum()
    return weights


def score_steps(gram: Array, alpha: float, history: History | str) -> StepScores:
    """Scores of n samples with the same number of steps.

    Args:
        gram: M [n, K+1, K+1], the answer last.
        alpha: weight of answer alignment.
        history: see `history_weights`.
    """
    steps = gram.shape[1] - 1
    between = gram[:, :steps, :steps]
    squared = np.einsum("nkk->nk", between)
    alignment = _cosine(gram[:, :steps, steps], squared, gram[:, steps, steps][:, None])
    weights = history_weights(steps, history)
    with_history = np.einsum("nkj,kj->nk", between, weights)
    history_squared = np.einsum("kj,njl,kl->nk", weights, between, weights, optimize=True)
    consistency = _cosine(with_history, squared, history_squared)
    score = alpha * alignment + (1.0 - alpha) * consistency
    score[:, 0] = alignment[:, 0]
    consistency[:, 0] = np.nan
    return StepScores(alignment, consistency, score)


def _cosine(product: Array, left_squared: Array, right_squared: Array) -> Array:
    """Cosines from products and squared norms; 0 where either norm is zero."""
    usable = (left_squared >= ZERO_NORM_SQUARED) & (right_squared >= ZERO_NORM_SQUARED)
    norms = np.sqrt(np.where(usable, left_squared * right_squared, 1.0))
    return np.clip(np.where(usable, product / norms, 0.0), -1.0, 1.0)


def unpack_gram(packed: Array, size: int) -> Array:
    """Symmetric matrices [n, size, size] from packed upper triangles by rows [n, size * (size + 1) / 2]."""
    full = np.empty((len(packed), size, size))
    row, column = np.triu_indices(size)
    full[:, row, column] = packed
    full[:, column, row] = packed
    return full


def grace_scores(step_gradients: pl.DataFrame, score: Score) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Step scores and V of every measured sample.

    Args:
        step_gradients: rows of table `step_gradients`; those without a matrix are left out.
        score: alpha and history.

    Returns:
        Table `step_scores`, and a frame of sample_id and V under the score's name.
    """
    measured = step_gradients.filter(pl.col("gram").is_not_null())
    steps: list[pl.DataFrame] = []
    samples: list[pl.DataFrame] = []
    for (count,), group in measured.group_by("n_steps", maintain_order=True):
        k = int(str(count))
        packed = _matrix(group["gram"]).astype(np.float64)
        scores = score_steps(unpack_gram(packed, k + 1), score.alpha, score.history)
        samples.append(group.select("sample_id").with_columns(pl.Series(score.name, scores.sample_score())))
        steps.append(_step_rows(group, scores, k))
    v_schema = {"sample_id": pl.String, score.name: pl.Float64}
    v = pl.concat(samples) if samples else pl.DataFrame(schema=v_schema)
    return tables.STEP_SCORES.conform(pl.concat([tables.STEP_SCORES.empty(), *steps])), v


def _step_rows(group: pl.DataFrame, scores: StepScores, steps: int) -> pl.DataFrame:
    tokens = _matrix(group["segment_tokens"])[:, :steps]
    return pl.DataFrame(
        {
            "sample_id": np.repeat(group["sample_id"].to_numpy(), steps),
            "step_index": _matrix(group["step_indices"]).reshape(-1),
            "tokens": tokens.reshape(-1),
            "answer_alignment": scores.answer_alignment.reshape(-1),
            "trajectory_consistency": scores.trajectory_consistency.reshape(-1),
            "step_score": scores.step_score.reshape(-1),
        },
        schema=tables.STEP_SCORES.schema,
    ).with_columns(pl.col("trajectory_consistency").fill_nan(None))


def _matrix(lists: pl.Series) -> NDArray[Any]:
    """Lists of equal length as one array [n, length]."""
    return lists.explode().to_numpy().reshape(len(lists), -1)
