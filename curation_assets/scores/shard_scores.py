"""`step_scores` and `sample_scores` of one shard, from its signals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from curation_assets import tables
from curation_assets.fingerprints import shard_scores_fingerprint
from curation_assets.scores.grace import grace_scores
from curation_assets.settings import Target
from curation_assets.signals.measure import read_shard_samples
from curation_assets.signals.store import MeasuringError, SignalStore, recorded_left_out
from curation_assets.workspace import Workspace


@dataclass(frozen=True)
class ShardScores:
    """What scoring one shard gave.

    Attributes:
        rows: rows of the shard, exact duplicates included.
        scored: those with a score.
        without_score: the others, by reason.
        non_finite: scores that are not finite numbers (there should be none).
        sample_scores: the table.
    """

    rows: int
    scored: int
    without_score: dict[str, int]
    non_finite: int
    sample_scores: pl.DataFrame


def score_shards(workspace: Workspace, target: Target, shards: Sequence[str]) -> Iterator[ShardScores]:
    """Score shards one after another; see `score_shard`. What they share is read once."""
    store = SignalStore.of(workspace, target, "step_gradients")
    for shard in shards:
        yield score_shard(workspace, target, shard, store)


def score_shard(workspace: Workspace, target: Target, shard: str, store: SignalStore) -> ShardScores:
    """Write the shard's `step_scores` (one table a named score) and `sample_scores`.

    Args:
        workspace: the configuration.
        target: whose scores.
        shard: the shard.
        store: the target's step gradients.

    Raises:
        MeasuringError: samples of the shard have not been measured.
    """
    source = f"{tables.raw_corpus_dir()}/{shard}.parquet"
    if not workspace.warehouse.table_metadata(source):
        # The file was gone before it was ever read: there is nothing to score, and no table to write.
        return ShardScores(0, 0, {}, 0, tables.SAMPLE_SCORES.empty())
    signals, steps, fingerprint = _inputs(workspace, target, shard, store)
    corpus = workspace.warehouse.read_table(source)
    counts = steps.filter(pl.col("kind") == "step").group_by("sample_id").agg(n_steps=pl.len().cast(pl.Int32))
    frame = (
        corpus.select("sample_id", "prompt_id", "shard", "row", "candidate", "source", "domain")
        .join(counts, on="sample_id", how="left")
        .with_columns(pl.col("n_steps").fill_null(0))
        .join(
            signals.select("sample_id", "response_tokens", "flags", answer_norm=pl.col("norms").list.last()),
            on="sample_id",
            how="left",
        )
    )
    metadata = {"fingerprint": fingerprint}
    for score in workspace.settings.scores_of(target.name):
        step_scores, v = grace_scores(signals, score)
        path = f"{tables.step_scores_dir(target.name, score.name)}/{shard}.parquet"
        workspace.warehouse.write_table(path, step_scores, metadata)
        frame = frame.join(v, on="sample_id", how="left")
    sample_scores = tables.SAMPLE_SCORES.conform(frame)
    # Written last: its fingerprint says that the step scores are there too.
    path = f"{tables.sample_scores_dir(target.name)}/{shard}.parquet"
    workspace.warehouse.write_table(path, sample_scores, metadata)
    return _summary(sample_scores, [score.name for score in workspace.settings.scores_of(target.name)])


def _inputs(
    workspace: Workspace, target: Target, shard: str, store: SignalStore
) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Signals and segments of a shard, and the fingerprint of what is made from them."""
    # Before the rows: if they are measured meanwhile, the record is another by then, and the scores are due again.
    left_out = recorded_left_out(workspace, store.folder, shard)
    samples = read_shard_samples(workspace, shard, segmented=True)
    signals = store.rows(samples.rows["sample_id"])
    if signals is None:
        signals = tables.STEP_GRADIENTS.empty()
    if len(signals) < len(samples.rows):
        raise MeasuringError(
            f"{len(signals)} of {len(samples.rows)} samples of shard {shard} are measured for target {target.name}: "
            f"materialize {target.name}/step_gradients first"
        )
    fingerprint = shard_scores_fingerprint(workspace, target, store.fingerprint, samples.steps_fingerprint, left_out)
    return signals, samples.steps, fingerprint


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
