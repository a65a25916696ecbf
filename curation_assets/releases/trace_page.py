"""The trace page: one HTML file that works offline, with all data embedded and compressed."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets.releases.audit_section import audit_section
from curation_assets.releases.funnel_section import funnel_section
from curation_assets.releases.trace_images import Picture, Pictures, no_pictures
from curation_assets.releases.traces import DIGITS, Survivors, Traces
from curation_resources.scoring.samples import turn_text

FILES = Path(__file__).parent / "page"
BLOCK = 200
"""Traces whose texts are decompressed together."""

STEP_VALUES = ("step_scores", "step_alignments", "step_consistencies", "step_z")
PREVIEW = 160
LARGE_SHARE = 0.05
"""Share of the page's step scores that counts as low, and as high."""

FACTS = ("source", "generator", "domain", "correct", "shard", "row")


def page_text(
    traces: Traces,
    pictures: Pictures = no_pictures,
    advance: Callable[[int], None] | None = None,
    *,
    raw: bool = False,
) -> str:
    """Return the page.

    Args:
        traces: the traces to show.
        pictures: returns the images of a trace.
        advance: called with the number of traces laid out since the last call.
        raw: whether steps are first coloured by their scores, not by z; the reader can switch.
    """
    rows = traces.rows.with_columns(step_z=_step_z(traces))
    data = [_packed("meta", _meta(traces, rows, raw=raw))]
    for number, part in enumerate(rows.iter_slices(BLOCK)):
        texts = [_text(row, pictures(row)) for row in part.iter_rows(named=True)]
        data.append(_packed(f"block-{number}", texts))
        if advance is not None:
            advance(len(texts))
    facts = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in traces.facts)
    drawn = ""
    if traces.of > len(traces.rows):
        drawn = (
            f"{len(traces.rows):,} of {traces.of:,} traces are on this page, sampled by prompt; the threshold below "
            "counts all of them."
        )
    page = (FILES / "page.html").read_text(encoding="utf-8")
    parts = {
        "<!--TITLE-->": html.escape(traces.title),
        "<!--FACTS-->": facts,
        "<!--DRAWN-->": drawn,
        "<!--FUNNEL-->": funnel_section(traces.funnel),
        "<!--AUDIT-->": audit_section(traces.audit, traces.score),
        "/*CSS*/": (FILES / "page.css").read_text(encoding="utf-8"),
        "/*JS*/": (FILES / "page.js").read_text(encoding="utf-8"),
        "<!--DATA-->": "\n".join(data),
    }
    # Inserted text is not searched again: a title may contain another placeholder.
    pieces = [page]
    for mark, part_text in parts.items():
        pieces = [piece for one in pieces for piece in _split(one, mark, part_text)]
    return "".join(pieces)


class _Filled(str):
    """Inserted text."""

    __slots__ = ()


def _split(piece: str, mark: str, filling: str) -> list[str]:
    if isinstance(piece, _Filled) or mark not in piece:
        return [piece]
    found: list[str] = []
    for part in piece.split(mark):
        found += [part, _Filled(filling)]
    return found[:-1]


def _packed(name: str, document: object) -> str:
    """Return a document for embedding in the page: gzip of its JSON, as base64; equal documents give equal text."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)
    return f'<script type="text/plain" id="{name}">{base64.b64encode(packed).decode()}</script>'


def _step_z(traces: Traces) -> pl.Series:
    """Return the distances of step scores from the mean of their position, in standard deviations; null if unknown."""
    found: list[list[float | None] | None] = []
    for scores in traces.rows["step_scores"].to_list():
        if scores is None or traces.positions is None:
            found.append(None)
        else:
            numbers = [_finite(score) for score in scores]
            found.append(
                [None if one is None else traces.positions.z(place, one) for place, one in enumerate(numbers, 1)]
            )
    return pl.Series("step_z", found, dtype=pl.List(pl.Float64))


def _meta(traces: Traces, rows: pl.DataFrame, *, raw: bool) -> dict[str, Any]:
    """Return the columns of all traces, and the page's parameters."""
    tokens = rows["response_tokens"].null_count() == 0
    lengths = rows["response_tokens"] if tokens else rows["response"].str.len_chars()
    sources = sorted({str(source) for source in rows["source"]})
    places = {source: place for place, source in enumerate(sources)}
    prompts = {name: place for place, name in enumerate(rows["prompt_id"].unique(maintain_order=True))}
    compared = "member" in rows.columns
    return {
        "name": traces.score,
        "highest_first": traces.highest_first,
        "unit": "tokens" if tokens else "characters",
        "block": BLOCK,
        "scales": {"score": _scale(rows["step_scores"]), "z": _scale(rows["step_z"])},
        "colour": "score" if raw or traces.positions is None else "z",
        "survivors": _survivors(traces.survivors),
        "id": rows["sample_id"].to_list(),
        "prompt": [prompts[name] for name in rows["prompt_id"]],
        "sources": sources,
        "source": [places[str(source)] for source in rows["source"]],
        "score": [_finite(value) for value in rows["score"]],
        "rank": rows["rank"].to_list(),
        "steps": rows["n_steps"].to_list(),
        "length": lengths.to_list(),
        "flags": [list(flags or ()) for flags in rows["flags"].to_list()],
        "preview": [_preview(messages) for messages in rows["messages"].to_list()],
        "member": rows["member"].to_list() if compared else None,
        "other_score": [_finite(value) for value in rows["other_score"]] if compared else None,
        "other_rank": rows["other_rank"].to_list() if compared else None,
    }


def _survivors(survivors: Survivors) -> dict[str, object]:
    counts = {name: list(getattr(survivors, name)) for name in ("thresholds", "samples", "steps", "tokens")}
    return {**counts, "unit": survivors.unit}


def _scale(values: pl.Series) -> dict[str, float] | None:
    """Return the low, middle and high values of the page's steps; None without any.

    The middle is 0 if values have both signs.
    """
    scores = values.explode().drop_nulls()
    scores = scores.filter(scores.is_finite())
    if scores.is_empty():
        return None
    low, high, middle = (float(scores.quantile(q) or 0.0) for q in (LARGE_SHARE, 1 - LARGE_SHARE, 0.5))
    return {"low": low, "middle": 0.0 if low < 0.0 < high else middle, "high": high}


def _text(row: Mapping[str, Any], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return one trace's texts and steps, with positions in UTF-16 units as browsers count them."""
    place = utf16_places(row["response"])
    spans = row["step_spans"] or []
    columns = [row[name] or [None] * len(spans) for name in STEP_VALUES]
    steps = [
        [place(span["start"]), place(span["end"]), *map(_finite, values)]
        for span, *values in zip(spans, *columns, strict=True)
    ]
    answer = row["answer_span"]
    return {
        "messages": _turns(row["messages"]),
        "response": row["response"],
        "steps": steps,
        "answer": None if answer is None else [place(answer["start"]), place(answer["end"])],
        "why": row["why"],
        "images": list(pictures),
        "facts": {name: str(row[name]) for name in FACTS if row.get(name) is not None},
    }


def utf16_places(text: str) -> Callable[[int], int]:
    """Return a function from a character index of a text to its position in UTF-16 units."""
    wide = [at for at, character in enumerate(text) if character > "\uffff"] if not text.isascii() else []
    if not wide:
        return lambda at: at
    before = pl.Series(wide)
    return lambda at: at + int(before.search_sorted(at, side="left"))


def _turns(messages: str) -> list[dict[str, str]]:
    return [{"role": str(turn["role"]), "content": turn_text(turn)} for turn in json.loads(messages)]


def _preview(messages: str) -> str:
    turns = _turns(messages)
    return " ".join(turns[-1]["content"].split())[:PREVIEW] if turns else ""


def _finite(value: float | None) -> float | None:
    """Return a number with the digits that are shown; None unless it is finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
