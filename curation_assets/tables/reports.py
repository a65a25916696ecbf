"""Tables of the reports, and their paths."""

from __future__ import annotations

import polars as pl

from curation_assets.tables.schema import Column, Table

SUBSET_COMPARISON = Table(
    "subset_comparison",
    "differences between subsets and between scores, in long format",
    {
        "comparison": Column(
            pl.String,
            "overlap: Jaccard index of two subsets; baseline: of a subset and an equally large Random or Longest; "
            "rank_correlation: Spearman's, between two scores or a score and a length, over the pool; composition: "
            "share of a source in a subset, or in the pool",
        ),
        "left": Column(pl.String, "subset or score"),
        "right": Column(pl.String, "subset, baseline, score, length or source"),
        "value": Column(pl.Float64, "the index, correlation or share; null if undefined", nullable=True),
        "samples": Column(pl.Int64, "number of samples: shared, compared, or of the source"),
    },
    sort=("comparison", "left", "right"),
)

PREFERENCE = Table(
    "preference",
    "generators whose responses each target finds likeliest: wins by lowest perplexity (GRAPE, arXiv 2502.04194, "
    "figure 4)",
    {
        "generator": Column(pl.String, "author of the responses; (unknown) if the rows do not name one"),
        "target": Column(pl.String, "the target that measured them"),
        "wins": Column(pl.Int64, "prompts for which the target finds a response of this generator likeliest"),
        "share_of_generator": Column(
            pl.Float64, "share of the generator's wins over all targets; null if it has none", nullable=True
        ),
        "share_of_target": Column(pl.Float64, "share of the target's prompts; null if it has none", nullable=True),
        "prompts": Column(pl.Int64, "prompts with at least two responses measured by the target"),
    },
    sort=("generator", "target"),
)

SPECTRA_BY_LAYER = Table(
    "spectra_by_layer",
    "gradient spectra per layer and projection: means over the pool's samples (arXiv 2504.10766)",
    {
        "target": Column(pl.String, "the target that measured them"),
        "family": Column(pl.String, "model_type of the target's model"),
        "layer": Column(pl.Int64, "index of the layer, from 0"),
        "depth": Column(pl.Float64, "(layer + 1/2) / layers: relative position in the model"),
        "projection": Column(pl.String, "q, k, v, o"),
        "nuclear_norm": Column(pl.Float64, "N", nullable=True),
        "effective_rank": Column(pl.Float64, "R; null if all gradients are zero", nullable=True),
        "share_of_largest": Column(pl.Float64, "mean of R / min(T, d_out, d_in)", nullable=True),
        "adjacent": Column(pl.Float64, "cosine with the layer above; null for the last layer", nullable=True),
        "samples": Column(pl.Int64, "number of samples averaged"),
    },
    sort=("target", "layer", "projection"),
)

SPECTRA_CORRELATIONS = Table(
    "spectra_correlations",
    "correlation of quality with gradient spectra: Spearman's, over the pool (arXiv 2504.10766)",
    {
        "target": Column(pl.String, "the target that measured the spectra"),
        "metric": Column(pl.String, "quality metric: TARGET.SCORE, correct, response_tokens or n_steps"),
        "spectrum": Column(pl.String, "effective_rank or nuclear_norm, averaged over layers and projections"),
        "control": Column(
            pl.String,
            "control for length: none; largest_rank (divided by min(T, d_out, d_in)); length_bin (percentile within "
            "its decile)",
        ),
        "correlation": Column(pl.Float64, "Spearman's correlation; null if either side is constant", nullable=True),
        "samples": Column(pl.Int64, "samples with both values"),
    },
    sort=("target", "metric", "spectrum", "control"),
)


def subset_comparison_path() -> str:
    """Return the path of `subset_comparison`, one Parquet file."""
    return "reports/subset_comparison.parquet"


def spectra_by_layer_path() -> str:
    """Return the path of `spectra_by_layer`, one Parquet file."""
    return "reports/spectra_by_layer.parquet"


def spectra_correlations_path() -> str:
    """Return the path of `spectra_correlations`, one Parquet file."""
    return "reports/spectra_correlations.parquet"


def preference_path() -> str:
    """Return the path of `preference`, one Parquet file."""
    return "reports/preference.parquet"
