"""Output of `curate run`: the summary of a run, and of a dry run on a few rows."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from curation_assets import tables
from curation_assets.cli.show_cost import total_line
from curation_assets.config.settings import Subset, score_title
from curation_assets.corpus.held_out import overlap_with_pool, stored_validation
from curation_assets.defs.dry_run import dry_run
from curation_assets.defs.main_job import RunSummary
from curation_assets.methods.registry import method_of
from curation_assets.operations.intake import ignored_line, remarks, stored_intake
from curation_assets.operations.plan import make_plan
from curation_assets.quality.filtered_pool import reason_counts, stored_pool
from curation_assets.signals.held_out import validation_of
from curation_assets.subsets.facts import emptied, right_text, source_advice, standardised_text
from curation_assets.subsets.select import SelectionError, stored_selection, subset_due
from curation_assets.tables.signals import SIGNALS
from curation_assets.workspace.workspace import Workspace, config_flag
from curation_resources.errors import UserError
from curation_resources.terminal import progress_bars, simple_table


def show_summary(workspace: Workspace, summary: RunSummary, console: Console) -> None:
    """Print what a run did, what was rejected and why, and what is still waiting.

    Raises:
        UserError: no row of any file can be used.
    """
    rows: list[tuple[str, object]] = [("new shards", summary.new_shards), ("shards read", summary.read)]
    rows += [(f"samples measured: {target}", count) for target, count in summary.measured.items()]
    rows.append(("tokens processed (including validation sets)", summary.tokens_measured))
    console.print(simple_table("this run", ("what", "count"), rows))
    intake = stored_intake(workspace)
    for line in remarks(workspace, intake):
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if intake.mapped.filled and intake.mapped.rows:
        line = f"mapped columns, share of rows with a value: {intake.mapped.shares()}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for target, signals in summary.without_signal.items():
        for signal, without in signals.items():
            counts = ", ".join(f"{count} x {reason}" for reason, count in without.items())
            view = f"{target}.{signal}" if len(workspace.settings.targets) > 1 else signal
            query = f"select sample_id, flags from {view} where {SIGNALS[signal].value} is null"
            console.print(
                f'without {signal}: {counts}; see: curate sql "{query}"{config_flag(workspace)}',
                style="yellow",
                soft_wrap=True,
            )
    for line in summary.waiting:
        console.print(f"waiting: {line}", style="yellow", markup=False)
    if summary.stopped is not None:
        line = f"stopped at the limit of {summary.stopped}; to continue: `curate run`"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    ignored = ignored_line(workspace.landing.ignored())
    if ignored is not None:
        console.print(ignored, style="yellow", markup=False, highlight=False, soft_wrap=True)
    _show_pool(workspace, console)
    for subset in workspace.settings.subsets:
        _show_subset(workspace, subset, subset.name in summary.subsets, console)
    for release in summary.releases:
        console.print(f"released {release}")
    if not intake.files and ignored is None:
        line = f"{workspace.landing.place} has no files yet"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not intake.accepted and (intake.files or ignored is not None) and "purged" not in intake.rejected:
        raise UserError(
            f"no row of {workspace.landing.place} can be used. Correct the files, or corpus.format and corpus.columns "
            "in curation.yaml; the lines above say what is wrong."
        )


def _show_pool(workspace: Workspace, console: Console) -> None:
    """Print what the filters excluded from the pool, and warn about held-out prompts in the pool."""
    if stored_pool(workspace) is not None:
        counts = reason_counts(workspace.warehouse.read_table(tables.pool_path()))
        reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.items())
        if reasons:
            console.print(
                f"excluded from the pool: {reasons}; see: curate table pool{config_flag(workspace)}",
                style="yellow",
                soft_wrap=True,
            )
    for name in sorted({name for target in workspace.settings.targets for name in validation_of(workspace, target)}):
        if stored_validation(workspace, name) is None:
            continue
        found = overlap_with_pool(workspace, name)
        if any(found.values()):
            line = f"validation set {name}: {found['prompts_in_pool']} of its prompts are also in the pool"
            console.print(f"{line}: the evaluation would be contaminated", style="yellow", soft_wrap=True)


def _show_subset(workspace: Workspace, subset: Subset, reselected: bool, console: Console) -> None:
    facts = workspace.warehouse.table_metadata(tables.subset_path(subset.name))
    if not facts:
        return
    size, state = int(facts["rows"]), "reselected" if reselected else "unchanged"
    line = f"subset {subset.name}: {size} samples, {state}"
    if not size:
        selection = None if subset_due(workspace, subset) else stored_selection(workspace, subset)
        nothing = None if selection is None else emptied(selection.funnel)
        console.print(f"{line}: {nothing or 'it is not up to date'}", style="yellow", soft_wrap=True)
        return
    console.print(f"{line}; to release it: curate release {subset.name}{config_flag(workspace)}", soft_wrap=True)
    found = _facts(workspace, subset)
    if subset.standardise is not None:
        console.print(f"  ranked by {standardised_text(score_title(subset.score))}", highlight=False, soft_wrap=True)
    right = right_text(found)
    if right is not None:
        console.print(f"  marked right: {right}", highlight=False, soft_wrap=True)
    advice = source_advice(score_title(subset.score), found.get("variance_by_source"), subset.compares_within_sources)
    if advice is not None:
        console.print(f"  {advice}", style="yellow", highlight=False, soft_wrap=True)
    if facts.get("whole") == "True":
        console.print("  its budget exceeds the eligible pool, so all of it is selected", style="yellow")
    score = workspace.settings.score_of(subset)
    reasons = method_of(score).unfaithful(workspace.settings.target(score.target).facts(), score)
    for reason in [*reasons, *([facts["warnings"]] if "warnings" in facts else [])]:
        console.print(f"  differs from the source: {reason}", style="dim", soft_wrap=True)


def _facts(workspace: Workspace, subset: Subset) -> Mapping[str, float | int | None]:
    """Return the facts about the selection of an up-to-date subset; nothing for another one."""
    if subset_due(workspace, subset):
        return {}
    try:
        return stored_selection(workspace, subset).facts()
    except SelectionError:
        # The scores are outdated: the run has stopped before them.
        return {}


def show_dry_run(workspace: Workspace, sample: int, console: Console) -> None:
    """Run the whole pipeline on this many rows, and print what it would select and what a plan of the whole says."""
    with (
        progress_bars(console) as progress,
        dry_run(workspace, sample, lambda line: progress.console.print(line, style="dim")) as look,
    ):
        progress.stop()
        if look.summary.rejected:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in look.summary.rejected.items())
            console.print(f"rejected: {reasons}", style="yellow", soft_wrap=True)
        for subset in look.workspace.settings.subsets:
            facts = stored_selection(look.workspace, subset).facts()
            console.print(
                simple_table(
                    f"{subset.name}, dry run",
                    ("what", "value"),
                    ((name.replace("_", " "), value) for name, value in facts.items()),
                )
            )
    tokens = look.summary.tokens_measured
    console.print(f"{tokens:,} tokens measured in {look.seconds:.0f} s, from {look.share:.1%} of the landing area")
    console.print("nothing from this dry run was kept")
    with progress_bars(console):
        plan = make_plan(workspace)
    console.print("a run of everything, as `curate plan` estimates it:")
    console.print(total_line(plan), soft_wrap=True)
