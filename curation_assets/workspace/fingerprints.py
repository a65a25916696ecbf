"""Fingerprints: one hash per measurement and table over everything that its content depends on.

A changed fingerprint means that the result is computed again. Device, batch size, attention implementation and
library versions are not hashed; the device is recorded with each shard's results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.methods.method import ScoreSection
from curation_assets.tables.signals import (
    FEATURE_SIGNALS,
    PROXY_SIGNALS,
    SEGMENTED_SIGNALS,
    SIGNALS,
    Checkpoint,
    SignalName,
)
from curation_assets.workspace.held_out_files import wanted_validation
from curation_assets.workspace.versions import (
    CORPUS_VERSION,
    SCORES_VERSION,
    SEGMENTATION_VERSION,
    SIGMA_VERSION,
    SIGNAL_VERSIONS,
)
from curation_assets.workspace.workspace import Workspace, cache_folder
from curation_resources.models.judge import JudgeSpec, spec_facts
from curation_resources.models.model_files import (
    ModelError,
    adapter_digest,
    modules_digest,
    opens_thought,
    processor_digest,
    tokenizer_digest,
    weights_digest,
)
from curation_resources.models.solving import solving_facts
from curation_resources.scoring.samples import Question
from curation_resources.storage.digests import digest
from curation_resources.training.files import RECORD, TRAINER_VERSION

WARMUP_ROLE = "warmup"
BASE_ROLE = "base"
PERTURBED_ROLE = "perturbed"


def corpus_fingerprint(workspace: Workspace, content_digest: str, purged: Sequence[str] = ()) -> str:
    """Return the fingerprint of one shard's `raw_corpus`: file content, reading settings and purged samples.

    Args:
        workspace: the configuration.
        content_digest: digest of the file's bytes.
        purged: samples purged from this shard (`workspace.purge_list.PurgedList.ids_of`).
    """
    corpus = workspace.settings.corpus
    texts = [corpus.reasoning, corpus.tool_call, dict(sorted(corpus.roles.items()))]
    reading = [corpus.format, corpus.columns.model_dump(mode="json"), *texts, corpus.max_row_bytes]
    whole = digest("raw_corpus", CORPUS_VERSION, content_digest, reading)
    return digest("purged", whole, list(purged)) if purged else whole


def input_fingerprint(facts: Mapping[str, str]) -> str:
    """Return the fingerprint of one shard's stored `raw_corpus` or `segmented_steps`, from its footer's metadata.

    The same file yields other samples if the image files that its rows name have changed when it is read again.
    """
    images = facts.get("images")
    return digest("input", facts["fingerprint"], images) if images else facts["fingerprint"]


def segmentation_key(workspace: Workspace, version: int = SEGMENTATION_VERSION) -> str:
    """Return the key of the segmentation: its settings, and the version of its rules."""
    settings = workspace.settings.corpus.segmentation.model_dump(mode="json")
    return digest("segmentation", version, settings)


def steps_fingerprint(workspace: Workspace, corpus_fp: str) -> str:
    """Return the fingerprint of one shard's `segmented_steps`."""
    return digest("segmented_steps", corpus_fp, segmentation_key(workspace))


def base_digest(workspace: Workspace, target: Target, download: bool = False) -> str:
    """Return the digest of a target's base model and its code, or of a judge's settings."""
    if target.endpoint is not None:
        return digest("judge", spec_facts(judge_spec(target)))
    weights = weights_digest(workspace.model_folder(target, download), workspace.cache)
    # Code shipped with the model may differ from the library's code of the same name.
    return digest(weights, "remote code") if target.trust_remote_code else weights


def judge_spec(target: Target) -> JudgeSpec:
    """Return the judge settings of a target with an endpoint."""
    endpoint = target.endpoint
    assert endpoint is not None
    return JudgeSpec(
        url=endpoint.url,
        model=target.model,
        revision=target.revision,
        cache=cache_folder() / "judge",
        key_variable=endpoint.key_variable,
        tags_prompt=endpoint.tags_prompt,
        difficulty_prompt=endpoint.difficulty_prompt,
        complexity_prompt=endpoint.complexity_prompt,
        quality_prompt=endpoint.quality_prompt,
        temperature=endpoint.temperature,
        max_tokens=endpoint.max_tokens,
        workers=endpoint.workers,
        timeout=endpoint.timeout_seconds,
        attempts=endpoint.attempts,
        solving=target.solving.spec(),
    )


def recipe_key(workspace: Workspace, target: Target) -> str:
    """Return the key of a target's training run: base model and recipe, but not the samples, which are frozen with
    it."""
    if target.warmup == "none":
        return "none"
    run = target.warmup
    # Releases are immutable, so the name identifies the content.
    trained_on = str(run.fraction) if run.release is None else run.release
    start = None if run.start is None else warmup_key(workspace, workspace.settings.target(run.start))
    recipe = [run.recipe().facts(), trained_on, run.save_every, start, *([run.generation] if run.generation else [])]
    if run.influence:
        held_out = [workspace.settings.validation_set(name) for name in run.influence]
        recipe.append(digest([wanted_validation(workspace, one) for one in held_out]))
    if wants_moments(target):
        # Added only on request, so that the keys of runs trained before this option existed stay valid.
        recipe.append("moments")
    encoding = [target.template, target.max_length, target.dtype]
    folder = workspace.model_folder(target)
    parts: list[object] = [tokenizer_digest(folder, workspace.cache), recipe, encoding]
    if target.template in ("auto", "chat") and opens_thought(folder, workspace.cache):
        parts.append("thought opened once")
    processor = processor_digest(folder, workspace.cache)
    if processor is not None:
        # It may include a chat template, and determines whether the tokenizer adds BOS.
        parts.append(processor)
    return digest("warmup", TRAINER_VERSION, base_digest(workspace, target), *parts)


def wants_moments(target: Target) -> bool:
    """Return whether AdamW's moments are saved with the checkpoints of a target's run."""
    return "adam_feature_trajectories" in target.signals


def gradient_weights(target: Target) -> str:
    """Return the weights that a target's gradients are taken for: `adapter` or `layers`."""
    if target.gradients.weights != "auto":
        return target.gradients.weights
    return "adapter" if target.warmup != "none" and target.warmup.recipe().adapter == "lora" else "layers"


def warmup_key(workspace: Workspace, target: Target) -> str:
    """Return the key of the checkpoint that a target is measured at.

    If the recipe was trained again as the pool grew (`warmup.retrain_growth`), this is the checkpoint of the largest
    pool.
    """
    key = recipe_key(workspace, target)
    if target.warmup == "none" or target.warmup.retrain_growth is None:
        return key
    folder = tables.checkpoint_dir(target.name, WARMUP_ROLE, key).rpartition("/")[0]
    found = {
        name: workspace.warehouse.read_json(f"{folder}/{name}/{RECORD}")
        for name in workspace.warehouse.made_folders(folder, RECORD)
    }
    pools = {name: record["pool"] for name, record in found.items() if record.get("recipe_key") == key}
    return max(pools, key=lambda name: (pools[name], name), default=key)


def grown_key(key: str, pool: int) -> str:
    """Return the key of a recipe's checkpoint that is trained again because the pool has grown to this size."""
    return digest("grown", key, pool)


def checkpoint_digest(workspace: Workspace, target: Target) -> str | None:
    """Return the digest of the weights that a target measures at; None until its warm-up is trained."""
    base = base_digest(workspace, target)
    if target.warmup == "none":
        return base
    record = _training_record(workspace, target)
    return None if record is None else _digest_of(base, record, record["weights"])


def influence_digest(workspace: Workspace, target: Target) -> str | None:
    """Return the digest of the influences recorded by a target's run; None until it is trained."""
    record = _training_record(workspace, target)
    return None if record is None else digest("influence", record["influence"])


def trajectory_digest(workspace: Workspace, target: Target) -> str | None:
    """Return the digest of all intermediate checkpoints of a target's training run; None until it is trained."""
    record = _training_record(workspace, target)
    if record is None:
        return None
    base = base_digest(workspace, target)
    steps = [_digest_of(base, record, weights) for weights in record["weights_on_the_way"]]
    return digest("trajectory", record["checkpoints"], steps)


def _training_record(workspace: Workspace, target: Target) -> dict[str, Any] | None:
    """Return the record of a target's training run; it includes weight digests, so no weights need to be fetched."""
    folder = tables.checkpoint_dir(target.name, WARMUP_ROLE, warmup_key(workspace, target))
    record: dict[str, Any] | None = workspace.warehouse.read_json(f"{folder}/{RECORD}")
    return record


def _digest_of(base: str, record: Mapping[str, Any], weights: str) -> str:
    """Return the digest of trained weights: a full model's, or an adapter's combined with its base."""
    return weights if record["recipe"]["adapter"] == "full" else digest("merged", base, weights)


def trained_weights(workspace: Workspace, folder: Path, adapter: str) -> str:
    """Return the digest of the files of a newly trained checkpoint."""
    return (weights_digest if adapter == "full" else adapter_digest)(folder, workspace.cache)


def sigma_folder(workspace: Workspace, target: Target) -> str:
    """Return the folder for the strength of a target's random perturbation, keyed by everything its search depends
    on."""
    folder, wanted = workspace.model_folder(target), target.perturbation
    search = [wanted.probe_samples, wanted.reasoning_only, wanted.skip_template_tokens, wanted.seed]
    encoding = [tokenizer_digest(folder, workspace.cache), target.template, target.max_length, target.dtype]
    processor = processor_digest(folder, workspace.cache)
    versions = [SIGMA_VERSION, SIGNAL_VERSIONS["perturbed_losses"]]
    # A strength that was found stays valid when answers are found better: it is not searched for again.
    parts = [versions, encoding, processor, segmentation_key(workspace, 1), search]
    key = digest("sigma", base_digest(workspace, target), parts)
    return tables.checkpoint_dir(target.name, PERTURBED_ROLE, key)


def sigma_path(workspace: Workspace, target: Target) -> str:
    """Return the path of the document with the strength and all values that the search tried."""
    return f"{sigma_folder(workspace, target)}/{RECORD}"


def sigma_of(workspace: Workspace, target: Target) -> float | None:
    """Return the strength of a target's random perturbation, configured or found; None if it is not known yet."""
    if target.perturbation.sigma is not None:
        return target.perturbation.sigma
    record = workspace.warehouse.read_json(sigma_path(workspace, target))
    return None if record is None else float(record["sigma"])


def endpoint_folder(workspace: Workspace, target: Target) -> Path:
    """Return the folder that the configuration names as the endpoint.

    Raises:
        ModelError: the folder does not exist.
    """
    folder = (workspace.folder / Path(str(target.perturbation.endpoint)).expanduser()).resolve()
    if not folder.is_dir():
        raise ModelError(f"perturbation.endpoint of target {target.name}: folder {folder} not found")
    return folder


def perturbed_digest(workspace: Workspace, target: Target) -> str | None:
    """Return the digest of all perturbed checkpoints of a target; None while endpoint or strength is missing."""
    wanted, sigma = target.perturbation, sigma_of(workspace, target)
    endpoint: str | None = "none"
    if wanted.directional and wanted.endpoint is not None:
        folder = endpoint_folder(workspace, target)
        adapter = (folder / "adapter_config.json").is_file()
        endpoint = (adapter_digest if adapter else weights_digest)(folder, workspace.cache)
    elif wanted.directional:
        endpoint = checkpoint_digest(workspace, target)
    if sigma is None or endpoint is None:
        return None
    path = [endpoint, wanted.radii(), wanted.radius_unit] if wanted.directional else []
    windows = [wanted.reasoning_only, wanted.skip_template_tokens]
    return digest("perturbed", base_digest(workspace, target), sigma, wanted.seed, path, windows)


AT: dict[Checkpoint, Callable[[Workspace, Target], str | None]] = {
    "target": checkpoint_digest,
    "base": base_digest,
    "trajectory": trajectory_digest,
    "run": influence_digest,
    "perturbed": perturbed_digest,
}
"""Digest of the weights that a signal is measured at, by its declared checkpoint."""


def signal_fingerprint(
    workspace: Workspace, target: Target, signal: SignalName, segmentation: int = SEGMENTATION_VERSION
) -> str | None:
    """Return the fingerprint of one signal of a target; None until its warm-up is trained.

    `segmentation` is the version that cut the steps; an earlier one gives the fingerprint of earlier measurements.
    """
    weights = AT[SIGNALS[signal].checkpoint](workspace, target)
    if weights is None:
        return None
    if target.endpoint is not None:
        if signal == "solve_rate":
            # The version of the segmentation stands for the rules by which an answer is found in a text.
            facts = [target.model, target.revision, solving_facts(target.solving.spec()), SEGMENTATION_VERSION]
            return digest(signal, SIGNAL_VERSIONS[signal], "answers", *facts)
        question = cast("Question", signal)
        return digest(signal, SIGNAL_VERSIONS[signal], "judge", spec_facts(judge_spec(target), question))
    folder = workspace.model_folder(target)
    parts: list[object] = [weights, tokenizer_digest(folder, workspace.cache)]
    # Reward models use their own chat template.
    rewarded = signal in ("rewards", "process_rewards")
    template = [target.template] if not rewarded else []
    parts.append([*template, target.max_length, target.dtype])
    processor = processor_digest(folder, workspace.cache)
    if processor is not None:
        parts.append(processor)
    if signal in SEGMENTED_SIGNALS:
        parts.append(segmentation_key(workspace, segmentation))
    if not rewarded and target.template in ("auto", "chat") and opens_thought(folder, workspace.cache):
        parts.append("thought opened once")
    if signal in PROXY_SIGNALS:
        parts.append(target.proxy)
    gradients = gradient_facts(target, signal)
    if gradients is not None:
        parts.append(gradients)
    if signal == "process_rewards":
        parts.append(target.process_reward.model_dump(mode="json"))
    if signal == "attention_influence":
        # Together with the weights and the tokenizer, these determine the masked heads.
        parts.append(target.attention_influence.model_dump(mode="json"))
    if signal == "text_embeddings":
        parts.append(modules_digest(folder, workspace.cache))
    return digest(signal, SIGNAL_VERSIONS[signal], *parts)


def gradient_facts(target: Target, signal: SignalName) -> object:
    """Return the settings in a target's section `gradients` that a signal depends on; None if it depends on none."""
    projected = signal in PROXY_SIGNALS and target.proxy == "projected"
    if signal in FEATURE_SIGNALS or projected:
        # Adam's epsilon, and the weights of checkpoints.
        as_coded = SIGNALS[signal].checkpoint == "trajectory" and target.gradients.parity == "as_coded"
        sketch = target.gradients
        along = not projected and as_coded
        return [gradient_weights(target), sketch.projection, sketch.dimension, sketch.seed, along]
    if signal == "gradient_spectra" and target.gradients.parity == "as_coded":
        return "flattened cosines"
    return gradient_weights(target) if signal == "gradient_norms" else None


def image_limits_key(workspace: Workspace, target: Target) -> str:
    """Return the key of the limits that decide which of a target's samples with images are measured.

    A measurement's value does not depend on them, only its existence. A text model ignores images. For a judge,
    raising its endpoint's `ask_again` repeats the questions that it did not answer.
    """
    if target.endpoint is not None:
        return digest("asked", target.endpoint.ask_again) if target.endpoint.ask_again else "text"
    if processor_digest(workspace.model_folder(target), workspace.cache) is None:
        return "text"
    return digest("image_limits", workspace.settings.corpus.images.model_dump(mode="json"))


def score_parameters(score: ScoreSection) -> dict[str, object]:
    """Return the parameters that affect a score's values (eligibility is left to the selector)."""
    return score.model_dump(mode="json", exclude={"target", "min_steps", "preset"})


def scores_key(workspace: Workspace, target: Target) -> str:
    """Return the key of the parameters of all of a target's scores."""
    parameters = [score_parameters(score) for score in workspace.settings.scores_of(target.name)]
    return digest("scores", SCORES_VERSION, parameters)


def scored_signals_fingerprint(workspace: Workspace, target: Target) -> str | None:
    """Return the fingerprint of the signals behind a target's scores; None until its warm-up is trained."""
    signals = workspace.settings.signals_of_scores(target)
    found = {signal: signal_fingerprint(workspace, target, signal) for signal in signals}
    return None if None in found.values() else digest("scored_signals", found)


def shard_scores_fingerprint(
    workspace: Workspace,
    target: Target,
    signals_fp: str,
    steps_fp: str,
    left_out: Sequence[str],
    validation: Mapping[str, str | None],
) -> str:
    """Return the fingerprint of one shard's `step_scores` and `sample_scores`.

    Args:
        workspace: the configuration.
        target: the target of the scores.
        signals_fp: fingerprint of the signals behind the scores (`scored_signals_fingerprint`).
        steps_fp: fingerprint of the shard's `segmented_steps` (`input_fingerprint`).
        left_out: per signal, a digest of the shard's samples that could not be measured
            (`signals.store.SignalStore.left_out`), which may be tried again under the same fingerprint.
        validation: fingerprints of the validation sets that the scores use (`signals.held_out.validation_key`).
    """
    limits = image_limits_key(workspace, target)
    parts: list[object] = [signals_fp, steps_fp, limits, scores_key(workspace, target), list(left_out)]
    return digest("shard_scores", *parts, dict(validation))
