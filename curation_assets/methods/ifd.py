"""IFD: how little the prompt helps to predict the response (Cherry LLM, arXiv 2308.12032; Superfiltering,
2402.00530)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.top import Top
from curation_assets.tables.signals import SignalName
from curation_resources.scoring.spec import Template


class IfdScore(ScoreSection):
    """IFD: the response's perplexity (or loss) with its prompt, divided by that without; no score outside (0, 1]."""

    method: Literal["ifd"] = "ifd"
    formula: Literal["ppl_ratio", "loss_ratio"] = Field(
        "ppl_ratio", description="ppl_ratio: Superfiltering's; loss_ratio: Cherry's"
    )
    parity: Literal["paper", "as_coded"] = Field(
        "paper",
        description="as_coded: tokenize the response anew without its prompt, after BOS if the tokenizer adds it, and "
        "after `### Response:` for loss_ratio; count every token that anything precedes",
    )


TEMPLATES: dict[str, Template] = {"ppl_ratio": "plain", "loss_ratio": "alpaca"}
"""The template of each formula's source."""


def _alone(section: IfdScore) -> tuple[SignalName, str]:
    """Return the signal and the column with the response's likelihood without its prompt."""
    if section.parity == "paper":
        return "unconditional_likelihoods", "unconditional_nll"
    headed = section.formula == "loss_ratio"
    return "headed_answer_likelihoods" if headed else "direct_answer_likelihoods", "direct_nll"


def _score(inputs: ScoreInputs, section: IfdScore) -> Scored:
    signal, column = _alone(section)
    with_prompt = inputs.signals["likelihoods"].select("sample_id", "mean_nll", "first_nll", "response_tokens")
    both = with_prompt.join(inputs.signals[signal].select("sample_id", column), on="sample_id", how="left")
    conditional, unconditional = pl.col("mean_nll"), pl.col(column)
    if section.parity == "paper":
        # Without the prompt nothing predicts the first token, so both passes exclude it.
        n = pl.col("response_tokens").cast(pl.Float64)
        conditional = (n * conditional - pl.col("first_nll")) / (n - 1.0)
    ratio = conditional / unconditional if section.formula == "loss_ratio" else (conditional - unconditional).exp()
    kept = unconditional.is_not_null() & (ratio > 0.0) & (ratio <= 1.0)
    return values(both, pl.when(kept).then(ratio))


def _unfaithful(target: TargetFacts, section: IfdScore) -> Sequence[str]:
    wanted = TEMPLATES[section.formula]
    if section.parity == "paper" or target.template == wanted:
        return []
    return [f"prompts are rendered with template {target.template} (released code: {wanted})"]


METHODS = [
    Method(
        name="ifd",
        source="arXiv 2308.12032 (loss_ratio), arXiv 2402.00530 (ppl_ratio)",
        summary="instruction-following difficulty: how little the prompt helps to predict the response",
        section=IfdScore,
        signals=lambda section: ("likelihoods", _alone(section)[0]),
        reads={
            "likelihoods": ("mean_nll", "first_nll", "response_tokens"),
            "unconditional_likelihoods": ("unconditional_nll",),
            "direct_answer_likelihoods": ("direct_nll",),
            "headed_answer_likelihoods": ("direct_nll",),
        },
        score=_score,
        selector=Top(),
        cost="2 N F",
        unfaithful=_unfaithful,
    )
]
