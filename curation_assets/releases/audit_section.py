"""The audit of a score as a section of the trace page: win rates as a plot, findings, and what else explains it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import polars as pl

from curation_assets.subsets.audited import VERDICTS, Rows, explained_of, findings_of, with_interval

MEANINGS = {
    "win_rate": "share of the samples that score above their own flawed twin",
    "auroc": "probability that a sample with a better label scores above one with a worse label (AUROC)",
    "step_auroc": "probability that a sound step scores above a flawed one (AUROC)",
    "step_rank": "share of a trace's other steps that score above its flawed step",
    "flawed_share": "share of flawed twins among what the selector takes of both together",
}
"""Headings of plots: the meaning of each measure, in the order of `audited.MEASURES`."""

NOT_AUDITED = (
    "Not audited: <code>curate audit</code> finds out whether this score, as it is configured, tells good traces from "
    "bad ones here."
)
LEGEND = (
    "Dots with 95 % intervals; .5 (the line) is chance. Verdicts are corrected for the number of comparisons. The "
    "flaws are made by a program, so a method may find them and still miss those of real models."
)


def audit_section(audit: pl.DataFrame | None, score: str) -> str:
    """Return the section's HTML; nothing in the tables is taken as markup.

    Args:
        audit: rows of table `method_audit` about the score; None if it was not audited.
        score: its name.
    """
    if audit is None or audit.is_empty():
        return f'<p class="hint">{NOT_AUDITED}</p>'
    headers, findings = findings_of(audit)
    parts = [
        f"<h2>Does {escape(score)} tell good traces from bad ones here?</h2>",
        f'<p class="hint">{LEGEND}</p>',
        *_plots(audit),
        "<h3>Findings</h3>",
        _table(*_without("score", headers, findings)),
    ]
    named, explained = _without("score", *explained_of(audit))
    if explained:
        parts += [
            "<h3>What else explains the score</h3>",
            '<p class="hint">Share of its variance that the source explains, and Spearman\'s correlations.</p>',
            _table(*_without("target", named, explained)),
        ]
    return "\n".join(parts)


def _plots(audit: pl.DataFrame) -> Iterable[str]:
    """Yield a plot for each measure: one row for each kind whose first measure it is."""
    known = pl.col("value").is_finite() | (pl.col("verdict") == "excluded")
    judged = audit.filter((pl.col("kind") != "") & known)
    overall = judged.filter((pl.col("within") == "all") | (pl.col("measure") == "flawed_share"))
    drawn: set[object] = set()
    for measure, meaning in MEANINGS.items():
        rows = overall.filter((pl.col("measure") == measure) & ~pl.col("kind").is_in(list(drawn)))
        if rows.is_empty():
            continue
        drawn |= {*rows["kind"]}
        items = "".join(_dot(row) for row in rows.iter_rows(named=True))
        axis = (
            '<li class="axis" aria-hidden="true"><span></span><span class="track"><i>0</i><i>.5</i><i>1</i></span></li>'
        )
        yield f'<h3>{escape(meaning.capitalize())}</h3>\n<ul class="dots">{items}{axis}</ul>'


def _dot(row: dict[str, object]) -> str:
    """Return one row of a plot: kind, dot with interval, and the same in words."""
    verdict = str(row["verdict"] or "")
    value, low, high = (_place(row[name]) for name in ("value", "low", "high"))
    dot = "" if value is None else f'<span class="dot" style="left:{value:.2f}%"></span>'
    interval = ""
    if low is not None and high is not None:
        interval = f'<span class="interval" style="left:{low:.2f}%;width:{max(0.0, high - low):.2f}%"></span>'
    said = ", ".join(filter(None, [with_interval(row) or "", VERDICTS.get(verdict, verdict)]))
    return (
        f'<li class="{verdict if verdict in VERDICTS else ""}"><span class="kind">{escape(str(row["kind"]))}</span>'
        f'<span class="track" aria-hidden="true">{interval}{dot}</span>'
        f'<span class="said">{escape(said)}</span></li>'
    )


def _place(value: object) -> float | None:
    """Return where a share is on the axis, in percent."""
    if not isinstance(value, float) or not math.isfinite(value):
        return None
    return 100.0 * min(1.0, max(0.0, value))


def _without(name: str, headers: Sequence[str], rows: Rows) -> tuple[list[str], Rows]:
    """Return a table without a column that is the same in all rows."""
    if name not in headers:
        return list(headers), rows
    place = list(headers).index(name)
    return [*headers[:place], *headers[place + 1 :]], [(*row[:place], *row[place + 1 :]) for row in rows]


def _table(headers: Sequence[str], rows: Rows) -> str:
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape('–' if cell is None else str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
