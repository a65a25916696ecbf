"""Assets of the checkpoints stage, created for every target of the configuration."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from curation_assets.config.checkpoint_settings import Warmup
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import refuse_losses
from curation_assets.defs.asset_metadata import OWNERS, markdown_table
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.steps import SEGMENTED_STEPS_KEY
from curation_assets.signals.perturbation import wants_perturbation
from curation_assets.signals.scorers import find_strength
from curation_assets.signals.warmup import train_warmup
from curation_assets.workspace.fingerprints import base_digest, checkpoint_digest, warmup_key
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import curve
from curation_resources.text import escape_cell


def base_model_key(target: Target) -> dg.AssetKey:
    """Return the key of a target's observed base model."""
    return dg.AssetKey([target.name, "base_model"])


def warmup_key_of(target: Target) -> dg.AssetKey:
    """Return the key of a target's warm-up checkpoint."""
    return dg.AssetKey([target.name, "warmup_checkpoint"])


def perturbation_key_of(target: Target) -> dg.AssetKey:
    """Return the key of the strength of a target's random perturbation."""
    return dg.AssetKey([target.name, "perturbation"])


def measured_checkpoint_key(target: Target) -> dg.AssetKey:
    """Return the key of the checkpoint that a target's signals are measured at."""
    return base_model_key(target) if target.warmup == "none" else warmup_key_of(target)


def checkpoint_assets(target: Target) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """Return the observed base model and, unless switched off, the warm-up and perturbation."""

    @dg.observable_source_asset(
        key=base_model_key(target),
        group_name=target.name,
        description=f"Weights, config and tokenizer of {escape_cell(target.model)}; their hash is the version.",
        tags={"layer": "source", "dagster/kind/huggingface": ""},
    )
    def base_model(workspace: dg.ResourceParam[Workspace]) -> dg.DataVersion:
        return dg.DataVersion(base_digest(workspace, target))

    made: list[dg.AssetsDefinition | dg.SourceAsset] = [base_model]
    if target.warmup != "none":
        made.append(_warmup_asset(target, base_model))
    return [*made, _perturbation_asset(target)] if wants_perturbation(target) else made


def _warmup_asset(target: Target, base_model: dg.SourceAsset) -> dg.AssetsDefinition:
    assert target.warmup != "none"

    @dg.asset(
        key=warmup_key_of(target),
        deps=[base_model, *_trained_on(target.warmup)],
        group_name=target.name,
        description=f"{escape_cell(target.model)}, trained once, by the recipe of {target.warmup.preset}, on "
        + (target.warmup.release or f"{target.warmup.fraction:.0%} of the pool")
        + (f", starting from {target.warmup.start}." if target.warmup.start else "."),
        owners=OWNERS,
        kinds={"pytorch", "huggingface"},
        pool="gpu",
    )
    def warmup_checkpoint(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        refuse_losses(workspace)
        checkpoint = train_warmup(workspace, target)
        record = checkpoint.record
        return dg.MaterializeResult(
            data_version=dg.DataVersion(checkpoint_digest(workspace, target) or ""),
            metadata={
                "folder": dg.MetadataValue.path(workspace.warehouse.storage.shown(checkpoint.folder)),
                "key": warmup_key(workspace, target),
                "samples": record["samples"],
                "steps": record["steps"],
                "tokens": record["tokens"],
                "recipe": dg.MetadataValue.json(record["recipe"]),
                "checkpoints": ", ".join(map(str, record["checkpoints"])) or "(the last one)",
                **_distance(record),
                "loss": dg.MetadataValue.md(curve(record["losses"], "loss", "step", "loss")),
                "gradient_norm": dg.MetadataValue.md(
                    curve(record["gradient_norms"], "norm of the gradient", "step", "norm")
                ),
            },
        )

    return warmup_checkpoint


def _distance(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far training moved the weights, as numbers and plots."""
    found = record["distance"]
    layers = {layer: value for layer, value in found["by_layer"].items() if layer.isdecimal()}
    made: dict[str, Any] = {
        "parameter_distance": found["all"],
        "distance_by_layer": markdown_table(("layer", "||theta_ft - theta_0||"), list(found["by_layer"].items())),
    }
    if len(layers) > 1:
        plot = curve(list(layers.values()), "distance from the base model", "layer, from 1", "L2 norm")
        made["distance_of_layers"] = dg.MetadataValue.md(plot)
    if len(found["on_the_way"]) > 1:
        plot = curve(found["on_the_way"], "distance from the base model", "checkpoint on the way", "L2 norm")
        made["distance_on_the_way"] = dg.MetadataValue.md(plot)
    return made


def _trained_on(warmup: Warmup) -> list[dg.AssetKey]:
    """Return the assets that provide a run's samples and initial weights."""
    start = [] if warmup.start is None else [dg.AssetKey([warmup.start, "warmup_checkpoint"])]
    return [*start, RAW_CORPUS_KEY if warmup.release is None else _release_key(warmup.release)]


def _release_key(release: str) -> dg.AssetKey:
    """Return the key of a subset's releases, given NAME@N."""
    return dg.AssetKey(["releases", release.split("@", maxsplit=1)[0]])


def _perturbation_asset(target: Target) -> dg.AssetsDefinition:
    @dg.asset(
        key=perturbation_key_of(target),
        deps=[base_model_key(target), SEGMENTED_STEPS_KEY],
        group_name=target.name,
        description="Strength of the random perturbation in TEMP's difficulty filter, searched for once on a draw of "
        "the pool: it raises early losses to 2.5 times those of the base model.",
        owners=OWNERS,
        kinds={"pytorch"},
        pool="gpu",
    )
    def perturbation(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        record = find_strength(workspace, target)
        trials = sorted(record["trials"], key=lambda trial: trial["sigma"])
        return dg.MaterializeResult(
            data_version=dg.DataVersion(str(record["sigma"])),
            metadata={
                "sigma": record["sigma"],
                "ratio": record["ratio"],
                "base_nll": record["base_nll"],
                "samples": record["samples"],
                "trials": markdown_table(
                    ("sigma", "mean early loss", "over the base model's"),
                    [(trial["sigma"], trial["mean_nll"], trial["ratio"]) for trial in trials],
                ),
            },
        )

    return perturbation
