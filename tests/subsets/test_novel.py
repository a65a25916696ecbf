"""DEITA's filter against the loop of its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.methods.selectors import novel as module
from curation_assets.methods.selectors.candidates import Candidates
from curation_assets.methods.selectors.novel import Novel, novel
from tests.subsets.orders import KINDS, check_order, chosen, order_of, pool_of, pure_cosines, some_vectors, with_rows


def plain_novel(similarity: list[list[float]], tau: float, count: int) -> tuple[list[int], int]:
    """Sample by sample: what is taken, and how many were passed over before there were enough."""
    taken: list[int] = []
    passed = 0
    for sample in range(len(similarity)):
        if len(taken) == count:
            break
        # Cosines of equal vectors may exceed 1 by a rounding error.
        if any(similarity[sample][other] > tau + 1e-6 for other in taken):
            passed += 1
        else:
            taken.append(sample)
    return taken, passed


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 10_000),
    st.sampled_from(KINDS),
    st.sampled_from([-1.0, -0.31, 0.01, 0.42, 0.9, 1.0]),
    st.integers(0, 45),
    st.sampled_from([1, 3, 512]),
)
def test_the_filter_is_the_loop(count: int, seed: int, kind: str, tau: float, budget: int, block: int) -> None:
    vectors = some_vectors(count, seed, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "HELD", 2 * block)
        found = novel(vectors, tau, budget)
    assert (found.order.tolist(), found.too_near) == plain_novel(pure_cosines(vectors), tau, budget)


def test_samples_in_clusters() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(700, 16)) + 3.0 * rng.normal(size=(100, 16))[rng.integers(0, 100, 700)]
    found = novel(vectors, 0.85, 700)
    assert (found.order.tolist(), found.too_near) == plain_novel(pure_cosines(vectors), 0.85, 700)
    assert 0.1 < found.too_near / 700 < 0.9


def by_score(found: Candidates, highest_first: bool) -> list[int]:
    ids, sign = found.pool["sample_id"].to_list(), -1.0 if highest_first else 1.0
    return sorted(range(len(ids)), key=lambda place: (sign * found.score[place], ids[place]))


@pytest.mark.parametrize("highest_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_orders(count: int, kind: str, highest_first: bool) -> None:
    vectors = some_vectors(count, 3, kind)
    found = with_rows(pool_of(count, 3, vectors), np.arange(count), highest_first=highest_first)
    order = check_order(Novel(tau=0.8), found)
    visited = by_score(found, highest_first)
    taken, passed = plain_novel(pure_cosines(vectors[visited]), 0.8, count)
    ids = found.pool["sample_id"].to_list()
    assert order == [ids[visited[place]] for place in taken]
    assert order_of(Novel(tau=0.8), found).left_out == ({"too_near": passed} if passed else {})


def test_a_sample_at_the_threshold_is_taken_and_duplicates_are_not() -> None:
    vectors = np.array([[5, 0], [2, 0], [0, 1], [0, 0], [0, 0]], dtype=np.float32)
    found = pool_of(5, 0, vectors, sample_id=list("abcde"), score=[5.0, 4.0, 3.0, 2.0, 1.0])
    assert chosen(Novel(), found) == ["a", "c", "d", "e"]  # the cosine with a zero vector is 0
    assert chosen(Novel(tau=0.0), found) == ["a", "c", "d", "e"]
    assert chosen(Novel(tau=1.0), found) == list("abcde")
    assert order_of(Novel(), found).left_out == {"too_near": 1}
    # A budget of one is full before b is compared.
    assert order_of(Novel(), with_rows(found, np.arange(5), limit=1)).left_out == {}


@pytest.mark.parametrize("fields", [{"tau": 1.1}, {"tau": -1.1}, {"tau": float("nan")}, {"unknown": 1}])
def test_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Novel(**fields)
