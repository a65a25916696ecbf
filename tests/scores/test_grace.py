"""GRACE's scores against a direct implementation: checks 3, 6 and 7 of methods.md."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.scores.grace import grace_scores, history_weights, score_steps, unpack_gram
from curation_assets.settings import History, Score

Array = NDArray[np.float64]
HISTORIES: list[History | str] = ["uniform", History(window=1), History(window=3), History(ema=0.5)]


def cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def slow_scores(steps: Array, answer: Array, alpha: float, history: History | str) -> tuple[Array, Array, Array]:
    """Eq. 6-8 and 12 with vectors and loops; NaN for the first step's consistency."""
    alignment, consistency, score = [], [], []
    for k in range(1, len(steps) + 1):
        g = steps[k - 1]
        alignment.append(cosine(g, answer))
        if k == 1:
            consistency.append(np.nan)
            score.append(alignment[0])
            continue
        earlier = range(1, k)
        if isinstance(history, History) and history.window is not None:
            weights = {j: 1 / min(history.window, k - 1) if j >= k - history.window else 0.0 for j in earlier}
        elif isinstance(history, History) and history.ema is not None:
            weights = {j: history.ema ** (k - 1 - j) for j in earlier}
            weights = {j: w / sum(weights.values()) for j, w in weights.items()}
        else:
            weights = dict.fromkeys(earlier, 1 / (k - 1))
        reference = np.sum([weights[j] * steps[j - 1] for j in earlier], axis=0)
        consistency.append(cosine(g, reference))
        score.append(alpha * alignment[-1] + (1 - alpha) * consistency[-1])
    return np.array(alignment), np.array(consistency), np.array(score)


def gram(steps: Array, answer: Array) -> Array:
    g = np.vstack([steps, answer])
    matrix: Array = (g @ g.T)[None]
    return matrix


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.sampled_from(range(len(HISTORIES))),
)
def test_scores_through_the_gram_matrix_equal_direct_cosines(k: int, seed: int, alpha: float, which: int) -> None:
    rng = np.random.default_rng(seed)
    steps, answer = rng.normal(size=(k, 5)), rng.normal(size=5)
    found = score_steps(gram(steps, answer), alpha, HISTORIES[which])
    expected = slow_scores(steps, answer, alpha, HISTORIES[which])
    np.testing.assert_allclose(found.answer_alignment[0], expected[0], atol=1e-10)
    np.testing.assert_allclose(found.trajectory_consistency[0], expected[1], atol=1e-10)
    np.testing.assert_allclose(found.step_score[0], expected[2], atol=1e-10)
    assert found.sample_score()[0] == pytest.approx(expected[2].mean())


def test_identical_steps_are_consistent_and_an_opposed_step_is_against_the_answer() -> None:
    step = np.array([1.0, 2.0, -0.5])
    found = score_steps(gram(np.vstack([step, step, step]), -step), 0.7, "uniform")
    np.testing.assert_allclose(found.trajectory_consistency[0, 1:], 1.0)
    np.testing.assert_allclose(found.answer_alignment[0], -1.0)


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_wide_windows_and_slow_ema_are_uniform(steps: int) -> None:
    uniform = history_weights(steps, "uniform")
    np.testing.assert_array_equal(history_weights(steps, History(window=steps)), uniform)
    np.testing.assert_array_equal(history_weights(steps, History(window=steps + 5)), uniform)
    np.testing.assert_allclose(history_weights(steps, History(ema=1 - 1e-9)), uniform, atol=1e-7)


@pytest.mark.parametrize("history", HISTORIES)
def test_history_weights_sum_to_one_and_look_back_only(history: History | str) -> None:
    weights = history_weights(6, history)
    np.testing.assert_allclose(weights.sum(axis=1), [0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(np.triu(weights), 0)


def test_zero_norms_give_cosine_zero() -> None:
    steps = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = score_steps(gram(steps, np.array([1.0, 0.0])), 0.7, History(window=1))
    assert found.answer_alignment[0].tolist() == [0.0, 1.0, 1.0]
    assert found.trajectory_consistency[0, 1:].tolist() == [0.0, 1.0]


def test_unpacking_inverts_packing() -> None:
    matrix = np.arange(16.0).reshape(4, 4)
    matrix = matrix + matrix.T
    packed = matrix[np.triu_indices(4)][None]
    np.testing.assert_array_equal(unpack_gram(packed, 4)[0], matrix)


def _signals(rows: list[tuple[str, Array | None]]) -> pl.DataFrame:
    records = []
    for sample_id, g in rows:
        k = 0 if g is None else len(g) - 1
        packed = None if g is None else (g @ g.T)[np.triu_indices(k + 1)].tolist()
        records.append(
            {
                "sample_id": sample_id,
                "n_steps": k,
                "step_indices": list(range(1, k + 1)),
                "gram": packed,
                "norms": None if g is None else np.linalg.norm(g, axis=1).tolist(),
                "segment_tokens": [3] * (k + 1) if g is not None else [],
                "response_tokens": 9,
                "tokens": 12,
                "flags": [] if g is not None else ["no_answer"],
            }
        )
    return tables.STEP_GRADIENTS.conform(pl.DataFrame(records, schema=tables.STEP_GRADIENTS.schema))


def test_frames_of_mixed_lengths_are_scored_row_by_row() -> None:
    rng = np.random.default_rng(0)
    rows: list[tuple[str, Array | None]] = [(f"{n:02d}", rng.normal(size=(2 + n % 4, 6))) for n in range(20)]
    rows.append(("99", None))
    score = Score(name="g", target="t", method="grace")
    steps, samples = grace_scores(_signals(rows), score)
    assert sorted(samples["sample_id"]) == [name for name, g in rows if g is not None]
    for name, g in rows[:-1]:
        assert g is not None
        alignment, _, expected = slow_scores(g[:-1], g[-1], 0.7, "uniform")
        mine = steps.filter(pl.col("sample_id") == name)
        np.testing.assert_allclose(mine["answer_alignment"].to_numpy(), alignment, atol=1e-5)
        assert mine["step_index"].to_list() == list(range(1, len(g)))
        assert mine["trajectory_consistency"][0] is None
        v = samples.filter(pl.col("sample_id") == name)["g"].item()
        assert v == pytest.approx(expected.mean(), abs=1e-5)


def test_nothing_measured_gives_empty_frames() -> None:
    steps, samples = grace_scores(_signals([("a", None)]), Score(name="g", target="t", method="grace"))
    assert steps.is_empty()
    assert samples.schema == {"sample_id": pl.String, "g": pl.Float64}
