"""TEMP's perturbed checkpoints: their inputs, and the search for the strength of the random one, done once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import corpus_rows, present_shards
from curation_assets.corpus.samples import samples_of
from curation_assets.signals.warmup import CheckpointError, draw_samples, pool_of, warmup_checkpoint
from curation_assets.workspace.fingerprints import endpoint_folder, sigma_of, sigma_path
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.samples import PerturbedRequest
from curation_resources.scoring.spec import PassSpec, PerturbedSpec

if TYPE_CHECKING:
    from curation_resources.scoring.perturbed import PerturbedPass


def wants_perturbation(target: Target) -> bool:
    """Return whether any of a target's signals is measured at perturbed checkpoints."""
    return "perturbed_losses" in target.signals


def sigma_due(workspace: Workspace, target: Target) -> bool:
    """Return whether the strength of the random perturbation is still unknown and there are samples to search it on."""
    wanted = wants_perturbation(target) and sigma_of(workspace, target) is None
    return wanted and not pool_of(workspace).is_empty()


def perturbed_spec(workspace: Workspace, target: Target, base: PassSpec, *, path: bool = True) -> PerturbedSpec:
    """Return the inputs of a target's perturbed checkpoints; without `path`, of the random one only.

    Raises:
        CheckpointError: the endpoint is the target's own checkpoint, which has not been trained.
        ModelError: the configured endpoint is missing.
    """
    wanted = target.perturbation
    endpoint = _endpoint(workspace, target) if path and wanted.directional else None
    return PerturbedSpec(base, endpoint, wanted.seed, wanted.radii(), wanted.radius_unit)


def _endpoint(workspace: Workspace, target: Target) -> Path:
    if target.perturbation.endpoint is not None:
        return endpoint_folder(workspace, target)
    checkpoint = warmup_checkpoint(workspace, target)
    if checkpoint is None:
        raise CheckpointError(f"the checkpoint of target {target.name} has not been trained. Run `curate run`.")
    return workspace.warehouse.local(checkpoint.folder)


def perturbed_request(target: Target, sigma: float | None) -> PerturbedRequest:
    """Return the request for early losses at a target's perturbed checkpoints."""
    wanted = target.perturbation
    return PerturbedRequest(
        sigma=sigma,
        directional=wanted.directional,
        reasoning_only=wanted.reasoning_only,
        skip_template_tokens=wanted.skip_template_tokens,
    )


def search_sigma(workspace: Workspace, target: Target, scoring: PerturbedPass) -> dict[str, Any]:
    """Search the strength of the random perturbation on a seeded draw of the pool, store it, and return the record.

    It is then frozen: the first result stored wins.

    Raises:
        CheckpointError: the pool is empty.
        ScoringError: no strength meets the criterion.
    """
    from curation_resources.scoring.sigma import find_sigma  # noqa: PLC0415

    wanted, ids = target.perturbation, pool_of(workspace)["sample_id"]
    if ids.is_empty():
        raise CheckpointError(
            f"target {target.name}: the strength of its random perturbation is searched for on the pool, which is "
            "empty. Read and filter the corpus first (`curate run`), or set perturbation.sigma."
        )
    drawn = draw_samples(ids, min(1.0, wanted.probe_samples / len(ids)), wanted.seed)
    samples = samples_of(workspace, corpus_rows(workspace, drawn), _steps_of(workspace, drawn))
    request = perturbed_request(target, None)
    found = find_sigma(scoring, samples, request.windows(request.filter_windows))
    document = json.dumps({**asdict(found), "drawn": len(drawn)}, indent=1)
    workspace.warehouse.compare_and_swap(sigma_path(workspace, target), None, document)
    kept = workspace.warehouse.read_json(sigma_path(workspace, target))
    assert kept is not None
    return dict(kept)


def _steps_of(workspace: Workspace, sample_ids: list[str]) -> pl.DataFrame:
    """Return the segments of samples, without duplicates."""
    scan = workspace.warehouse.scan(tables.segmented_steps_dir(), present_shards(workspace))
    frame = tables.SEGMENTED_STEPS.empty().lazy() if scan is None else scan
    wanted = pl.LazyFrame({"sample_id": sample_ids}, schema={"sample_id": pl.String})
    return frame.join(wanted, on="sample_id", how="semi").unique(["sample_id", "step_index"]).collect()
