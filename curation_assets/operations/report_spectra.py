"""Gradient spectra over the pool: curves over layers, the effect of length, and the correlation with quality.

They test the claims of arXiv 2504.10766: better responses have lower nuclear norms N and higher effective ranks R;
curves over layers are similar within a model family and differ between families. R cannot exceed
min(T, d_out, d_in), and N falls with length, so each correlation is also computed with length controlled for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Settings, Target
from curation_assets.methods.registry import method_of
from curation_assets.operations.report_comparison import spearman
from curation_assets.operations.report_measured import measured_pool, measurements_now
from curation_assets.subsets.manifest import present_scores
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.spec import PROJECTIONS
from curation_resources.storage.digests import digest

SPECTRA_VERSION = 1
SIGNAL: SignalName = "gradient_spectra"
METRICS = ("effective_rank", "nuclear_norm")
BINS = 10
"""Number of length bins: deciles."""
LEAST_OF_BIN = 5
"""Minimum number of samples in a bin for ranks to be meaningful."""

Point = tuple[float, float]


class Spectra(NamedTuple):
    """The two tables of the report."""

    by_layer: pl.DataFrame
    correlations: pl.DataFrame


def measuring_targets(settings: Settings) -> list[Target]:
    """Return the targets that measure spectra."""
    return [target for target in settings.targets if SIGNAL in target.signals]


def wanted_spectra(workspace: Workspace) -> str | None:
    """Return the fingerprint that the tables should have, given measurements and filters; None without data."""
    targets = measuring_targets(workspace.settings)
    found = measurements_now(workspace, targets, SIGNAL)
    if found is None:
        return None
    # Quality metrics include the scores of other targets.
    paths = [tables.score_manifest_path(target.name) for target in workspace.settings.targets]
    manifests = [workspace.warehouse.table_metadata(path).get("fingerprint") for path in paths]
    return digest("spectra", SPECTRA_VERSION, found, manifests, [score.name for score in workspace.settings.scores])


def write_spectra(workspace: Workspace) -> Spectra:
    """Compute and write both tables."""
    # Compute it before reading: changes made in the meantime then mark the tables as outdated.
    fingerprint = {"fingerprint": str(wanted_spectra(workspace))}
    made = spectra(workspace)
    workspace.warehouse.write_table(tables.spectra_correlations_path(), made.correlations, fingerprint)
    # Written last: its fingerprint shows that both tables are complete.
    workspace.warehouse.write_table(tables.spectra_by_layer_path(), made.by_layer, fingerprint)
    return made


def spectra(workspace: Workspace) -> Spectra:
    """Compute both tables from the stored measurements."""
    layers, correlations = [tables.SPECTRA_BY_LAYER.empty()], [tables.SPECTRA_CORRELATIONS.empty()]
    quality = _quality(workspace)
    for target in measuring_targets(workspace.settings):
        columns = ("nuclear_norm", "effective_rank", "rows", "largest_rank", "adjacent")
        rows = measured_pool(workspace, target, SIGNAL, columns, ("response_tokens", "n_steps"))
        if rows is None:
            continue
        rows = rows.drop_nulls("nuclear_norm")
        layers.append(by_layer(rows, target.name, _family(workspace, target)))
        correlations.append(_correlations(rows, target.name, quality))
    return Spectra(
        tables.SPECTRA_BY_LAYER.conform(pl.concat(layers)), tables.SPECTRA_CORRELATIONS.conform(pl.concat(correlations))
    )


def by_layer(rows: pl.DataFrame, target: str, family: str) -> pl.DataFrame:
    """Return means over samples for every layer and projection; metrics are computed per sample first.

    Args:
        rows: rows of `gradient_spectra`, all measured.
        target: the target's name.
        family: its model family.
    """
    if rows.is_empty():
        return tables.SPECTRA_BY_LAYER.empty()
    flat = flattened(rows, ("nuclear_norm", "effective_rank", "largest_rank"))
    # The cosine with the next layer up belongs to the lower layer.
    above = flattened(rows, ("adjacent",)) if rows["adjacent"].list.len().max() else None
    means = flat.group_by("layer", "projection").agg(
        pl.col("nuclear_norm").mean(),
        pl.col("effective_rank").mean(),
        share_of_largest=(pl.col("effective_rank") / pl.col("largest_rank").clip(1)).mean(),
        samples=pl.len().cast(pl.Int64),
    )
    if above is None:
        means = means.with_columns(adjacent=pl.lit(None, dtype=pl.Float64))
    else:
        cosines = above.group_by("layer", "projection").agg(pl.col("adjacent").mean())
        means = means.join(cosines, on=["layer", "projection"], how="left")
    depth = int(flat["layer"].max() or 0) + 1  # type: ignore[arg-type]
    made = means.with_columns(target=pl.lit(target), family=pl.lit(family), depth=(pl.col("layer") + 0.5) / depth).sort(
        "target", "layer", "projection"
    )
    return tables.SPECTRA_BY_LAYER.conform(made.select(tables.SPECTRA_BY_LAYER.columns.keys()))


def flattened(rows: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Unnest list columns [L][4] into one row per sample, layer and projection."""
    numbered = rows.select("sample_id", *columns, layer=pl.int_ranges(pl.col(columns[0]).list.len()))
    layers = numbered.explode(*columns, "layer")
    names = pl.lit(list(PROJECTIONS), dtype=pl.List(pl.String))
    each = layers.with_columns(projection=names).explode(*columns, "projection")
    return each.with_columns(pl.col(columns).cast(pl.Float64), pl.col("layer").cast(pl.Int64))


def of_samples(rows: pl.DataFrame) -> pl.DataFrame:
    """Return N and R of every sample, averaged over layers and projections, under each control for length.

    Columns are `METRIC.CONTROL`. Controls: `none`; `largest_rank`, each R (and N) over min(T, d_out, d_in);
    `length_bin`, the fraction of samples in the same length decile that are lower.
    """
    flat = flattened(rows, ("nuclear_norm", "effective_rank", "largest_rank"))
    bound = pl.col("largest_rank").clip(1)
    means = flat.group_by("sample_id").agg(
        **{f"{metric}.none": pl.col(metric).mean() for metric in METRICS},
        **{f"{metric}.largest_rank": (pl.col(metric) / bound).mean() for metric in METRICS},
    )
    made = rows.select("sample_id", "response_tokens", "n_steps").join(means, on="sample_id")
    order = pl.struct("response_tokens", "sample_id").rank("ordinal") - 1
    made = made.with_columns(length_bin=(order * BINS // pl.len()).cast(pl.Int64))
    ranks = {
        f"{metric}.length_bin": pl.when(pl.len().over("length_bin") >= LEAST_OF_BIN).then(
            (pl.col(f"{metric}.none").rank("average").over("length_bin") - 0.5) / pl.len().over("length_bin")
        )
        for metric in METRICS
    }
    return made.with_columns(**ranks).sort("sample_id")


def _correlations(rows: pl.DataFrame, target: str, quality: pl.DataFrame) -> pl.DataFrame:
    """Return Spearman's correlation of every quality metric with N and R under every control."""
    if rows.is_empty():
        return tables.SPECTRA_CORRELATIONS.empty()
    samples = of_samples(rows).join(quality, on="sample_id", how="left")
    metrics = ["response_tokens", "n_steps", *(name for name in quality.columns if name != "sample_id")]

    def found() -> Iterator[tuple[str, str, str, str, float | None, int]]:
        for metric in metrics:
            for spectrum in METRICS:
                for control in ("none", "largest_rank", "length_bin"):
                    column = f"{spectrum}.{control}"
                    both = samples.select(metric, column).filter(
                        pl.col(metric).cast(pl.Float64).is_finite() & pl.col(column).is_finite()
                    )
                    yield target, metric, spectrum, control, spearman(both, metric, column), len(both)

    frame = pl.DataFrame(list(found()), schema=tables.SPECTRA_CORRELATIONS.schema, orient="row")
    return tables.SPECTRA_CORRELATIONS.conform(frame)


def _quality(workspace: Workspace) -> pl.DataFrame:
    """Return each sample's scores of all targets, as `TARGET.SCORE`, except from spectra, and its correctness."""
    found = pl.DataFrame(schema={"sample_id": pl.String})
    for target in workspace.settings.targets:
        stored = present_scores(workspace, target)
        if stored is None:
            continue
        names = [s.name for s in workspace.settings.scores_of(target.name) if SIGNAL not in method_of(s).signals(s)]
        there = [name for name in names if name in stored.collect_schema().names()]
        right = pl.coalesce("correct", "verified").cast(pl.Float64)
        columns = [pl.col(name).alias(f"{target.name}.{name}") for name in there]
        rows = stored.select("sample_id", *columns, correct=right).unique("sample_id").collect()
        known = [name for name in rows.columns if name in found.columns and name != "sample_id"]
        found = found.join(rows.drop(known), on="sample_id", how="full", coalesce=True)
    return found


def _family(workspace: Workspace, target: Target) -> str:
    """Return the model type that a model's configuration states."""
    config = json.loads((workspace.model_folder(target) / "config.json").read_text())
    return str(config.get("model_type", "unknown"))


def curves_by_layer(frame: pl.DataFrame, metric: str) -> dict[str, list[Point]]:
    """Return points over relative depth: one line per projection for a single target, else one line per target."""
    targets = frame["target"].unique(maintain_order=True).to_list()
    lines: dict[str, list[Point]] = {}
    for target in targets:
        own = frame.filter(pl.col("target") == target)
        if len(targets) == 1:
            for projection in PROJECTIONS:
                of = own.filter(pl.col("projection") == projection).sort("depth")
                lines[projection] = list(of.select("depth", metric).drop_nulls().iter_rows())
            continue
        name = f"{target} ({own['family'][0]})"
        means = own.group_by("depth").agg(pl.col(metric).mean()).sort("depth")
        lines[name] = list(means.drop_nulls().iter_rows())
    return lines


def matrix(frame: pl.DataFrame, target: str) -> tuple[list[list[float | None]], list[str], list[str]]:
    """Return a target's correlations by quality metric, and by spectrum and control."""
    own = frame.filter(pl.col("target") == target)
    rows = own["metric"].unique(maintain_order=True).to_list()
    columns = [(spectrum, control) for spectrum in METRICS for control in ("none", "largest_rank", "length_bin")]
    cells = {(m, s, c): v for m, s, c, v in own.select("metric", "spectrum", "control", "correlation").iter_rows()}
    names = [f"{'R' if spectrum == METRICS[0] else 'N'}, {LABELS[control]}" for spectrum, control in columns]
    return [[cells[row, spectrum, control] for spectrum, control in columns] for row in rows], rows, names


LABELS = {"none": "as it is", "largest_rank": "/ min(T, d)", "length_bin": "within length"}
