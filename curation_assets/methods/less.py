"""LESS and TAGCOS: gradients at the checkpoints of a training run (arXiv 2402.04333).

See docs/methods.md, "LESS, TAGCOS, GraNd and EL2N".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts
from curation_assets.methods.selectors.tagcos import Tagcos
from curation_assets.methods.selectors.tasks import AGGREGATION, Aggregate, selector_for
from curation_assets.methods.selectors.top import Top
from curation_assets.methods.vectors import BLOCK, Vectors, unit
from curation_assets.tables.signals import SignalName
from curation_resources.sections import Name
from curation_resources.training.recipe import PRESETS

TRAINED: SignalName = "adam_feature_trajectories"
HELD_OUT: SignalName = "gradient_feature_trajectories"


class LessScore(ScoreSection):
    """LESS: how much an Adam step on a sample lowers the loss of validation samples.

    Per validation set: the mean over its samples of the cosine between the sample's update direction and their
    gradients, weighted over checkpoints by learning rate. The score is the maximum over the sets.
    """

    method: Literal["less"] = "less"
    validation: list[Name] = Field(min_length=1, description="validation sets, one per task; a name or a list")
    aggregate: Aggregate = Field("max", description=AGGREGATION)

    @field_validator("validation", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class TagcosScore(ScoreSection):
    """TAGCOS: the score is only the agreement of a sample's directions at the checkpoints; the selector uses clusters.

    It is the length of the mean of the unit directions, weighted by learning rate.
    """

    method: Literal["tagcos"] = "tagcos"


def along_checkpoints(rows: pl.DataFrame) -> tuple[Vectors, Vectors]:
    """Return unit vectors [n, T, k] at each checkpoint, and the weights [n, T] of the checkpoints."""
    weights = rows["weights"].explode().to_numpy().astype(np.float32).reshape(len(rows), -1)
    checkpoints = weights.shape[1]
    flat = rows["features"].explode().explode().to_numpy().reshape(len(rows) * checkpoints, -1)
    return unit(flat).reshape(len(rows), checkpoints, -1), weights


def weighed(rows: pl.DataFrame) -> Vectors:
    """Return vectors [n, T k] whose dot products are the weighted sums over checkpoints of cosines."""
    if rows.is_empty():
        return np.empty((0, 0), dtype=np.float32)
    vectors, weights = along_checkpoints(rows)
    return (vectors * np.sqrt(weights)[:, :, None]).reshape(len(rows), -1)


def mean_direction(rows: pl.DataFrame) -> Vectors:
    """Return the weighted mean [n, k] over checkpoints of unit vectors (TAGCOS)."""
    if rows.is_empty():
        return np.empty((0, 0), dtype=np.float32)
    vectors, weights = along_checkpoints(rows)
    mean: Vectors = np.einsum("ntk,nt->nk", vectors, weights)
    return mean


def _less(inputs: ScoreInputs, section: LessScore) -> Scored:
    rows = inputs.signals[TRAINED].filter(pl.col("features").is_not_null())
    # The mean of dot products is the dot product with the mean.
    tasks = [inputs.validation[name].mean(axis=0, dtype=np.float64) for name in section.validation]
    found = np.empty((len(rows), len(tasks)))
    for start in range(0, len(rows), BLOCK):
        vectors = weighed(rows.slice(start, BLOCK))
        for place, task in enumerate(tasks):
            # One row at a time, so that the sum does not depend on the other rows.
            found[start : start + len(vectors), place] = [np.dot(vector.astype(np.float64), task) for vector in vectors]
    score = found.max(axis=1) if section.aggregate == "max" else found.mean(axis=1)
    return Scored(rows.select("sample_id", value=pl.Series(score, dtype=pl.Float64)))


def _tagcos(inputs: ScoreInputs, _section: TagcosScore) -> Scored:
    rows = inputs.signals[TRAINED].filter(pl.col("features").is_not_null())
    lengths = [np.linalg.norm(mean_direction(rows.slice(start, BLOCK)), axis=1) for start in range(0, len(rows), BLOCK)]
    return Scored(rows.select("sample_id", value=pl.Series(np.concatenate([[], *lengths]), dtype=pl.Float64)))


ANY = ("seed", "adapter")
"""Hyper-parameters that may differ from the source's recipe."""

FRACTION = 0.05
"""Share of the pool that LESS and TAGCOS train on."""


def _less_unfaithful(target: TargetFacts, _section: LessScore) -> Sequence[str]:
    return _differences(target, "LESS", "epoch")


def _tagcos_unfaithful(target: TargetFacts, _section: TagcosScore) -> Sequence[str]:
    return _differences(target, "TAGCOS", 10)


def _differences(target: TargetFacts, source: str, save_every: int | str) -> list[str]:
    """Return how a target's run and vectors deviate from a source, whose preset has its name in lower case."""
    run = target.warmup
    if run is None:
        return []
    own, wanted = vars(run.recipe), vars(PRESETS[source.lower()])
    differ = [name for name in wanted if name not in ANY and own[name] != wanted[name]]
    reasons = [f"the run is trained with {name} {own[name]} ({source}: {wanted[name]})" for name in differ]
    if run.release is None and run.fraction != FRACTION:
        reasons.append(f"the run is trained on {run.fraction:g} of the pool ({source}: {FRACTION:g})")
    if run.save_every != save_every:
        reasons.append(f"checkpoints are saved every {_interval(run.save_every)} ({source}: {_interval(save_every)})")
    if own["adapter"] != "lora":
        reasons.append("gradients are taken for all linear layers, not for an adapter")
    if target.gradient_dimension != 8192:
        reasons.append(f"vectors have {target.gradient_dimension} numbers ({source}: 8192)")
    return reasons


def _interval(save_every: int | str | None) -> str:
    return str(save_every) if save_every == "epoch" else f"{save_every} steps"


METHODS = [
    Method(
        name="less",
        source="LESS, arXiv 2402.04333, Definition 3.1 and section 4.2",
        summary="agreement of the sample's Adam direction with the gradients of validation samples",
        section=LessScore,
        signals=lambda _section: (TRAINED,),
        measured_of_validation=lambda _section: (HELD_OUT,),
        reads={TRAINED: ("features", "weights")},
        score=_less,
        selector=Top(),
        validation=lambda section: tuple(section.validation),
        vectors=TRAINED,
        to_vectors=weighed,
        selector_by=lambda section: selector_for(section.aggregate),
        cost="C(lora, warm-up, T) + 3 T N F",
        unfaithful=_less_unfaithful,
    ),
    Method(
        name="tagcos",
        source="TAGCOS, parity with the released code: methods.md, 5",
        summary="agreement of the sample's directions along the run; selected by clusters and matching pursuit",
        section=TagcosScore,
        signals=lambda _section: (TRAINED,),
        reads={TRAINED: ("features", "weights")},
        score=_tagcos,
        selector=Tagcos(),
        vectors=TRAINED,
        to_vectors=mean_direction,
        cost="C(lora, warm-up, T) + 3 T N F",
        unfaithful=_tagcos_unfaithful,
    ),
]
