"""The audit on a trace page: everything in it escaped, dots where their values are, and damaged ones refused."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.releases.audit_section import MEANINGS, NOT_AUDITED, audit_section
from curation_assets.releases.export import ExportError
from curation_assets.releases.traces import _audit_in
from curation_assets.subsets.audited import MEASURES, VERDICTS, explained_of, findings_of
from curation_assets.tables.audit import METHOD_AUDIT

HOSTILE = "</table><script>window.ran = 1</script><img src=x onerror='window.ran=2'>"
ROW = {
    "target": "t",
    "score": "grace",
    "method": "grace",
    "configured": True,
    "kind": "wrong_number",
    "measure": "win_rate",
    "within": "all",
    "value": 0.8,
    "low": 0.7,
    "high": 0.9,
    "detectable": 0.1,
    "verdict": "separates",
    "samples": 100,
    "without_score": 0,
}


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([ROW | row for row in rows], METHOD_AUDIT.schema)


def of_a_pool() -> pl.DataFrame:
    none: dict[str, Any] = {"low": None, "high": None, "detectable": None, "verdict": None}
    return table(
        {},
        {"measure": "auroc", "value": 0.6, "low": 0.5, "high": 0.7, "verdict": "at_chance"},
        {"kind": "repeated_step", "value": 0.1, "low": 0.0, "high": 0.2, "verdict": "inverted"},
        {"kind": "truncated", **none, "value": None, "verdict": "excluded", "samples": 0},
        {"kind": "correct", "measure": "auroc", "value": 0.75, "low": 0.6, "high": 0.85},
        {"kind": "correct", "measure": "auroc", "within": "source", "value": 0.5, "low": 0.4, "high": 0.6},
        {"kind": "", "measure": "source_share", **none, "value": 0.14},
        {"kind": "", "measure": "tokens", **none, "value": -0.25},
        {"kind": "", "measure": "agreement", "within": "longest", **none, "value": -0.3},
        {"kind": "", "measure": "agreement", "score": "random", "within": "grace", **none, "value": 0.02},
    )


def cells(section: str) -> list[list[str]]:
    """The rows of all tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def dots(section: str) -> list[tuple[str, str, str | None, str]]:
    """Verdict, kind, place of the dot in percent, and words of each row of the plots."""
    found = []
    for verdict, row in re.findall(r'<li class="(?!axis)([^"]*)">(.*?)</li>', section, re.DOTALL):
        kind, said = (re.findall(rf'<span class="{name}">(.*?)</span>', row)[0] for name in ("kind", "said"))
        dot = re.search(r'class="dot" style="left:([\d.]+)%"', row)
        found.append((verdict, unescape(kind), None if dot is None else dot[1], unescape(said)))
    return found


def test_a_score_without_an_audit_has_one_line() -> None:
    assert audit_section(None, "grace") == f'<p class="hint">{NOT_AUDITED}</p>'
    assert audit_section(table().clear(), "grace") == f'<p class="hint">{NOT_AUDITED}</p>'
    assert "curate audit" in NOT_AUDITED


def test_the_section_shows_what_the_tables_say() -> None:
    audit = of_a_pool()
    section = audit_section(audit, "grace")
    headers, findings = findings_of(audit)
    shown = [["–" if cell is None else str(cell) for cell in (*row[:0], *row[1:])] for row in findings]
    assert headers[0] == "score"
    _, ((_, _, *explained),) = explained_of(audit)
    assert cells(section) == [
        headers[1:],
        *shown,
        ["source explains", "with tokens", "with steps", "agrees most with", "samples"],
        ["–" if cell is None else str(cell) for cell in explained],
    ]
    assert explained[:4] == ["14%", "-0.25", None, "longest (-0.30)"]


def test_dots_are_where_their_values_are() -> None:
    section = audit_section(of_a_pool(), "grace")
    assert dots(section) == [
        ("separates", "wrong_number", "80.00", ".80 [.70, .90], separates"),
        ("inverted", "repeated_step", "10.00", ".10 [.00, .20], inverted"),
        ("excluded", "truncated", None, "no score"),
        ("separates", "correct", "75.00", ".75 [.60, .85], separates"),
    ]
    intervals = re.findall(r'class="interval" style="left:([\d.]+)%;width:([\d.]+)%"', section)
    assert intervals == [("70.00", "20.00"), ("0.00", "20.00"), ("60.00", "25.00")]
    # A plot for each measure that a kind has first.
    headings = [heading for heading in re.findall(r"<h3>(.*?)</h3>", section) if heading in _capitalized()]
    assert headings == [MEANINGS["win_rate"].capitalize(), unescape(MEANINGS["auroc"]).capitalize()]
    assert list(MEANINGS) == list(MEASURES)


def _capitalized() -> set[str]:
    return {meaning.capitalize() for meaning in MEANINGS.values()}


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
    st.sampled_from([*VERDICTS, None]),
)
def test_no_value_leaves_the_plot(value: float, end: float | None, verdict: str | None) -> None:
    section = audit_section(table({"value": value, "low": end, "high": end, "verdict": verdict}), "grace")
    for number in re.findall(r"(?:left|width):([^%;]*)%", section):
        assert 0.0 <= float(number) <= 100.0


def test_nothing_in_an_audit_is_markup() -> None:
    names: dict[str, Any] = dict.fromkeys(("target", "score", "method", "kind", "within"), HOSTILE)
    hostile = table(
        {"kind": HOSTILE},
        {"kind": HOSTILE, "measure": "flawed_share", "within": HOSTILE},
        {"kind": "", "measure": "source_share", "value": 0.3, "verdict": None},
        {"kind": "", "measure": "agreement", "within": HOSTILE, "value": 0.3, "verdict": None},
        {"kind": "", "measure": HOSTILE, "value": 0.3, "verdict": None},
        names,
        names | {"kind": ""},
    )
    section = audit_section(hostile, HOSTILE)
    assert "<script" not in section
    assert "<img" not in section
    assert section.count("&lt;script&gt;") > 3


@pytest.mark.parametrize(
    "damage",
    [
        {"verdict": "perhaps"},
        {"value": "high"},
        {"kind": None},
        {"configured": "yes"},
        {"measure": None},
        {"samples": 2**70},
    ],
)
def test_a_damaged_audit_of_a_release_is_refused(damage: dict[str, Any]) -> None:
    whole = _audit_in({"audit": [ROW]})
    assert whole is not None
    assert whole.equals(table({}))
    assert _audit_in({"audit": None}) is None
    assert _audit_in({}) is None
    with pytest.raises(ExportError, match=r"^manifest\.json: audit "):
        _audit_in({"audit": [ROW, ROW | damage]})
