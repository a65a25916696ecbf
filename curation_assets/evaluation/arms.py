"""Arms of the evaluation: subsets, baselines of equal sizes, the full pool, and the untouched base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Literal

import polars as pl

from curation_assets import tables
from curation_assets.config.evaluation_settings import Baseline, Evaluation
from curation_assets.config.settings import Filters
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.evaluation.benchmarks import EvaluationError
from curation_assets.methods.random_draws import uniform
from curation_assets.signals.warmup import trainable_rows
from curation_assets.subsets.manifest import scored_pool
from curation_assets.subsets.select import eligible_samples, subset_due
from curation_assets.workspace.workspace import Workspace
from curation_resources.sections import unknown
from curation_resources.training.examples import scheduled_steps

Kind = Literal["base", "full", "subset", "baseline"]

FULL_POOL = "full pool"
UNTOUCHED_BASE = "untouched base"
"""Reserved names that no subset can have."""

LENGTHS: dict[Baseline, str] = {"longest": "response_tokens", "stepmax": "n_steps"}


@dataclass(frozen=True)
class Run:
    """One fine-tuning of a model and its evaluation.

    Attributes:
        model: the target whose model is trained.
        arm: name of the training data.
        kind: kind of the arm.
        selected_by: the target that selected the subset; None for other arms.
        seed: seed of the run; None for the untouched base.
        sample_ids: training samples, sorted; empty for the untouched base.
        steps: number of optimizer steps; None: as many as the recipe's epochs take.
        random: the arm of the random baseline that this one is compared with; None for the full pool and the base.
    """

    model: str
    arm: str
    kind: Kind
    selected_by: str | None
    seed: int | None
    sample_ids: tuple[str, ...]
    steps: int | None = None
    random: str | None = None

    @property
    def title(self) -> str:
        """The name of the run in messages."""
        return f"{self.model}, {self.arm}" + ("" if self.seed is None else f", seed {self.seed}")


def configured_evaluation(
    workspace: Workspace, seeds: Sequence[int] | None, subsets: Sequence[str] | None
) -> Evaluation:
    """Return the configured evaluation, with other seeds or subsets if given.

    Raises:
        EvaluationError: no evaluation is configured, or a seed or subset is not valid.
    """
    evaluation = workspace.settings.evaluation
    if evaluation is None:
        raise EvaluationError(
            f"{workspace.config_file} has no evaluation. Add the section, for instance evaluation: "
            f"{{benchmarks: [{{name: held_out, path: ./held_out.jsonl}}]}} (docs/evaluation.md)."
        )
    if seeds:
        wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
        if wrong or len(set(seeds)) < len(seeds):
            raise EvaluationError(
                f"seeds {list(seeds)}: not distinct whole numbers from 0 to {2**32 - 1}. Use distinct seeds in that "
                "range."
            )
        evaluation = evaluation.model_copy(update={"seeds": list(seeds)})
    known = [subset.name for subset in workspace.settings.subsets]
    for name in subsets or []:
        if name not in known:
            raise EvaluationError(unknown("subset", name, known))
    if subsets:
        evaluation = evaluation.model_copy(update={"subsets": list(dict.fromkeys(subsets))})
    return evaluation


def runs_of(workspace: Workspace, evaluation: Evaluation) -> list[Run]:
    """Return all runs of an evaluation: for each model the untouched base, then every arm for each seed.

    Raises:
        EvaluationError: there is no subset, one is empty or outdated, or the pool is empty.
    """
    chosen = _chosen_by(workspace, evaluation)
    pool = trainable_rows(workspace)["sample_id"].sort()
    if pool.is_empty():
        raise EvaluationError(
            "the pool has no sample to train on (samples with images are not used). Run `curate run` if the corpus has "
            "changed; else add traces of text, or check what corpus.filters remove."
        )
    subsets = {name: _samples_of_subset(workspace, name) for name in chosen}
    drawn_from = {name: _candidates(workspace, name, pool) for name in chosen}
    orders = _baseline_orders(workspace, evaluation, pool)
    runs: list[Run] = []
    for model in evaluation.models or dict.fromkeys(chosen.values()):
        runs.append(Run(model, UNTOUCHED_BASE, "base", None, None, ()))
        mine = [name for name in chosen if evaluation.models is not None or chosen[name] == model]
        groups = _groups(mine, subsets, drawn_from, pool)
        trained: list[Run] = []
        for seed in evaluation.seeds:
            trained.append(Run(model, FULL_POOL, "full", None, seed, tuple(pool.to_list())))
            for group in groups:
                random = group.arm("random")
                trained += [
                    Run(model, name, "subset", chosen[name], seed, subsets[name], random=random)
                    for name in group.subsets
                ]
            for group in groups:
                trained += _baseline_runs(model, seed, group, evaluation.baselines, orders)
        for seed in further_seeds(evaluation):
            for group in groups:
                trained += _baseline_runs(model, seed, group, ["random"], orders)
        if evaluation.equal_steps:
            steps = scheduled_steps(max(group.size for group in groups), evaluation.training.recipe())
            trained = [replace(run, steps=steps) for run in trained]
        runs += trained
    return runs


@dataclass(frozen=True)
class _Group:
    """Subsets of one size that were chosen from the same samples, and so have the same baselines.

    Attributes:
        subsets: their names.
        size: number of samples of each.
        candidates: the samples that they were chosen from, sorted.
        all: whether these are the whole pool.
    """

    subsets: list[str]
    size: int
    candidates: pl.Series
    all: bool

    def arm(self, baseline: Baseline) -> str:
        """Return the name of a baseline's arm."""
        return f"{baseline} ({self.size})" + ("" if self.all else f" as {self.subsets[0]}")


def _candidates(workspace: Workspace, name: str, pool: pl.Series) -> pl.Series:
    """Return the samples that a subset is chosen from, sorted: those that pass its filters and can be trained on.

    A baseline of other samples would compare the filters, not the score.
    """
    subset = workspace.settings.subset(name)
    if subset.parent is None and subset.filters == Filters():
        return pool
    return pool.filter(pool.is_in(pl.Series(eligible_samples(workspace, subset), dtype=pl.String).implode()))


def further_seeds(evaluation: Evaluation) -> list[int]:
    """Return the seeds of random draws beyond those of the other arms: the lowest numbers that are free."""
    if "random" not in evaluation.baselines:
        return []
    more = max(0, (evaluation.random_draws or 0) - len(evaluation.seeds))
    free = (seed for seed in count() if seed not in evaluation.seeds)
    return list(islice(free, more))


def _groups(
    names: Sequence[str], subsets: Mapping[str, Sequence[str]], drawn_from: Mapping[str, pl.Series], pool: pl.Series
) -> list[_Group]:
    """Return the groups of subsets, largest first."""
    found: list[_Group] = []
    for name in names:
        size, candidates = len(subsets[name]), drawn_from[name]
        group = next((one for one in found if one.size == size and one.candidates.equals(candidates)), None)
        if group is None:
            found.append(_Group([name], size, candidates, len(candidates) == len(pool)))
        else:
            group.subsets.append(name)
    return sorted(found, key=lambda group: -group.size)


def _chosen_by(workspace: Workspace, evaluation: Evaluation) -> dict[str, str]:
    """Return, for each evaluated subset, the target that selected it."""
    settings = workspace.settings
    of = {subset.name: settings.score_of(subset).target for subset in settings.subsets}
    names = evaluation.subsets or [name for name in of if evaluation.target in (None, of[name])]
    if not names:
        which = "" if evaluation.target is None else f" selected by target {evaluation.target}"
        raise EvaluationError(
            f"{workspace.config_file} has no subset{which}. Add one under subsets, such as "
            f"{{name: grace_20, score: grace, budget: {{fraction: 0.2}}}}, and use `curate run`."
        )
    return {name: of[name] for name in names}


def _samples_of_subset(workspace: Workspace, name: str) -> tuple[str, ...]:
    """Return the samples of a subset that can be trained on, sorted."""
    subset = workspace.settings.subset(name)
    scan = workspace.warehouse.scan_table(tables.subset_path(name))
    if scan is None:
        raise EvaluationError(f"subset {name} has not been selected yet. Use `curate run`.")
    if subset_due(workspace, subset):
        raise EvaluationError(f"subset {name} is outdated: scores or parameters have changed. Use `curate run`.")
    ids = scan.select("sample_id").collect()["sample_id"]
    if ids.is_empty():
        raise EvaluationError(
            f"subset {name} is empty. Widen its filters or its budget, or exclude it (evaluation.subsets)."
        )
    rows = corpus_rows(workspace, ids.to_list())
    if len(rows) < len(ids):
        raise EvaluationError(
            f"{len(ids) - len(rows)} of {len(ids)} samples of subset {name} are no longer in the corpus. Use `curate "
            "run`."
        )
    text = rows.filter(pl.col("images").list.len() == 0)["sample_id"]
    if text.is_empty():
        raise EvaluationError(
            f"all {len(ids)} samples of subset {name} have images, which are not supported in training. Exclude it "
            "(evaluation.subsets)."
        )
    return tuple(sorted(text.to_list()))


def _baseline_orders(workspace: Workspace, evaluation: Evaluation, pool: pl.Series) -> dict[Baseline, list[str]]:
    """Return the pool's order, best first, for each baseline without random draws."""
    wanted = [baseline for baseline in evaluation.baselines if baseline in LENGTHS]
    if not wanted:
        return {}
    scored = scored_pool(workspace)
    lengths = scored.filter(pl.col("sample_id").is_in(pool.implode()))
    return {
        baseline: lengths.sort(LENGTHS[baseline], "sample_id", descending=[True, False], nulls_last=True)[
            "sample_id"
        ].to_list()
        for baseline in wanted
    }


def _baseline_runs(
    model: str,
    seed: int,
    group: _Group,
    baselines: Sequence[Baseline],
    orders: dict[Baseline, list[str]],
) -> Iterator[Run]:
    may = set(group.candidates)
    for baseline in baselines:
        if baseline in orders:
            order = [sample for sample in orders[baseline] if sample in may]
        else:
            frame = pl.DataFrame({"sample_id": group.candidates, "draw": uniform(group.candidates, seed)})
            order = frame.sort("draw", "sample_id")["sample_id"].to_list()
        samples = tuple(sorted(order[: group.size]))
        yield Run(model, group.arm(baseline), "baseline", None, seed, samples, random=group.arm("random"))
