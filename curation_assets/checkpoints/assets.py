"""Assets of the checkpoints stage, made for every target of the configuration."""

from typing import Any

import dagster as dg

from curation_assets.asset_metadata import OWNERS
from curation_assets.checkpoints.warmup import train_warmup
from curation_assets.corpus.assets import RAW_CORPUS_KEY
from curation_assets.fingerprints import base_digest, checkpoint_digest, warmup_key
from curation_assets.reports.plots import curve
from curation_assets.settings import Target
from curation_assets.workspace import Workspace


def base_model_key(target: Target) -> dg.AssetKey:
    """The observed base model of a target."""
    return dg.AssetKey([target.name, "base_model"])


def warmup_key_of(target: Target) -> dg.AssetKey:
    """The warm-up checkpoint of a target."""
    return dg.AssetKey([target.name, "warmup_checkpoint"])


def measured_checkpoint_key(target: Target) -> dg.AssetKey:
    """The checkpoint that a target's signals are measured at."""
    return base_model_key(target) if target.warmup == "none" else warmup_key_of(target)


def checkpoint_assets(target: Target) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """The observed base model and, unless switched off, the warm-up."""

    @dg.observable_source_asset(
        key=base_model_key(target),
        group_name=target.name,
        description=f"Weights, config and tokenizer of {target.model}; their hash is the version.",
        tags={"layer": "source"},
    )
    def base_model(workspace: dg.ResourceParam[Workspace]) -> dg.DataVersion:
        return dg.DataVersion(base_digest(workspace, target))

    if target.warmup == "none":
        return [base_model]

    @dg.asset(
        key=warmup_key_of(target),
        deps=[base_model, RAW_CORPUS_KEY],
        group_name=target.name,
        description=f"{target.model}, trained on {target.warmup.fraction:.0%} of the pool, once, by the recipe of "
        f"{target.warmup.preset}.",
        owners=OWNERS,
        kinds={"pytorch", "huggingface"},
        pool="gpu",
    )
    def warmup_checkpoint(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
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
                "loss": dg.MetadataValue.md(curve(record["losses"], "loss", "step", "loss")),
                "gradient_norm": dg.MetadataValue.md(
                    curve(record["gradient_norms"], "norm of the gradient", "step", "norm")
                ),
            },
        )

    return [base_model, warmup_checkpoint]
