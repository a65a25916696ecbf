"""What a pass is made from, as plain data: it travels to worker processes and loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resources.scoring.images import ImageLimits

Template = Literal["auto", "chat", "plain", "question_answer"]


@dataclass(frozen=True)
class PassSpec:
    """A checkpoint and the settings that it is measured under.

    Attributes:
        model_folder: the base model.
        adapter: LoRA folder to apply to it, or None.
        dtype: `float32`, `bfloat16` or `float16`, of the weights.
        template: see `resources.scoring.encoding.Encoder`.
        max_length: longest sequence in tokens; None for the model's context.
        trust_remote_code: run Python code that the model folder ships.
        batch_tokens: token budget of a batch, padding included.
        head_memory: bytes that the streamed LM head may use for logits; None: see `resources.scoring.head`.
        attention: attention implementation, or `auto`.
        compile_model: compile the model before the first batch.
        images: what an image may be.
        embedding_model: it is a sentence-transformers model (`resources.embedder`).
    """

    model_folder: Path
    adapter: Path | None = None
    dtype: str = "float32"
    template: Template = "auto"
    max_length: int | None = None
    trust_remote_code: bool = False
    batch_tokens: int = 8192
    head_memory: int | None = None
    attention: str = "auto"
    compile_model: bool = False
    images: ImageLimits = field(default_factory=ImageLimits)
    embedding_model: bool = False
