"""The part of `curation.yaml` that says with respect to what a target's gradients are taken, and how they are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from curation_resources.scoring.gradient_spec import FeatureError, FeatureSpec, GradientWeights
from curation_resources.sections import Section


class Gradients(Section):
    """Per-sample gradients (gradient_norms, gradient_features and those along a training run): of what, and how each is
    made into one vector."""

    weights: GradientWeights = Field(
        "auto",
        description="adapter: the LoRA matrices of the target's own run; layers: every linear layer of the decoder; "
        "auto: the adapter where there is one",
    )
    projection: int = Field(64, ge=1, description="p: of every matrix' gradient p x p numbers are kept")
    dimension: int = Field(8192, ge=1, description="k: they are added into a vector of so many numbers, kept in int8")
    seed: int = Field(0, ge=0, lt=2**63, description="of the random signs")
    parity: Literal["paper", "as_coded"] = Field(
        "paper",
        description="as_coded: Adam's 1e-8 inside the root, as LESS's released code has it; cosines of spectra also of "
        "gradients of other shapes with as many elements, as that paper's has it",
    )

    @model_validator(mode="after")
    def _it_fits(self) -> Gradients:
        try:
            self.spec()
        except FeatureError as error:
            raise ValueError(str(error)) from error
        return self

    def spec(self) -> FeatureSpec:
        """As the scoring code takes it."""
        return FeatureSpec(self.weights, self.projection, self.dimension, self.seed, self.parity == "as_coded")
