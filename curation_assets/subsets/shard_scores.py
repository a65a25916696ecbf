"""Compute `step_scores` and `sample_scores` of one shard from its signals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.methods.method import ScoreInputs
from curation_assets.methods.registry import method_of
from curation_assets.signals.held_out import validation_key, validation_vectors
from curation_assets.signals.measure import ShardSamples, read_shard_samples
from curation_assets.signals.store import MeasuringError, SignalStore, recorded_left_out
from curation_assets.steps.correctness import verified
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.fingerprints import scored_signals_fingerprint, shard_scores_fingerprint
from curation_assets.workspace.workspace import Workspace

FACTS = ("sample_id", "prompt_id", "shard", "row", "candidate", "source", "domain", "generator", "correct", "reward")

ANSWER_NORMS: dict[SignalName, pl.Expr] = {
    "step_gradients": pl.col("norms").list.last(),
    # The last entry of a Gram matrix is the answer's squared norm.
    "step_gradient_trajectories": pl.col("grams").list.eval(pl.element().list.last().sqrt()).list.mean(),
}
"""By gradient signal, the norm of the answer's gradient; its mean if there are several checkpoints."""


@dataclass(frozen=True)
class ShardScores:
    """The result of scoring one shard.

    Attributes:
        rows: rows of the shard, including exact duplicates.
        scored: rows with any score.
        without_score: the other rows, by reason.
        non_finite: scores that are not finite numbers (there should be none).
        sample_scores: the table.
    """

    rows: int
    scored: int
    without_score: dict[str, int]
    non_finite: int
    sample_scores: pl.DataFrame


@dataclass(frozen=True)
class SharedInputs:
    """The inputs shared by all shards of a run.

    Attributes:
        stores: the signals that the target's scores depend on.
        sets: fingerprints of the validation sets that they use.
        vectors: by score and set, the vectors [M, d] that it compares with.
    """

    stores: Mapping[SignalName, SignalStore]
    sets: Mapping[str, str | None]
    vectors: Mapping[str, Mapping[str, NDArray[np.float32]]]

    @classmethod
    def read(cls, workspace: Workspace, target: Target) -> SharedInputs:
        """Read the inputs, fingerprints first: a set that changes in the meantime then marks the scores as outdated."""
        scores = workspace.settings.scores_of(target.name)
        return cls(
            stores={s: SignalStore.of(workspace, target, s) for s in workspace.settings.signals_of_scores(target)},
            sets=validation_key(workspace, target),
            vectors={score.name: validation_vectors(workspace, target, score) for score in scores},
        )


def score_shards(workspace: Workspace, target: Target, shards: Sequence[str]) -> Iterator[ShardScores]:
    """Score shards in order, reading shared inputs once; see `score_shard`."""
    shared = SharedInputs.read(workspace, target)
    for shard in shards:
        yield score_shard(workspace, target, shard, shared)


def score_shard(workspace: Workspace, target: Target, shard: str, shared: SharedInputs) -> ShardScores:
    """Write the shard's `step_scores` (one table per named score that has them) and `sample_scores`.

    Raises:
        MeasuringError: samples of the shard have not been measured.
    """
    source = f"{tables.raw_corpus_dir()}/{shard}.parquet"
    if not workspace.warehouse.table_metadata(source):
        # The file disappeared before it was ever read: there is nothing to score.
        return ShardScores(0, 0, {}, 0, tables.SAMPLE_SCORES.empty())
    # Read before the rows: if they are measured in the meantime, the record changes and the scores become outdated.
    left_out = [recorded_left_out(workspace, store.folder, shard) for store in shared.stores.values()]
    samples = read_shard_samples(workspace, shard, segmented=True)
    signals = {signal: _measured(target, shard, samples, signal, store) for signal, store in shared.stores.items()}
    signals_fp = str(scored_signals_fingerprint(workspace, target))
    fingerprint = shard_scores_fingerprint(
        workspace, target, signals_fp, samples.steps_fingerprint, left_out, shared.sets
    )
    facts = facts_of(samples.rows, samples.steps, signals)
    frame = samples.places.join(facts.drop("row", "candidate"), on="sample_id", how="left", maintain_order="left")
    metadata = {"fingerprint": fingerprint}
    scores = workspace.settings.scores_of(target.name)
    for score in scores:
        inputs = ScoreInputs(facts, signals, validation=shared.vectors[score.name])
        scored = method_of(score).score(inputs, score)
        if scored.steps is not None:
            path = f"{tables.step_scores_dir(target.name, score.name)}/{shard}.parquet"
            workspace.warehouse.write_table(path, scored.steps, metadata)
        frame = frame.join(scored.values.rename({"value": score.name}), on="sample_id", how="left")
    sample_scores = tables.SAMPLE_SCORES.conform(frame)
    # Written last: its fingerprint shows that the step scores are complete.
    path = f"{tables.sample_scores_dir(target.name)}/{shard}.parquet"
    workspace.warehouse.write_table(path, sample_scores, metadata)
    return _summary(sample_scores, [score.name for score in scores])


def _measured(
    target: Target, shard: str, samples: ShardSamples, signal: SignalName, store: SignalStore
) -> pl.DataFrame:
    """Return a signal's rows of all samples of a shard."""
    rows = store.rows(samples.rows["sample_id"])
    if rows is None:
        rows = SIGNALS[signal].table.empty()
    if len(rows) < len(samples.rows):
        raise MeasuringError(
            f"only {len(rows)} of {len(samples.rows)} samples of shard {shard} are measured for target {target.name}. "
            f"Materialize {target.name}/{signal} first."
        )
    return rows


def facts_of(rows: pl.DataFrame, steps: pl.DataFrame, signals: Mapping[SignalName, pl.DataFrame]) -> pl.DataFrame:
    """Return the columns of `sample_scores` other than the scores.

    Args:
        rows: rows of `raw_corpus`, each sample once.
        steps: their rows of `segmented_steps`.
        signals: their rows of each signal that is read.
    """
    counts = steps.filter(pl.col("kind") == "step").group_by("sample_id").agg(n_steps=pl.len().cast(pl.Int32))
    facts = (
        rows.select(*FACTS, verified=verified(rows))
        .join(counts, on="sample_id", how="left")
        .with_columns(pl.col("n_steps").fill_null(0))
    )
    lengths = next(iter(signals.values())).select("sample_id", "response_tokens")
    said = pl.concat([frame.select("sample_id", "flags") for frame in signals.values()])
    flags = (
        said.explode("flags")
        .drop_nulls()
        .group_by("sample_id", maintain_order=True)
        .agg(pl.col("flags").unique(maintain_order=True))
    )
    facts = facts.join(lengths, on="sample_id", how="left").join(flags, on="sample_id", how="left")
    norm = pl.lit(None, dtype=pl.Float32).alias("answer_norm")
    for signal, answer_norm in ANSWER_NORMS.items():
        if signal in signals:
            norms = signals[signal].select("sample_id", answer_norm=answer_norm)
            facts, norm = facts.join(norms, on="sample_id", how="left"), pl.col("answer_norm")
            break
    return facts.with_columns(norm, pl.col("flags").fill_null([]))


def _summary(sample_scores: pl.DataFrame, names: list[str]) -> ShardScores:
    scored = sample_scores.filter(pl.any_horizontal(pl.col(names).is_not_null())) if names else sample_scores
    without = sample_scores.join(scored, on=["row", "candidate"], how="anti")
    reasons = without.select(pl.col("flags").list.join("+").alias("reason")).group_by("reason").len()
    non_finite = sum(int((~sample_scores[name].drop_nulls().is_finite()).sum()) for name in names)
    return ShardScores(
        rows=len(sample_scores),
        scored=len(scored),
        without_score=dict(sorted(reasons.iter_rows())),
        non_finite=non_finite,
        sample_scores=sample_scores,
    )
