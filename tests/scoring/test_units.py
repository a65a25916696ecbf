"""Units: everything once, the longest first, nobody idle while there is work, the next source taken in in time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_resources.scoring import units
from curation_resources.scoring.samples import ImageFile, Sample
from curation_resources.scoring.units import Source, Unit, UnitQueue, work_of

LENGTHS = st.lists(st.integers(0, 3_000), max_size=60)


def source(work: list[int], tag: str = "a") -> Source[str]:
    return Source(tag, work, list)


def drained(queue: UnitQueue[str]) -> Iterator[Unit[str]]:
    while (unit := queue.next()) is not None:
        yield unit


@given(LENGTHS, st.integers(1, 4))
def test_units_of_one_source_shrink_and_the_longest_come_first(work: list[int], workers: int) -> None:
    found = list(drained(UnitQueue([source(work)], workers)))
    order = [position for unit in found for position in unit.positions]
    assert sorted(order) == list(range(len(work)))
    assert [work[position] for position in order] == sorted(work, reverse=True)
    left = sum(work)
    least = max(1, min(units.LEAST_CHARACTERS, left // (workers * units.SHARE_OF_REST)))
    for unit in found:
        own = sum(work[position] for position in unit.positions)
        assert len(unit.positions) == 1 or own <= max(least, left // (workers * units.SHARE_OF_REST))
        left -= own
    assert left == 0


@given(st.lists(LENGTHS, max_size=6), st.integers(1, 4), st.integers(1, 2_000))
def test_every_sample_of_every_source_is_in_one_unit(sources: list[list[int]], workers: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "MOST_CHARACTERS", most)
        patch.setattr(units, "LEAST_CHARACTERS", max(1, most // 8))
        queue = UnitQueue((source(work, str(n)) for n, work in enumerate(sources)), workers)
        found: dict[str, list[int]] = {}
        for unit in drained(queue):
            work = unit.source.work
            assert len(unit.positions) == 1 or sum(work[position] for position in unit.positions) <= most
            found.setdefault(unit.source.tag, []).extend(unit.positions)
    assert {tag: sorted(own) for tag, own in found.items()} == {
        str(n): list(range(len(work))) for n, work in enumerate(sources) if work
    }


def test_a_source_is_read_when_it_is_needed_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MOST_CHARACTERS", 100)
    read: list[str] = []

    def sources() -> Iterator[Source[str]]:
        for name in "abcd":
            read.append(name)
            yield source([50] * 8, name)

    queue = UnitQueue(sources(), 2)
    seen = []
    for unit in drained(queue):
        seen.append((unit.source.tag, len(read)))
    # A unit is at hand for each of two workers: of 400 characters a source, the next is read when less than 200 are.
    assert seen[:4] == [("a", 1), ("a", 1), ("a", 1), ("a", 2)]
    assert read == list("abcd")


def test_what_has_to_be_given_again_comes_first() -> None:
    queue = UnitQueue([source([5, 4, 3, 2])], 1)
    first, second = queue.next(), queue.next()
    assert first is not None
    assert second is not None
    queue.again([first, second])
    assert [queue.next(), queue.next()] == [first, second]


def test_images_are_work() -> None:
    plain = Sample("s", [{"role": "user", "content": "abc"}], "de")
    shown = Sample("s", plain.messages, "de", (), (ImageFile("/", "a.png", None), ImageFile("/", "b.png", None)))
    assert (work_of(plain), work_of(shown)) == (5, 5 + 2 * units.IMAGE_CHARACTERS)
