"""Statistics shared by reports."""

from __future__ import annotations

import polars as pl


def auroc(positive: pl.Series, negative: pl.Series) -> float | None:
    """Return the probability that a value of `positive` exceeds one of `negative`, counting ties half.

    Return None if either is empty. Computed as the Mann-Whitney statistic over average ranks, in O(n log n).
    """
    n, m = len(positive), len(negative)
    if not n or not m:
        return None
    values = pl.concat([positive.cast(pl.Float64), negative.cast(pl.Float64)])
    ranks = values.rank("average").head(n)
    return (float(ranks.sum()) - n * (n + 1) / 2) / (n * m)
