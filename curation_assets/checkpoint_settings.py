"""The part of `curation.yaml` that says how a target's checkpoint is trained: by whose recipe, and on what."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from curation_assets.sections import Section
from resources.training.recipe import PRESETS, Adapter, Recipe, Schedule, recipe_of

Preset = Literal["grace", "temp", "grape", "s2l", "less"]
assert set(get_args(Preset)) == set(PRESETS)

OWN = ("preset", "fraction", "min_pool", "save_every")
"""Keys that are no hyper-parameters of the recipe."""


class Warmup(Section):
    """The run that makes a target's checkpoint: its model, fine-tuned once on a random share of the pool, then frozen.

    By default GRACE's warm-up. What is not said is the preset's (docs/methods.md).
    """

    preset: Preset = Field("grace", description="whose recipe: hyper-parameters that are not named here are its")
    fraction: float = Field(0.05, gt=0, le=1, description="gamma, share of the pool's samples without images")
    min_pool: int = Field(100, ge=1, description="samples without images that the pool must hold before it is trained")
    adapter: Adapter | None = Field(None, description="lora, or full: every weight")
    lora_rank: int | None = Field(None, ge=1)
    lora_alpha: int | None = Field(None, ge=1)
    lora_dropout: float | None = Field(None, ge=0, lt=1)
    learning_rate: float | None = Field(None, gt=0)
    schedule: Schedule | None = Field(None, description="how the learning rate falls: cosine, linear, constant")
    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps after which it ends, whatever its epochs")
    warmup_ratio: float | None = Field(None, ge=0, lt=1, description="share of the steps in which the rate rises")
    batch_size: int | None = Field(None, ge=1, description="samples an optimizer step")
    length_grouped: bool | None = Field(None, description="samples of similar length share a batch")
    weight_decay: float | None = Field(None, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    save_every: int | None = Field(
        None, ge=1, description="optimizer steps between checkpoints on the way, which loss_trajectories is measured at"
    )

    def recipe(self) -> Recipe:
        """The whole recipe: the preset's with what is said here."""
        return recipe_of(self.preset, **self.model_dump(exclude=set(OWN)))
