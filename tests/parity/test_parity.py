"""Our results are those of the code that the methods' authors released, as far as they are stored (`data`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.parity.__main__ import main
from tests.parity.comparisons import COMPARISONS, DATA, Comparison

LARGEST_DATA = 300_000
"""Limit for all stored results together, in bytes."""


@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda compare: compare.__name__)
def test_our_result_is_the_authors(compare: Callable[[], Iterator[Comparison]]) -> None:
    found = list(compare())
    assert found
    assert [one for one in found if not one.agrees] == []


def test_every_stored_result_names_its_origin() -> None:
    files = sorted(DATA.glob("*.json"))
    assert {file.stem for file in files} == {compare.__name__ for compare in COMPARISONS}
    assert sum(file.stat().st_size for file in files) < LARGEST_DATA
    for file in files:
        document = json.loads(file.read_text())
        assert document["repository"].startswith("https://github.com/")
        assert len(document["commit"]) == 40
        assert document["ran"]
        assert document["replaced"]


def test_the_command_ends_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    *rows, last = capsys.readouterr().out.strip().splitlines()
    summary = json.loads(last)
    assert summary["agree"] is True
    assert summary["smallest_jaccard"] == 1.0
    assert len(rows) > len(summary["methods"]) == len(COMPARISONS)
