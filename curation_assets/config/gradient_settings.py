"""Section `gradients` of `curation.yaml`: which gradients are taken, and how they are projected and stored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from curation_resources.scoring.gradient_spec import FeatureError, FeatureSpec, GradientWeights
from curation_resources.sections import Section


class Gradients(Section):
    """Per-sample gradients (gradient_norms, gradient_features and those along a training run) and their projection
    into one vector."""

    weights: GradientWeights = Field(
        "auto",
        description="adapter: the LoRA matrices of the target's own run; layers: every linear layer of the decoder; "
        "auto: the adapter if there is one, else the layers",
    )
    projection: int = Field(64, ge=1, description="p: keep p x p numbers of each matrix' gradient")
    dimension: int = Field(
        8192, ge=1, description="k: length of the vector into which these are summed, stored as int8"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the random signs")
    parity: Literal["paper", "as_coded"] = Field(
        "paper",
        description="as_coded: put Adam's 1e-8 inside the root, as in LESS's released code, and compare spectra of "
        "gradients of different shapes with equally many elements, as in the code of that paper",
    )

    @model_validator(mode="after")
    def _it_fits(self) -> Gradients:
        try:
            self.spec()
        except FeatureError as error:
            raise ValueError(str(error)) from error
        return self

    def spec(self) -> FeatureSpec:
        """Return the settings in the form that the scoring code expects."""
        return FeatureSpec(self.weights, self.projection, self.dimension, self.seed, self.parity == "as_coded")
