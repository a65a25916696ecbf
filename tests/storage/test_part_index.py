"""The index of parts against plain dictionaries: parts come and go, samples lie in several."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_resources.storage import part_index
from curation_resources.storage.part_index import PartIndex

IDS = st.sets(st.sampled_from("abcdefghij"), max_size=6)
MOVES = st.lists(st.one_of(IDS, st.integers(0, 20)), max_size=25)


@given(MOVES, IDS, st.integers(1, 4))
def test_it_is_what_dictionaries_say(moves: list[set[str] | int], asked: set[str], chunks: int) -> None:
    index, slow = PartIndex(), dict[str, set[str]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_index, "CHUNKS", chunks)
        for number, move in enumerate(moves):
            if isinstance(move, set):
                slow[f"part-{number}"] = move
                index.add({f"part-{number}": pl.Series(sorted(move), dtype=pl.String)})
            elif slow:
                gone = sorted(slow)[move % len(slow)]
                del slow[gone]
                index.drop([gone])
    found = index.find(pl.Series([*asked, *asked], dtype=pl.String))
    assert sorted(found.rows()) == sorted((one, part) for part, ids in slow.items() for one in ids & asked)
    assert index.parts == set(slow)
    assert len(index) == sum(map(len, slow.values()))
    assert all(index.rows_of(part) == len(ids) for part, ids in slow.items())


def test_ids_of_one_first_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(sample_ids: pl.Series) -> pl.DataFrame:
        return pl.DataFrame({"first": sample_ids.str.len_bytes().cast(pl.UInt64), "second": sample_ids.hash(seed=1)})

    monkeypatch.setattr(part_index, "_hashed", hashed)
    index = PartIndex()
    index.add({"one": pl.Series(["aa", "bb"]), "two": pl.Series(["cc", "d"])})
    assert sorted(index.find(pl.Series(["bb", "xx", "d"])).rows()) == [("bb", "one"), ("d", "two")]
