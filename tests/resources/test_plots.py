"""Heat maps are drawn of whatever there is, on either scale."""

from __future__ import annotations

import base64

import pytest

from curation_resources.plots import heat_map

pytestmark = pytest.mark.usefixtures("fresh_plots")

Values = list[list[float | None]]


def png(markdown: str) -> bytes:
    """The picture inside."""
    found = base64.b64decode(markdown.split("base64,")[1].rstrip(")"))
    assert found.startswith(b"\x89PNG")
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", ["signed", "share"])
@pytest.mark.parametrize("values", [[], [[]], [[0.0]], [[None, None]], [[1.0, 0.25], [None, 0.0]]], ids=str)
def test_heat_maps_of_whatever_there_is(values: Values, scale: str) -> None:
    rows = [f"row {n}" for n in range(len(values))]
    columns = [f"column {n}" for n in range(len(values[0]) if values else 0)]
    png(heat_map(values, rows, columns, "a title", "share" if scale == "share" else "signed"))


def test_the_scales_differ_and_shares_are_of_the_largest() -> None:
    values: Values = [[0.1, 0.2]]
    signed, share = (png(heat_map(values, ["r"], ["a", "b"], "t", scale)) for scale in ("signed", "share"))
    assert signed != share
