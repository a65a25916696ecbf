"""Supervised fine-tuning on transformers and peft: warm-ups, endpoints, reference runs, evaluation.

The parts are in `training`. Slow imports happen inside functions: a base install works without the training stack.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.samples import Encoded, Sample
from curation_resources.scoring.spec import Template
from curation_resources.storage.digests import digest
from curation_resources.training.examples import (
    LossWeights,
    TrainingError,
    encode_for_training,
    make_examples,
    order_of_epoch,
    steps_in_epoch,
)
from curation_resources.training.files import TRAINER_VERSION
from curation_resources.training.recipe import Recipe

if TYPE_CHECKING:
    from curation_resources.training.loop import Loop

__all__ = [
    "LossWeights",
    "Recipe",
    "TrainingError",
    "TrainingRecord",
    "TrainingSpec",
    "Trajectory",
    "step_folder",
    "train",
]

STATE = "state.safetensors"
STEPS = "steps"


@dataclass(frozen=True)
class TrainingSpec:
    """The model and how to run it; of these settings only model, template, lengths and dtype change the result.

    Attributes:
        model_folder: the model to start from.
        template: see `curation_resources.scoring.encoding.Encoder`.
        max_length: longest sequence in tokens; None: the model's context.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: dtype of the base weights under an adapter, and of a saved whole model. In half precision the model runs
            under bfloat16 autocast, and the trained weights are fp32.
        trust_remote_code: run Python code that the folder ships.
        piece_tokens: token budget of one forward and backward pass.
        gradient_checkpointing: recompute activations: less memory, a third more time.
        keep_seconds: interval between saved states that a killed run resumes from.
    """

    model_folder: Path
    template: Template = "auto"
    max_length: int | None = None
    device: str = "auto"
    dtype: str = "float32"
    trust_remote_code: bool = False
    piece_tokens: int = 4096
    gradient_checkpointing: bool = False
    keep_seconds: float = 60.0


@dataclass(frozen=True)
class Trajectory:
    """The intermediate checkpoints that a run saves.

    Attributes:
        every: interval in steps, or each epoch (and after the last step); 0: none.
        at: additional steps to save after.
        optimizer: save AdamW's moments with each checkpoint.
    """

    every: int | Literal["epoch"] = 0
    at: tuple[int, ...] = ()
    optimizer: bool = False

    def over(self, samples: int, recipe: Recipe) -> Trajectory:
        """Return the same trajectory with epochs converted to steps."""
        if self.every != "epoch":
            return self
        return replace(self, every=steps_in_epoch(samples, recipe.batch_size))

    def wants(self, step: int, last: int) -> bool:
        """Return True if a checkpoint is saved after this step of a run with `last` steps."""
        assert self.every != "epoch", "epochs must be converted to steps first"
        return step in self.at or (self.every > 0 and (step % self.every == 0 or step == last))

    def steps(self, last: int) -> list[int]:
        """Return the steps after which a run with `last` steps saves a checkpoint."""
        return [step for step in range(1, last + 1) if self.wants(step, last)]


@dataclass(frozen=True)
class TrainingRecord:
    """The results of a run.

    Attributes:
        steps: optimizer steps.
        tokens: tokens run through the model, prompts included.
        losses: mean loss of every step, in nats.
        gradient_norms: gradient norm of every step, before clipping.
        learning_rates: learning rate of every step.
        sample_ids: ids of the training samples.
        checkpoints: steps with an intermediate checkpoint.
        influence: influence of each of `sample_ids` on each validation set, if requested.
        seconds: time of all steps; those of a process that was killed count at the speed of this one.
    """

    steps: int
    tokens: int
    losses: list[float]
    gradient_norms: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    sample_ids: list[str] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    influence: list[list[float]] | None = None
    seconds: float = field(default=0.0, compare=False)


def step_folder(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after a step, below a run's folder; names sort by step."""
    return folder / STEPS / f"{step:07d}"


def train(
    spec: TrainingSpec,
    samples: Sequence[Sample],
    out: Path,
    recipe: Recipe,
    *,
    weights: LossWeights | None = None,
    trajectory: Trajectory | None = None,
    validation: Mapping[str, Sequence[Sample]] | None = None,
    work: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TrainingRecord:
    """Fine-tune on the responses (prompts carry no loss) and write the checkpoint, safetensors only, to `out`.

    The loss of a batch is the mean over its response tokens, EOS among them, of weight times -log p.

    Args:
        spec: the model and how to run it.
        samples: training samples; see `encode_for_training`.
        out: folder for the adapter or the model, and `steps/N/` of a trajectory.
        recipe: hyper-parameters.
        weights: loss weights of tokens and steps.
        trajectory: intermediate checkpoints to save.
        validation: sets on which the influence of every sample is accumulated
            (`curation_resources.training.influence`).
        work: folder that a killed run resumes from if it is called again with the same arguments; no other run may use
            it
            at the same time. It is kept, even if a run diverges; the caller removes it once the checkpoint is safe.
            None:
            a killed run starts again from the beginning.
        progress: called with the number of optimizer steps since the last call.

    Raises:
        TrainingError: the `train` extra is not installed, the device does not exist, no sample is usable, or the loss
            is
            not finite.
    """
    peft = _training_stack(recipe)
    quieten_transformers()
    _check_device(spec.device)
    loop, encoded = _prepare(spec, samples, recipe, weights, validation or {}, peft)
    wanted = (trajectory or Trajectory()).over(len(encoded), recipe)
    identity = digest("training", TRAINER_VERSION, _facts(spec, recipe, wanted), *_examples_digests(loop))
    place = work if work is not None else out / ".work"

    def whole(done: int) -> bool:
        return all(step_folder(place, step).is_dir() for step in wanted.steps(loop.total) if step <= done)

    if loop.go_on(place / STATE, identity, whole):
        (progress or _ignore_progress)(loop.done)
    elif place.exists():
        shutil.rmtree(place)
    started, before = time.monotonic(), loop.done
    try:
        checkpoints = _run(loop, spec, wanted, place, identity, progress or _ignore_progress)
        took = time.monotonic() - started
        _save(loop, spec, out)
    except TrainingError as error:
        if work is None or not (place / STATE).exists():
            raise
        raise TrainingError(f"{error} The last saved state is in {place}.") from error
    for step in checkpoints:
        shutil.copytree(step_folder(place, step), step_folder(out, step), copy_function=_link)
    if work is None:
        shutil.rmtree(place, ignore_errors=True)
    facts = loop.facts
    return TrainingRecord(
        steps=loop.done,
        tokens=_tokens_run(loop),
        losses=[fact.loss for fact in facts],
        gradient_norms=[fact.gradient_norm for fact in facts],
        learning_rates=[fact.learning_rate for fact in facts],
        sample_ids=[item.sample.sample_id for item in encoded],
        checkpoints=checkpoints,
        influence=None if loop.influence is None else loop.influence.values.tolist(),
        seconds=took * loop.done / max(1, loop.done - before),
    )


def _link(source: str, target: str) -> str:
    """Hard-link a file, or copy it if the file system has no hard links; neither file is changed later."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _check_device(device: str) -> None:
    """Check that a device exists before a model is loaded for it."""
    from curation_resources.scoring.device_names import devices_of  # noqa: PLC0415
    from curation_resources.scoring.errors import ScoringError  # noqa: PLC0415

    try:
        devices_of(device)
    except ScoringError as error:
        raise TrainingError(f"{error}. Correct engine.device.") from error


def _ignore_progress(_steps: int) -> None:
    """Ignore progress."""


def _training_stack(recipe: Recipe) -> Any:
    """Return peft if the recipe trains an adapter, else None."""
    if recipe.adapter == "full":
        return None
    try:
        import peft
    except ImportError as error:
        raise TrainingError(
            "training an adapter needs the extra `train` (pip install 'curation-assets[train]'). Install it, set "
            "warmup: none for the target, or train whole models (adapter: full)."
        ) from error
    return peft


def _prepare(
    spec: TrainingSpec,
    samples: Sequence[Sample],
    recipe: Recipe,
    weights: LossWeights | None,
    validation: Mapping[str, Sequence[Sample]],
    peft: Any,
) -> tuple[Loop, list[Encoded]]:
    """Load the model with its trainable weights onto its device, and tokenize the samples."""
    import torch

    from curation_resources.scoring.complete_weights import load_config  # noqa: PLC0415
    from curation_resources.scoring.encoding import Encoder  # noqa: PLC0415
    from curation_resources.scoring.loading import encoding_parts, load_model, pick_device  # noqa: PLC0415
    from curation_resources.training.influence import Watched  # noqa: PLC0415
    from curation_resources.training.loop import Loop  # noqa: PLC0415

    torch.manual_seed(recipe.seed)
    config = load_config(spec.model_folder, spec.trust_remote_code)
    half = spec.dtype != "float32"
    # Whole models are trained in fp32 whatever their saved dtype: bfloat16 rounds small updates away.
    dtype = spec.dtype if recipe.adapter == "lora" else "float32"
    model = load_model(spec.model_folder, config, dtype, spec.trust_remote_code)
    parts = encoding_parts(spec.model_folder, model, spec.max_length, spec.trust_remote_code)
    encoder = Encoder(template=spec.template, **parts)
    encoded = encode_for_training(encoder, samples)
    held_out = [make_examples(encode_for_training(encoder, own), None) for own in validation.values()]
    if not encoded:
        raise TrainingError(
            "no sample has a response within the maximum length. Raise max_length, or check the selected samples."
        )
    if recipe.adapter == "lora":
        model = peft.get_peft_model(model, _lora(recipe, peft))
    if spec.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    device = pick_device(spec.device)
    model = model.to(device).train()
    watched = Watched(list(validation), held_out) if validation else None
    return Loop(model, make_examples(encoded, weights), recipe, device, half, spec.piece_tokens, watched), encoded


def _lora(recipe: Recipe, peft: Any) -> Any:
    return peft.LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(recipe.lora_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def _run(
    loop: Loop,
    spec: TrainingSpec,
    trajectory: Trajectory,
    place: Path,
    identity: str,
    progress: Callable[[int], None],
) -> list[int]:
    """Run the remaining steps; return the steps with a checkpoint."""
    kept = time.monotonic()
    while loop.done < loop.total:
        loop.step()
        if trajectory.wants(loop.done, loop.total):
            _save_step(loop, spec, place, optimizer=trajectory.optimizer)
        if time.monotonic() - kept >= spec.keep_seconds and loop.done < loop.total:
            loop.keep(place / STATE, identity)
            kept = time.monotonic()
        progress(1)
    return trajectory.steps(loop.total)


def _save_step(loop: Loop, spec: TrainingSpec, place: Path, *, optimizer: bool) -> None:
    from curation_resources.scoring.loading import DTYPES  # noqa: PLC0415
    from curation_resources.training.saving import save_checkpoint  # noqa: PLC0415

    folder = step_folder(place, loop.done)
    # Replace the incomplete folder of a run that was killed while writing it.
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(loop, folder, spec.model_folder, DTYPES[spec.dtype], optimizer=optimizer)


def _save(loop: Loop, spec: TrainingSpec, out: Path) -> None:
    from curation_resources.scoring.loading import DTYPES  # noqa: PLC0415
    from curation_resources.training.saving import save_checkpoint  # noqa: PLC0415

    save_checkpoint(loop, out, spec.model_folder, DTYPES[spec.dtype])


def _facts(spec: TrainingSpec, recipe: Recipe, trajectory: Trajectory) -> list[object]:
    """Return the settings that a saved state must match to be resumed."""
    return [str(spec.model_folder), spec.template, spec.max_length, spec.dtype, recipe.facts(), vars(trajectory)]


def _examples_digests(loop: Loop) -> list[str]:
    sets = [loop.examples, *(loop.influence.watched.sets if loop.influence is not None else ())]
    return [
        digest("examples", [[e.encoded.sample.sample_id, e.encoded.input_ids, e.weights] for e in own]) for own in sets
    ]


def _tokens_run(loop: Loop) -> int:
    """Return the number of tokens in the samples of all finished steps."""
    size, count = loop.recipe.batch_size, len(loop.lengths)
    whole, left = divmod(loop.done, steps_in_epoch(count, size))
    tokens = whole * sum(loop.lengths)
    if left:
        tokens += sum(
            loop.lengths[position] for position in order_of_epoch(loop.lengths, loop.recipe, whole)[: left * size]
        )
    return tokens
