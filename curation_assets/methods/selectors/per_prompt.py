"""Selector `per_prompt`: the best responses of each prompt, then the best of those (GRAPE, arXiv 2502.04194)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import (
    Candidates,
    Choice,
    Mask,
    Positions,
    Selector,
    SelectorSection,
    ascending,
    group_numbers,
)
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


def _per_prompt(selector: PerPrompt, found: Candidates) -> Choice:
    places = np.flatnonzero(found.may)
    prompts = group_numbers(found.pool["prompt_id"])[places]
    sizes = np.bincount(prompts)
    several = sizes[prompts] > 1
    left_out = {"single_response": int(len(places) - several.sum())}
    places, prompts = places[several], prompts[several]
    key = group_key(selector, found, places)
    chosen = _within_groups(selector, found, places, prompts, key)
    if selector.variant != "full":
        left_out["not_of_its_prompt"] = len(places) - len(chosen)
    # A budget takes the best prompts by what chose within them.
    own = places[chosen]
    order = own[ascending(key[chosen], found.pool["sample_id"], own, found.limit)]
    return Choice(order, {reason: count for reason, count in left_out.items() if count})


def group_key(selector: PerPrompt, found: Candidates, places: Positions) -> NDArray[np.float64]:
    """Return the key by which a variant chooses within and among prompts, lowest first; NaN: never chosen [n]."""
    if selector.variant == "random_1":
        return uniform(found.pool["sample_id"].gather(places), selector.seed).to_numpy()
    if selector.variant == "reward":
        reward: NDArray[np.float64] = found.pool["reward"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return -reward[places]
    return found.score[places] if selector.variant == "farthest" else -found.score[places]


def _within_groups(
    selector: PerPrompt, found: Candidates, places: Positions, prompts: NDArray[np.int64], key: NDArray[np.float64]
) -> Positions:
    """Return which of the grouped samples a variant takes, as indices into them."""
    pool = found.pool
    indices = np.flatnonzero(of_variant(selector, found, places, key))
    if takes_all(selector):
        return indices
    if takes_one(selector):
        return _first_of_groups(key, pool["sample_id"], places, prompts, indices)
    order = indices[ascending(key[indices], pool["sample_id"], places[indices], groups=prompts[indices])]
    grouped = prompts[order]
    starts = np.flatnonzero(np.insert(grouped[1:] != grouped[:-1], 0, True)) if len(order) else np.empty(0, np.int64)
    place_in_group = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    most: Any = selector.k
    if selector.k == "original":
        most = np.bincount(prompts, weights=is_original(selector, pool)[places])[grouped]
    taken: Positions = order[place_in_group < most]
    return taken


def _first_of_groups(
    key: NDArray[np.float64], sample_ids: pl.Series, places: Positions, prompts: NDArray[np.int64], indices: Positions
) -> Positions:
    """Return the index with the lowest key of each group, ties broken by sample_id, without sorting."""
    if not len(indices):
        return indices
    own, groups = key[indices], prompts[indices]
    lowest = np.full(int(groups.max()) + 1, np.inf)
    np.minimum.at(lowest, groups, own)
    best: Positions = indices[own == lowest[groups]]
    ties = np.bincount(prompts[best])[prompts[best]] > 1
    if not ties.any():
        return best
    tied = best[ties]
    names = pl.DataFrame({"index": tied, "group": prompts[tied], "sample_id": sample_ids.gather(places[tied])})
    firsts: Positions = names.sort("sample_id").unique("group", keep="first")["index"].to_numpy()
    return np.concatenate([best[~ties], firsts])


def of_variant(selector: PerPrompt, found: Candidates, places: Positions, key: NDArray[np.float64]) -> Mask:
    """Return which samples a variant may take, given their `group_key` [n]."""
    if selector.variant in ("subset", "closest_1"):
        return is_original(selector, found.pool)[places]
    if selector.variant == "long_cot":
        right = found.pool.select(pl.coalesce("correct", "verified").fill_null(value=False)).to_series()
        mask: Mask = right.to_numpy()[places]
        return mask
    return np.isfinite(key) if selector.variant == "reward" else np.ones(len(places), dtype=np.bool_)


def takes_all(selector: PerPrompt) -> bool:
    """Return whether a variant takes every allowed sample of a prompt."""
    return selector.variant in ("full", "subset")


def takes_one(selector: PerPrompt) -> bool:
    """Return whether a variant takes one sample of a prompt."""
    return selector.variant in ("closest_1", "random_1") or selector.k == 1


def is_original(selector: PerPrompt, pool: pl.DataFrame) -> Mask:
    """Return which rows of the pool were in it before others were added [N]."""
    original = selector.original
    if original is None:
        return np.zeros(len(pool), dtype=np.bool_)
    named = pl.col("source").is_in(original.sources) | pl.col("generator").is_in(original.generators)
    mask: Mask = pool.select(named.fill_null(value=False)).to_series().to_numpy()
    return mask


SELECTORS = [Selector(PerPrompt, _per_prompt)]
