"""IFD: how little the prompt helps to predict the response (Cherry LLM, arXiv 2308.12032; Superfiltering,
2402.00530)."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.selectors.top import Top


class IfdScore(ScoreSection):
    """IFD: the response's perplexity (or loss) with its prompt, divided by that without; no score outside (0, 1]."""

    method: Literal["ifd"] = "ifd"
    formula: Literal["ppl_ratio", "loss_ratio"] = Field(
        "ppl_ratio", description="ppl_ratio: Superfiltering's; loss_ratio: Cherry's"
    )
    parity: Literal["paper", "as_coded"] = Field(
        "paper", description="as_coded: count the response's first token only in the pass with the prompt"
    )


def _score(inputs: ScoreInputs, section: IfdScore) -> Scored:
    with_prompt = inputs.signals["likelihoods"].select("sample_id", "mean_nll", "first_nll", "response_tokens")
    alone = inputs.signals["unconditional_likelihoods"].select("sample_id", "unconditional_nll")
    both = with_prompt.join(alone, on="sample_id", how="left")
    conditional, unconditional = pl.col("mean_nll"), pl.col("unconditional_nll")
    if section.parity == "paper":
        # Without the prompt nothing predicts the first token, so both passes exclude it.
        n = pl.col("response_tokens").cast(pl.Float64)
        conditional = (n * conditional - pl.col("first_nll")) / (n - 1.0)
    ratio = conditional / unconditional if section.formula == "loss_ratio" else (conditional - unconditional).exp()
    kept = unconditional.is_not_null() & (ratio > 0.0) & (ratio <= 1.0)
    return values(both, pl.when(kept).then(ratio))


METHODS = [
    Method(
        name="ifd",
        source="arXiv 2308.12032 (loss_ratio), arXiv 2402.00530 (ppl_ratio)",
        summary="instruction-following difficulty: how little the prompt helps to predict the response",
        section=IfdScore,
        signals=lambda _section: ("likelihoods", "unconditional_likelihoods"),
        reads={
            "likelihoods": ("mean_nll", "first_nll", "response_tokens"),
            "unconditional_likelihoods": ("unconditional_nll",),
        },
        score=_score,
        selector=Top(),
        cost="2 N F",
    )
]
