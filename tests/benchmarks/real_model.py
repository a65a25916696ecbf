"""Methods on real traces with a real language model: GSM8K and PRM800K, measured with SmolLM2-135M-Instruct.

    python -m tests.benchmarks.real_model --folder real-model

makes the tables of docs/real-model.md. It takes hours on two cores; `--folder` keeps the workspace, so that a run that
was killed goes on. The corpus holds

- `gsm8k_solutions`: problems of GSM8K with the reference solution and four models' solutions, marked right or wrong;
- `prm800k`: solutions that PRM800K's annotators followed to their end, and each of them once more with one step
  exchanged for one that the annotators rejected at that place. Step labels tell which.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.common import DATA
from tests.real_model import real_model

GENERATORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
PROBLEMS, TRACES = 200, 250
MOST_STEPS = 24
"""Longer traces of PRM800K are left out: a few would take most of the time."""

CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - name: smol
    model: {model}
    dtype: bfloat16
    warmup: {{fraction: 0.3, batch_size: 8, epochs: 1}}
    signals: [step_gradients, likelihoods, unconditional_likelihoods, base_likelihoods, error_norms,
              embeddings_mean, embeddings_position_weighted]
  - name: smol_base
    model: {model}
    dtype: bfloat16
    warmup: none
    signals: [step_gradients, likelihoods, unconditional_likelihoods]
validation:
  - {{name: held_out, path: ./held_out.jsonl}}
scores:
  - {{name: grace, target: smol, method: grace}}
  - {{name: grape, target: smol, method: grape}}
  - {{name: perplexity, target: smol, method: perplexity}}
  - {{name: ifd, target: smol, method: ifd}}
  - {{name: mean_entropy, target: smol, method: mean_entropy}}
  - {{name: least_confidence, target: smol, method: least_confidence}}
  - {{name: mean_margin, target: smol, method: mean_margin}}
  - {{name: learnability, target: smol, method: learnability}}
  - {{name: el2n, target: smol, method: el2n}}
  - {{name: rds_plus, target: smol, method: rds_plus, validation: held_out}}
  - {{name: longest, target: smol, method: longest}}
  - {{name: random, target: smol, method: random}}
  - {{name: grace_alignment, target: smol, method: grace, alpha: 1.0}}
  - {{name: grace_consistency, target: smol, method: grace, alpha: 0.0}}
  - {{name: grace_whole, target: smol, method: grace, align_with: cot_and_answer}}
  - {{name: grace_suffix, target: smol, method: grace, align_with: suffix}}
  - {{name: grace_unit_steps, target: smol, method: grace, history_normalize_steps: true}}
  - {{name: grace_worst_step, target: smol, method: grace, aggregate: min}}
  - {{name: grace_base, target: smol_base, method: grace}}
  - {{name: grape_base, target: smol_base, method: grape}}
  - {{name: ifd_base, target: smol_base, method: ifd}}
subsets:
  - {{name: grace_20, score: grace, budget: {{fraction: 0.2}}}}
"""


def make_workspace(folder: Path, model: Path, problems: int = PROBLEMS, traces: int = TRACES) -> Workspace:
    """Write corpus and configuration into a folder, unless they are there, and load them.

    Args:
        folder: where they go.
        model: the measuring model.
        problems: problems of GSM8K, five responses each.
        traces: solutions of PRM800K, each of them once as it is and once with a rejected step.
    """
    config = folder / "curation.yaml"
    if not config.exists():
        landing = folder / "landing"
        landing.mkdir(parents=True, exist_ok=True)
        solutions = (DATA / "gsm8k" / "example_model_solutions.jsonl").read_text().splitlines()[:problems]
        _write(landing / "gsm8k_solutions.jsonl", (row for line in solutions for row in gsm8k_rows(json.loads(line))))
        _write(landing / "prm800k.jsonl", prm800k_rows(traces))
        held_out = (DATA / "gsm8k" / "train.jsonl").read_text().splitlines()[:50]
        (folder / "held_out.jsonl").write_text("\n".join(held_out) + "\n")
        config.write_text(CONFIG.format(model=model))
    return Workspace.load(config)


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k_rows(problem: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The reference solution and the models' solutions of a problem."""
    shared = {"prompt": problem["question"], "source": "gsm8k"}
    yield shared | {"response": problem["ground_truth"], "generator": "reference", "correct": True}
    for name in GENERATORS:
        found = problem[name]
        yield shared | {"response": found["solution"], "generator": name, "correct": found["is_correct"]}


def prm800k_rows(traces: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Solutions that were followed to their end, as they are and with one rejected step in place of an accepted one."""
    files = sorted((DATA / "prm800k_phase1").glob("*.parquet"))
    columns = ["instruction", "responses", "next_response", "answer", "rating", "is_solution"]
    rows = pl.concat([pl.read_parquet(file, columns=columns).cast({"rating": pl.Float64}) for file in files])
    rejected: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in rows.filter(pl.col("rating") == -1.0).iter_rows(named=True):
        rejected.setdefault((row["instruction"], tuple(row["responses"])), []).append(row["next_response"])
    draw = random.Random(seed)
    found = rows.filter("is_solution").unique(["instruction", "responses", "next_response"], maintain_order=True)
    whole = found.rows(named=True)
    draw.shuffle(whole)
    for row in whole:
        steps = [*row["responses"], row["next_response"]]
        # The last step states the answer: exchanging it would be another kind of flaw.
        places = [place for place in range(len(steps) - 1) if (row["instruction"], tuple(steps[:place])) in rejected]
        if len(steps) > MOST_STEPS or not places:
            continue
        place = draw.choice(places)
        wrong = draw.choice(rejected[(row["instruction"], tuple(steps[:place]))])
        shared = {"prompt": row["instruction"], "answer": row["answer"], "source": "prm800k"}
        yield shared | {"completions": steps, "labels": [True] * len(steps), "generator": "accepted"}
        labels = [index != place for index in range(len(steps))]
        flawed = [*steps[:place], wrong, *steps[place + 1 :]]
        yield shared | {"completions": flawed, "labels": labels, "generator": "one_rejected_step"}
        traces -= 1
        if not traces:
            return


if __name__ == "__main__":
    make_workspace(Path("/tmp/real"), real_model())
