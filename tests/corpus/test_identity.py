"""Ids: what they depend on, and that nothing else moves them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from curation_assets.corpus.drafts import Turn
from curation_assets.corpus.identity import identify, prompt_id, sample_id
from tests.corpus.helpers import jsonl, read

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | TEXT, lambda inner: st.lists(inner, max_size=4), max_leaves=12
)
TURNS = [Turn("user", "2 + 2?")]


def slow_encode(value: Any) -> bytes:
    """The encoding of any text, list or None, written as the definition reads."""
    if value is None:
        return b"n"
    if isinstance(value, str):
        return f"s{len(value.encode())}:{value}".encode()
    return f"l{len(value)}:".encode() + b"".join(slow_encode(item) for item in value)


def shown(parts: Any) -> list[Any]:
    """The parts with each turn as the list that its encoding is of."""
    turns, *others = parts
    return [[list(turn) if turn.beside else list(turn[:2]) for turn in turns], *others]


def as_lists(value: Any) -> object:
    return value if value is None or isinstance(value, str) else [as_lists(item) for item in value]


def decode(data: bytes) -> tuple[object, bytes]:
    """Takes an encoding apart again: that this is possible is why no two values share one."""
    if data[:1] == b"n":
        return None, data[1:]
    count, _, rest = data[1:].partition(b":")
    if data[:1] == b"s":
        return rest[: int(count)].decode(), rest[int(count) :]
    items = []
    for _ in range(int(count)):
        item, rest = decode(rest)
        items.append(item)
    return items, rest


@given(VALUES)
def test_encodings_can_be_read_back(value: Any) -> None:
    assert decode(slow_encode(value)) == (as_lists(value), b"")


PARTS = st.tuples(
    st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3),
    st.lists(TEXT, max_size=2),
    TEXT,
    st.none() | TEXT,
    st.none() | st.lists(TEXT, max_size=3),
)
Parts = tuple[Sequence[Turn], Sequence[str], str, str | None, Sequence[str] | None]


def digest(encoded: bytes) -> str:
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


@given(PARTS)
def test_ids_are_hashes_of_that_encoding(parts: Parts) -> None:
    ids = identify(*parts)
    assert ids.sample_id == sample_id(*parts) == digest(slow_encode(["sample/1", *shown(parts)]))
    assert ids.prompt_id == prompt_id(*parts[:2]) == digest(slow_encode(["prompt/1", *shown(parts)[:2]]))


def test_the_definition_does_not_move() -> None:
    encoded = b"l6:s8:sample/1l1:l2:s4:users6:2 + 2?l0:s1:4nn"
    assert sample_id(TURNS, [], "4", None, None) == digest(encoded)
    assert sample_id(TURNS, [], "4", None, None) == "e55d8e9eed09ecc451fddfda522a688e"


@given(PARTS, PARTS)
def test_two_samples_share_an_id_only_if_every_part_is_equal(one: Parts, other: Parts) -> None:
    assert (sample_id(*one) == sample_id(*other)) == (one == other)
    assert (prompt_id(*one[:2]) == prompt_id(*other[:2])) == (one[:2] == other[:2])


@given(PARTS, st.integers(0, 4), PARTS)
def test_changing_one_part_changes_the_id(parts: Parts, which: int, other: Parts) -> None:
    changed: Any = [*parts]
    changed[which] = other[which]
    assert (sample_id(*parts) == sample_id(*changed)) == (parts[which] == other[which])


def test_parts_cannot_run_into_one_another() -> None:
    ids = {
        sample_id([Turn("user", "ab")], [], "c", None, None),
        sample_id([Turn("user", "a")], [], "bc", None, None),
        sample_id([Turn("user", "ab")], [], "", "c", None),
        sample_id([Turn("user", "ab")], ["c"], "", None, None),
        sample_id([Turn("user", "ab")], [], "c", None, []),
        sample_id([Turn("user", "ab")], [], "c", "", None),
        sample_id([Turn("user", "ab")], [], "c", None, ["a", "b"]),
        sample_id([Turn("user", "ab")], [], "c", None, ["ab"]),
    }
    assert len(ids) == 8


LINES = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from(["p", "q"]), "response": TEXT.map(lambda text: f"r{text}".replace("\0", ""))},
        optional={"source": st.sampled_from(["s", "t"]), "model": st.just("m"), "note": TEXT},
    ),
    min_size=1,
    max_size=8,
)


@given(LINES, st.randoms())
def test_ids_depend_neither_on_the_order_of_rows_nor_on_source_and_extra(lines: list[Any], random: Any) -> None:
    shuffled = list(lines)
    random.shuffle(shuffled)
    bare = [{"prompt": line["prompt"], "response": line["response"]} for line in lines]
    tables = [read(jsonl(*rows)).accepted for rows in (lines, shuffled, bare)]
    assert len({tuple(sorted(table["sample_id"])) for table in tables}) == 1
    assert len({tuple(sorted(table["prompt_id"])) for table in tables}) == 1
