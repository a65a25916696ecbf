"""Weighted draw: a random domain, then a random sample of it that is likely to be a long one (s1K, arXiv 2501.19393).

Each pick chooses a domain uniformly among those with samples left, then one of its remaining samples with probability
proportional to 2^-rank, rank 0 for the longest response. As in the released code (simplescaling/s1,
`data/filter.ipynb`), ranks are those among the remaining samples, and domains are names alone, whatever their size.

The released code does more: it begins with 393 samples that it always takes, and draws the last 300 of 1,000 by the
domains' shares of two benchmarks. We do neither. It counts the reasoning's tokens by Qwen2.5's tokenizer, we those of
the whole response by the target's. Its draws depend on the state of numpy's generator; our draw number n of a seed is
always the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from curation_assets.methods.random_draws import sequence
from curation_assets.methods.selectors.candidates import Candidates, Choice, Positions, Selector, SelectorSection


class WeightedDraw(SelectorSection):
    """Draw a domain, then one of its remaining samples, in favour of long responses, repeatedly (s1K).

    Within the domain, the longest response left has probability 1/2, the next 1/4, and so on. The score has no
    influence. Samples without a domain are a domain of their own.
    """

    kind: Literal["weighted_draw"] = "weighted_draw"
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the draws")


def rank_of(drawn: float, count: int) -> int:
    """Return the rank, below `count`, that a number from [0, 1) draws with probability proportional to 2^-rank.

    Nothing underflows: the number has 53 bits, so that ranks above 53, together less likely than 2^-53, are not drawn.
    """
    above = 1.0 - drawn * (1.0 - 2.0**-count)
    # Rank r if 2^-(r + 1) < above <= 2^-r.
    fraction, exponent = math.frexp(above)
    return min(count - 1, 1 - exponent if fraction == 0.5 else -exponent)


def draw(groups: Sequence[Sequence[int]], count: int, seed: int) -> Positions:
    """Return the samples drawn, in order.

    Args:
        groups: the samples of each domain, longest response first.
        count: number of samples to draw, or all.
        seed: seed of the draws.
    """
    # Shortest first: a sample near the end of a list is removed quickly.
    left = [list(reversed(own)) for own in groups if len(own)]
    count = min(count, sum(map(len, left)))
    of_domain, of_rank = sequence(2 * count, seed).reshape(count, 2).T.tolist()
    order: list[int] = []
    for domain, rank in zip(of_domain, of_rank, strict=True):
        own = left[(which := int(domain * len(left)))]
        order.append(own.pop(-1 - rank_of(rank, len(own))))
        if not own:
            left.pop(which)
    return np.array(order, dtype=np.int64)


def _weighted_draw(selector: WeightedDraw, found: Candidates) -> Choice:
    places = np.flatnonzero(found.may)
    rows = found.pool[places].select(
        "sample_id", "domain", pl.col("response_tokens").fill_null(0), place=pl.Series(places, dtype=pl.Int64)
    )
    rows = rows.sort("domain", "response_tokens", "sample_id", descending=[False, True, False])
    groups = rows.group_by("domain", maintain_order=True).agg("place")["place"].to_list()
    return Choice(draw(groups, len(places) if found.limit is None else found.limit, selector.seed))


SELECTORS = [Selector(WeightedDraw, _weighted_draw)]
