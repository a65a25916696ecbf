"""Output of `curate select`: how a subset would differ from the current one."""

from __future__ import annotations

from rich.console import Console

from curation_assets.subsets.what_if import WhatIf
from curation_resources.terminal import simple_table


def show_what_if(found: WhatIf, console: Console) -> None:
    """Print a what-if comparison: both subsets side by side, the samples added and removed, and the sources."""
    console.print(simple_table(f"{found.subset.name}, what if", ("what", "now", "what if"), found.side_by_side()))
    console.print(found.difference_line())
    sources = found.sources()
    console.print(simple_table("by source", ("source", "pool", "now", "what if"), sources.head(20).iter_rows()))
    for remark in found.remarks():
        console.print(remark, style="yellow", markup=False, highlight=False, soft_wrap=True)
