"""The Python API: everything that the `curate` command does, as methods of a `Project`.

    import curation_assets as ca

    project = ca.open("curation.yaml")
    project.run()
    project.table("sample_scores")
    project.select("grace_20", where=["grace >= 0.2"])

Results are Polars frames, or objects that a notebook displays. Methods raise
`curation_resources.errors.UserError` with a message that names the cause and the fix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from curation_assets.defs.main_job import RunSummary
    from curation_assets.operations.plan import Plan
    from curation_assets.releases.build import Release
    from curation_assets.releases.export import Exported
    from curation_assets.subsets.facts import Selection
    from curation_assets.subsets.stored_tables import Trace
    from curation_assets.subsets.thresholds import Stage
    from curation_assets.workspace.workspace import Workspace


def open(config: str | Path | None = None) -> Project:
    """Open a project: a configuration with its warehouse.

    Args:
        config: the configuration file; default: the one in CURATION_CONFIG, else ./curation.yaml.

    Raises:
        ConfigError: the file is missing or not valid; the message names line, key and fix.
        WarehouseError: the warehouse cannot be used.
    """
    from curation_assets.workspace.workspace import Workspace

    return Project(Workspace.load(None if config is None else Path(config)))


@dataclass(frozen=True)
class Preview:
    """A subset as it would be; nothing is stored.

    Attributes:
        rows: table `subset`: `sample_id`, `rank`, `score`, `weight` and `reason`, best first.
        selection: the facts about its selection, such as `selection.facts()` and `selection.funnel`.
        current: table `subset` as stored; None if there is none to compare with.
    """

    rows: pl.DataFrame
    selection: Selection
    current: pl.DataFrame | None = None

    @property
    def funnel(self) -> pl.DataFrame:
        """What each stage of the selection left: subset, name, samples, tokens, marked, right, no_value."""
        return _funnel(self.selection.funnel)

    def _repr_html_(self) -> str:
        from curation_assets.releases.funnel_section import funnel_section

        change = ""
        if self.current is not None:
            kept = len(self.rows.join(self.current, on="sample_id", how="semi"))
            change = f", {kept:,} of them in the current subset of {len(self.current):,}"
        return f"<p>{len(self.rows):,} samples{change}</p>{STYLE}{funnel_section(self.selection.funnel)}"


@dataclass(frozen=True)
class ShownTrace:
    """A sample with its steps, which a notebook shows coloured by score.

    Attributes:
        trace: rows of `raw_corpus`, `segmented_steps`, `step_scores` and `sample_scores`.
        z: by step index, the score's distance from the mean of the pool's steps at the same position, in standard
            deviations; None if the score has no steps.
    """

    trace: Trace
    z: Mapping[int, float] | None

    def _repr_html_(self) -> str:
        response, parts, end = str(self.trace.row["response"]), [], 0
        scores = {row["step_index"]: row["step_score"] for row in self.trace.scores.iter_rows(named=True)}
        for span in self.trace.steps.sort("start").iter_rows(named=True):
            parts.append(escape(response[end : span["start"]]))
            text = escape(response[span["start"] : span["end"]])
            score, z = scores.get(span["step_index"]), (self.z or {}).get(span["step_index"])
            title = "answer" if span["kind"] == "answer" else f"step {span['step_index']}"
            title += "" if score is None else f", score {score:.3f}"
            title += "" if z is None else f", z {z:.2f}"
            parts.append(f'<span title="{title}" style="{_colour(z)}">{text}</span>')
            end = span["end"]
        parts.append(escape(response[end:]))
        facts = "".join(
            f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>"
            for name, value in self.trace.facts.items()
        )
        body = f'<pre style="white-space: pre-wrap">{"".join(parts)}</pre>'
        return f"{body}<details><summary>facts</summary><table>{facts}</table></details>"


@dataclass(frozen=True)
class ShownRelease:
    """A release of a subset.

    Attributes:
        subset: name of the subset.
        number: number of the release.
        folder: its folder or address, which `datasets.load_dataset` and the trainers read.
        manifest: content of `manifest.json`.
        new: whether this call made it; False if the content has not changed since.
    """

    subset: str
    number: int
    folder: str
    manifest: Mapping[str, Any]
    new: bool

    def _repr_html_(self) -> str:
        from curation_assets.releases.funnel_section import funnel_section
        from curation_assets.subsets.thresholds import Stage

        head = f"<p><b>{self.subset}@{self.number}</b>, {self.manifest['rows']:,} rows: {escape(self.folder)}</p>"
        return head + STYLE + funnel_section([Stage(**stage) for stage in self.manifest.get("funnel", [])])


STYLE = (
    "<style>.funnel .bar {display: block; height: .8em; background: #2b6cb0} .funnel td:nth-child(3) {width: 16em} "
    ".funnel .number {text-align: right}</style>"
)


class Project:
    """A configuration with its warehouse: what `curate` commands work on.

    Args:
        workspace: the loaded configuration.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def __repr__(self) -> str:
        return f"Project({str(self.workspace.config_file)!r})"

    def run(self, *, accept_removals: bool = False) -> RunSummary:
        """Do everything that is outdated, up to the subsets, as `curate run`.

        Args:
            accept_removals: whether missing files were removed on purpose, however many.
        """
        from curation_assets.defs.instance import open_instance
        from curation_assets.defs.main_job import MainJob

        with open_instance(self.workspace) as instance:
            return MainJob(self.workspace, instance, accept_removals=accept_removals).run()

    def plan(self, *, probe: bool = True) -> Plan:
        """Estimate the cost of a run now, as `curate plan`.

        Args:
            probe: whether to load the model and measure its speed where stored runs do not tell it.
        """
        from curation_assets.operations.plan import make_plan

        return make_plan(self.workspace, probe)

    def table(
        self, name: str, *, target: str | None = None, score: str | None = None, subset: str | None = None
    ) -> pl.LazyFrame:
        """Return a stored table; `curate tables` lists them.

        Args:
            name: its name.
            target: for tables of a target; optional if there is one target.
            score: for `step_scores`; optional if the target has one score.
            subset: for `subset`; optional if there is one subset.

        Raises:
            TableRequestError: the name is unknown or ambiguous, or nothing has been stored yet.
        """
        from curation_assets.subsets.stored_tables import read_stored

        return read_stored(self.workspace, name, target=target, score=score, subset=subset)

    def sql(self, query: str) -> pl.DataFrame:
        """Query the stored tables with DuckDB's SQL; each table is a view."""
        from curation_assets.operations.sql import run_sql

        return run_sql(self.workspace, query)

    def subset(self, name: str) -> pl.DataFrame:
        """Return the current rows of a subset with the content of their samples, best first.

        Raises:
            ReleaseError: the subset is empty, or the corpus lacks some of its samples.
            SelectionError: there are no scores to select by.
        """
        from curation_assets.releases.data import release_rows
        from curation_assets.subsets.select import current

        wanted = self.workspace.settings.subset(self._name_of(name))
        return release_rows(self.workspace, wanted, current(self.workspace, wanted).rows)

    def select(
        self,
        subset: str | None = None,
        changes: Iterable[str] = (),
        *,
        budget: str | None = None,
        where: Iterable[str] = (),
    ) -> Preview:
        """Preview a subset with changes, from stored signals, as `curate select`.

        Args:
            subset: its name; optional if there is one subset.
            changes: changes such as `alpha=0.5`, `selector.k=2`, `from=other` or `score={combine: {a: 1, b: 2}}`.
            budget: `10%`, `1000` (samples) or `500000 tokens`; default: the subset's.
            where: thresholds such as `difficulty >= 3` or `grape top 50% within prompt`.

        Raises:
            SelectionError: there is no such subset or parameter, a value is not allowed, or a signal is not measured.
        """
        from curation_assets.subsets.what_if import what_if

        found = what_if(self.workspace, self._name_of(subset), list(changes), budget, list(where))
        return Preview(found.rows, found.selection, found.current)

    def select_by(
        self,
        score: pl.Expr,
        budget: str,
        *,
        target: str | None = None,
        name: str = "own",
        stratify: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
    ) -> Preview:
        """Select by a score of your own: a Polars expression over the stored scores and signals of a target.

        Args:
            score: an expression over the columns of `sample_scores` and of the target's signals that have one row per
                sample, such as `pl.col("grace") - 0.1 * pl.col("mean_entropy")`; high values are best. It is evaluated
                over all samples at once, so it may compare them.
            budget: `10%`, `1000` (samples) or `500000 tokens`.
            target: whose scores and signals; optional if there is one target.
            name: name of the score in the results.
            stratify: as in `subsets[].stratify`.
            filters: as in `subsets[].filters`.

        Raises:
            SelectionError: the expression cannot be evaluated, or its result is not one number per sample.
        """
        from curation_assets.subsets.own_score import select_by
        from curation_assets.subsets.stored_tables import pick
        from curation_assets.subsets.what_if import parse_budget

        names = [one.name for one in self.workspace.settings.targets]
        of = self.workspace.settings.target(pick("target", target, names))
        made = {"name": name, "score": name, "budget": parse_budget(budget).model_dump(exclude_none=True)}
        section = made | {"stratify": list(stratify), "filters": dict(filters or {})}
        rows, selection = select_by(self.workspace, of, score, section)
        return Preview(rows, selection)

    def release(self, subset: str) -> ShownRelease:
        """Make an immutable release of a subset, as `curate release`; unchanged content makes no new version.

        Raises:
            ReleaseError: the subset is empty or out of date, or its content is incomplete.
        """
        from curation_assets.defs.instance import open_instance
        from curation_assets.defs.main_job import MainJob

        with open_instance(self.workspace) as instance:
            wanted = self.workspace.settings.subset(self._name_of(subset))
            made, new = MainJob(self.workspace, instance).release(wanted)
        return _shown(made, new)

    def export(self, release: ShownRelease, form: str, to: str | Path, **options: Any) -> Exported:
        """Write a release in a trainer's format, as `curate export`.

        Args:
            release: a release of this project.
            form: `messages`, `prompt-completion`, `sharegpt`, `alpaca`, `axolotl`, `stepwise`, `verl`, `weights` or
                `datasets`.
            to: a folder that does not exist, or is empty.
            options: `threshold`, `leave_out` and `tokenizer`; see `releases.export.export_release`.

        Raises:
            ExportError: the format is unknown, the folder is not empty, or a row cannot be represented.
        """
        from functools import partial

        from curation_assets import tables
        from curation_assets.releases.export import export_release
        from curation_assets.releases.ground_truth import corpus_siblings

        place = f"{tables.release_dir(release.subset)}/{release.number}"
        siblings = partial(corpus_siblings, self.workspace)
        storage = self.workspace.warehouse.storage
        return export_release(storage, place, form, Path(to), siblings=siblings, **options)

    def trace(self, sample_id: str, *, target: str | None = None, score: str | None = None) -> ShownTrace:
        """Return a sample with its steps and scores; in a notebook, steps are coloured by z.

        Args:
            sample_id: its id, or the first characters of it.
            target: whose scores; default: the first target.
            score: the score of the steps; default: the target's first one that scores steps.

        Raises:
            TableRequestError: no sample, or more than one, matches.
        """
        from curation_assets.subsets.step_positions import step_positions
        from curation_assets.subsets.stored_tables import find_trace

        found = find_trace(self.workspace, sample_id, target=target, score=score)
        if found.score is None or not len(found.scores):
            return ShownTrace(found, None)
        positions = step_positions(self.workspace, self.workspace.settings.score(found.score))
        return ShownTrace(found, None if positions is None else positions.of_steps(found.scores))

    def audit(
        self, samples: int | None = None, kinds: Sequence[str] = (), budget_minutes: float | None = None
    ) -> pl.DataFrame:
        """Audit the methods, as `curate audit`, and return table `method_audit`.

        Args:
            samples: number of samples to make flawed twins of; default: the configured number.
            kinds: kinds of flaws; default: the configured ones.
            budget_minutes: stop measuring after this time; a later call goes on.

        Raises:
            AuditError: no sample can be audited, or a kind is unknown.
        """
        from curation_assets.defs.instance import open_instance
        from curation_assets.defs.main_job import MainJob

        with open_instance(self.workspace) as instance:
            job = MainJob(self.workspace, instance)
            job.run(until="checkpoints")
            job.audit(samples, kinds, budget_minutes)
        return self.table("method_audit").collect()

    def _name_of(self, subset: str | None) -> str:
        from curation_assets.subsets.stored_tables import pick

        return pick("subset", subset, [one.name for one in self.workspace.settings.subsets])


def _shown(made: Release, new: bool) -> ShownRelease:
    return ShownRelease(made.subset, made.number, made.folder, made.manifest, new)


def _funnel(stages: Sequence[Stage]) -> pl.DataFrame:
    from dataclasses import asdict

    import polars as pl

    return pl.DataFrame([asdict(stage) for stage in stages])


def _colour(z: float | None) -> str:
    """Return a background between red (z = -2) and green (z = 2)."""
    if z is None:
        return ""
    hue = 60.0 + 30.0 * min(2.0, max(-2.0, z))
    return f"background: hsl({hue:.0f} 70% 85%); color: #111"
