"""Convert the results of a pass into the rows of each signal's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from curation_resources.scoring.results import (
    GradientFeatures,
    Likelihoods,
    SequenceLikelihoods,
    SequenceUncertainty,
)
from curation_resources.scoring.samples import NON_FINITE, UNRUNNABLE, AnswerPrefix, Pooling, Question, SampleSignals

HALF_MAXIMUM = float(np.finfo(np.float16).max)

# How truncation met the segments concerns segmented signals only; other signals use one flag for all of these.
CUT_FLAGS = frozenset({"truncated", "answer_truncated", "response_truncated"})

EARLY, LATE = 100, 1000
"""TEMP's windows, in tokens."""

Rows = list[dict[str, Any]]


def step_gradients(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of GRACE's Gram matrices."""
    rows = []
    for result in results:
        found = result.step_gradients
        measured = {"gram": None if found is None else found.gram, "norms": None if found is None else found.norms}
        rows.append(measured | _of_steps(result, found is None, result.gradient_flags))
    return rows


def step_gradient_trajectories(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of GRACE's Gram matrices along a run."""
    rows = []
    for result in results:
        found = result.trajectory_gradients
        measured = {"grams": None if found is None else [one.gram for one in found]}
        rows.append(measured | _of_steps(result, found is None, result.trajectory_gradient_flags))
    return rows


def _of_steps(result: SampleSignals, missing: bool, gradient_flags: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a step gradient row other than the matrix."""
    # If step gradients were not attempted, any NaN or Inf belongs to another signal.
    tried = not gradient_flags and "truncated" not in result.flags
    flags = _own_flags(result, missing=missing and tried)
    return {
        "sample_id": result.sample_id,
        "n_steps": len(result.step_indices),
        "step_indices": result.step_indices,
        "segment_tokens": result.segment_tokens,
        "response_tokens": result.response_tokens,
        # A sample without step gradients is run for other signals only, whose tables record that cost.
        "tokens": 0 if missing and NON_FINITE not in flags else result.tokens,
        "flags": [*flags, *gradient_flags],
    }


def means(
    of: Callable[[SampleSignals], Likelihoods | SequenceLikelihoods | SequenceUncertainty | None],
) -> Callable[..., Rows]:
    """Build the row function of a signal whose means are the columns of its table, null where a sample has none."""

    def rows(results: Sequence[SampleSignals]) -> Rows:
        return [
            {
                "sample_id": result.sample_id,
                "tokens": result.tokens,
                "response_tokens": result.response_tokens,
                "flags": _flags_without_segments(result, missing=found is None),
            }
            | ({} if found is None else asdict(found))
            for result, found in ((result, of(result)) for result in results)
        ]

    return rows


def segment_likelihoods(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of mean NLLs by segment."""
    return [
        {
            "sample_id": result.sample_id,
            "step_indices": result.step_indices,
            "segment_tokens": result.segment_tokens,
            "segment_nll": result.segment_nll,
            "response_tokens": result.response_tokens,
            "tokens": result.tokens,
            "flags": _own_flags(result, missing=result.segment_nll is None)
            + ([] if result.segment_tokens or result.flags else ["no_segments"]),
        }
        for result in results
    ]


def token_likelihoods(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of log-likelihoods by token."""
    return [
        {
            "sample_id": result.sample_id,
            # Clamp values that half precision cannot represent.
            "log_likelihoods": None if result.token_nll is None else -np.minimum(result.token_nll, HALF_MAXIMUM),
            "response_tokens": result.response_tokens,
            "tokens": result.tokens,
            "flags": _flags_without_segments(result, missing=result.token_nll is None),
        }
        for result in results
    ]


def unconditional_likelihoods(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of the likelihood of the response alone."""
    rows = []
    for result in results:
        missing = result.unconditional_nll is None
        flags = _flags_without_segments(result, missing)
        if missing and not set(flags) & {*UNRUNNABLE, NON_FINITE}:
            flags.append("single_token_response")
        rows.append(
            {
                "sample_id": result.sample_id,
                "unconditional_nll": result.unconditional_nll,
                "response_tokens": result.response_tokens,
                "tokens": result.unconditional_tokens,
                "flags": flags,
            }
        )
    return rows


def direct_answers(prefix: AnswerPrefix, results: Sequence[SampleSignals]) -> Rows:
    """Return rows of the likelihood of the response as a text of its own."""
    rows = []
    for result in results:
        found = result.direct.get(prefix)
        flags = _flags_without_segments(result, found is None)
        if found is None and not set(flags) & {*UNRUNNABLE, NON_FINITE}:
            flags.append("single_token_response")
        rows.append(
            {
                "sample_id": result.sample_id,
                "direct_nll": None if found is None else found.nll,
                "after_special": None if found is None else found.after_special,
                "response_tokens": result.response_tokens,
                "tokens": 0 if found is None else found.tokens,
                "flags": flags,
            }
        )
    return rows


def elsewhere(column: str, of: Callable[[SampleSignals], object], results: Sequence[SampleSignals]) -> Rows:
    """Return rows of a signal measured at a checkpoint other than the target's own."""
    return [
        {
            "sample_id": result.sample_id,
            column: of(result),
            "response_tokens": result.response_tokens,
            "tokens": result.tokens,
            "flags": _flags_without_segments(result, missing=of(result) is None),
        }
        for result in results
    ]


def perturbed_losses(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of early losses at perturbed checkpoints."""
    rows = []
    for result in results:
        found = result.perturbed
        measured = found is not None and found.random is not None
        path = [] if found is None or found.directional is None else found.directional
        rows.append(
            {
                "sample_id": result.sample_id,
                "base_100": None if found is None or found.base is None else found.base[EARLY],
                "random_100": None if found is None or found.random is None else found.random[EARLY],
                "directional_100": [losses[EARLY] for losses in path] if measured else None,
                "directional_1000": [losses[LATE] for losses in path] if measured else None,
                "response_tokens": result.response_tokens,
                "tokens": 0 if found is None else found.tokens,
                "flags": [*_own_flags(result, missing=not measured), *result.prefix_flags],
            }
        )
    return rows


def of_gradients(of: Callable[[SampleSignals], Mapping[str, object] | None]) -> Callable[..., Rows]:
    """Build the row function of a signal derived from a sample's gradient: its own columns, null where missing."""

    def rows(results: Sequence[SampleSignals]) -> Rows:
        made = []
        for result in results:
            found = of(result)
            flags = _flags_without_segments(result, missing=found is None)
            if found is None and not result.labels and not flags:
                flags.append("single_token_response")
            common = {
                "sample_id": result.sample_id,
                "response_tokens": result.response_tokens,
                "tokens": 0 if found is None and NON_FINITE not in flags else result.tokens,
                "flags": flags,
            }
            made.append({**common, **(found or {})})
        return made

    return rows


def spectra(result: SampleSignals) -> dict[str, object] | None:
    """Return the spectra columns of a row."""
    return None if result.spectra is None else {"loss": result.response_loss, **asdict(result.spectra)}


def norms(result: SampleSignals) -> dict[str, object] | None:
    """Return the gradient norm columns of a row."""
    norm = result.gradient_norm
    return None if norm is None else {"loss": result.response_loss, "gradient_norm": norm}


def features(result: SampleSignals) -> dict[str, object] | None:
    """Return the gradient vector columns of a row."""
    found = result.features
    return None if found is None else {"features": found.values, "scale": found.scale}


def along(of: Callable[[SampleSignals], list[GradientFeatures] | None], result: SampleSignals) -> Any:
    """Return the gradient vector columns of a row, along a run."""
    found = of(result)
    if found is None:
        return None
    return {
        "features": [one.values for one in found],
        "scales": [one.scale for one in found],
        "weights": result.trajectory_weights,
    }


def in_run_influence(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of the influence that a training run recorded for its samples."""
    return [
        {
            "sample_id": result.sample_id,
            "influence": result.influence,
            "tokens": 0,
            "response_tokens": result.response_tokens,
            "flags": [] if result.influence is not None else ["not_trained_on"],
        }
        for result in results
    ]


def rewards(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of a reward model's logits."""
    return [
        {
            "sample_id": result.sample_id,
            "reward": result.reward,
            "tokens": result.tokens,
            "response_tokens": result.response_tokens,
            "flags": _own_flags(result, missing=result.reward is None),
        }
        for result in results
    ]


def process_rewards(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of a process reward model's probabilities."""
    return [
        {
            "sample_id": result.sample_id,
            "step_indices": result.step_indices,
            "segment_tokens": result.segment_tokens,
            "rewards": result.step_rewards,
            "tokens": result.tokens,
            "response_tokens": result.response_tokens,
            "flags": _own_flags(result, missing=result.step_rewards is None),
        }
        for result in results
    ]


def attention_influence(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of losses with and without retrieval heads."""
    rows = []
    for result in results:
        base, masked = result.response_losses, result.masked_losses
        flags = _own_flags(result, missing=base is None or masked is None)
        if base is not None and masked is not None and base.mean_nll <= 0.0:
            # The ratio to it does not exist.
            masked = None
            flags.append("zero_loss")
        measured = base is not None and masked is not None
        rows.append(
            {
                "sample_id": result.sample_id,
                "base_nll": None if base is None else base.mean_nll,
                "masked_nll": None if masked is None else masked.mean_nll,
                "step_indices": result.step_indices,
                "segment_tokens": result.segment_tokens,
                "segment_base": None if base is None or not measured else base.segment_sums,
                "segment_masked": None if masked is None or not measured else masked.segment_sums,
                "heads": " ".join(f"{layer}.{head}" for layer, head in result.masked_heads) if measured else None,
                "response_tokens": result.response_tokens,
                "tokens": result.tokens + result.masked_tokens,
                "flags": flags,
            }
        )
    return rows


def judgements(question: Question, column: str, results: Sequence[SampleSignals]) -> Rows:
    """Return rows of a judge's replies to one question."""
    rows = []
    for result in results:
        found = result.judgements.get(question)
        flags = list(result.flags)
        if question in result.question_flags:
            flags.append(result.question_flags[question])
        elif found is not None and found.value is None:
            flags.append("unparsed_reply")
        rows.append(
            {
                "sample_id": result.sample_id,
                column: None if found is None else found.value,
                "names": None if found is None else found.names,
                "reply": None if found is None else found.reply,
                "tokens": 0 if found is None else found.tokens,
                "response_tokens": result.response_tokens,
                "flags": flags,
            }
        )
    return rows


def solve_rates(results: Sequence[SampleSignals]) -> Rows:
    """Return rows of a model's own answers to the prompts."""
    rows = []
    for result in results:
        found = result.solved
        asked = found is not None and bool(found.stated)
        stated = found.stated if found is not None and asked else None
        rows.append(
            {
                "sample_id": result.sample_id,
                "solve_rate": None if found is None else found.rate,
                "answers": None if stated is None else len(stated),
                "answered": None if stated is None else sum(one is not None for one in stated),
                "right": None if found is None or stated is None else found.right,
                "stated": stated,
                "refusal": None if found is None else found.refusal,
                "tokens": 0 if found is None else found.tokens,
                "response_tokens": result.response_tokens,
                "flags": [*result.flags, *(() if found is None else found.flags)],
            }
        )
    return rows


def embeddings(pooling: Pooling, results: Sequence[SampleSignals]) -> Rows:
    """Return rows of vectors from one pooling, in half precision."""
    rows = []
    for result in results:
        vector = result.embeddings.get(pooling)
        flags = _flags_without_segments(result, missing=vector is None)
        if vector is not None:
            with np.errstate(over="ignore"):
                vector = vector.astype(np.float16)
            if not np.isfinite(vector).all():
                vector = None
                flags.append(NON_FINITE)
        rows.append(
            {
                "sample_id": result.sample_id,
                "vector": vector,
                "response_tokens": result.response_tokens,
                "tokens": result.tokens,
                "flags": flags,
            }
        )
    return rows


def _own_flags(result: SampleSignals, missing: bool) -> list[str]:
    """Return a sample's flags for one signal, without the non-finite flag if this signal's value is present."""
    return [flag for flag in result.flags if missing or flag != NON_FINITE]


def _flags_without_segments(result: SampleSignals, missing: bool) -> list[str]:
    """Return the flags of a signal that does not depend on segments: the same however the response is segmented."""
    return ["response_truncated" if flag in CUT_FLAGS else flag for flag in _own_flags(result, missing)]
