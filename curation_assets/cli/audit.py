"""Arguments, help and output of `curate audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

commands = typer.Typer()


@commands.command()
def audit(
    samples: Annotated[
        int | None, typer.Option(min=1, max=2000, help="Samples to draw, instead of audit.samples (100).")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="Make only flaws of this kind, such as wrong_number. Repeatable."),
    ] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop measuring after this many minutes; the next audit goes on from there."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Find out which methods can be trusted for this model and this corpus, before measuring all of it.

    Draws samples from the pool, makes flawed twins of them (a wrong number, a foreign response, shuffled steps, ...),
    measures both with every target, and shows how well each score tells them apart: with intervals, and a verdict that
    is corrected for the number of comparisons. Labels in the rows (correct, verified, reward, labels of steps) are
    compared with the scores as well.

    Reads the corpus and trains warm-ups first, if that has not been done. Nothing that is measured here enters the
    pool. An audit that was interrupted goes on where it stopped, and one with other scores measures nothing.
    Afterwards, use `curate table method_audit` and `curate table audit_samples`.
    """
    with clear_errors("curate audit"):
        from curation_assets.evaluation.audit_report import settings_of

        workspace = load_workspace(config)
        # Report wrong options before Dagster starts.
        settings_of(workspace, samples, kind or ())

        from curation_assets.defs.instance import open_instance
        from curation_assets.defs.main_job import MainJob
        from curation_assets.tables.audit import method_audit_path
        from curation_resources.terminal import progress_bars

        with open_instance(workspace) as instance, progress_bars(console) as progress:
            job = MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim"))
            summary = job.run(until="checkpoints")
            for line in summary.waiting:
                progress.console.print(line, style="yellow", highlight=False)
            facts = job.audit(samples, kind or (), budget_minutes)
        show_audit(workspace.warehouse.read_table(method_audit_path()), console)
        for line in facts:
            console.print(line, highlight=False, soft_wrap=True)


def advice_of(table: pl.DataFrame) -> list[str]:
    """Return advice about configured scores that depend on the source."""
    from curation_assets.subsets.facts import source_advice

    shares = table.filter("configured", measure="source_share")
    found = [source_advice(score, share) for score, share in shares.select("score", "value").iter_rows()]
    return [line for line in found if line is not None]


def show_audit(table: pl.DataFrame, console: Console) -> None:
    """Print the results of an audit."""
    from curation_assets.subsets.audited import LEGEND, explained_of, findings_of, overview_of
    from curation_resources.terminal import simple_table

    title = "share of samples that score above their flawed twin (labels: AUROC); .5 is chance"
    console.print(simple_table(title, *overview_of(table)))
    console.print(LEGEND, style="dim")
    title = "configured scores: 95 % intervals over prompts"
    console.print(simple_table(title, *findings_of(table.filter("configured"))))
    console.print(simple_table("what else explains the scores (Spearman's correlations)", *explained_of(table)))
    if not table["configured"].all():
        console.print("(in parentheses: not configured, computed with defaults)", style="dim")
    for line in advice_of(table):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
