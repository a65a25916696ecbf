"""The model that assets measure with: loaded on first use, once a run.

Plain data goes in and comes out, so that what asks for measurements needs neither torch nor a GPU to import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.quiet import quieten_transformers
from resources.scoring.samples import Sample, StepGradients

if TYPE_CHECKING:
    from resources.scoring.encoding import Encoder
    from resources.scoring.loading import Checkpoint


@dataclass(frozen=True)
class Scorer:
    """A checkpoint with the settings that it is measured under.

    Attributes:
        model_folder: the base model.
        adapter: LoRA folder to merge into it, or None.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: of the weights.
        template: see `resources.scoring.encoding.Encoder`.
        max_length: longest sequence in tokens; None for the model's context.
        batch_tokens: token budget of a batch, padding included.
        trust_remote_code: run Python code that the model folder ships.
    """

    model_folder: Path
    adapter: Path | None
    device: str
    dtype: str
    template: Any
    max_length: int | None
    batch_tokens: int
    trust_remote_code: bool = False

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        # Torch and transformers take seconds to import: only runs that measure pay for them.
        quieten_transformers()
        from resources.scoring.loading import load_checkpoint  # noqa: PLC0415

        return load_checkpoint(
            self.model_folder,
            self.adapter,
            device=self.device,
            dtype=self.dtype,
            max_length=self.max_length,
            trust_remote_code=self.trust_remote_code,
        )

    @cached_property
    def _encoder(self) -> Encoder:
        from resources.scoring.encoding import Encoder  # noqa: PLC0415

        return Encoder(self._checkpoint.tokenizer, self.template, self._checkpoint.max_length)

    def device_name(self) -> str:
        """What the model runs on, as people call it."""
        import torch

        device = self._checkpoint.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"

    def step_gradients(
        self, samples: Sequence[Sample], progress: Callable[[int], None] | None = None
    ) -> Iterator[list[StepGradients]]:
        """GRACE's signal for samples; see `resources.scoring.forward.measure_step_gradients`."""
        from resources.scoring.forward import measure_step_gradients  # noqa: PLC0415

        return measure_step_gradients(self._checkpoint, self._encoder, samples, self.batch_tokens, progress)
