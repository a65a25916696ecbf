"""GraNd: norm of a sample's gradient early in training (docs/methods.md, "LESS, TAGCOS, GraNd and EL2N")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.top import Top


class GrandScore(ScoreSection):
    """GraNd: norm of the gradient with respect to the trained weights, at the target's checkpoint, for one run."""

    method: Literal["grand"] = "grand"


def _score(inputs: ScoreInputs, _section: GrandScore) -> Scored:
    return values(inputs.signals["gradient_norms"].drop_nulls("gradient_norm"), pl.col("gradient_norm"))


def _unfaithful(target: TargetFacts, _section: GrandScore) -> Sequence[str]:
    if target.warmup is None:
        return ["gradients are taken at the model before any training"]
    if target.gradient_weights == "layers" or target.warmup.recipe.adapter == "full":
        return ["gradients are taken for the decoder's linear layers, not for all trained weights"]
    return []


METHODS = [
    Method(
        name="grand",
        source="GraNd, arXiv 2107.07075, Definition 2.1; one run",
        summary="norm of the sample's gradient at the end of the warm-up",
        section=GrandScore,
        signals=lambda _section: ("gradient_norms",),
        reads={"gradient_norms": ("gradient_norm",)},
        score=_score,
        selector=Top(),
        cost="m C + 3 m N F",
        unfaithful=_unfaithful,
    )
]
