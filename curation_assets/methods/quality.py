"""Quality metrics by other models: a reward model's logit, and a judge's ratings of the prompt and the response.

See docs/methods.md, "Reward models and judges".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.top import Top
from curation_assets.tables.signals import SignalName


class RewardModelScore(ScoreSection):
    """Reward: a reward model's raw logit for the prompt and response as a conversation."""

    method: Literal["reward_model"] = "reward_model"


class InsTagScore(ScoreSection):
    """InsTag: number of intentions that a judge identifies in the prompt."""

    method: Literal["instag"] = "instag"


class DifficultyScore(ScoreSection):
    """Difficulty: a judge's rating from 1 to 10."""

    method: Literal["difficulty"] = "difficulty"


class ComplexityScore(ScoreSection):
    """Complexity: a judge's rating of the prompt from 1 to 6 (DEITA)."""

    method: Literal["complexity"] = "complexity"


class QualityScore(ScoreSection):
    """Quality: a judge's rating of the response to its prompt from 1 to 6 (DEITA)."""

    method: Literal["quality"] = "quality"


def _untrained(_target: TargetFacts, _section: ScoreSection) -> Sequence[str]:
    return (
        "a judge with a prompt of our own gives one number; DEITA's trained scorers give the expectation over the six "
        "digits",
    )


def _method(
    name: str,
    source: str,
    summary: str,
    section: type[ScoreSection],
    signal: SignalName,
    column: str,
    cost: str,
    unfaithful: Callable[[TargetFacts, ScoreSection], Sequence[str]] = lambda _target, _section: (),
) -> Method:
    def score(inputs: ScoreInputs, _section: ScoreSection) -> Scored:
        return values(inputs.signals[signal].drop_nulls(column), pl.col(column))

    return Method(
        name=name,
        source=source,
        summary=summary,
        section=section,
        signals=lambda _section: (signal,),
        reads={signal: (column,)},
        score=score,
        selector=Top(),
        cost=cost,
        unfaithful=unfaithful,
    )


METHODS = [
    _method(
        "reward_model",
        "any sequence-classification reward model: methods.md, 3",
        "reward of the response",
        RewardModelScore,
        "rewards",
        "reward",
        "N F_reward",
    ),
    _method(
        "instag",
        "InsTag, arXiv 2308.07074; with our own wording of the question",
        "number of intentions in the prompt",
        InsTagScore,
        "instruction_tags",
        "tags",
        "N judgements",
    ),
    _method(
        "difficulty",
        "difficulty by an LLM judge: methods.md, 3; with our own wording of the question",
        "difficulty of the prompt",
        DifficultyScore,
        "difficulty",
        "difficulty",
        "N judgements",
    ),
    _method(
        "complexity",
        "DEITA, arXiv 2312.15685; with our own wording of the question",
        "complexity of the prompt",
        ComplexityScore,
        "complexity",
        "complexity",
        "N judgements",
        _untrained,
    ),
    _method(
        "quality",
        "DEITA, arXiv 2312.15685; with our own wording of the question",
        "quality of the response",
        QualityScore,
        "quality",
        "quality",
        "N judgements",
        _untrained,
    ),
]
