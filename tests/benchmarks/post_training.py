"""Does the choice help? The demo's corpus, its subsets by several methods, and what models trained on them answer.

    python -m tests.benchmarks.post_training

measures the demo's corpus with the demo's model, chooses 20, 10 and 5 % of it by GRACE, GRAPE and TEMP, and runs the
evaluation: as many samples by Random (drawn anew for every seed), Longest and Stepmax beside them, the full pool, the
untouched base; three seeds; 200 held-out problems, 40 of each of the demo's five families, in two benchmarks.
`--folder` keeps the workspace, so that a run that was killed goes on.

Everything is measured, trained and asked in GRAPE's form (`template: question_answer`), which the model was not taught:
it gets nothing right before it is trained. `--template auto` is the form that it knows, in which this pool has nothing
to teach it. The last line is one JSON object.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.demo.corpus import DEFAULT_PROMPTS, draw_problems, generate, write_corpus
from curation_assets.demo.plans import answer_text, calculate
from curation_assets.demo.problems import FAMILIES
from curation_assets.demo.tour import MODEL
from curation_assets.evaluation.rendering import show_evaluation
from curation_assets.evaluation.summary import stored_results
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.evaluation import RELATIVE_AVERAGE, post_training_eval_path, post_training_runs_path
from curation_assets.workspace.workspace import Workspace
from curation_resources.terminal import progress_bars
from tests.benchmarks.common import finish, parser

SHARES = (20, 10, 5)
METHODS = ("grace", "grape", "temp")
PROBLEMS = 40
"""Of each family."""
BENCHMARKS = {"comparison": "stories", "story": "stories"}
"""By family, the benchmark that its problems are in; those of the others are in `numbers`."""

CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - name: tiny
    model: {model}
    template: {template}
    signals: [step_gradients, likelihoods, perturbed_losses]
    warmup: {{min_pool: 10}}
    perturbation: {{radius_unit: distance, largest_radius: 1.0}}
scores:
{scores}
subsets:
{subsets}
engine: {{device: cpu}}
evaluation:
  benchmarks:
{benchmarks}
  seeds: {seeds}
  baselines: [random, longest, stepmax]
  training: {{learning_rate: 0.001, epochs: {epochs}}}
  max_new_tokens: 200
  batch_tokens: 100000
"""


def held_out(count: int) -> dict[str, list[dict[str, str]]]:
    """By benchmark the problems with their answers, so many of a family; none of their prompts is in the corpus."""
    drawn = draw_problems(random.Random("held out"), skip={row["prompt"] for row in generate()})
    found: dict[str, list[dict[str, str]]] = {}
    for _ in range(count * len(FAMILIES)):
        problem = next(drawn)
        row = {"prompt": problem.prompt, "answer": answer_text(problem, calculate(problem.steps))}
        found.setdefault(BENCHMARKS.get(problem.family, "numbers"), []).append(row)
    return found


def make_workspace(folder: Path, small: bool, template: str = "question_answer") -> Workspace:
    """The demo's corpus with subsets and an evaluation; what is there already stays."""
    config = folder / "curation.yaml"
    if not config.exists():
        folder.mkdir(parents=True, exist_ok=True)
        prompts = 20 if small else DEFAULT_PROMPTS
        rows = write_corpus(folder / "landing", n_prompts=prompts).rows
        benchmarks = held_out(2 if small else PROBLEMS)
        for name, problems in benchmarks.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
        methods, shares = (METHODS[:1], SHARES[:1]) if small else (METHODS, SHARES)
        subsets = [
            f"  - {{name: {method}_{share}, score: {method}, budget: {{samples: {rows * share // 100}}}}}"
            for share in shares
            for method in methods
        ]
        text = CONFIG.format(
            model=MODEL,
            template=template,
            scores="\n".join(f"  - {{name: {method}, target: tiny, method: {method}}}" for method in methods),
            subsets="\n".join(subsets),
            benchmarks="\n".join(f"    - {{name: {name}, path: ./{name}.jsonl}}" for name in benchmarks),
            seeds="[0, 1]" if small else "[0, 1, 2]",
            epochs=1 if small else 3,
        )
        config.write_text(text if not small else text.replace(", likelihoods, perturbed_losses", ""))
    return Workspace.load(config)


def outcome(workspace: Workspace) -> dict[str, Any]:
    """By arm: relative average with its interval, and mean exact match over the benchmarks."""
    frame = workspace.warehouse.read_table(post_training_eval_path())
    relative = frame.filter(pl.col("benchmark") == RELATIVE_AVERAGE)
    exact = frame.filter(pl.col("benchmark") != RELATIVE_AVERAGE)
    means = dict(exact.group_by("arm").agg(pl.col("mean").mean().round(2)).iter_rows())
    runs = workspace.warehouse.read_table(post_training_runs_path())
    rows = relative.select("arm", pl.col("mean", "low", "high").round(1))
    return {
        "relative_average": {arm: values for arm, *values in rows.iter_rows()},
        "exact_match": {arm: means[arm] for arm in relative["arm"]},
        "tokens_trained": int(runs.unique(["run"])["tokens"].sum()),
        "runs": runs["run"].n_unique(),
    }


def main() -> None:
    """Run the evaluation, print its table and the JSON line."""
    arguments = parser(__doc__)
    arguments.add_argument("--template", default="question_answer", help="the form of prompts; auto: the model's own")
    arguments.add_argument("--folder", type=Path, help="where the workspace lies; default: a temporary one")
    options = arguments.parse_args()
    console = Console(width=180, markup=False)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workspace = make_workspace(folder.resolve(), options.small, options.template)
        with open_instance(workspace) as instance, progress_bars(console) as progress:
            job = MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim"))
            began = time.monotonic()
            job.run()
            measured = time.monotonic()
            job.evaluate()
        ended = time.monotonic()
        show_evaluation(stored_results(workspace), console)
        sound = sound_shares(workspace)
        console.print(f"sound traces, share of the pool and of subsets: {sound}", soft_wrap=True)
        # What a former run of the same folder did is not in them, so they are not kept.
        console.print(f"{measured - began:.0f} s for choosing, {ended - measured:.0f} s for the evaluation")
        result = outcome(workspace) | {"sound": sound}
    finish("post_training", result, options)


def sound_shares(workspace: Workspace) -> dict[str, float]:
    """Share of the traces without a planted flaw, of the pool and of each subset; no method sees these labels."""
    sound = pl.col("extra").str.contains('"flaw":"clean"').cast(pl.Float64)
    corpus = read_stored(workspace, "raw_corpus").select("sample_id", sound=sound).unique("sample_id").collect()
    found = {"pool": corpus}
    for subset in workspace.settings.subsets:
        ids = read_stored(workspace, "subset", subset=subset.name).select("sample_id").collect()
        found[subset.name] = corpus.join(ids, on="sample_id", how="semi")
    return {name: round(float(frame["sound"].sum()) / max(1, len(frame)), 3) for name, frame in found.items()}


if __name__ == "__main__":
    main()
