"""GRACE on real traces: GSM8K's model solutions, measured with a 260 k-parameter story model.

    python -m tests.benchmarks.gsm8k

runs the main job on `gsm8k/example_model_solutions.jsonl` (five responses to each prompt) with
`models/stories260k` as the base, prints the tables of docs/gsm8k.md, and ends with one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from rich.console import Console

from curation_assets import tables
from curation_assets.main_job import MainJob
from curation_assets.reports.statistics import auroc
from curation_assets.subsets.select import select
from curation_assets.terminal import simple_table
from curation_assets.workspace import Workspace

DATA = Path(os.environ.get("CURATION_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
GENERATORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
CONFIG = """\
corpus:
  landing: ./landing
  columns:
    prompt: question
    response: [ground_truth, {responses}]
    correct: [true, {correct}]
targets:
  - {{name: stories, model: {model}}}
scores:
  - {{name: grace, target: stories, method: grace}}
  - {{name: grace_alignment, target: stories, method: grace, alpha: 1.0}}
subsets:
  - {{name: grace_20, score: grace, budget: {{fraction: 0.2}}}}
"""


def make_workspace(folder: Path, data: Path) -> Workspace:
    """A workspace with the model solutions landed."""
    landing = folder / "landing"
    landing.mkdir(parents=True)
    shutil.copy2(data / "gsm8k" / "example_model_solutions.jsonl", landing)
    text = CONFIG.format(
        responses=", ".join(f"{name}.solution" for name in GENERATORS),
        correct=", ".join(f"{name}.is_correct" for name in GENERATORS),
        model=(data / "models" / "stories260k").resolve(),
    )
    (folder / "curation.yaml").write_text(text)
    return Workspace.load(folder / "curation.yaml")


def measure(workspace: Workspace) -> tuple[dict[str, Any], pl.DataFrame]:
    """Run the main job; gives the outcome and the pool with scores, correctness and generator."""
    with dg.DagsterInstance.ephemeral() as instance:
        summary = MainJob(workspace, instance).run()
    selection = select(workspace, workspace.settings.subset("grace_20"))
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir())
    assert corpus is not None
    columns = corpus.select("shard", "row", "candidate", "generator", "correct").collect()
    pool = selection.pool.join(columns, on=["shard", "row", "candidate"], how="left")
    written = pool.filter(pl.col("generator") != "ground_truth")
    outcome: dict[str, Any] = {
        "samples": len(corpus.select("sample_id").collect()),
        "pool": len(pool),
        "tokens_measured": summary.tokens_measured,
        "without_score": int(pool["score"].is_null().sum()),
        "auroc_correct": auroc_correct(written, "score"),
        "auroc_correct_alignment_only": auroc_correct(written, "grace_alignment"),
        "auroc_correct_by_generator": {
            name: auroc_correct(written.filter(pl.col("generator") == name), "score") for name in GENERATORS
        },
        "auroc_shorter_is_correct": auroc(
            -written.filter("correct")["response_tokens"].cast(pl.Float64),
            -written.filter(~pl.col("correct"))["response_tokens"].cast(pl.Float64),
        ),
        "correct_share_pool": mean(written, "correct"),
        "correct_share_subset": mean(written.filter("selected"), "correct"),
        **{key: value for key, value in selection.facts().items() if key.startswith("correlation")},
    }
    return outcome, pool


def auroc_correct(frame: pl.DataFrame, score: str) -> float | None:
    """Probability that a correct solution scores above a wrong one."""
    scored = frame.filter(pl.col(score).is_finite())
    return auroc(scored.filter("correct")[score], scored.filter(~pl.col("correct"))[score])


def mean(frame: pl.DataFrame, column: str) -> float:
    """Mean of a column of truth values."""
    return float(frame[column].cast(pl.Float64).sum()) / max(1, len(frame))


def main() -> None:
    """Print the tables and the JSON line."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        outcome, pool = measure(make_workspace(Path(folder), DATA))
    by_generator = (
        pool.group_by("generator")
        .agg(
            pl.len().alias("pool"),
            pl.col("correct").mean().alias("correct"),
            pl.col("score").mean().alias("mean V"),
            pl.col("selected").mean().alias("selected"),
            pl.col("score").is_null().sum().alias("no score"),
        )
        .sort("generator")
    )
    console.print(simple_table("by generator", by_generator.columns, by_generator.iter_rows()))
    flags = pool.filter(pl.col("score").is_null()).group_by(pl.col("flags").list.join(" + ")).len().sort("flags")
    console.print(simple_table("without a score", flags.columns, flags.iter_rows()))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
