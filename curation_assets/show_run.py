"""What `curate run` prints: of a run, and of a dry look at a few rows."""

from __future__ import annotations

from rich.console import Console

from curation_assets import tables
from curation_assets.dry_look import dry_look
from curation_assets.due import subset_rows
from curation_assets.main_job import RunSummary
from curation_assets.subsets.select import select
from curation_assets.terminal import progress_bars, simple_table
from curation_assets.workspace import Workspace


def show_summary(workspace: Workspace, summary: RunSummary, console: Console) -> None:
    """Print what a run did, what it left out and why, and what waits."""
    rows: list[tuple[str, object]] = [("new shards", summary.new_shards), ("shards read", summary.read)]
    rows += [(f"samples measured: {target}", count) for target, count in summary.measured.items()]
    rows.append(("tokens measured", summary.tokens_measured))
    console.print(simple_table("this run", ("what", "count"), rows))
    if summary.rejected:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in summary.rejected.items())
        console.print(f"rejected: {reasons}; see: curate table rejected_rows", style="yellow", soft_wrap=True)
    for target, signals in summary.without_signal.items():
        for signal, without in signals.items():
            counts = ", ".join(f"{count} x {reason}" for reason, count in without.items())
            where = f"curate table {signal}" + (f" --target {target}" if len(workspace.settings.targets) > 1 else "")
            console.print(f"without {signal}: {counts}; see: {where}", style="yellow", soft_wrap=True)
    for line in summary.waiting:
        console.print(f"waiting: {line}", style="yellow", markup=False)
    ignored = workspace.landing.ignored()
    if ignored:
        more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
        console.print(f"not read (no shard): {', '.join(ignored[:5])}{more}", style="yellow", markup=False)
    for subset in workspace.settings.subsets:
        if workspace.warehouse.table_metadata(tables.subset_path(subset.name)):
            size = subset_rows(workspace, subset)
            state = "selected anew" if subset.name in summary.subsets else "unchanged"
            console.print(
                f"subset {subset.name}: {size} samples, {state}; release it with: curate release {subset.name}",
                soft_wrap=True,
            )
    for release in summary.releases:
        console.print(f"released {release}")


def show_dry_look(workspace: Workspace, sample: int, console: Console) -> None:
    """Take the whole path on about so many rows, and print what would be chosen of them."""
    with (
        progress_bars(console) as progress,
        dry_look(workspace, sample, lambda line: progress.console.print(line, style="dim")) as look,
    ):
        progress.stop()
        for subset in look.workspace.settings.subsets:
            facts = select(look.workspace, subset).facts()
            console.print(simple_table(f"{subset.name}, of the rows looked at", ("what", "value"), facts.items()))
    tokens = look.summary.tokens_measured
    console.print(f"{tokens:,} tokens measured in {look.seconds:.0f} s, from {look.share:.1%} of the landing area")
    if look.share > 0:
        console.print(f"all of it is about {tokens / look.share:,.0f} tokens; nothing of this look was kept")
