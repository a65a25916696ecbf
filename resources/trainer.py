"""Supervised fine-tuning on transformers + peft: for now the LoRA runs that make warm-up checkpoints.

The training stack is imported inside the functions: a base install works without it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.errors import UserError
from resources.quiet import quieten_transformers
from resources.scoring.samples import UNRUNNABLE, Encoded, Sample

if TYPE_CHECKING:
    from resources.scoring.encoding import Encoder

TRAINER_VERSION = 1
IGNORED_LABEL = -100


class TrainingError(UserError):
    """A training run cannot start, or diverged."""


@dataclass(frozen=True)
class LoraRecipe:
    """A LoRA fine-tuning recipe; all linear layers except the LM head are adapted.

    The defaults of GRACE's warm-up are those of the paper's SFT (arXiv 2605.13130; methods.md, 1).
    """

    rank: int = 8
    alpha: int = 32
    learning_rate: float = 1e-4
    epochs: int = 1
    warmup_ratio: float = 0.05
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class TrainingRecord:
    """What a run did: optimizer steps, tokens trained on, the loss at every step, and the samples trained on."""

    steps: int
    tokens: int
    losses: list[float]
    sample_ids: list[str]


def train_lora(
    model_folder: Path,
    samples: Sequence[Sample],
    out: Path,
    recipe: LoraRecipe,
    *,
    template: Any = "auto",
    max_length: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TrainingRecord:
    """Fine-tune on the responses (prompts carry no loss) and write the adapter, safetensors only, to `out`.

    Args:
        model_folder: the base model.
        samples: what to train on; see `encode_for_training`.
        out: folder for adapter_config.json and adapter_model.safetensors.
        recipe: hyper-parameters.
        template: see `resources.scoring.encoding.Encoder`.
        max_length: longest sequence in tokens; default is the model's context.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: of the base weights.
        trust_remote_code: run Python code that the folder ships.
        progress: called with 1 after every optimizer step.

    Raises:
        TrainingError: the `train` extra is not installed, no sample is usable, or the loss is not finite.
    """
    transformers, peft = _training_stack()
    quieten_transformers()
    transformers.set_seed(recipe.seed)
    from resources.scoring.encoding import Encoder  # noqa: PLC0415
    from resources.scoring.loading import encoding_parts, load_model  # noqa: PLC0415

    config = transformers.AutoConfig.from_pretrained(model_folder, trust_remote_code=trust_remote_code)
    model = load_model(model_folder, config, dtype, trust_remote_code)
    encoder = Encoder(template=template, **encoding_parts(model_folder, model, max_length, trust_remote_code))
    encoded = encode_for_training(encoder, samples)
    examples = [_example(item) for item in encoded]
    if not examples:
        raise TrainingError("no sample has a response within the maximum length: nothing to train on")
    lora = peft.LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora)
    trainer = transformers.Trainer(
        model=adapted,
        args=_arguments(recipe, out / "run", device),
        train_dataset=examples,
        data_collator=lambda batch: _collate(batch, encoder.tokenizer.pad_token_id or 0),
        callbacks=[_watch(transformers.TrainerCallback, progress)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    _save_adapter(adapted, out)
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(example["input_ids"]) for example in examples) * recipe.epochs
    return TrainingRecord(int(trainer.state.global_step), tokens, losses, [item.sample.sample_id for item in encoded])


def _training_stack() -> tuple[Any, Any]:
    """transformers and peft."""
    try:
        import peft
        import transformers
    except ImportError as error:
        raise TrainingError(
            "training a warm-up checkpoint needs the extra `train` (pip install 'curation-assets[train]'), "
            "or set warmup: none for the target"
        ) from error
    return transformers, peft


def encode_for_training(encoder: Encoder, samples: Sequence[Sample]) -> list[Encoded]:
    """The samples as tokens, by the encoder that they are measured with.

    Text only: samples with images are left out, and so are those that no signal is measured of (`UNRUNNABLE`).
    """
    encoded = encoder.encode([sample for sample in samples if not sample.images])
    return [item for item in encoded if item.response_tokens > 0 and UNRUNNABLE.keys().isdisjoint(item.flags)]


def _save_adapter(adapted: Any, out: Path) -> None:
    """Write the trained adapter, and nothing that the libraries leave beside it."""
    if not all(bool(weights.isfinite().all()) for weights in adapted.parameters() if weights.requires_grad):
        raise TrainingError("the adapter's weights are not finite after training: lower learning_rate")
    adapted.save_pretrained(str(out), safe_serialization=True)
    # What the libraries leave beside the adapter says nothing about this checkpoint.
    shutil.rmtree(out / "run", ignore_errors=True)
    (out / "README.md").unlink(missing_ok=True)


def _arguments(recipe: LoraRecipe, folder: Path, device: str) -> Any:
    """The recipe in transformers' words."""
    import transformers

    from resources.scoring.loading import pick_device  # noqa: PLC0415

    place = pick_device(device)
    if place.index:
        raise TrainingError(
            f"training uses the first GPU it sees: instead of device {device}, set CUDA_VISIBLE_DEVICES"
        )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_ratio,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a loss that is not finite would be logged as one that is
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=place.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    # More than one visible GPU would make a larger batch of the same recipe.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _example(encoded: Encoded) -> dict[str, list[int]]:
    prompt = encoded.prompt_tokens
    return {
        "input_ids": encoded.input_ids,
        "labels": [IGNORED_LABEL] * prompt + encoded.input_ids[prompt:],
    }


def _collate(batch: list[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    import torch

    longest = max(len(example["input_ids"]) for example in batch)

    def padded(rows: list[list[int]], fill: int) -> Any:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    return {
        "input_ids": padded([example["input_ids"] for example in batch], pad),
        "labels": padded([example["labels"] for example in batch], IGNORED_LABEL),
        "attention_mask": padded([[1] * len(example["input_ids"]) for example in batch], 0),
    }


def _watch(base: type, progress: Callable[[int], None] | None) -> Any:
    """A callback that reports steps and stops a run whose loss is no longer finite."""

    class Watch(base):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress is not None:
                progress(1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not abs(float(loss)) < float("inf"):
                raise TrainingError(f"the loss is {loss} at step {state.global_step}: lower learning_rate")

    return Watch()
