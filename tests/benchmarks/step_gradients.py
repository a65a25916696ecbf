"""GRACE's proxy against what it stands for: gradients of steps with respect to the adapter that is trained.

    python -m tests.benchmarks.step_gradients

Two real pipelines, each with three targets of one warm-up: `bias` (the paper's proxy, one forward pass), `exact` (proxy
`projected` with signs alone: dot products of the whole gradients of the adapter's matrices, one way there and back a
segment) and `projected` (the same in 8,192 numbers of 64 x 64 a matrix). The demo's model and corpus, 150 prompts; and
stories260k with 100 problems of GSM8K and five responses to each, where the data is there.

Compared with `exact`: Spearman's correlation of V over samples, of steps' alignment with the answer over all steps and
within a trace (the mean over traces of four steps or more), and the share of a selection of 20 % that both choose. For
the demo also how well V tells planted flaws from sound traces (AUROC, the demo's mean).

The last line is one JSON object, by model and proxy.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console

from curation_assets import tables
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.demo.corpus import write_corpus
from curation_assets.demo.tour import MODEL, auroc_by_kind, mean_auroc
from curation_assets.workspace.workspace import Workspace
from curation_resources.terminal import progress_bars
from tests.benchmarks.common import DATA, finish, parser, table

PROXIES = {
    "bias": "proxy: bias",
    "exact": "proxy: projected, gradients: {projection: 65536, dimension: 4294967296}",
    "projected": "proxy: projected, gradients: {projection: 64, dimension: 8192}",
}
COLUMNS = """\
  columns:
    prompt: question
    response: [ground_truth, 6b_finetuning.solution, 6b_verification.solution, 175b_finetuning.solution,
               175b_verification.solution]
"""
LONG = 4
"""Steps of a trace within which ranks are compared."""


def make_workspace(folder: Path, model: Path, columns: str = "", template: str = "auto") -> Workspace:
    """A workspace with three targets of one warm-up and their scores."""
    warmup = "{fraction: 0.2, min_pool: 10}"
    text = f"corpus:\n  landing: ./landing\n{columns}targets:\n" + "".join(
        f"  - {{name: {name}, model: {model.resolve()}, template: {template}, warmup: {warmup}, {proxy}}}\n"
        for name, proxy in PROXIES.items()
    )
    text += "scores:\n" + "".join(f"  - {{name: v_{name}, target: {name}, method: grace}}\n" for name in PROXIES)
    (folder / "curation.yaml").write_text(text)
    return Workspace.load(folder / "curation.yaml")


def demo(folder: Path, small: bool) -> Workspace:
    """The demo's model and corpus."""
    write_corpus(folder / "landing", n_prompts=8 if small else 150)
    return make_workspace(folder, MODEL)


def stories(folder: Path, _small: bool) -> Workspace:
    """stories260k and model solutions of GSM8K."""
    (folder / "landing").mkdir(parents=True)
    source = DATA / "gsm8k" / "example_model_solutions.jsonl"
    lines = source.read_text().splitlines(keepends=True)[:100]
    (folder / "landing" / source.name).write_text("".join(lines))
    return make_workspace(folder, DATA / "models" / "stories260k", COLUMNS)


def measured(workspace: Workspace) -> None:
    """Run the pipeline."""
    console = Console(width=160, markup=False)
    with open_instance(workspace) as instance, progress_bars(console) as progress:
        MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim")).run()


def scores_of(workspace: Workspace, name: str) -> pl.DataFrame:
    """V of each sample."""
    scan = workspace.warehouse.scan(tables.sample_scores_dir(name))
    assert scan is not None
    frame = scan.select("sample_id", value=f"v_{name}").unique("sample_id").collect()
    return frame.drop_nulls().sort("sample_id")


def steps_of(workspace: Workspace, name: str) -> pl.DataFrame:
    """Alignment of each step with the answer."""
    scan = workspace.warehouse.scan(tables.step_scores_dir(name, f"v_{name}"))
    assert scan is not None
    frame = scan.select("sample_id", "step_index", value="answer_alignment").collect()
    return frame.unique(["sample_id", "step_index"]).drop_nulls().sort("sample_id", "step_index")


def spearman(one: pl.Series, other: pl.Series) -> float:
    """Of two columns."""
    return float(pl.select(pl.corr(one, other, method="spearman")).item())


def compared(workspace: Workspace, name: str) -> dict[str, float]:
    """A proxy against exact gradients."""
    both = scores_of(workspace, name).join(scores_of(workspace, "exact"), on="sample_id", suffix="_exact")
    steps = steps_of(workspace, name).join(
        steps_of(workspace, "exact"), on=["sample_id", "step_index"], suffix="_exact"
    )
    within = [
        spearman(own["value"], own["value_exact"])
        for own in steps.partition_by("sample_id")
        if len(own) >= LONG and own["value"].n_unique() > 1 and own["value_exact"].n_unique() > 1
    ]
    share = -(-len(both) // 5)
    chosen = [set(both.sort(column, descending=True)["sample_id"][:share]) for column in ("value", "value_exact")]
    return {
        "v": spearman(both["value"], both["value_exact"]),
        "steps": spearman(steps["value"], steps["value_exact"]),
        "within_a_trace": float(np.mean(within)) if within else float("nan"),
        "overlap_20": len(chosen[0] & chosen[1]) / share,
        "samples": len(both),
        "traces": len(within),
    }


def flaws_told(workspace: Workspace, name: str) -> float | None:
    """The demo's mean AUROC of V against planted flaws."""
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir())
    assert corpus is not None
    rows = corpus.select("sample_id", "extra").unique("sample_id").collect()
    flaws = [json.loads(extra)["labels"]["flaw"] for extra in rows["extra"]]
    scored = scores_of(workspace, name).rename({"value": "score"})
    judged = rows.select("sample_id", flaw=pl.Series(flaws)).join(scored, on="sample_id")
    return mean_auroc(auroc_by_kind(judged))


def main() -> None:
    """Measure both models and compare."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads or 1)
    result: dict[str, Any] = {}
    real = (DATA / "gsm8k").is_dir() and not options.small
    makers = {"demo": demo} | ({"stories260k": stories} if real else {})
    rows = []
    for model, make in makers.items():
        folder = Path(tempfile.mkdtemp())
        try:
            workspace = make(folder, options.small)
            measured(workspace)
            for name in ("bias", "projected"):
                found = compared(workspace, name)
                result[f"{model}_{name}"] = {key: round(value, 3) for key, value in found.items()}
                rows.append((model, name, *result[f"{model}_{name}"].values()))
            if model == "demo":
                told = {name: flaws_told(workspace, name) for name in PROXIES}
                result["demo_auroc"] = {name: round(value, 3) for name, value in told.items() if value is not None}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    header = ("model", "proxy", "V", "steps", "within a trace", "overlap of 20 %", "samples", "traces")
    print(table(header, rows))
    finish("step_gradients", result, options)


if __name__ == "__main__":
    main()
