"""Combined scores: several named scores, of one target or of several, as one.

A combined score has no signals of its own. It is computed from stored scores while a subset is chosen, because ranks
and z-scores depend on the samples that it is chosen from (`curation_assets.subsets.thresholds`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection
from curation_assets.methods.selectors.top import Top
from curation_resources.sections import Section

By = Literal["rank", "zscore", "value", "product"]


class Combination(Section):
    """Several scores as one, in which high values are best. A sample that lacks one of them has no combined score.

    rank: weighted mean of the ranks of each score, from 1/n for its lowest value to 1 for its highest; equal values
    share their mean rank. zscore: weighted sum of distances from the mean, in standard deviations. value: weighted sum.
    product: product of the values, each to the power of its weight; all must be positive.
    """

    combine: dict[str, float] = Field(
        min_length=1, description="names of scores and their weights; a negative weight prefers low values"
    )
    by: By = Field("rank", description="how the scores are combined")
    within: Literal["pool", "source"] = Field(
        "pool",
        description="samples that ranks and z-scores are computed among: all that are eligible, or those of the same "
        "source",
    )

    @field_validator("combine", mode="wrap")
    @classmethod
    def _by_name(cls, value: object, handler: ValidatorFunctionWrapHandler) -> dict[str, float]:
        if not isinstance(value, dict):
            raise ValueError("must be names of scores with their weights, as in {grace: 2, ifd: 1}")
        # Sorted, because the order has no meaning, and files that hold a configuration sort their keys.
        return dict(sorted(handler(value).items()))

    @field_validator("combine")
    @classmethod
    def _weights_count(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if weight == 0.0:
                raise ValueError(f"{name} has weight 0 and would not count. Remove it, or give it another weight.")
        return value

    @model_validator(mode="after")
    def _within_matters(self) -> Combination:
        if self.within != "pool" and self.by in ("value", "product"):
            raise ValueError(f"by: {self.by} compares no samples, so that within has no effect. Remove within.")
        return self

    @property
    def title(self) -> str:
        """The name of the combined score in tables, plots and messages."""
        if self.by == "product":
            text = " * ".join(name if weight == 1.0 else f"{name}^{weight:g}" for name, weight in self.combine.items())
        else:
            terms = [name if weight == 1.0 else f"{weight:g} {name}" for name, weight in self.combine.items()]
            text = f"{self.by}({' + '.join(terms)})".replace("+ -", "- ")
        return text if self.within == "pool" else f"{text} within {self.within}"


class Combined(ScoreSection):
    """A combination in the place of a configured score: its name is the combination's title."""

    name: str
    method: Literal["combined"] = "combined"
    combination: Combination


def _has_no_signals(_inputs: ScoreInputs, _section: ScoreSection) -> Scored:
    raise NotImplementedError("a combined score is computed from stored scores, while a subset is chosen")


COMBINED = Method(
    name="combined",
    source="ours",
    summary="combination of stored scores; high values are best",
    section=Combined,
    signals=lambda _section: (),
    score=_has_no_signals,
    selector=Top(),
    cost="0",
)
"""The method of every combined score. It is not in the registry, since no score of `scores` can have it."""
