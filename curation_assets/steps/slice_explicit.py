"""Where the steps that the rows of a slice list stand in their responses.

Most responses are their steps with a line end, a blank line or a space between them, which lengths alone tell. The
others are searched one by one, by `curation_assets.corpus.explicit_steps`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from curation_assets.corpus.explicit_steps import locate_steps
from curation_assets.steps.one_response import WRONG_ORDER
from curation_assets.steps.slice_text import Bools, Ints

# White space, so that each step begins with the first sign that is none, and no earlier place can be its own.
_SEPARATORS = ("\n", "\n\n", " ")


_Spans = tuple[Ints, Ints, Ints]


class Listed(NamedTuple):
    """Which rows list steps [rows]; of each step [steps] its row and its span [start, end) in the response.

    The spans are in order, in characters, not trimmed, and some hold nothing.
    """

    listing: Bools
    rows: Ints
    starts: Ints
    ends: Ints


def locate_listed(responses: pl.Series, steps: pl.Series) -> Listed | None:
    """All steps of the rows that list any, None if none does.

    Raises:
        ValueError: the steps of a row do not stand in its response in their order.
    """
    listing: Bools = (steps.list.len().fill_null(0) > 0).to_numpy()
    if not listing.any():
        return None
    left = np.flatnonzero(listing)
    parts: list[_Spans] = []
    for separator in _SEPARATORS:
        joined = steps.gather(left).list.join(separator, ignore_nulls=False)
        compared = pl.DataFrame({"response": responses.gather(left), "joined": joined})
        same = compared.select(pl.col("response").str.starts_with(pl.col("joined")).fill_null(False))
        matches = same.to_series().to_numpy()
        parts.append(_by_lengths(left[matches], steps, len(separator)))
        left = left[~matches]
    parts.append(_by_search(left, responses, steps))
    rows, starts, ends = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return Listed(listing, rows[order], starts[order], ends[order])


def _by_lengths(rows: Ints, steps: pl.Series, between: int) -> _Spans:
    """The steps of responses that begin with all of them, with so many characters between two."""
    chosen = steps.gather(rows)
    counts = chosen.list.len().to_numpy().astype(np.int64)
    lengths = chosen.explode().str.len_chars().to_numpy().astype(np.int64)
    ends = np.cumsum(lengths + between) - between
    first = np.cumsum(counts) - counts
    ends -= np.repeat((ends - lengths)[first], counts)
    return np.repeat(rows, counts), ends - lengths, ends


def _by_search(rows: Ints, responses: pl.Series, steps: pl.Series) -> _Spans:
    bounds: list[int] = []
    counts: list[int] = []
    for response, listed in zip(responses.gather(rows).to_list(), steps.gather(rows).to_list(), strict=True):
        spans = locate_steps(response, listed)
        if spans is None:
            raise ValueError(WRONG_ORDER)
        for span in spans:
            bounds += span
        counts.append(len(spans))
    found = np.array(bounds, np.int64).reshape(-1, 2)
    return np.repeat(rows, np.array(counts, np.int64)), found[:, 0], found[:, 1]
