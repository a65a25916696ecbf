"""Parameters of each selector kind; the selection itself is in `curation_assets.subsets.selectors`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation_resources.sections import Section

Order = Literal["highest", "lowest"]

Variant = Literal["closest", "farthest", "closest_1", "random_1", "subset", "full", "reward", "long_cot"]


class Top(Section):
    """Select the best samples by score."""

    kind: Literal["top"] = "top"
    order: Order | None = Field(None, description="order of the scores; default: the method's")


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


class PerPrompt(Section):
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


class Band(Section):
    """Select consecutive ranks of the scores, highest first: from the end, the start, or from one third on."""

    kind: Literal["band"] = "band"
    band: Literal["low", "middle", "high"] = "middle"


class Random(Section):
    """Select at random, regardless of the score."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**63)


class RoundRobin(Section):
    """Let each validation sample in turn pick its best remaining sample, by embeddings."""

    kind: Literal["round_robin"] = "round_robin"
    parity: Literal["paper", "as_coded"] = Field(
        "paper", description="as_coded: skip a turn if its best sample is already selected"
    )


class KCenter(Section):
    """Select the sample farthest from all selected ones, repeatedly, by embeddings."""

    kind: Literal["k_center"] = "k_center"
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the first sample")


class S2L(Section):
    """Select equally from clusters of loss trajectories, the smallest cluster first, source by source (S2L)."""

    kind: Literal["s2l"] = "s2l"
    clusters: int = Field(100, ge=1, description="K of k-means, per source")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of k-means and of the draws within clusters")


class Temp(Section):
    """Select the most brittle hard samples of each cluster of losses along the path, within each source (TEMP).

    A source's share of the budget depends on how much the path raises the loss of its hard samples. Without a path,
    select the hardest of the hard samples.
    """

    kind: Literal["temp"] = "temp"
    seed: int = Field(0, ge=0, lt=2**63, description="seed of k-means and of the draws among singletons")


class Tagcos(Section):
    """Select from clusters of gradients, in proportion to their size, by matching pursuit of the cluster mean
    (TAGCOS)."""

    kind: Literal["tagcos"] = "tagcos"
    clusters: int = Field(100, ge=1, description="K of k-means")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of k-means")


SelectorKind = Literal["top", "per_prompt", "band", "random", "round_robin", "k_center", "s2l", "temp", "tagcos"]
AnySelector = Annotated[
    Top | PerPrompt | Band | Random | RoundRobin | KCenter | S2L | Temp | Tagcos, Field(discriminator="kind")
]

BY_SHARES = (S2L, Temp, Tagcos)
"""Selectors that apportion the budget themselves: they need a budget in samples, and no strata."""
