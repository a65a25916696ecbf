"""The asset of the evaluation. No sensor requests it, since it trains models."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from curation_assets.config.evaluation_settings import Metric
from curation_assets.config.settings import Settings
from curation_assets.defs.asset_metadata import OWNERS, column_schema, facts_table, markdown_table, row_count
from curation_assets.defs.checkpoints import base_model_key
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.quality import POOL_KEY
from curation_assets.defs.subsets import subset_key
from curation_assets.evaluation.benchmarks import prompts_in_corpus, read_benchmark
from curation_assets.evaluation.rendering import arms_of, differences_of, reasons_of, spread_of, yardstick
from curation_assets.evaluation.summary import stored_results, write_evaluation
from curation_assets.tables import evaluation as evaluation_tables
from curation_assets.tables.evaluation import RELATIVE_AVERAGE
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import intervals

LABELS = {
    "exact_match": "exact match, %",
    "loss": "loss of right responses, nats per token (lower is better)",
    RELATIVE_AVERAGE: "relative to the full pool, %",
}
"""Labels of plots, by metric."""

EVALUATION_KEY = dg.AssetKey(["reports", "post_training_eval"])


class EvaluationConfig(dg.Config):
    """Selects what to evaluate; omitted values default to the configuration."""

    seeds: list[int] = Field([], description="seeds of the fine-tuning runs; empty: evaluation.seeds")
    subsets: list[str] = Field([], description="subsets to evaluate; empty: evaluation.subsets")


def evaluation_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """Return the evaluation asset; empty if no evaluation is configured or there is no subset."""
    if workspace.settings.evaluation is None or not workspace.settings.subsets:
        return []
    return [_evaluation_asset(workspace.settings)]


def _evaluation_asset(settings: Settings) -> dg.AssetsDefinition:
    assert settings.evaluation is not None
    evaluation = settings.evaluation
    targets = {subset.name: settings.score_of(subset).target for subset in settings.subsets}
    models = evaluation.models or [name for name in targets.values() if evaluation.target in (None, name)]
    wanted = [subset for subset in settings.subsets if evaluation.target in (None, targets[subset.name])]
    pool = [POOL_KEY] if settings.corpus.filters.any else []

    @dg.asset(
        key=EVALUATION_KEY,
        deps=[
            RAW_CORPUS_KEY,
            *pool,
            *map(subset_key, wanted),
            *(base_model_key(settings.target(name)) for name in dict.fromkeys(models)),
        ],
        group_name="reports",
        description="Fine-tunes models on each subset, on baselines of the same size and on the full pool, and tests "
        "them and the untouched base model on held-out problems, by exact match or loss. Expensive, and run only on "
        "request: here, or with `curate evaluate`. Weights are deleted once their results are stored.",
        metadata=column_schema(evaluation_tables.POST_TRAINING_EVAL),
        owners=OWNERS,
        kinds={"pytorch", "huggingface"},
        pool="gpu",
        check_specs=[dg.AssetCheckSpec("disjoint_from_pool", asset=EVALUATION_KEY)],
    )
    def post_training_eval(
        config: EvaluationConfig, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        frame = write_evaluation(workspace, config.seeds, config.subsets)
        results = stored_results(workspace)
        runs = workspace.warehouse.read_table(evaluation_tables.post_training_runs_path())
        metadata: dict[str, Any] = {
            "spread_of_random_draws": markdown_table(*spread_of(results)),
            "yardstick": yardstick(results),
            **row_count(len(frame), partitioned=False),
            "arms": markdown_table(*arms_of(frame)),
            "intervals": "95 %, Student's t over seeds",
            "differences": markdown_table(*differences_of(results)),
            "intervals_of_differences": "95 %, paired bootstrap over problems",
            "remarks": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in reasons_of(frame)) or "(none)"),
            "tokens_trained": int(runs.unique(["run"])["tokens"].sum()),
            "exact_match": facts_table(_full_pool(frame, "exact_match")),
            "held_out_loss": facts_table(_full_pool(frame, "loss")),
        }
        benchmarks = [one for benchmark in evaluation.benchmarks for one in read_benchmark(workspace, benchmark)]
        overlap = prompts_in_corpus(workspace, benchmarks)
        yield dg.MaterializeResult(
            metadata=metadata | _plots(frame),
            check_results=[
                dg.AssetCheckResult(
                    check_name="disjoint_from_pool",
                    passed=not any(overlap.values()),
                    severity=dg.AssetCheckSeverity.WARN,
                    description="Held-out prompts must not be in the corpus: the evaluation would be contaminated.",
                    metadata={"prompts_in_corpus": overlap},
                )
            ],
        )

    return post_training_eval


def _full_pool(frame: pl.DataFrame, metric: Metric) -> dict[str, object]:
    """Return the full pool's mean by model and benchmark, in percent or nats: the reference for other results."""
    rows = frame.filter((pl.col("kind") == "full") & (pl.col("metric") == metric))
    return {f"{model}, {name}": mean for model, name, mean in rows.select("model", "benchmark", "mean").iter_rows()}


def _plots(frame: pl.DataFrame) -> dict[str, dg.MetadataValue[Any]]:
    """Return a plot of every benchmark and metric, and of the relative average if there is one."""
    made: dict[str, dg.MetadataValue[Any]] = {}
    models = frame["model"].n_unique() > 1
    for name, metric in frame.select("benchmark", "metric").unique(maintain_order=True).iter_rows():
        mine = (pl.col("benchmark") == name) & (pl.col("metric") == metric)
        rows = frame.filter(mine & pl.col("mean").is_not_null())
        values = [
            (f"{row['model']}: {row['arm']}" if models else row["arm"], row["mean"], row["low"], row["high"])
            for row in rows.iter_rows(named=True)
        ]
        if values:
            reference = 100.0 if metric == RELATIVE_AVERAGE else None
            picture = intervals(values, f"{name}, 95 % intervals", LABELS[metric], reference)
            made[f"loss_plot_{name}" if metric == "loss" else f"plot_{name}"] = dg.MetadataValue.md(picture)
    return made
