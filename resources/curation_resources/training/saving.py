"""Save checkpoints: an adapter's folder or a whole model's, in safetensors only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from curation_resources.scoring.gradient_spec import OPTIMIZER
from curation_resources.training.examples import TrainingError
from curation_resources.training.files import RECORD, TRAINED_ON, WEIGHTS
from curation_resources.training.loop import Loop


def save_checkpoint(loop: Loop, folder: Path, source: Path, dtype: torch.dtype, *, optimizer: bool = False) -> None:
    """Write the adapter, or the whole model with the non-weight files of `source`.

    Raises:
        TrainingError: a trained weight is not finite.
    """
    if not all(bool(weight.isfinite().all()) for weight in loop.trained.values()):
        raise TrainingError(f"the trained weights are not finite after step {loop.done}. Lower learning_rate.")
    folder.mkdir(parents=True, exist_ok=True)
    if loop.recipe.adapter == "lora":
        loop.model.save_pretrained(str(folder), safe_serialization=True)
        # The generic model card that peft writes says nothing about this checkpoint.
        (folder / "README.md").unlink(missing_ok=True)
    else:
        _save_whole(loop.model, folder, source, dtype)
    if optimizer:
        moments = {name: tensor.cpu().contiguous() for name, tensor in loop.moments().items()}
        save_file(moments, folder / OPTIMIZER, {"steps": str(loop.done)})


def _save_whole(model: Any, folder: Path, source: Path, dtype: torch.dtype) -> None:
    """Save the model in the form that `from_pretrained` loads, with the tokenizer's and processor's files unchanged."""
    for file in sorted(source.iterdir()):
        # A base that is one of our checkpoints has records that do not apply to this one.
        if file.is_file() and not file.name.endswith((*WEIGHTS, ".index.json", RECORD, TRAINED_ON)):
            shutil.copyfile(file, folder / file.name)
    # Trained in fp32, saved in the dtype of measurement. Casting copies each tensor, so the model itself is unchanged.
    weights = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(str(folder), state_dict=weights, safe_serialization=True)
