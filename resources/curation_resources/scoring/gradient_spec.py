"""What is asked of gradients, as plain data: it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curation_resources.scoring.errors import ScoringError

GradientWeights = Literal["auto", "adapter", "layers"]
"""With respect to what gradients are taken: see `curation_resources.scoring.trained_matrices`."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of every weight: running means of its gradient and of the gradient's square."""

OPTIMIZER = "optimizer.safetensors"
"""AdamW's moments beside a checkpoint of a trajectory, by `MOMENT.PARAMETER`."""


class FeatureError(ScoringError):
    """Gradient features that cannot be made."""


@dataclass(frozen=True)
class FeatureSpec:
    """How a sample's gradient becomes one short vector: see `curation_resources.scoring.features`.

    Attributes:
        weights: with respect to what the gradient is taken.
        projection: p: of every matrix' gradient P G Q^T is kept, P and Q with p rows at most.
        dimension: k of the vector that is stored.
        seed: of P, Q and all signs.
        epsilon_inside: of Adam's direction m / sqrt(v): its 1e-8 is added inside the root, as LESS's released code has
            it, not outside.

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
                f"{self.dimension}: raise the dimension to {max(1, self.projection) ** 2}, or lower the projection"
            )
