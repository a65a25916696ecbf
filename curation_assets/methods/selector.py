"""What a selector is told: the parameters of each kind. How each chooses is `curation_assets.subsets.selectors`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation_resources.sections import Section

Order = Literal["highest", "lowest"]

Variant = Literal["closest", "farthest", "closest_1", "random_1", "subset", "full", "reward", "long_cot"]


class Top(Section):
    """The first by score."""

    kind: Literal["top"] = "top"
    order: Order | None = Field(None, description="which scores come first; default: the method's")


class Original(Section):
    """Which samples of the pool are original ones, told apart from responses that were added to them."""

    sources: list[str] = Field(default=[], description="sources whose samples are original")
    generators: list[str] = Field(default=[], description="generators whose responses are original")

    @model_validator(mode="after")
    def _something(self) -> Original:
        if not self.sources and not self.generators:
            raise ValueError("name the sources or the generators of the original samples")
        return self


NEEDS_ORIGINAL = ("closest_1", "subset")


class PerPrompt(Section):
    """The best of each prompt group of two distinct responses or more, then the best of those (GRAPE).

    closest: the k highest scores of each group. farthest: the k lowest. closest_1: the highest among the
    group's original responses. random_1: one of the group at random. subset: the group's original responses.
    full: all of the group's. reward: the highest reward. long_cot: the highest score among responses that are
    right, by the row or, where it does not say, by comparing their answer with the row's.
    """

    kind: Literal["per_prompt"] = "per_prompt"
    variant: Variant = "closest"
    k: Annotated[int, Field(ge=1)] | Literal["original"] = Field(
        1, description="responses of each prompt; original: as many as it had before others were added"
    )
    original: Original | None = Field(None, description="what the original pool was")
    seed: int = Field(0, ge=0, lt=2**63, description="of random_1")

    @model_validator(mode="after")
    def _original_is_said(self) -> PerPrompt:
        if self.original is None and (self.variant in NEEDS_ORIGINAL or self.k == "original"):
            wants = f"variant {self.variant}" if self.variant in NEEDS_ORIGINAL else "k: original"
            raise ValueError(f"{wants} needs to know the original pool: add original: {{sources: [...]}}")
        return self


class Band(Section):
    """Consecutive ranks of the scores, highest first: the end of it, the start, or from a third on."""

    kind: Literal["band"] = "band"
    band: Literal["low", "middle", "high"] = "middle"


class Random(Section):
    """At random, whatever the score."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**63)


class RoundRobin(Section):
    """Each validation sample in turn takes its best remaining sample, by embeddings."""

    kind: Literal["round_robin"] = "round_robin"
    parity: Literal["paper", "as_coded"] = Field(
        "paper", description="as_coded: a turn whose best sample is taken already is lost"
    )


class KCenter(Section):
    """Farthest first: each time the sample farthest from all that are chosen, by embeddings."""

    kind: Literal["k_center"] = "k_center"
    seed: int = Field(0, ge=0, lt=2**63, description="of the first sample")


class S2L(Section):
    """Clusters of loss trajectories, the smallest first, an equal number of each; source by source (S2L)."""

    kind: Literal["s2l"] = "s2l"
    clusters: int = Field(100, ge=1, description="K of k-means, of each source")
    seed: int = Field(0, ge=0, lt=2**63, description="of k-means, and of the draws within clusters")


class Temp(Section):
    """Of every source the hard ones, a share of the budget by how much harder the path makes them, and of each cluster
    of losses along it the most brittle (TEMP). Without a path: of the hard ones the hardest.
    """

    kind: Literal["temp"] = "temp"
    seed: int = Field(0, ge=0, lt=2**63, description="of k-means, and of the draws among singletons")


class Tagcos(Section):
    """Clusters of gradients, of each a share by its size, by matching pursuit of its mean (TAGCOS)."""

    kind: Literal["tagcos"] = "tagcos"
    clusters: int = Field(100, ge=1, description="of k-means")
    seed: int = Field(0, ge=0, lt=2**63, description="of k-means")


SelectorKind = Literal["top", "per_prompt", "band", "random", "round_robin", "k_center", "s2l", "temp", "tagcos"]
AnySelector = Annotated[
    Top | PerPrompt | Band | Random | RoundRobin | KCenter | S2L | Temp | Tagcos, Field(discriminator="kind")
]

BY_SHARES = (S2L, Temp, Tagcos)
"""Selectors that share a budget out by themselves: what they choose is of one size, and not of strata."""
