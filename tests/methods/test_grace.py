"""GRACE's scores against a direct implementation: checks 3, 6 and 7 of methods.md."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.methods.grace import GraceScore, grace_scores
from curation_assets.methods.grace_gram import GramOptions, History, StepScores, history_weights, sample_and_step_scores

Array = NDArray[np.float64]
HISTORIES: list[History | Literal["uniform"]] = ["uniform", History(window=1), History(window=3), History(ema=0.5)]
OPTIONS = st.builds(
    GramOptions,
    alpha=st.floats(0, 1),
    history=st.sampled_from(HISTORIES),
    history_normalize_steps=st.booleans(),
    align_with=st.sampled_from(["answer", "cot_and_answer", "suffix"]),
    aggregate=st.sampled_from(["mean", "token_weighted", "min", "quantile"]),
    quantile=st.floats(0, 1),
    segment_reduce=st.sampled_from(["mean", "sum"]),
)


def cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def history_of(k: int, history: History | str) -> dict[int, float]:
    """Weights w_kj of the steps j before step k, both from 1."""
    earlier = range(1, k)
    if isinstance(history, History) and history.window is not None:
        return {j: 1 / min(history.window, k - 1) if j >= k - history.window else 0.0 for j in earlier}
    if isinstance(history, History) and history.ema is not None:
        weights = {j: history.ema ** (k - 1 - j) for j in earlier}
        return {j: w / sum(weights.values()) for j, w in weights.items()}
    return dict.fromkeys(earlier, 1 / (k - 1))


def slow_scores(
    steps: Array, answer: Array, tokens: list[int], options: GramOptions
) -> tuple[Array, Array, Array, float]:
    """Eq. 6-8, 12 and 13 with vectors and loops, from mean gradients of segments; NaN for the first step's history.

    A segment's summed gradient is its mean times its tokens; the mean over several segments is the sum of
    these over their tokens together.
    """
    alignment, consistency, score = [], [], []
    last = len(steps)
    summed = [n * g for n, g in zip(tokens, [*steps, answer], strict=True)]
    for k in range(1, last + 1):
        own = steps[k - 1]
        held_against = {"answer": [last], "cot_and_answer": list(range(last + 1)), "suffix": list(range(k, last + 1))}
        segments = held_against[options.align_with]
        reference = np.sum([summed[s] for s in segments], axis=0) / sum(tokens[s] for s in segments)
        alignment.append(cosine(own, reference))
        if k == 1:
            consistency.append(np.nan)
            score.append(alignment[0])
            continue
        weights = history_of(k, options.history)
        reduced = summed if options.segment_reduce == "sum" else list(steps)
        if options.history_normalize_steps:
            reduced = [g / np.linalg.norm(g) for g in steps]
        past = np.sum([weights[j] * reduced[j - 1] for j in weights], axis=0)
        consistency.append(cosine(own, past))
        score.append(options.alpha * alignment[-1] + (1 - options.alpha) * consistency[-1])
    v = {
        "mean": float(np.mean(score)),
        "min": min(score),
        "token_weighted": sum(n * s for n, s in zip(tokens, score, strict=False)) / sum(tokens[:last]),
        "quantile": float(np.quantile(score, options.quantile)),
    }[options.aggregate]
    return np.array(alignment), np.array(consistency), np.array(score), v


def fast_scores(samples: list[tuple[Array, list[int]]], options: GramOptions) -> tuple[Array, StepScores]:
    """V [n] and the step scores, one sample after another, of gradients [K+1, d] and tokens."""
    packed = [(g @ g.T)[np.triu_indices(len(g))].astype(np.float64).tolist() for g, _ in samples]
    found = sample_and_step_scores(
        pl.Series(packed, dtype=pl.List(pl.Float64)),
        np.array([len(g) - 1 for g, _ in samples], dtype=np.int32),
        pl.Series([tokens for _, tokens in samples], dtype=pl.List(pl.Int32)),
        options,
        steps=True,
    )
    assert found.steps is not None
    return found.sample, found.steps


def one(steps: Array, answer: Array, options: GramOptions | None = None) -> StepScores:
    return fast_scores([(np.vstack([steps, answer]), [1] * (len(steps) + 1))], options or GramOptions())[1]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10_000), OPTIONS)
def test_scores_through_the_gram_matrix_equal_direct_cosines(k: int, seed: int, options: GramOptions) -> None:
    rng = np.random.default_rng(seed)
    steps, answer = rng.normal(size=(k, 5)), rng.normal(size=5)
    tokens = rng.integers(1, 9, k + 1).tolist()
    v, found = fast_scores([(np.vstack([steps, answer]), tokens)], options)
    expected = slow_scores(steps, answer, tokens, options)
    np.testing.assert_allclose(found.answer_alignment, expected[0], atol=1e-9)
    np.testing.assert_allclose(found.trajectory_consistency, expected[1], atol=1e-9)
    np.testing.assert_allclose(found.step_score, expected[2], atol=1e-9)
    assert v[0] == pytest.approx(expected[3], abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(0, 10_000), OPTIONS)
def test_a_score_is_the_same_to_the_bit_whatever_is_scored_beside_it(
    counts: list[int], seed: int, options: GramOptions
) -> None:
    rng = np.random.default_rng(seed)
    samples = [(rng.normal(size=(k + 1, 5)), rng.integers(1, 9, k + 1).tolist()) for k in counts]
    together, steps = fast_scores(samples, options)
    alone = [fast_scores([sample], options) for sample in samples]
    np.testing.assert_array_equal(together, np.concatenate([v for v, _ in alone]))
    np.testing.assert_array_equal(steps.step_score, np.concatenate([s.step_score for _, s in alone]))


def test_more_samples_than_a_chunk_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    samples = [(rng.normal(size=(k + 1, 3)), [1] * (k + 1)) for k in rng.integers(1, 4, 5000).tolist()]
    v, _ = fast_scores(samples, GramOptions())
    for place in (0, 1, 2047, 2048, 2049, 4999):
        assert v[place] == fast_scores([samples[place]], GramOptions())[0][0]


def test_identical_steps_are_consistent_and_an_opposed_step_is_against_the_answer() -> None:
    step = np.array([1.0, 2.0, -0.5])
    found = one(np.vstack([step, step, step]), -step)
    np.testing.assert_allclose(found.trajectory_consistency[1:], 1.0)
    np.testing.assert_allclose(found.answer_alignment, -1.0)


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_wide_windows_and_slow_ema_are_uniform(steps: int) -> None:
    uniform = history_weights(steps, "uniform")
    np.testing.assert_array_equal(history_weights(steps, History(window=steps)), uniform)
    np.testing.assert_array_equal(history_weights(steps, History(window=steps + 5)), uniform)
    np.testing.assert_allclose(history_weights(steps, History(ema=1 - 1e-9)), uniform, atol=1e-7)


@pytest.mark.parametrize("history", HISTORIES)
def test_history_weights_sum_to_one_and_look_back_only(history: History | Literal["uniform"]) -> None:
    weights = history_weights(6, history)
    np.testing.assert_allclose(weights.sum(axis=1), [0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(np.triu(weights), 0)


@pytest.mark.parametrize("align_with", ["answer", "cot_and_answer", "suffix"])
def test_zero_norms_give_cosine_zero(align_with: str) -> None:
    steps = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    options = GramOptions(history=History(window=1), align_with=align_with)  # type: ignore[arg-type]
    found = one(steps, np.array([1.0, 0.0]), options)
    assert found.answer_alignment.tolist() == [0.0, 1.0, 1.0]
    assert found.trajectory_consistency[1:].tolist() == [0.0, 1.0]


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
    scored = grace_scores(_signals(rows), GraceScore(name="g", target="t"))
    assert scored.steps is not None
    assert sorted(scored.values["sample_id"]) == [name for name, g in rows if g is not None]
    for name, g in rows[:-1]:
        assert g is not None
        alignment, _, _, v = slow_scores(g[:-1], g[-1], [3] * len(g), GramOptions())
        mine = scored.steps.filter(pl.col("sample_id") == name)
        np.testing.assert_allclose(mine["answer_alignment"].to_numpy(), alignment, atol=1e-5)
        assert mine["step_index"].to_list() == list(range(1, len(g)))
        assert mine["tokens"].to_list() == [3] * (len(g) - 1)
        assert mine["trajectory_consistency"][0] is None
        found = scored.values.filter(pl.col("sample_id") == name)["value"].item()
        assert found == pytest.approx(v, abs=1e-5)


def test_nothing_measured_gives_empty_frames() -> None:
    scored = grace_scores(_signals([("a", None)]), GraceScore(name="g", target="t"))
    assert scored.steps is not None
    assert scored.steps.is_empty()
    assert scored.values.schema == {"sample_id": pl.String, "value": pl.Float64}
