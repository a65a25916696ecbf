"""Every method on real traces: GSM8K's model solutions, measured with a 260 k-parameter story model.

    python -m tests.benchmarks.gsm8k

runs the main job on `gsm8k/example_model_solutions.jsonl` (five responses to each prompt) with
`models/stories260k` as the base, prints the tables of docs/gsm8k.md, and ends with one JSON line.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from rich.console import Console

from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.defs.main_job import MainJob
from curation_assets.demo.tour import auroc
from curation_assets.methods.registry import METHODS
from curation_assets.subsets.select import pool_of, select
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.terminal import simple_table
from tests.benchmarks.common import DATA

REFERENCE = "ground_truth"
GENERATORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
HELD_OUT_ROWS = 50
OF_LIKELIHOODS = {"likelihoods", "unconditional_likelihoods"}
OTHER_JUDGES = {
    "embedding_similarity",
    "reward_model",
    "instag",
    "difficulty",
    "complexity",
    "quality",
    "solve_rate",
    "prm",
}
NOT_COMPARED = frozenset(
    {"s2l", "temp", "spectra", "less", "tagcos", "grand", "in_run", "attention_influence"} | OTHER_JUDGES
)
"""Methods that are not compared here: S2L wants a long training run, TEMP tells responses apart by early losses, in
windows of which most of these responses are shorter, gradients take passes there and back, attention influence wants a
model with retrieval heads; the others judge by another model."""

CORPUS = """\
corpus:
  landing: ./landing
  columns:
    prompt: question
    response: [{reference}, {responses}]
    correct: [true, {correct}]
targets:
"""
GRACE_TARGET = "  - {{name: stories, model: {model}}}\n"
EVERY_TARGET = """\
  - name: stories
    model: {model}
    signals: [step_gradients, likelihoods, unconditional_likelihoods, base_likelihoods,
              embeddings_mean, embeddings_last, embeddings_position_weighted, error_norms]
  - name: stories_base
    model: {model}
    warmup: none
    template: question_answer
    signals: [likelihoods, unconditional_likelihoods]
validation:
  - {{name: held_out, path: ./held_out.jsonl}}
"""
GRACE_SCORES = [
    "{name: grace, target: stories, method: grace}",
    "{name: grace_alignment, target: stories, method: grace, alpha: 1.0}",
]


def make_workspace(folder: Path, data: Path, every_method: bool = False, rows: int | None = None) -> Workspace:
    """A workspace with the model solutions landed.

    Args:
        folder: where it goes.
        data: with gsm8k/ and models/stories260k/.
        every_method: configure all methods of the registry that the story model can measure for, not GRACE alone.
        rows: only so many of the problems.
    """
    landing = folder / "landing"
    landing.mkdir(parents=True)
    _copy_head(data / "gsm8k" / "example_model_solutions.jsonl", landing, rows)
    text = CORPUS.format(
        reference=REFERENCE,
        responses=", ".join(f"{name}.solution" for name in GENERATORS),
        correct=", ".join(f"{name}.is_correct" for name in GENERATORS),
    )
    text += (EVERY_TARGET if every_method else GRACE_TARGET).format(model=(data / "models" / "stories260k").resolve())
    scores, names = list(GRACE_SCORES), ["grace"]
    if every_method:
        _copy_head(data / "gsm8k" / "train.jsonl", folder, HELD_OUT_ROWS, "held_out.jsonl")
        for name, score in _other_methods():
            scores.append(score)
            names.append(name)
    subsets = [f"{{name: {name}_20, score: {name}, budget: {{fraction: 0.2}}}}" for name in names]
    for section, entries in (("scores", scores), ("subsets", subsets)):
        text += f"{section}:\n" + "".join(f"  - {entry}\n" for entry in entries)
    (folder / "curation.yaml").write_text(text)
    return Workspace.load(folder / "curation.yaml")


def _copy_head(path: Path, folder: Path, rows: int | None, name: str | None = None) -> None:
    lines = path.read_text().splitlines(keepends=True)
    (folder / (name or path.name)).write_text("".join(lines[:rows]))


def _other_methods() -> Iterator[tuple[str, str]]:
    """Name and score of each method but GRACE.

    Those that rest on likelihoods are there twice: at the base model with GRAPE's template, and, with `_warm` in
    their names, at GRACE's checkpoint.
    """
    for method in METHODS.values():
        if method.name == "grace" or method.name in NOT_COMPARED:
            continue
        parameters = {"validation": "held_out"} if "validation" in method.section.model_fields else {}
        made = method.section.model_validate({"name": "any", "target": "any", "method": method.name} | parameters)
        signals = set(method.signals(made))
        more = "".join(f", {key}: {value}" for key, value in parameters.items())
        twice = bool(signals) and signals <= OF_LIKELIHOODS
        places = [("", "stories_base"), ("_warm", "stories")] if twice else [("", "stories")]
        for suffix, target in places:
            name = f"{method.name}{suffix}"
            yield name, f"{{name: {name}, target: {target}, method: {method.name}{more}}}"


def measure(workspace: Workspace) -> tuple[dict[str, Any], pl.DataFrame]:
    """Run the main job; gives what GRACE came to, and the pool with its score and choice."""
    with dg.DagsterInstance.ephemeral() as instance:
        summary = MainJob(workspace, instance).run()
    subset = workspace.settings.subset("grace_20")
    rows, selection = select(workspace, subset)
    arrived = read_stored(workspace, "sample_scores", target="stories").collect()
    chosen = pool_of(workspace, subset, rows).select("sample_id", "selected")
    pool = resolve_duplicates(arrived).rows.join(chosen, on="sample_id").with_columns(score=pl.col("grace"))
    written = of_models(pool)
    gradients = read_stored(workspace, "step_gradients", target="stories")
    outcome: dict[str, Any] = {
        "samples": len(arrived),
        "pool": len(pool),
        "tokens_of_step_gradients": int(gradients.select(pl.col("tokens").cast(pl.Int64).sum()).collect().item()),
        "tokens_measured": summary.tokens_measured,
        "without_score": int(pool["score"].is_null().sum()),
        "auroc_correct": auroc_correct(written, "score"),
        "auroc_correct_alignment_only": auroc_correct(written, "grace_alignment"),
        "auroc_correct_by_generator": {
            name: auroc_correct(written.filter(pl.col("generator") == name), "score") for name in GENERATORS
        },
        "auroc_shorter_is_correct": auroc_correct(written.with_columns(shorter=-pl.col("response_tokens")), "shorter"),
        "correct_share_pool": mean(written, "correct"),
        "correct_share_subset": mean(written.filter("selected"), "correct"),
        **{key: value for key, value in selection.facts().items() if key.startswith("correlation")},
    }
    return outcome, pool


def methods(workspace: Workspace) -> pl.DataFrame:
    """What each method's scores and its 20 % say of right and wrong; a row a score, GRACE first.

    Columns: AUROC of the score, right against wrong responses of the four models, a high score counting as right;
    the share of right ones among those of the models' responses that its own selector takes; the share of the
    reference solutions in its subset; Pearson's correlation of the score with tokens over the pool; samples of the
    pool without a score.
    """
    rows = []
    for subset in workspace.settings.subsets:
        score = workspace.settings.score_of(subset)
        chosen, selection = select(workspace, subset)
        pool = pool_of(workspace, subset, chosen)
        taken, facts = pool.filter("selected"), selection.facts()
        rows.append(
            {
                "method": score.method,
                "target": score.target,
                "auroc": auroc_correct(of_models(pool), "score"),
                "right": mean(of_models(taken), "correct"),
                "references": 1.0 - len(of_models(taken)) / max(1, len(taken)),
                "tokens": facts["correlation_with_tokens"],
                "without_score": facts["without_score"],
            }
        )
    return pl.DataFrame(rows)


def preferred(workspace: Workspace) -> pl.DataFrame:
    """By generator, the share of prompts of which each target finds its response likeliest: GRAPE's choice."""
    table = read_stored(workspace, "preference").collect()
    return table.pivot("target", index="generator", values="share_of_target").sort("generator")


def of_models(pool: pl.DataFrame) -> pl.DataFrame:
    """The four models' responses, without the reference solutions."""
    return pool.filter(pl.col("generator") != REFERENCE)


def auroc_correct(frame: pl.DataFrame, score: str) -> float | None:
    """Probability that a correct solution scores above a wrong one."""
    scored = frame.filter(pl.col(score).cast(pl.Float64).is_finite())
    return auroc(scored.filter("correct")[score], scored.filter(~pl.col("correct"))[score])


def mean(frame: pl.DataFrame, column: str) -> float:
    """Mean of a column of truth values."""
    return float(frame[column].cast(pl.Float64).sum()) / max(1, len(frame))


def main() -> None:
    """Print the tables and the JSON line."""
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), DATA, every_method=True)
        outcome, pool = measure(workspace)
        by_method, by_preference = methods(workspace), preferred(workspace)
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
    flags = pool.filter(pl.col("score").is_null()).group_by(pl.col("flags").list.join(" + ")).len().sort("flags")
    for title, frame in (
        ("GRACE by generator", by_generator),
        ("without a score of GRACE", flags),
        ("every method", by_method),
        ("share of prompts whose likeliest response is of", by_preference),
    ):
        console.print(simple_table(title, frame.columns, frame.iter_rows()))
    print(json.dumps(outcome | {"methods": by_method.to_dicts(), "preferred": by_preference.to_dicts()}))


if __name__ == "__main__":
    main()
