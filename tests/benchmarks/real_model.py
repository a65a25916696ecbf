"""Methods on real traces with a real language model: GSM8K and PRM800K, measured with SmolLM2-135M-Instruct.

    python -m tests.benchmarks.real_model --folder real-model

makes the tables of docs/real-model.md: what the scores say of labels and of the audit's twins, what measuring costs,
and what training on subsets gives. It takes hours on two cores; a run that was killed goes on. The corpus holds

- `gsm8k_solutions`: problems of GSM8K with the reference solution and four models' solutions, marked right or wrong;
- `prm800k`: solutions that PRM800K's annotators followed to their end, and each of them once more with one step
  exchanged for one that the annotators rejected at that place. Step labels tell which.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from curation_assets.cli.audit import show_audit
from curation_assets.config.corpus_settings import Segmentation
from curation_assets.config.evaluation_settings import Audit
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.evaluation.audit_report import codes, write_audit
from curation_assets.evaluation.concordance import Estimate, concordance, win_rate
from curation_assets.methods.registry import method_of
from curation_assets.steps.segmentation import segment
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.loading import load_checkpoint
from curation_resources.scoring.samples import ANSWER, Sample, Segment
from curation_resources.terminal import progress_bars, simple_table
from tests.benchmarks.common import DATA, alternate_clocks, finish, parser, ratios
from tests.benchmarks.forward import ALL, GRACE, bare, ours
from tests.real_model import CACHE, real_model

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
    warmup: {{fraction: 0.3, min_pool: 10, batch_size: 8, epochs: 1}}
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


SHOWN = ("correct", "steps")
"""Labels whose comparisons are printed."""


def measured(workspace: Workspace, audit: Audit, labelled: int) -> pl.DataFrame:
    """Run the main job and the audit; gives table `method_audit`."""
    console = Console(width=160, markup=False)
    with open_instance(workspace) as instance, progress_bars(console) as progress:
        MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim")).run()
        write_audit(workspace, audit, labelled=labelled)
    return read_stored(workspace, "method_audit").collect()


def rejected_steps(workspace: Workspace) -> list[tuple[str, str, Estimate]]:
    """Of each score, the share of PRM800K's traces that score above themselves with a rejected step."""
    corpus = read_stored(workspace, "raw_corpus").filter(pl.col("source") == "prm800k").collect()
    found = []
    for score in workspace.settings.scores:
        values = read_stored(workspace, "sample_scores", target=score.target).select("sample_id", value=score.name)
        rows = corpus.select("sample_id", "prompt_id", "generator", "row").join(values.collect(), on="sample_id")
        rows = rows.filter(pl.col("value").is_finite()).with_columns(pair=pl.col("row") // 2)
        wide = rows.pivot("generator", index=["pair", "prompt_id"], values="value")
        if not {"accepted", "one_rejected_step"} <= set(wide.columns):
            continue
        wide = wide.drop_nulls().sort("pair")
        sign = 1.0 if method_of(score).highest_first else -1.0
        sound, flawed = (sign * wide[name].to_numpy() for name in ("accepted", "one_rejected_step"))
        estimate = win_rate(sound, flawed, codes(wide["prompt_id"]))
        if estimate is not None:
            found.append((score.name, score.target, estimate))
    return found


def among_models(workspace: Workspace) -> list[tuple[str, str, Estimate]]:
    """AUROC of each score among the four models' solutions to a problem, without the reference, which people wrote."""
    found = []
    for score in workspace.settings.scores:
        rows = read_stored(workspace, "sample_scores", target=score.target).collect()
        rows = rows.filter(pl.col("generator").is_in(GENERATORS) & pl.col(score.name).is_finite())
        sign = 1.0 if method_of(score).highest_first else -1.0
        label, prompt = rows["correct"].cast(pl.Float64).to_numpy(), codes(rows["prompt_id"])
        estimate = concordance(sign * rows[score.name].to_numpy(), label, prompt, prompt)
        if estimate is not None:
            found.append((score.name, score.target, estimate))
    return found


def by_position(workspace: Workspace) -> pl.DataFrame:
    """Mean score of GRACE's steps by their index."""
    steps = read_stored(workspace, "step_scores", target="smol", score="grace")
    found = steps.group_by("step_index").agg(steps=pl.len(), mean=pl.col("step_score").mean())
    return found.filter(pl.col("step_index") <= 10).sort("step_index").collect()


def speed(model: Path, samples: int, rounds: int) -> dict[str, object]:
    """Time over a bare loop of transformers on the same tokens: whole model and loss, batches of 8 as they arrive."""
    checkpoint = load_checkpoint(model, device="cpu", dtype="bfloat16")
    encoder = Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)
    rows = [json.loads(line) for line in (DATA / "gsm8k" / "train.jsonl").read_text().splitlines()[:samples]]
    settings = Segmentation()
    given = []
    for number, row in enumerate(rows):
        cut = segment(row["answer"], settings)
        spans = [Segment(index, *span) for index, span in enumerate(cut.steps, 1)]
        spans += [] if cut.answer is None else [Segment(ANSWER, cut.answer.start, cut.answer.end)]
        turns = [{"role": "user", "content": row["question"]}]
        given.append(Sample(f"{number:032x}", turns, row["answer"], tuple(spans)))
    encoded = encoder.encode(given)
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    clocks = alternate_clocks(
        {
            "bare": lambda: bare(whole, encoded, 8),
            "grace": lambda: ours(checkpoint, encoded, GRACE),
            "all signals": lambda: ours(checkpoint, encoded, ALL),
        },
        rounds,
    )
    return {
        "tokens": sum(map(len, encoded)),
        **ratios("grace_over_bare", clocks["grace"], clocks["bare"]),
        **ratios("all_signals_over_bare", clocks["all signals"], clocks["bare"]),
    }


def with_evaluation(workspace: Workspace, problems: int) -> Workspace:
    """The workspace with an evaluation by loss: subsets of 20 % of the right solutions of GSM8K by four methods."""
    lines = (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()
    # The corpus holds the first problems of the same file.
    (workspace.folder / "held_out_test.jsonl").write_text("\n".join(lines[-problems:]) + "\n")
    text = (workspace.folder / "curation.yaml").read_text().partition("subsets:")[0] + SUBSETS
    path = workspace.folder / "evaluation.yaml"
    path.write_text(text)
    return Workspace.load(path)


SUBSETS = """\
subsets:
  - &chosen
    name: grace_20
    score: grace
    budget: {fraction: 0.2}
    filters: {correct: true, sources: [gsm8k], min_steps: 2}
  - {<<: *chosen, name: grape_20, score: grape}
  - {<<: *chosen, name: margin_20, score: mean_margin}
  - {<<: *chosen, name: longest_20, score: longest}
evaluation:
  benchmarks: [{name: gsm8k, path: ./held_out_test.jsonl, metric: loss, columns: {prompt: question, response: answer}}]
  seeds: [0]
  random_draws: 5
  target: smol
  baselines: [random]
  training: {batch_size: 8, epochs: 1}
  equal_steps: true
"""


def evaluated(workspace: Workspace, problems: int, subsets: Sequence[str]) -> dict[str, object]:
    """Train and measure the arms, print the tables, and return their rows."""
    console = Console(width=160, markup=False)
    workspace = with_evaluation(workspace, problems)
    with open_instance(workspace) as instance, progress_bars(console) as progress:
        job = MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim"))
        job.run()
        job.evaluate(subsets=subsets)
    found: dict[str, object] = {}
    for name in ("post_training_spread", "post_training_eval", "post_training_differences"):
        frame = read_stored(workspace, name).collect()
        console.print(simple_table(name, frame.columns, frame.iter_rows()))
        found[name] = frame.to_dicts()
    return found


def main() -> None:
    """Print the tables and the JSON line."""
    arguments = parser(__doc__)
    arguments.add_argument("--folder", type=Path, default=CACHE / "real-model-benchmark", help="where the workspace is")
    arguments.add_argument("--subsets", nargs="*", default=[], help="with evaluation: only these subsets")
    arguments.add_argument("--only", choices=("methods", "speed", "evaluation"), help="one part of it")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=40)
    model, console = real_model(), Console(width=180, markup=False)
    sizes = (4, 4) if options.small else (PROBLEMS, TRACES)
    workspace = make_workspace(options.folder, model, *sizes)
    result: dict[str, Any] = {}
    if options.only in (None, "methods"):
        found = measured(workspace, Audit(samples=4 if options.small else 100), 100 if options.small else 6000)
        labels = found.filter(pl.col("kind").is_in(SHOWN)).select(
            "score", "target", "configured", "kind", "measure", "within", "value", "low", "high", "verdict", "samples"
        )
        show_audit(found.filter(~pl.col("kind").is_in(SHOWN)), console)
        console.print(simple_table("labels", labels.columns, labels.iter_rows()))
        for title, pairs in (
            ("PRM800K: above the trace with a rejected step", rejected_steps(workspace)),
            ("GSM8K: right, among the models' solutions to a problem", among_models(workspace)),
        ):
            rows = [
                (name, target, one.pairs, f"{one.value:.3f}", *(f"{end:.3f}" for end in one.interval()))
                for name, target, one in pairs
            ]
            console.print(simple_table(title, ("score", "target", "pairs", "value", "low", "high"), rows))
            result[title] = {f"{target}.{name}": [one.value, *one.interval()] for name, target, one in pairs}
        positions = by_position(workspace)
        console.print(simple_table("mean step score by index", positions.columns, positions.iter_rows()))
        result["method_audit"] = found.filter(pl.col("measure") != "agreement").drop("detectable").to_dicts()
        result["mean_step_score"] = dict(positions.select("step_index", "mean").iter_rows())
    if options.only in (None, "speed"):
        result["speed"] = speed(model, 8 if options.small else 64, options.rounds)
    if options.only in (None, "evaluation"):
        result["evaluation"] = evaluated(workspace, 4 if options.small else 100, options.subsets)
    finish("real_model", result, options, options.only)


if __name__ == "__main__":
    main()
