"""The tables of reports, and where they lie."""

from __future__ import annotations

import polars as pl

from curation_assets.tables.schema import Column, Table

SUBSET_COMPARISON = Table(
    "subset_comparison",
    "how subsets and scores differ, as one long table",
    {
        "comparison": Column(
            pl.String,
            "overlap: Jaccard index of two subsets; baseline: of a subset and as many samples of Random or Longest; "
            "rank_correlation: Spearman's, of two scores or of a score and a length, over the pool; composition: "
            "share of a source in a subset, or in the pool",
        ),
        "left": Column(pl.String, "subset or score"),
        "right": Column(pl.String, "subset, baseline, score, length or source"),
        "value": Column(pl.Float64, "the index, correlation or share; null where it is not defined", nullable=True),
        "samples": Column(pl.Int64, "samples behind it: shared, compared, or of the source"),
    },
    sort=("comparison", "left", "right"),
)

PREFERENCE = Table(
    "preference",
    "whose responses each target finds likeliest: wins by lowest perplexity (GRAPE, arXiv 2502.04194, figure 4)",
    {
        "generator": Column(pl.String, "who wrote the responses; (unknown) where the rows do not say"),
        "target": Column(pl.String, "the target that measured them"),
        "wins": Column(pl.Int64, "prompts of which the target finds a response of this generator likeliest"),
        "share_of_generator": Column(
            pl.Float64, "of the generator's wins with all targets; null if it has none", nullable=True
        ),
        "share_of_target": Column(pl.Float64, "of the target's prompts; null if it has none", nullable=True),
        "prompts": Column(pl.Int64, "prompts of which the target measured two responses or more"),
    },
    sort=("generator", "target"),
)

SPECTRA_BY_LAYER = Table(
    "spectra_by_layer",
    "gradient spectra of every layer and projection: means over the pool's samples (arXiv 2504.10766)",
    {
        "target": Column(pl.String, "the target that measured them"),
        "family": Column(pl.String, "model_type of its model"),
        "layer": Column(pl.Int64, "from 0"),
        "depth": Column(pl.Float64, "(layer + 1/2) / layers: where it lies, whatever the depth of the model"),
        "projection": Column(pl.String, "q, k, v, o"),
        "nuclear_norm": Column(pl.Float64, "N", nullable=True),
        "effective_rank": Column(pl.Float64, "R; null if all gradients are zero", nullable=True),
        "share_of_largest": Column(pl.Float64, "mean of R / min(T, d_out, d_in)", nullable=True),
        "adjacent": Column(pl.Float64, "cosine with the layer above; null of the last", nullable=True),
        "samples": Column(pl.Int64, "that it is the mean over"),
    },
    sort=("target", "layer", "projection"),
)

SPECTRA_CORRELATIONS = Table(
    "spectra_correlations",
    "how quality goes with gradient spectra: Spearman's correlation over the pool (arXiv 2504.10766)",
    {
        "target": Column(pl.String, "the target that measured the spectra"),
        "metric": Column(pl.String, "of quality: TARGET.SCORE, correct, response_tokens or n_steps"),
        "spectrum": Column(pl.String, "effective_rank or nuclear_norm, the mean over layers and projections"),
        "control": Column(
            pl.String,
            "of length: none; largest_rank (over min(T, d_out, d_in)); length_bin (percentile within its decile)",
        ),
        "correlation": Column(pl.Float64, "Spearman's; null where one of them does not vary", nullable=True),
        "samples": Column(pl.Int64, "that have both"),
    },
    sort=("target", "metric", "spectrum", "control"),
)


def subset_comparison_path() -> str:
    """`subset_comparison`, one Parquet file."""
    return "reports/subset_comparison.parquet"


def spectra_by_layer_path() -> str:
    """`spectra_by_layer`, one Parquet file."""
    return "reports/spectra_by_layer.parquet"


def spectra_correlations_path() -> str:
    """`spectra_correlations`, one Parquet file."""
    return "reports/spectra_correlations.parquet"


def preference_path() -> str:
    """`preference`, one Parquet file."""
    return "reports/preference.parquet"
