"""Gradient settings as plain data, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curation_resources.scoring.errors import ScoringError

GradientWeights = Literal["auto", "adapter", "layers"]
"""The weights to take gradients with respect to: see `curation_resources.scoring.trained_matrices`."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of every weight: running means of its gradient and of the gradient's square."""

OPTIMIZER = "optimizer.safetensors"
"""File with AdamW's moments beside a checkpoint of a trajectory, by `MOMENT.PARAMETER`."""


class FeatureError(ScoringError):
    """Gradient features cannot be computed."""


@dataclass(frozen=True)
class FeatureSpec:
    """Maps a sample's gradient to one short vector: see `curation_resources.scoring.features`.

    Attributes:
        weights: the weights to take gradients with respect to.
        projection: p: every matrix' gradient is reduced to P G Q^T, where P and Q have at most p rows.
        dimension: k, the length of the stored vector.
        seed: seeds P, Q and all signs.
        epsilon_inside: in Adam's direction m / sqrt(v), add 1e-8 inside the root, as LESS's released code does, not
            outside.

    Raises:
        FeatureError: one matrix' part is longer than the vector.
    """

    weights: GradientWeights = "auto"
    projection: int = 64
    dimension: int = 8192
    seed: int = 0
    epsilon_inside: bool = False

    def __post_init__(self) -> None:
        if self.projection < 1 or self.projection**2 > self.dimension:
            raise FeatureError(
                f"a projection of {self.projection} x {self.projection} does not fit into a dimension of "
                f"{self.dimension}. Raise the dimension to {max(1, self.projection) ** 2}, or lower the projection."
            )
