"""Create the scorer of a target: its judge, or its model, loaded according to configuration and checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from curation_assets.config.settings import Target
from curation_assets.signals.perturbation import perturbed_request, perturbed_spec, search_sigma, wants_perturbation
from curation_assets.signals.store import MeasuringError
from curation_assets.signals.warmup import trajectory_weights, warmup_checkpoint
from curation_assets.steps.correctness import solved
from curation_assets.workspace.fingerprints import judge_spec, sigma_of
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.judge import JudgeScorer
from curation_resources.models.scorer import Scorer
from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.images import ImageLimits
from curation_resources.scoring.spec import PassSpec
from curation_resources.training.files import TRAINED_ON
from curation_resources.training.trainer import step_folder

MIB = 2**20


def make_scorer(workspace: Workspace, target: Target) -> Scorer | JudgeScorer:
    """Return the scorer of a target: a judge if it has an endpoint, else its model."""
    if target.endpoint is not None:
        return JudgeScorer(judge_spec(target), solved)
    return model_scorer(workspace, target)


def model_scorer(workspace: Workspace, target: Target, device: str | None = None) -> Scorer:
    """Return the scorer of a target: its base model with its warm-up, if it has one.

    Args:
        workspace: the configuration.
        target: the target to measure with.
        device: the device to run on; defaults to the configured one.

    Raises:
        MeasuringError: the warm-up has not been trained.
    """
    base, kind = workspace.model_folder(target), target.kind
    assert kind != "judge", "a judge has no model to load"
    model, adapter = base, None
    trajectory: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    trained_on: Path | None = None
    if target.warmup != "none":
        checkpoint = warmup_checkpoint(workspace, target)
        if checkpoint is None:
            raise MeasuringError(f"the warm-up of target {target.name} has not been trained. Run `curate run`.")
        model, adapter = checkpoint.weights(workspace, base)
        folder = workspace.warehouse.local(checkpoint.folder)
        trajectory = tuple(step_folder(folder, step) for step in checkpoint.record["checkpoints"])
        as_logged = target.gradients.parity == "as_coded"
        weights = trajectory_weights(checkpoint.record, as_logged) if trajectory else ()
        trained_on = folder / TRAINED_ON
    engine, images = workspace.settings.engine, workspace.settings.corpus.images
    spec = PassSpec(
        model_folder=model,
        adapter=adapter,
        dtype=target.dtype,
        template=target.template,
        max_length=target.max_length,
        trust_remote_code=target.trust_remote_code,
        batch_tokens=engine.batch_tokens,
        head_memory=None if engine.head_memory_mib is None else engine.head_memory_mib * MIB,
        attention=engine.attention,
        compile_model=engine.compile,
        images=ImageLimits(images.max_pixels, images.max_bytes, images.fetch_remote),
        kind=kind,
        process=target.process_reward.spec(),
        trajectory=trajectory,
        trajectory_weights=weights,
        base=base,
        trained_on=trained_on,
    )
    sigma = sigma_of(workspace, target) if wants_perturbation(target) else None
    if sigma is None:
        return Scorer(spec, device or engine.device)
    # theta_0 is the model before its training run, whichever checkpoint the target is measured at.
    start = replace(spec, model_folder=base, adapter=None, trajectory=())
    perturbed = (perturbed_spec(workspace, target, start), perturbed_request(target, sigma))
    return Scorer(spec, device or engine.device, perturbed)


def find_strength(workspace: Workspace, target: Target) -> dict[str, Any]:
    """Search for the strength of a target's random perturbation; see `curation_assets.signals.perturbation`."""
    quieten_transformers()
    from curation_resources.scoring.device_names import devices_of  # noqa: PLC0415
    from curation_resources.scoring.perturbed import make_perturbed_pass  # noqa: PLC0415

    plain = model_scorer(workspace, target.model_copy(update={"warmup": "none", "signals": ["likelihoods"]})).spec
    # One device is enough for a few hundred samples.
    device = devices_of(workspace.settings.engine.device)[0]
    scoring = make_perturbed_pass(perturbed_spec(workspace, target, plain, path=False), device)
    return search_sigma(workspace, target, scoring)
