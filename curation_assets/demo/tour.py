"""The demo: run the main job on the embedded corpus and model, and compare the selection with the labels.

The labels are in `extra`, which no method sees; only the tables printed here use them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
from rich.console import Console

from curation_assets import tables
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob, RunSummary
from curation_assets.demo.corpus import write_corpus
from curation_assets.operations.init_config import inspect_folder, render_config, write_schema
from curation_assets.releases.build import Release
from curation_assets.subsets.select import pool_of
from curation_assets.workspace.workspace import Workspace
from curation_resources.terminal import progress_bars, simple_table

MODEL = Path(__file__).parent / "model"
TARGET = "tiny"
SUBSET = "grace_20"
CLEAN = "clean"
KINDS_IN_MEAN = ("wrong_step", "wrong_answer", "irrelevant", "shuffled")


def prepare(folder: Path) -> Path:
    """Write corpus, model and configuration into a folder unless they exist, and return the configuration file."""
    config = folder / "curation.yaml"
    if not config.exists():
        landing = folder / "landing"
        write_corpus(landing)
        shutil.copytree(MODEL, folder / "model", dirs_exist_ok=True)
        config.write_text(render_config(inspect_folder(landing), "./landing", "./model", TARGET), encoding="utf-8")
        write_schema(folder)
    return config


def tour(folder: Path, console: Console) -> None:
    """Run the demo; its last line of output is one JSON object with the results."""
    workspace = Workspace.load(prepare(folder))
    with open_instance(workspace) as instance, progress_bars(console) as progress:
        job = MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim"))
        summary = job.run()
        release, _new = job.release(workspace.settings.subset(SUBSET))
    judged = judge(workspace)
    _print_choice(workspace, console, judged)
    console.print(f"release: {release.folder}", soft_wrap=True)
    print(json.dumps(_last_line(summary, release, judged)))


def judge(workspace: Workspace) -> pl.DataFrame:
    """Return the pool with scores, selection and the planted flaw from the labels."""
    subset = workspace.settings.subset(SUBSET)
    pool = pool_of(workspace, subset, workspace.warehouse.read_table(tables.subset_path(SUBSET)))
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir())
    assert corpus is not None
    labels = corpus.select("sample_id", "extra").unique("sample_id").collect()
    flaws = [json.loads(extra)["labels"]["flaw"] for extra in labels["extra"].to_list()]
    return pool.join(labels.select("sample_id").with_columns(flaw=pl.Series(flaws)), on="sample_id", how="left")


def auroc_by_kind(judged: pl.DataFrame) -> dict[str, float | None]:
    """Return the AUROC of V for clean traces against each kind of flaw; traces without a score are excluded."""
    scored = judged.filter(pl.col("score").is_finite())
    clean = scored.filter(pl.col("flaw") == CLEAN)["score"]
    kinds = sorted(set(judged["flaw"].to_list()) - {CLEAN})
    return {kind: auroc(clean, scored.filter(pl.col("flaw") == kind)["score"]) for kind in kinds}


def mean_auroc(by_kind: dict[str, float | None]) -> float | None:
    """Return the unweighted mean over the kinds that change the content of a trace but keep an answer."""
    values = [by_kind.get(kind) for kind in KINDS_IN_MEAN]
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if len(found) == len(values) else None


def _print_choice(workspace: Workspace, console: Console, judged: pl.DataFrame) -> None:
    by_kind = auroc_by_kind(judged)
    rows = []
    chosen = int(judged["selected"].sum())
    for kind in [CLEAN, *by_kind]:
        mine = judged.filter(pl.col("flaw") == kind)
        rows.append(
            (
                kind,
                len(mine),
                f"{len(mine) / len(judged):.1%}",
                int(mine["selected"].sum()),
                f"{int(mine['selected'].sum()) / max(chosen, 1):.1%}",
                len(mine.filter(pl.col("score").is_null())),
                by_kind.get(kind),
            )
        )
    headers = ("kind", "pool", "share", "subset", "share", "no score", "AUROC")
    console.print(simple_table("selection by planted flaw (AUROC: clean above kind)", headers, rows))
    above = [kind for kind, value in by_kind.items() if value is not None and value < 0.5]
    for kind in above:
        console.print(f"{kind} traces score above clean ones: the method does not detect this flaw")
    subset = workspace.warehouse.read_table(tables.subset_path(SUBSET))
    console.print(f"{len(subset)} of {len(judged)} samples selected; the first and the last of them:")
    for sample_id, reason in subset.select("sample_id", "reason").rows()[:: max(1, len(subset) - 1)]:
        console.print(f"  {sample_id}: {reason}", highlight=False)
    console.print(
        f"show all traces: curate report --config {workspace.config_file}\nshow one trace: curate show "
        f"{subset['sample_id'][0][:8]} --config {workspace.config_file}",
        soft_wrap=True,
    )


def _last_line(summary: RunSummary, release: Release, judged: pl.DataFrame) -> dict[str, object]:
    by_kind = auroc_by_kind(judged)
    selected = judged.filter("selected")
    return {
        "release": str(release.folder),
        "release_number": release.number,
        "content_digest": release.manifest["content_digest"],
        "auroc": mean_auroc(by_kind),
        "auroc_by_kind": by_kind,
        "flawed_share_pool": _flawed(judged),
        "flawed_share_subset": _flawed(selected),
        "without_score": int(judged["score"].is_null().sum()),
        "tokens_measured": summary.tokens_measured,
    }


def _flawed(frame: pl.DataFrame) -> float:
    return len(frame.filter(pl.col("flaw") != CLEAN)) / max(1, len(frame))


def auroc(positive: pl.Series, negative: pl.Series) -> float | None:
    """Return the probability that a value of `positive` exceeds one of `negative`, counting ties half.

    Return None if either is empty. Computed as the Mann-Whitney statistic over average ranks, in O(n log n).
    """
    n, m = len(positive), len(negative)
    if not n or not m:
        return None
    values = pl.concat([positive.cast(pl.Float64), negative.cast(pl.Float64)])
    ranks = values.rank("average").head(n)
    return (float(ranks.sum()) - n * (n + 1) / 2) / (n * m)
