"""The balanced selector against a loop over turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.methods.selectors.balanced import Balanced
from curation_assets.methods.selectors.candidates import Candidates
from tests.subsets.orders import check_order, chosen, pool_of, with_rows


def plain_balanced(found: Candidates, by: list[Any]) -> list[str]:
    """Turn by turn, the best that is left of each group; within a turn, the best first."""
    sign = -1.0 if found.highest_first else 1.0
    groups: dict[tuple[Any, ...], list[tuple[float, str]]] = {}
    for row, score, may in zip(found.pool.iter_rows(named=True), found.score, found.may, strict=True):
        if may:
            groups.setdefault(tuple(row[name] for name in by), []).append((sign * score, row["sample_id"]))
    order: list[str] = []
    while any(groups.values()):
        turn = [min(own) for own in groups.values() if own]
        for own in groups.values():
            if own:
                own.remove(min(own))
        order += [sample for _, sample in sorted(turn)]
    return order


BY = st.lists(st.sampled_from(["source", "domain", "generator"]), min_size=1, max_size=3, unique=True)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(0, 10_000), BY, st.booleans())
def test_groups_take_turns(count: int, seed: int, by: list[Any], highest_first: bool) -> None:
    found = with_rows(pool_of(count, seed), np.arange(count), highest_first=highest_first)
    assert check_order(Balanced(by=by), found) == plain_balanced(found, by)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_every_prefix_is_balanced(count: int, seed: int) -> None:
    found = pool_of(count, seed)
    sources = dict(found.pool.select("sample_id", "source").iter_rows())
    order = chosen(Balanced(), found)
    for end in range(count + 1):
        left = {sources[sample] for sample in order[end:]}
        taken = {source: sum(sources[sample] == source for sample in order[:end]) for source in set(sources.values())}
        # A group has fewer than another only if it has run out, or it is its turn.
        assert all(taken[source] >= max(taken.values()) - 1 for source in left)


def test_samples_without_a_domain_are_a_group() -> None:
    found = pool_of(5, sample_id=list("abcde"), domain=["x", "x", "x", None, None], score=[5.0, 4.0, 3.0, 2.0, 1.0])
    assert chosen(Balanced(by=["domain"]), found) == ["a", "d", "b", "e", "c"]


def test_the_source_is_the_default_and_need_not_be_named() -> None:
    found = pool_of(4, sample_id=list("abcd"), source=["s", "s", "s", "t"], score=[4.0, 3.0, 2.0, 1.0])
    assert Balanced().by == ["source"]
    assert chosen(Balanced(), found) == ["a", "d", "b", "c"]


@pytest.mark.parametrize("by", [[], ["source", "source"], ["shard"], "source", None])
def test_parameters_are_refused(by: Any) -> None:
    with pytest.raises(ValueError, match="by"):
        Balanced(by=by)
