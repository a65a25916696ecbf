"""LESS and TAGCOS: gradients at the checkpoints of a training run (arXiv 2402.04333; methods.md, 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts
from curation_assets.methods.selector import Tagcos, Top
from curation_assets.methods.vectors import BLOCK, Vectors, unit
from curation_resources.sections import Name, SignalName
from curation_resources.training.recipe import PRESETS

TRAINED: SignalName = "adam_feature_trajectories"
HELD_OUT: SignalName = "gradient_feature_trajectories"


class LessScore(ScoreSection):
    """LESS: how much a step by a sample, as Adam would take it, lowers the loss of validation samples.

    Of every validation set the mean over its samples of the cosine of the sample's direction with their gradients,
    weighed over checkpoints by learning rates; then the largest of the sets.
    """

    method: Literal["less"] = "less"
    validation: list[Name] = Field(min_length=1, description="validation sets, one for each task; a name, or several")
    aggregate: Literal["max", "mean"] = Field("max", description="over the sets")

    @field_validator("validation", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class TagcosScore(ScoreSection):
    """TAGCOS: the score is only how far a sample's directions at the checkpoints agree; the choice is by clusters.

    It is the length of their mean, each of length one and weighed by learning rates.
    """

    method: Literal["tagcos"] = "tagcos"


def along_checkpoints(rows: pl.DataFrame) -> tuple[Vectors, Vectors]:
    """Vectors [n, T, k] of length one at each checkpoint, and the weights [n, T] of the checkpoints."""
    weights = rows["weights"].explode().to_numpy().astype(np.float32).reshape(len(rows), -1)
    checkpoints = weights.shape[1]
    flat = rows["features"].explode().explode().to_numpy().reshape(len(rows) * checkpoints, -1)
    return unit(flat).reshape(len(rows), checkpoints, -1), weights


def weighed(rows: pl.DataFrame) -> Vectors:
    """Vectors [n, T k] whose dot products are the weighted sums over checkpoints of cosines."""
    if rows.is_empty():
        return np.empty((0, 0), dtype=np.float32)
    vectors, weights = along_checkpoints(rows)
    return (vectors * np.sqrt(weights)[:, :, None]).reshape(len(rows), -1)


def mean_direction(rows: pl.DataFrame) -> Vectors:
    """The weighted mean [n, k] over checkpoints of vectors of length one (TAGCOS)."""
    if rows.is_empty():
        return np.empty((0, 0), dtype=np.float32)
    vectors, weights = along_checkpoints(rows)
    mean: Vectors = np.einsum("ntk,nt->nk", vectors, weights)
    return mean


def _less(inputs: ScoreInputs, section: LessScore) -> Scored:
    rows = inputs.signals[TRAINED].filter(pl.col("features").is_not_null())
    # A mean of dot products is one with the mean.
    tasks = [inputs.validation[name].mean(axis=0, dtype=np.float64) for name in section.validation]
    found = np.empty((len(rows), len(tasks)))
    for start in range(0, len(rows), BLOCK):
        vectors = weighed(rows.slice(start, BLOCK))
        for place, task in enumerate(tasks):
            # A row at a time: the same sum whatever rows stand beside it.
            found[start : start + len(vectors), place] = [np.dot(vector.astype(np.float64), task) for vector in vectors]
    score = found.max(axis=1) if section.aggregate == "max" else found.mean(axis=1)
    return Scored(rows.select("sample_id", value=pl.Series(score, dtype=pl.Float64)))


def _tagcos(inputs: ScoreInputs, _section: TagcosScore) -> Scored:
    rows = inputs.signals[TRAINED].filter(pl.col("features").is_not_null())
    lengths = [np.linalg.norm(mean_direction(rows.slice(start, BLOCK)), axis=1) for start in range(0, len(rows), BLOCK)]
    return Scored(rows.select("sample_id", value=pl.Series(np.concatenate([[], *lengths]), dtype=pl.Float64)))


ANY = ("seed", "adapter")
"""Of LESS's recipe what may be any."""

LENGTH = ("epochs", "max_steps")
"""Of which TAGCOS has its own: 30 steps."""


LESS_FRACTION = 0.05
"""Of the pool, that LESS's run is trained on."""


def _less_unfaithful(target: TargetFacts, _section: LessScore) -> Sequence[str]:
    return _parts_from_source(target, ANY)


def _tagcos_unfaithful(target: TargetFacts, _section: TagcosScore) -> Sequence[str]:
    return _parts_from_source(target, (*ANY, *LENGTH))


def _parts_from_source(target: TargetFacts, free: Sequence[str]) -> list[str]:
    """What in a target's run and vectors is not LESS's, but for what is left open."""
    if target.warmup is None:
        return []
    own, source = vars(target.warmup.recipe), vars(PRESETS["less"])
    differ = [name for name in source if name not in free and own[name] != source[name]]
    reasons = [f"the run is trained with {name} {own[name]} (LESS: {source[name]})" for name in differ]
    run = target.warmup
    if run.release is None and run.fraction != LESS_FRACTION:
        reasons.append(f"the run is trained on {run.fraction:g} of the pool (LESS: {LESS_FRACTION:g})")
    if run.save_every != "epoch":
        reasons.append(f"checkpoints are kept every {run.save_every} steps (LESS: every epoch)")
    if own["adapter"] != "lora":
        reasons.append("gradients are of all linear layers, not of an adapter")
    if target.gradient_dimension != 8192:
        reasons.append(f"vectors have {target.gradient_dimension} numbers (LESS: 8192)")
    return reasons


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
        cost="C(lora, warm-up, T) + 3 T N F",
        unfaithful=_less_unfaithful,
    ),
    Method(
        name="tagcos",
        source="TAGCOS, parity with the released code: methods.md, 5",
        summary="agreement of the sample's directions along the run; chosen by clusters and matching pursuit",
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
