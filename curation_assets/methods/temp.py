"""TEMP: early losses at perturbed checkpoints (arXiv 2606.26797; docs/methods.md, "TEMP")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.temp import Temp
from curation_assets.methods.vectors import Vectors, matrix


class TempScore(ScoreSection):
    """TEMP: the score is a sample's brittleness, l_1000(theta_8) - l_1000(theta_1), or l_100(theta_rnd) without a path.

    The selector temp chooses by source, difficulty and clusters of losses along the path.
    """

    method: Literal["temp"] = "temp"


def _score(inputs: ScoreInputs, _section: TempScore) -> Scored:
    rows = inputs.signals["perturbed_losses"].filter(pl.col("random_100").is_not_null())
    path = pl.col("directional_1000")
    brittleness = path.list.last().cast(pl.Float64) - path.list.first()
    return values(rows, pl.when(path.list.len() > 0).then(brittleness).otherwise("random_100"))


def _losses(rows: pl.DataFrame) -> Vectors:
    """Return l_100 at the random checkpoint, then l_100 along the path, then l_1000 along the path."""
    return matrix(rows.select(pl.concat_list("random_100", "directional_100", "directional_1000")).to_series())


def _unfaithful(target: TargetFacts, _section: TempScore) -> Sequence[str]:
    reasons = []
    if not target.directional:
        reasons.append("no directional checkpoints (perturbation.directional: false), so neither budgets nor clusters")
    if not target.reasoning_only:
        reasons.append("windows extend into the answer (perturbation.reasoning_only: false), as in the released code")
    return reasons


METHODS = [
    Method(
        name="temp",
        source="arXiv 2606.26797",
        summary="how much the path of perturbed checkpoints raises the early loss",
        section=TempScore,
        signals=lambda _section: ("perturbed_losses",),
        reads={"perturbed_losses": ("random_100", "directional_100", "directional_1000")},
        score=_score,
        selector=Temp(),
        vectors="perturbed_losses",
        to_vectors=_losses,
        cost="C(endpoint) + prefixes only",
        unfaithful=_unfaithful,
    )
]
