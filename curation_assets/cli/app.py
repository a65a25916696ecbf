"""The `curate` command: arguments, help and output. The work is done by the stages."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from curation_assets.cli.audit import commands as audit_commands
from curation_assets.cli.command import ConfigOption, Stop, clear_errors, console, end_as_interrupted, load_workspace
from curation_assets.cli.distillation import commands as distillation_commands
from curation_assets.cli.evaluation import commands as evaluation_commands
from curation_assets.cli.housekeeping import commands as housekeeping_commands
from curation_assets.cli.releases import commands as release_commands
from curation_assets.cli.signals import commands as signal_commands
from curation_assets.cli.traces import commands as viewer_commands
from curation_resources.errors import UserError

if TYPE_CHECKING:
    from curation_assets.defs.main_job import RunSummary
    from curation_assets.workspace.workspace import Workspace

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Curate reasoning data: measure every step of a trace with the target model, select, release, trace "
        "back.\n\nStart with `curate init FOLDER --model MODEL`, then `curate run --sample 200` for a dry run, "
        "`curate run` for the whole corpus, and `curate release NAME`."
    ),
)
app.add_typer(signal_commands)
app.add_typer(release_commands)
app.add_typer(viewer_commands)
app.add_typer(audit_commands)
app.add_typer(evaluation_commands)
app.add_typer(distillation_commands)
app.add_typer(housekeeping_commands)
SQL_ROWS = 50


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder in which traces arrive.")],
    model: Annotated[str, typer.Option(help="Model to measure with: a folder or a hub id.")],
    to: Annotated[Path, typer.Option(help="File to write.")] = Path("curation.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite the file.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Write the configuration of a published recipe: deita, grace, grape, icons, limo, openthoughts, "
            "rds-plus, s1k, superfiltering, superfiltering-d or temp (docs/recipes)."
        ),
    ] = None,
) -> None:
    """Inspect a folder of traces and write a commented curation.yaml for it."""
    with clear_errors():
        from curation_assets.operations.init_config import left_to_do, write_config
        from curation_assets.operations.intake import ignored_line
        from curation_resources.errors import UserError
        from curation_resources.storage.digests import DigestCache
        from curation_resources.storage.landing import FolderLanding

        look = write_config(folder, model, to, force, recipe)
        console.print(f"{look.files} files, {look.bytes / 2**20:.1f} MiB; formats: {look.formats or 'none recognized'}")
        ignored = ignored_line(FolderLanding(folder, DigestCache()).ignored())
        for line in [*([ignored] if ignored else []), *look.remarks()]:
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        if look.right < look.marked:
            console.print(
                f"{look.right} of {look.marked} inspected responses with a mark are marked right; to select only from "
                f"those, add filters: {{correct: true}} to the subset in {to}",
                soft_wrap=True,
            )
        if not look.accepted:
            raise UserError(f"wrote {to}, but no row of {folder} can be read with it: {look.unreadable()}")
        for line in left_to_do(to):
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(f"wrote {to}; next: curate run --config {to} --sample 200", soft_wrap=True)


@app.command()
def run(
    config: ConfigOption = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Dry run on this many rows, in a temporary folder."),
    ] = None,
    accept_removals: Annotated[
        bool,
        typer.Option("--accept-removals", help="Confirm that missing files were removed on purpose, however many."),
    ] = False,
    until: Annotated[
        Stop | None,
        typer.Option(
            help="Stop after this stage: corpus (read and filter), or checkpoints (train or fetch everything that "
            "`curate measure` needs on other machines)."
        ),
    ] = None,
) -> None:
    """Run the main job: read, segment, warm up, measure, score and select whatever is due.

    If nothing is due, it finishes within seconds and measures nothing. Ctrl-C loses no finished work.
    """
    end_as_interrupted()
    with clear_errors():
        from curation_assets.cli.run_summary import show_dry_run, show_summary

        workspace = load_workspace(config)
        if sample is not None:
            show_dry_run(workspace, sample, console)
            return
        summary = run_main_job(workspace, accept_removals, None if until is None else until.value)
        show_summary(workspace, summary, console)


def run_main_job(
    workspace: Workspace, accept_removals: bool = False, until: Literal["corpus", "checkpoints"] | None = None
) -> RunSummary:
    """Run the main job with progress bars, on the instance that the UI shows."""
    from curation_assets.defs.instance import open_instance
    from curation_assets.defs.main_job import MainJob
    from curation_resources.terminal import progress_bars

    with open_instance(workspace) as instance, progress_bars(console) as progress:
        job = MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim"), accept_removals)
        return job.run(until)


@app.command()
def plan(
    config: ConfigOption = None,
    no_probe: Annotated[
        bool,
        typer.Option("--no-probe", help="Do not load the model: estimate seconds and bytes only from stored runs."),
    ] = False,
) -> None:
    """Estimate the cost of a run now: samples, tokens, forward passes (F), time and bytes; compare with past runs.

    Tokens are counted with the model's own tokenizer; time is estimated from stored runs, else from a few measured
    batches. Nothing is stored.
    """
    with clear_errors():
        from curation_assets.cli.show_cost import show_plan

        show_plan(load_workspace(config), console, probe=not no_probe)


@app.command()
def select(
    name: Annotated[str | None, typer.Argument(help="Name of the subset; optional if there is only one.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="parameter=value of the score (alpha=0.5, method=grape), or of the subset (selector.k=2, "
            "filters.correct=true, stratify=[source], standardise=source). Repeatable.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="10%, 1000 (samples) or '500000 tokens', instead of the subset's budget.")
    ] = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="Choose within this subset; 'pool': from the whole pool.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Threshold on a score: 'difficulty >= 3', 'grape <= -0.5', 'grape top 50% within prompt'. Repeatable; "
            "each applies to what passed those before it."
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(help=".parquet, .csv or .jsonl file to write the subset to.")] = None,
    config: ConfigOption = None,
) -> None:
    """Preview a selection with another method, parameter or budget, in seconds and without the model.

    Uses stored signals and shows how the subset would differ from the current one. Nothing is stored: to keep the
    change, add it to curation.yaml and use `curate run`.
    """
    with clear_errors():
        from curation_assets.subsets.facts import FUNNEL_COLUMNS, funnel_rows
        from curation_assets.subsets.stored_tables import pick, write_frame
        from curation_assets.subsets.what_if import what_if
        from curation_resources.terminal import simple_table

        workspace = load_workspace(config)
        names = [subset.name for subset in workspace.settings.subsets]
        chosen = pick("subset", name, names, "its name: curate select NAME")
        begins = [] if begin is None else [f"from={'null' if begin == 'pool' else begin}"]
        found = what_if(workspace, chosen, [*(changes or []), *begins], budget, where or [])
        console.print(simple_table(f"{chosen}, what if", ("what", "now", "what if"), found.side_by_side()))
        console.print(found.difference_line())
        console.print(simple_table("funnel", FUNNEL_COLUMNS, funnel_rows(found.selection.funnel)))
        sources = found.sources().head(20).iter_rows()
        console.print(simple_table("by source", ("source", "pool", "now", "what if"), sources))
        for remark in found.remarks():
            console.print(remark, style="yellow", markup=False, highlight=False, soft_wrap=True)
        if to is not None:
            console.print(f"wrote {write_frame(found.rows.lazy(), to):,} rows to {to}", soft_wrap=True)


@app.command()
def token_weights(
    subset: Annotated[str, typer.Argument(help="Name of the subset.")],
    to: Annotated[
        Path, typer.Option(help=".parquet or .jsonl file to write: one row per sample, one weight per token.")
    ],
    normalise: Annotated[str, typer.Option(help="none, or mean1: scale each sample's weights to mean 1.")] = "none",
    config: ConfigOption = None,
) -> None:
    """Write token weights for GRAPE's token-level loss: the probability of each response token in a subset."""
    with clear_errors():
        from curation_assets.subsets.token_weights import write_token_weights

        typer.echo(write_token_weights(load_workspace(config), subset, normalise, to))


@app.command()
def release(
    name: Annotated[str, typer.Argument(help="Subset to release.")],
    config: ConfigOption = None,
) -> None:
    """Make an immutable release of a subset. Unchanged content makes no new version."""
    with clear_errors():
        from curation_assets.defs.instance import open_instance
        from curation_assets.defs.main_job import MainJob
        from curation_assets.releases.data import ReleaseError

        workspace = load_workspace(config)
        names = [subset.name for subset in workspace.settings.subsets]
        if name not in names:
            raise ReleaseError(
                f"there is no subset {name!r} in {workspace.config_file}; subsets are {', '.join(names)}"
            )
        with open_instance(workspace) as instance:
            made, new = MainJob(workspace, instance).release(workspace.settings.subset(name))
        state = "released" if new else "unchanged since"
        console.print(f"{state} {name}@{made.number}: {made.manifest['rows']} rows")
        print(made.folder)


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="Name of the table, e.g. step_scores; `curate tables` lists them.")],
    to: Annotated[
        Path | None, typer.Option(help=".parquet, .csv or .jsonl file to write; default: print the first rows.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target, if there are several.")] = None,
    score: Annotated[str | None, typer.Option(help="Named score, for step_scores.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset, for table subset.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to include, in order: sample_id,grace")] = None,
    config: ConfigOption = None,
) -> None:
    """Write any table to one file, or print its first rows."""
    with clear_errors():
        import polars.selectors as cs

        from curation_assets.subsets.stored_tables import pick_columns, read_stored, write_frame
        from curation_resources.terminal import frame_table

        frame = read_stored(load_workspace(config), name, target=target, score=score, subset=subset)
        if columns is not None:
            frame = pick_columns(frame, columns)
        if to is None:
            # Full ids would leave no room for other columns; `curate show` accepts the first characters.
            ids = cs.by_name("sample_id", "prompt_id", require_all=False)
            head = frame.head(20).collect().with_columns(ids.str.head(10))
            shown, hidden = frame_table(name, head, console.width)
            console.print(shown)
            if hidden:
                console.print(
                    f"no room for {', '.join(hidden)}: choose columns with --columns, or use --to", style="dim"
                )
            return
        console.print(f"wrote {write_frame(frame, to):,} rows to {to}", soft_wrap=True)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT statement in DuckDB's SQL.")],
    to: Annotated[
        Path | None, typer.Option(help=".parquet, .csv or .jsonl file to write; default: print the first rows.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Query the stored tables with SQL; each table is a view.

    Try "select source, avg(grace) from sample_scores group by source".

    Subsets are subsets.NAME; with several targets, a target's tables are TARGET.NAME. The query cannot write
    anything.
    """
    with clear_errors():
        from curation_assets.operations.sql import run_sql
        from curation_assets.subsets.stored_tables import write_frame
        from curation_resources.terminal import frame_table
        from curation_resources.text import harmless

        found = run_sql(load_workspace(config), query)
        if to is not None:
            console.print(f"wrote {write_frame(found.lazy(), to):,} rows to {to}", soft_wrap=True)
            return
        shown, hidden = frame_table(f"{len(found):,} rows", found.head(SQL_ROWS), console.width)
        console.print(shown)
        if hidden or len(found) > SQL_ROWS:
            first = [f"the first {SQL_ROWS} rows"] if len(found) > SQL_ROWS else []
            room = [f"no room for {harmless(', '.join(hidden))}"] if hidden else []
            console.print(f"{'; '.join(first + room)}; use --to for the full result", style="dim")


@app.command()
def tables() -> None:
    """List the tables and their columns, with units and meaning."""
    from curation_assets.tables import ALL_TABLES
    from curation_resources.terminal import simple_table

    for entry in ALL_TABLES.values():
        rows = [
            (
                name,
                str(column.dtype).split("({")[0],
                f"{column.meaning} [{column.unit}]" if column.unit else column.meaning,
            )
            for name, column in entry.columns.items()
        ]
        console.print(simple_table(f"{entry.name}: {entry.meaning}", ("column", "type", "meaning"), rows))


@app.command()
def show(
    sample_id: Annotated[str, typer.Argument(help="A sample_id, or its first characters.")],
    target: Annotated[str | None, typer.Option(help="Target, if there are several.")] = None,
    score: Annotated[str | None, typer.Option(help="Named score, if there are several.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Colour steps by the score itself.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print a trace with its steps coloured by score, adjusted for their position.

    The adjusted score, z, is the distance from the mean of the pool's steps at the same position, in standard
    deviations.
    """
    with clear_errors():
        from curation_assets.subsets.step_positions import step_positions
        from curation_assets.subsets.stored_tables import find_trace
        from curation_resources.terminal import trace

        workspace = load_workspace(config)
        found = find_trace(workspace, sample_id, target=target, score=score)
        z = None
        if not raw and found.score is not None and len(found.scores):
            positions = step_positions(workspace, workspace.settings.score(found.score))
            z = None if positions is None else positions.of_steps(found.scores)
        console.print(trace(found.row, found.steps, found.scores, found.facts, z))


@app.command()
def doctor(config: ConfigOption = None) -> None:
    """Check the installation, devices and configuration, and report problems."""
    from rich.text import Text

    from curation_assets.operations.doctor import examine
    from curation_resources.text import harmless

    wrong = 0
    for finding in examine(config):
        mark = Text("ok   ", style="green") if finding.ok else Text("WRONG", style="bold red")
        if finding.warning:
            mark = Text("warn ", style="yellow")
        console.print(mark, Text(harmless(f"{finding.what}: {finding.found}")), soft_wrap=True)
        wrong += not finding.ok
    raise typer.Exit(1 if wrong else 0)


@app.command("test-alert")
def try_alert(config: ConfigOption = None) -> None:
    """Send a test alert to the command and webhook in `alerts` of curation.yaml."""
    with clear_errors():
        from curation_assets.defs.alerts import channels
        from curation_resources.alert_delivery import Alert, send

        workspace = load_workspace(config)
        if not channels(workspace):
            raise UserError(
                f"{workspace.config_file} configures no alerts. Add alerts.command or alerts.webhook_variable."
            )
        send(
            Alert("test", "curation: this is a test", {"config_file": str(workspace.config_file)}), channels(workspace)
        )
        console.print("alert delivered")


@app.command()
def schema(
    to: Annotated[Path | None, typer.Option(help="File to write; default: print the schema.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write a Markdown page: every key and its meaning.")
    ] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Write the schema of a release's manifest.json instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of curation.yaml, for editors."""
    import json

    from curation_assets.config.config_file import json_schema
    from curation_assets.config.reference import reference
    from curation_assets.releases.manifest_schema import manifest_schema

    found = manifest_schema() if manifest else json_schema()
    text = reference().rstrip("\n") if markdown else json.dumps(found, indent=1)
    if to is None:
        print(text)
    else:
        to.write_text(text + "\n")


@app.command()
def ui(
    config: ConfigOption = None,
    port: Annotated[int, typer.Option(help="Port of the web server.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the Dagster UI and daemon; files added to the landing folder are processed up to the subsets."""
    with clear_errors():
        from curation_assets.config.config_file import CONFIG_VARIABLE

        workspace = load_workspace(config)
        check_ui(host, port)
        from curation_assets.defs.dead_runs import fail_runs_of_dead_ui
        from curation_assets.defs.instance import open_instance
        from curation_assets.workspace.workspace import dagster_home

        with open_instance(workspace) as instance:
            lock = fail_runs_of_dead_ui(instance, dagster_home(workspace))
        if lock is None:
            raise UserError(f"another `curate ui` is running on {dagster_home(workspace)}. Stop it first.")
        environment = os.environ | {CONFIG_VARIABLE: str(workspace.config_file)}
        command = [sys.executable, "-m", "dagster", "dev", "-m", "curation_assets.definitions"]
        command += ["--port", str(port), "--host", host]
        console.print(f"http://{host}:{port}")
        console.print(f"{workspace.config_file} is read at startup; restart after editing it", style="dim")
        os.execve(sys.executable, command, environment)


def check_ui(host: str, port: int) -> None:
    """Check that the UI can start, before anything does.

    Raises:
        UserError: its package is not installed, or the address cannot be listened on.
    """
    if importlib.util.find_spec("dagster_webserver") is None:
        raise UserError(
            "the UI needs the package dagster-webserver, which is not installed. Install the extra `ui`, or run "
            "`pip install dagster-webserver`."
        )
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        # As the web server does: an address whose last connections are still closing is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} of {host} is in use. Stop the program that uses it, or pass another --port."
                ) from error
            raise UserError(
                f"{host}:{port} cannot be listened on ({error.strerror or error}). Pass another --host or --port."
            ) from error
        except OverflowError as error:
            raise UserError(f"{port} is not a port. Pass --port from 1 to 65535.") from error


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for corpus, model, configuration and results.")] = Path("demo"),
) -> None:
    """Run the whole pipeline on an embedded corpus with planted flaws, and check what was selected."""
    with clear_errors():
        from curation_assets.demo.tour import tour

        tour(folder, console)
