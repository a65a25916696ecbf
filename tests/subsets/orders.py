"""Pools for tests of selectors that order candidates in memory, and checks that hold for each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.methods.selectors.candidates import Candidates, Choice, Features, SelectorSection
from curation_assets.methods.selectors.registry import order_by_stratum, selector_of

LIMITS = (0, 1, 2, 3, 7, None)


def pool_of(count: int, seed: int = 0, vectors: NDArray[np.floating] | None = None, **columns: Sequence[Any]) -> Any:
    """Candidates with shuffled ids; scores, lengths, domains and sources are drawn unless columns are given."""
    rng = np.random.default_rng(seed)
    ids = [f"{number * 7919 % 65536:013x}{number:019x}" for number in rng.permutation(count).tolist()]
    drawn: dict[str, Any] = {
        "sample_id": ids,
        "source": rng.choice(["a", "b", "c"], count).tolist(),
        "domain": rng.choice(np.array(["x", "y", None], dtype=object), count).tolist(),
        "generator": rng.choice(["g", "h"], count).tolist(),
        "response_tokens": rng.integers(1, 9, count).tolist(),
        "score": rng.integers(0, 5, count).astype(np.float64).tolist(),
    } | columns
    schema = dict.fromkeys(("sample_id", "source", "domain", "generator"), pl.String)
    pool = pl.DataFrame(drawn, schema_overrides=schema | {"response_tokens": pl.Int32, "score": pl.Float64})
    return candidates(pool, None if vectors is None else dict(zip(drawn["sample_id"], vectors, strict=True)))


def candidates(pool: pl.DataFrame, vectors: dict[str, Any] | None, **changed: Any) -> Candidates:
    """Candidates of a pool with column `score`, and a vector for each id."""
    features = None
    if vectors is not None:
        features = Features(lambda wanted: np.array([vectors[name] for name in wanted]))
    score = pool["score"].to_numpy()
    return Candidates(pool, score, **({"may": np.isfinite(score), "features": features} | changed))


def order_of(section: SelectorSection, found: Candidates) -> Choice:
    """The order of a selector."""
    order = selector_of(section).order
    assert order is not None
    return order(section, found)


def chosen(section: SelectorSection, found: Candidates) -> list[str]:
    """Ids in the order of choice."""
    return found.pool["sample_id"].gather(order_of(section, found).order).to_list()


def with_rows(found: Candidates, rows: NDArray[np.int64], **changed: Any) -> Candidates:
    """The same candidates with other rows, or in another order."""
    kept = {"highest_first": found.highest_first, "limit": found.limit, "features": found.features}
    return Candidates(found.pool[rows], found.score[rows], **({"may": found.may[rows]} | kept | changed))


def check_order(section: SelectorSection, found: Candidates) -> list[str]:
    """Check what holds for every selector, and return the ids in the order of choice.

    Any budget is a prefix, whatever the order of rows; only rows that may be chosen are, each once; rows that may not
    be chosen have no influence; strata take turns.
    """
    whole = chosen(section, found)
    count = len(found.pool)
    rng = np.random.default_rng(count)
    shuffled = rng.permutation(count)
    for limit in LIMITS:
        few = chosen(section, with_rows(found, shuffled, limit=limit))
        assert few[:limit] == whole[:limit]
        assert len(few) >= min(len(whole), len(whole) if limit is None else limit)
    allowed = set(found.pool["sample_id"].filter(pl.Series(found.may, dtype=pl.Boolean)).to_list())
    assert len(set(whole)) == len(whole)
    assert set(whole) <= allowed
    some = found.may & (rng.random(count) < 0.6)
    assert chosen(section, with_rows(found, shuffled, may=some[shuffled])) == chosen(
        section, with_rows(found, np.flatnonzero(some))
    )
    stratum = rng.integers(0, 3, count)
    by_stratum = order_by_stratum(section, found, stratum).order
    own = [[place for place in by_stratum if stratum[place] == number] for number in range(3)]
    for number, places in enumerate(own):
        alone = order_of(section, with_rows(found, np.arange(count), may=found.may & (stratum == number)))
        assert places == alone.order.tolist()
    turns = [[places[turn] for places in own if turn < len(places)] for turn in range(max(map(len, own)))]
    assert by_stratum.tolist() == [place for turn in turns for place in turn]
    return whole


def pure_cosines(vectors: NDArray[np.floating]) -> list[list[float]]:
    """Cosines of all pairs, one after another; 0 with a zero vector."""
    rows = [row.astype(np.float64) for row in vectors]
    norms = [math.sqrt(row @ row) for row in rows]
    return [
        [float(left @ right) / (a * b) if a and b else 0.0 for right, b in zip(rows, norms, strict=True)]
        for left, a in zip(rows, norms, strict=True)
    ]


def some_vectors(count: int, seed: int, kind: str) -> NDArray[np.float32]:
    """Vectors of a kind: `drawn`, `clustered`, `axes` (many equal similarities and zero vectors), `same`, `zero`."""
    rng = np.random.default_rng(seed)
    if kind == "axes":
        axes: NDArray[np.int64] = rng.integers(-1, 2, (count, 3)) * rng.choice([1, 2, 4], (count, 1))
        return axes.astype(np.float32)
    if kind == "same":
        return np.tile(rng.normal(size=4), (count, 1)).astype(np.float32)
    if kind == "zero":
        return np.zeros((count, 3), dtype=np.float32)
    vectors = rng.normal(size=(count, 5)) * rng.uniform(0.1, 10.0, (count, 1))
    if kind == "clustered":
        vectors = 0.3 * rng.normal(size=(count, 5)) + rng.normal(size=(3, 5))[rng.integers(0, 3, count)]
    return vectors.astype(np.float32)


KINDS = ("drawn", "clustered", "axes", "same", "zero")
