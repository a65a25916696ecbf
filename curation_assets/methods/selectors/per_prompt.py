"""Selector `per_prompt`: the best responses of each prompt, then the best of those (GRAPE, arXiv 2502.04194)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import Candidates, Keys, Mask, Selector, SelectorSection
from curation_resources.sections import Section

Variant = Literal["closest", "farthest", "closest_1", "random_1", "subset", "full", "reward", "long_cot"]


class Original(Section):
    """Identifies the original samples of the pool, as opposed to responses added later."""

    sources: list[str] = Field(default=[], description="sources of the original samples")
    generators: list[str] = Field(default=[], description="generators of the original responses")

    @model_validator(mode="after")
    def _something(self) -> Original:
        if not self.sources and not self.generators:
            raise ValueError(
                "neither sources nor generators are set. Name the sources or the generators of the original samples."
            )
        return self


NEEDS_ORIGINAL = ("closest_1", "subset")


class PerPrompt(SelectorSection):
    """Select within each prompt group of at least two distinct responses, then among those (GRAPE).

    closest: the k highest scores of each group. farthest: the k lowest. closest_1: the highest score among the
    group's original responses. random_1: a random response. subset: the group's original responses. full: all
    responses of the group. reward: the highest reward. long_cot: the highest score among correct responses, as
    marked in the row or, without a mark, by comparing their answer with the row's.
    """

    kind: Literal["per_prompt"] = "per_prompt"
    variant: Variant = "closest"
    k: Annotated[int, Field(ge=1)] | Literal["original"] = Field(
        1, description="responses per prompt; original: as many as the prompt had before others were added"
    )
    original: Original | None = Field(None, description="identifies the original pool")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of random_1")

    @model_validator(mode="after")
    def _original_is_said(self) -> PerPrompt:
        if self.original is None and (self.variant in NEEDS_ORIGINAL or self.k == "original"):
            wants = f"variant {self.variant}" if self.variant in NEEDS_ORIGINAL else "k: original"
            raise ValueError(f"{wants} requires the original pool. Add original: {{sources: [...]}}.")
        return self


def _rank(selector: PerPrompt, found: Candidates) -> Keys:
    """Return the key by which a variant chooses within prompts, and a budget then among the chosen."""
    key = _key(selector, found)
    return Keys(key, _allowed(selector, found, key), _is_original(selector, found.pool))


def _key(selector: PerPrompt, found: Candidates) -> NDArray[np.float64]:
    if selector.variant == "random_1":
        drawn: NDArray[np.float64] = uniform(found.pool["sample_id"], selector.seed).to_numpy()
        return drawn
    if selector.variant == "reward":
        reward: NDArray[np.float64] = found.pool["reward"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return -reward
    return found.by_score(highest_first=selector.variant != "farthest")


def _allowed(selector: PerPrompt, found: Candidates, key: NDArray[np.float64]) -> Mask | None:
    if selector.variant in ("subset", "closest_1"):
        return _is_original(selector, found.pool)
    if selector.variant == "long_cot":
        right: Mask = (
            found.pool.select(pl.coalesce("correct", "verified").fill_null(value=False)).to_series().to_numpy()
        )
        return right
    return np.isfinite(key) if selector.variant == "reward" else None


def _is_original(selector: PerPrompt, pool: pl.DataFrame) -> Mask:
    """Return which rows were in the pool before others were added [n]."""
    original = selector.original
    if original is None:
        return np.zeros(len(pool), dtype=np.bool_)
    named = pl.col("source").is_in(original.sources) | pl.col("generator").is_in(original.generators)
    mask: Mask = pool.select(named.fill_null(value=False)).to_series().to_numpy()
    return mask


def _most(selector: PerPrompt) -> int | Literal["original"] | None:
    """Return how many samples of a prompt a variant takes; None: all that it allows."""
    if selector.variant in ("full", "subset"):
        return None
    return 1 if selector.variant in ("closest_1", "random_1") else selector.k


READS = frozenset({"source", "generator", "correct", "verified", "reward"})

SELECTORS = [Selector(PerPrompt, rank=_rank, per_prompt=_most, reads=READS)]
