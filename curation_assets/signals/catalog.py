"""The signals: the request that each makes of a pass, and the conversion of a pass's results into table rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.signals import rows
from curation_assets.tables import Table
from curation_resources.scoring.samples import NON_FINITE, Pooling, Question, Request, SampleSignals
from curation_resources.sections import SignalName


@dataclass(frozen=True)
class Signal:
    """One signal.

    Attributes:
        table: the table that stores it.
        value: the column that is null where the signal was not measured.
        rows: converts a pass's results into rows of the table.
    """

    table: Table
    value: str
    rows: Callable[[Sequence[SampleSignals]], rows.Rows]

    def frame(self, results: Sequence[SampleSignals]) -> pl.DataFrame:
        """Return the table's rows of these samples."""
        made = pl.DataFrame(self.rows(results), schema=self.table.schema, strict=False)
        return self.table.conform(made)

    def reasons(self, stored: pl.DataFrame) -> dict[str, int]:
        """Count the stored samples that were not measured, by their flags."""
        without = stored.filter(pl.col(self.value).is_null()).select(pl.col("flags").list.join("+"))
        return dict(sorted(without.group_by("flags").len().iter_rows()))


def request_for(target: Target, signals: Collection[SignalName]) -> Request:
    """Return the request that makes one pass measure these signals of a target."""
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
        flattened_cosines=target.gradients.parity == "as_coded",
        in_run="in_run_influence" in signals,
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
    """Count the samples whose value is missing because of NaN or Inf."""
    return sum(count for flags, count in reasons.items() if NON_FINITE in flags.split("+"))


POOLINGS: dict[Pooling, SignalName] = {
    "mean": "embeddings_mean",
    "last": "embeddings_last",
    "position_weighted": "embeddings_position_weighted",
    "text": "text_embeddings",
}

QUESTIONS: tuple[Question, ...] = ("instruction_tags", "difficulty")

SIGNALS: dict[SignalName, Signal] = {
    "step_gradients": Signal(tables.STEP_GRADIENTS, "gram", rows.step_gradients),
    "likelihoods": Signal(tables.LIKELIHOODS, "mean_nll", rows.means(lambda result: result.likelihoods)),
    "sequence_likelihoods": Signal(
        tables.SEQUENCE_LIKELIHOODS, "sequence_nll", rows.means(lambda result: result.sequence_likelihoods)
    ),
    "segment_likelihoods": Signal(tables.SEGMENT_LIKELIHOODS, "segment_nll", rows.segment_likelihoods),
    "token_likelihoods": Signal(tables.TOKEN_LIKELIHOODS, "log_likelihoods", rows.token_likelihoods),
    "unconditional_likelihoods": Signal(
        tables.UNCONDITIONAL_LIKELIHOODS, "unconditional_nll", rows.unconditional_likelihoods
    ),
    "loss_trajectories": Signal(
        tables.LOSS_TRAJECTORIES, "losses", partial(rows.elsewhere, "losses", lambda result: result.trajectory)
    ),
    "step_gradient_trajectories": Signal(tables.STEP_GRADIENT_TRAJECTORIES, "grams", rows.step_gradient_trajectories),
    "perturbed_losses": Signal(tables.PERTURBED_LOSSES, "random_100", rows.perturbed_losses),
    "base_likelihoods": Signal(
        tables.BASE_LIKELIHOODS, "base_nll", partial(rows.elsewhere, "base_nll", lambda result: result.base_nll)
    ),
    "gradient_spectra": Signal(tables.GRADIENT_SPECTRA, "nuclear_norm", rows.of_gradients(rows.spectra)),
    "gradient_norms": Signal(tables.GRADIENT_NORMS, "gradient_norm", rows.of_gradients(rows.norms)),
    "gradient_features": Signal(tables.GRADIENT_FEATURES, "features", rows.of_gradients(rows.features)),
    "gradient_feature_trajectories": Signal(
        tables.GRADIENT_FEATURE_TRAJECTORIES,
        "features",
        rows.of_gradients(partial(rows.along, lambda result: result.trajectory_features)),
    ),
    "adam_feature_trajectories": Signal(
        tables.ADAM_FEATURE_TRAJECTORIES,
        "features",
        rows.of_gradients(partial(rows.along, lambda result: result.trajectory_adam_features)),
    ),
    "in_run_influence": Signal(tables.IN_RUN_INFLUENCE, "influence", rows.in_run_influence),
    "rewards": Signal(tables.REWARDS, "reward", rows.rewards),
    "instruction_tags": Signal(tables.INSTRUCTION_TAGS, "tags", partial(rows.judgements, "instruction_tags", "tags")),
    "difficulty": Signal(tables.DIFFICULTY, "difficulty", partial(rows.judgements, "difficulty", "difficulty")),
    **{
        name: Signal(tables.SIGNAL_TABLES[name], "vector", partial(rows.embeddings, pooling))
        for pooling, name in POOLINGS.items()
    },
}
