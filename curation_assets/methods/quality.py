"""Quality metrics by other models: a reward model's logit, and what a judge says of the prompt (methods.md, 3)."""

from __future__ import annotations

from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.selector import Top
from curation_resources.sections import SignalName


class RewardModelScore(ScoreSection):
    """Reward: the raw logit of a reward model for the prompt and the response as a conversation."""

    method: Literal["reward_model"] = "reward_model"


class InsTagScore(ScoreSection):
    """InsTag: how many intentions a judge finds in the prompt."""

    method: Literal["instag"] = "instag"


class DifficultyScore(ScoreSection):
    """Difficulty: from 1 to 10, by a judge."""

    method: Literal["difficulty"] = "difficulty"


def _method(
    name: str, source: str, summary: str, section: type[ScoreSection], signal: SignalName, column: str, cost: str
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
        "InsTag, arXiv 2308.07074; our own wording of the question",
        "number of intentions of the prompt",
        InsTagScore,
        "instruction_tags",
        "tags",
        "N judgements",
    ),
    _method(
        "difficulty",
        "difficulty by an LLM judge: methods.md, 3; our own wording of the question",
        "difficulty of the prompt",
        DifficultyScore,
        "difficulty",
        "difficulty",
        "N judgements",
    ),
]
