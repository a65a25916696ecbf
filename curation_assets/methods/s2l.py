"""S2L: selects among samples whose losses fall alike during a small model's training.

See docs/methods.md, "Checkpoints".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.s2l import S2L
from curation_assets.methods.vectors import matrix
from curation_resources.training.recipe import PRESETS


class S2LScore(ScoreSection):
    """S2L: the score is only the decrease of the loss; the selector uses clusters of loss trajectories.

    The target is a reference model: a small one of the same family, or the model itself with an adapter.
    """

    method: Literal["s2l"] = "s2l"


FREE = ("seed", "adapter", "lora_rank", "lora_alpha", "lora_dropout", "lora_modules")
"""Hyper-parameters that S2L leaves open: a reference model is trained in full or with an adapter."""


def _score(inputs: ScoreInputs, _section: S2LScore) -> Scored:
    rows = inputs.signals["loss_trajectories"].filter(pl.col("losses").is_not_null())
    return values(rows, pl.col("losses").list.first().cast(pl.Float64) - pl.col("losses").list.last())


def _unfaithful(target: TargetFacts, _section: S2LScore) -> Sequence[str]:
    if target.warmup is None:
        return []
    own, source = vars(target.warmup.recipe), vars(PRESETS["s2l"])
    others = ", ".join(
        f"{name} {own[name]} (S2L: {source[name]})" for name in source if name not in FREE and own[name] != source[name]
    )
    return [f"the reference run is trained with {others}"] if others else []


METHODS = [
    Method(
        name="s2l",
        source="S2L (small to large), parity with the released code: methods.md, 5",
        summary="decrease of the loss along the reference run; selected by clusters of loss trajectories",
        section=S2LScore,
        signals=lambda _section: ("loss_trajectories",),
        reads={"loss_trajectories": ("losses",)},
        score=_score,
        selector=S2L(),
        vectors="loss_trajectories",
        to_vectors=lambda rows: matrix(rows["losses"]),
        cost="C(theta_ref, D, T) + T N F_ref",
        unfaithful=_unfaithful,
    )
]
