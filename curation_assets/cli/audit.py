"""Arguments, help and output of `curate audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace

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
        from curation_assets.evaluation.audit_rendering import show_audit
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
