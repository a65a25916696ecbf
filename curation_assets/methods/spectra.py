"""Layer-wise gradient spectra: the number of directions that a response's gradients span (arXiv 2504.10766)."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.selectors.top import Top
from curation_resources.scoring.spec import PROJECTIONS


class SpectraScore(ScoreSection):
    """Gradient spectra: effective rank or nuclear norm, averaged over layers and projections."""

    method: Literal["spectra"] = "spectra"
    metric: Literal["effective_rank", "nuclear_norm"] = Field(
        "effective_rank", description="nuclear_norm: negated, because better responses have a lower one"
    )
    projection: Literal["all", "q", "k", "v", "o"] = Field("all", description="attention projection")
    length_control: Literal["none", "largest_rank"] = Field(
        "none", description="largest_rank: divide each by min(T, d_out, d_in), which grows with the response"
    )


def layer_means(rows: pl.DataFrame, section: SpectraScore) -> pl.DataFrame:
    """Return sample_id and value: the metric's mean over the measured layers and projections.

    Layers without a value (a zero gradient) are excluded from the mean.
    """
    measured = rows.select("sample_id", value=section.metric, bound="largest_rank").drop_nulls("value")
    flat = measured.explode("value", "bound").explode("value", "bound")
    if section.projection != "all":
        place = pl.int_range(pl.len()).over("sample_id") % len(PROJECTIONS)
        flat = flat.filter(place == PROJECTIONS.index(section.projection))
    value = pl.col("value").cast(pl.Float64)
    if section.length_control == "largest_rank":
        # A zero gradient has no rows; its norm stays 0.
        value = value / pl.max_horizontal("bound", 1)
    return flat.group_by("sample_id", maintain_order=True).agg(value.mean())


def _score(inputs: ScoreInputs, section: SpectraScore) -> Scored:
    rows = inputs.signals["gradient_spectra"]
    sign = -1.0 if section.metric == "nuclear_norm" else 1.0
    return values(layer_means(rows, section), sign * pl.col("value"))


METHODS = [
    Method(
        name="spectra",
        source="arXiv 2504.10766, section 3; the selector is ours",
        summary="effective rank of the attention gradients of the response, averaged over layers",
        section=SpectraScore,
        signals=lambda _section: ("gradient_spectra",),
        reads={"gradient_spectra": ("nuclear_norm", "effective_rank", "largest_rank")},
        score=_score,
        selector=Top(),
        cost="3 N F",
    )
]
