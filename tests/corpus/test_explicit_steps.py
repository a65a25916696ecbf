"""Finding listed steps in a response, against a twin that tries every arrangement."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from curation_assets.corpus.explicit_steps import locate_steps


def can_be_placed(response: str, steps: list[str], position: int = 0) -> bool:
    """Whether some arrangement of the steps exists, found by trying all."""
    if not steps:
        return True
    return any(
        response.startswith(steps[0], start) and can_be_placed(response, steps[1:], start + len(steps[0]))
        for start in range(position, len(response) + 1)
    )


@given(st.text("ab", max_size=10), st.lists(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_steps_are_found_whenever_they_can_be_placed(response: str, steps: list[str]) -> None:
    spans = locate_steps(response, steps)
    assert (spans is not None) == can_be_placed(response, steps)
    if spans is not None:
        assert [response[start:end] for start, end in spans] == steps
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_blank_steps_and_white_space_do_not_matter() -> None:
    assert locate_steps("One. Two.", [" One.\n", "  ", "Two."]) == [(0, 4), (5, 9)]
    assert locate_steps("One.", []) == []
