"""The signals: how each is asked of a pass, and how what the pass gives becomes rows of its table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from curation_assets import tables
from curation_assets.sections import SignalName
from curation_assets.settings import Target
from curation_assets.tables import Table
from resources.scoring.measurements import GradientFeatures, Likelihoods, SequenceLikelihoods
from resources.scoring.samples import NON_FINITE, UNRUNNABLE, Pooling, Question, Request, SampleSignals

HALF_MAXIMUM = float(np.finfo(np.float16).max)

# How cutting met the segments is a fact about these: a signal that does not rest on them knows one way.
CUT_FLAGS = frozenset({"truncated", "answer_truncated", "response_truncated"})

EARLY, LATE = 100, 1000
"""TEMP's windows, in tokens."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Signal:
    """One signal.

    Attributes:
        table: where it is stored.
        value: the column that is null where it was not measured.
        rows: rows of the table from what a pass gave.
    """

    table: Table
    value: str
    rows: Callable[[Sequence[SampleSignals]], Rows]

    def frame(self, results: Sequence[SampleSignals]) -> pl.DataFrame:
        """The table's rows of these samples."""
        made = pl.DataFrame(self.rows(results), schema=self.table.schema, strict=False)
        return self.table.conform(made)

    def reasons(self, stored: pl.DataFrame) -> dict[str, int]:
        """How many of the stored samples were not measured, by their flags."""
        without = stored.filter(pl.col(self.value).is_null()).select(pl.col("flags").list.join("+"))
        return dict(sorted(without.group_by("flags").len().iter_rows()))


def request_for(target: Target, signals: Collection[SignalName]) -> Request:
    """What one pass has to measure for these signals of a target."""
    of_steps = {"step_gradients", "step_gradient_trajectories"} & set(signals)
    projected = target.proxy == "projected" and bool(of_steps)
    return Request(
        step_gradients=target.proxy if "step_gradients" in signals else None,
        step_features=target.gradients.spec() if projected else None,
        likelihoods="likelihoods" in signals,
        segment_likelihoods="segment_likelihoods" in signals,
        sequence_likelihoods="sequence_likelihoods" in signals,
        token_likelihoods="token_likelihoods" in signals,
        unconditional="unconditional_likelihoods" in signals,
        trajectory="loss_trajectories" in signals,
        trajectory_gradients=target.proxy if "step_gradient_trajectories" in signals else None,
        base_likelihoods="base_likelihoods" in signals,
        spectra="gradient_spectra" in signals,
        rewards="rewards" in signals,
        questions=tuple(question for question in QUESTIONS if question in signals),
        gradient_norms=target.gradients.weights if "gradient_norms" in signals else None,
        features=target.gradients.spec() if "gradient_features" in signals else None,
        trajectory_features=target.gradients.spec() if "gradient_feature_trajectories" in signals else None,
        trajectory_adam_features=target.gradients.spec() if "adam_feature_trajectories" in signals else None,
        perturbed="perturbed_losses" in signals,
        embeddings=frozenset(pooling for pooling, name in POOLINGS.items() if name in signals),
    )


def non_finite(reasons: dict[str, int]) -> int:
    """How many samples are without a value because of NaN or Inf."""
    return sum(count for flags, count in reasons.items() if NON_FINITE in flags.split("+"))


def _step_gradients(results: Sequence[SampleSignals]) -> Rows:
    rows = []
    for result in results:
        found = result.step_gradients
        measured = {"gram": None if found is None else found.gram, "norms": None if found is None else found.norms}
        rows.append(measured | _of_steps(result, found is None, result.gradient_flags))
    return rows


def _step_gradient_trajectories(results: Sequence[SampleSignals]) -> Rows:
    rows = []
    for result in results:
        found = result.trajectory_gradients
        measured = {"grams": None if found is None else [one.gram for one in found]}
        rows.append(measured | _of_steps(result, found is None, result.trajectory_gradient_flags))
    return rows


def _of_steps(result: SampleSignals, missing: bool, gradient_flags: Sequence[str]) -> dict[str, Any]:
    """What a row of step gradients says beside the matrix."""
    # A reason against step gradients means that NaN or Inf, if there were any, were another signal's.
    tried = not gradient_flags and "truncated" not in result.flags
    flags = _own_flags(result, missing=missing and tried)
    return {
        "sample_id": result.sample_id,
        "n_steps": len(result.step_indices),
        "step_indices": result.step_indices,
        "segment_tokens": result.segment_tokens,
        "response_tokens": result.response_tokens,
        # A sample without an answer is run for other signals only: what that costs is in their tables.
        "tokens": 0 if missing and NON_FINITE not in flags else result.tokens,
        "flags": [*flags, *gradient_flags],
    }


def _means(of: Callable[[SampleSignals], Likelihoods | SequenceLikelihoods | None]) -> Callable[..., Rows]:
    """Rows of a signal whose means are the columns of its table, null where a sample has none."""

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


def _segment_likelihoods(results: Sequence[SampleSignals]) -> Rows:
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


def _token_likelihoods(results: Sequence[SampleSignals]) -> Rows:
    return [
        {
            "sample_id": result.sample_id,
            # What half precision cannot hold is less likely than anything that it can.
            "log_likelihoods": None if result.token_nll is None else -np.minimum(result.token_nll, HALF_MAXIMUM),
            "response_tokens": result.response_tokens,
            "tokens": result.tokens,
            "flags": _flags_without_segments(result, missing=result.token_nll is None),
        }
        for result in results
    ]


def _unconditional_likelihoods(results: Sequence[SampleSignals]) -> Rows:
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


def _elsewhere(column: str, of: Callable[[SampleSignals], object], results: Sequence[SampleSignals]) -> Rows:
    """Rows of a signal that is measured at another checkpoint than the target's own."""
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


def _perturbed_losses(results: Sequence[SampleSignals]) -> Rows:
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


def _of_gradients(of: Callable[[SampleSignals], Mapping[str, object] | None]) -> Callable[..., Rows]:
    """Rows of a signal that is made of a sample's gradient: its own columns, null where there are none."""

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


def _spectra(result: SampleSignals) -> dict[str, object] | None:
    return None if result.spectra is None else {"loss": result.response_loss, **asdict(result.spectra)}


def _norms(result: SampleSignals) -> dict[str, object] | None:
    norm = result.gradient_norm
    return None if norm is None else {"loss": result.response_loss, "gradient_norm": norm}


def _features(result: SampleSignals) -> dict[str, object] | None:
    found = result.features
    return None if found is None else {"features": found.values, "scale": found.scale}


def _along(of: Callable[[SampleSignals], list[GradientFeatures] | None], result: SampleSignals) -> Any:
    found = of(result)
    if found is None:
        return None
    return {
        "features": [one.values for one in found],
        "scales": [one.scale for one in found],
        "weights": result.trajectory_weights,
    }


def _rewards(results: Sequence[SampleSignals]) -> Rows:
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


def _judgements(question: Question, column: str, results: Sequence[SampleSignals]) -> Rows:
    rows = []
    for result in results:
        found = result.judgements.get(question)
        flags = list(result.flags)
        if found is None and question in result.question_flags:
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


def _embeddings(pooling: Pooling, results: Sequence[SampleSignals]) -> Rows:
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
    """A sample's flags for one signal: that another one was not finite is not said of one that is there."""
    return [flag for flag in result.flags if missing or flag != NON_FINITE]


def _flags_without_segments(result: SampleSignals, missing: bool) -> list[str]:
    """Flags of a signal that does not rest on segments: the same however the response is segmented."""
    return ["response_truncated" if flag in CUT_FLAGS else flag for flag in _own_flags(result, missing)]


POOLINGS: dict[Pooling, SignalName] = {
    "mean": "embeddings_mean",
    "last": "embeddings_last",
    "position_weighted": "embeddings_position_weighted",
    "text": "text_embeddings",
}

QUESTIONS: tuple[Question, ...] = ("instruction_tags", "difficulty")

SIGNALS: dict[SignalName, Signal] = {
    "step_gradients": Signal(tables.STEP_GRADIENTS, "gram", _step_gradients),
    "likelihoods": Signal(tables.LIKELIHOODS, "mean_nll", _means(lambda result: result.likelihoods)),
    "sequence_likelihoods": Signal(
        tables.SEQUENCE_LIKELIHOODS, "sequence_nll", _means(lambda result: result.sequence_likelihoods)
    ),
    "segment_likelihoods": Signal(tables.SEGMENT_LIKELIHOODS, "segment_nll", _segment_likelihoods),
    "token_likelihoods": Signal(tables.TOKEN_LIKELIHOODS, "log_likelihoods", _token_likelihoods),
    "unconditional_likelihoods": Signal(
        tables.UNCONDITIONAL_LIKELIHOODS, "unconditional_nll", _unconditional_likelihoods
    ),
    "loss_trajectories": Signal(
        tables.LOSS_TRAJECTORIES, "losses", partial(_elsewhere, "losses", lambda result: result.trajectory)
    ),
    "step_gradient_trajectories": Signal(tables.STEP_GRADIENT_TRAJECTORIES, "grams", _step_gradient_trajectories),
    "perturbed_losses": Signal(tables.PERTURBED_LOSSES, "random_100", _perturbed_losses),
    "base_likelihoods": Signal(
        tables.BASE_LIKELIHOODS, "base_nll", partial(_elsewhere, "base_nll", lambda result: result.base_nll)
    ),
    "gradient_spectra": Signal(tables.GRADIENT_SPECTRA, "nuclear_norm", _of_gradients(_spectra)),
    "gradient_norms": Signal(tables.GRADIENT_NORMS, "gradient_norm", _of_gradients(_norms)),
    "gradient_features": Signal(tables.GRADIENT_FEATURES, "features", _of_gradients(_features)),
    "gradient_feature_trajectories": Signal(
        tables.GRADIENT_FEATURE_TRAJECTORIES,
        "features",
        _of_gradients(partial(_along, lambda result: result.trajectory_features)),
    ),
    "adam_feature_trajectories": Signal(
        tables.ADAM_FEATURE_TRAJECTORIES,
        "features",
        _of_gradients(partial(_along, lambda result: result.trajectory_adam_features)),
    ),
    "rewards": Signal(tables.REWARDS, "reward", _rewards),
    "instruction_tags": Signal(tables.INSTRUCTION_TAGS, "tags", partial(_judgements, "instruction_tags", "tags")),
    "difficulty": Signal(tables.DIFFICULTY, "difficulty", partial(_judgements, "difficulty", "difficulty")),
    **{
        name: Signal(tables.SIGNAL_TABLES[name], "vector", partial(_embeddings, pooling))
        for pooling, name in POOLINGS.items()
    },
}
