"""The funnel of a selection as a section of the trace page: how many samples each stage left."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from curation_assets.subsets.thresholds import Stage

LEGEND = (
    "What each stage left of the samples before it, from the pool to the subset. Duplicates and the filters of the "
    "corpus come before the pool. “Marked right” is the share of the samples that are marked right or wrong."
)
NOT_RECORDED = "Not recorded: this release was made by a version that did not count the stages of a selection."


def funnel_section(funnel: Sequence[Stage]) -> str:
    """Return the section's HTML; nothing in the names is taken as markup."""
    if not funnel:
        return f'<p class="hint">{NOT_RECORDED}</p>'
    most = max(stage.samples for stage in funnel) or 1
    rows, before = [], None
    for stage in funnel:
        heading = stage.subset if before is None or before.subset != stage.subset else ""
        dropped = "" if before is None or before.samples <= stage.samples else f"−{before.samples - stage.samples:,}"
        if stage.no_value:
            dropped += f" ({stage.no_value:,} without this score)"
        right = "" if stage.share_right is None else f"{stage.share_right:.1%}"
        bar = f'<span class="bar" style="width:{100 * stage.samples / most:.2f}%"></span>'
        cells = (f"{stage.samples:,}", escape(dropped), f"{stage.tokens:,}", right)
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr><th>{escape(heading)}</th><td>{escape(stage.name)}</td><td>{bar}</td>{numbers}</tr>")
        before = stage
    names = ("subset", "stage", "", "samples", "dropped", "tokens", "marked right")
    heads = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<h2>Funnel</h2><p class="hint">{LEGEND}</p>'
        f'<table class="funnel"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
