"""Sections of `curation.yaml` that define a target's checkpoints: trained with a recipe, or perturbed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, get_args

from pydantic import Field

from curation_resources.scoring.spec import SOURCE_RADII, RadiusUnit
from curation_resources.sections import Name, Section
from curation_resources.training.examples import steps_of
from curation_resources.training.recipe import PRESETS, Adapter, Likelihood, Normalise, Recipe, Schedule, recipe_of

Preset = Literal["grace", "temp", "grape", "s2l", "less", "tagcos"]
assert set(get_args(Preset)) == set(PRESETS)

RELEASE = r"^[a-z][a-z0-9_]*@[1-9][0-9]*$"
"""A subset's name and its release number."""


class FineTuning(Section):
    """Hyper-parameters of a fine-tuning run: those of a preset, plus the overrides set here (docs/methods.md)."""

    preset: Preset = Field("grace", description="recipe that supplies every hyper-parameter not set here")
    adapter: Adapter | None = Field(None, description="lora, or full to train every weight")
    lora_rank: int | None = Field(None, ge=1)
    lora_alpha: int | None = Field(None, ge=1)
    lora_dropout: float | None = Field(None, ge=0, lt=1)
    learning_rate: float | None = Field(None, gt=0)
    schedule: Schedule | None = Field(None, description="learning-rate schedule: cosine, linear or constant")
    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(
        None, ge=1, description="number of optimizer steps, if fewer than the epochs take; the schedule ends with them"
    )
    stop_after: int | None = Field(
        None, ge=1, description="stop after this many optimizer steps, inside the schedule of all epochs (TAGCOS)"
    )
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="share of the steps used for learning-rate warm-up"
    )
    batch_size: int | None = Field(None, ge=1, description="samples per optimizer step")
    length_grouped: bool | None = Field(None, description="batch samples of similar length together")
    weight_decay: float | None = Field(None, ge=0)
    likelihood_weights: Likelihood | None = Field(
        None, description="current: weight each token's loss by its current likelihood (token-level GRAPE)"
    )
    normalise: Normalise | None = Field(None, description="mean1: scale these weights to mean 1 within each response")

    def recipe(self, seed: int = 0) -> Recipe:
        """Return the full recipe: the preset with the overrides of this section."""
        overrides = self.model_dump(include=set(FineTuning.model_fields) - {"preset"})
        return recipe_of(self.preset, **overrides, seed=seed)


FEW_STEPS = 20
"""A run of fewer optimizer steps gets a smaller batch."""


class Warmup(FineTuning):
    """The run that trains a target's checkpoint: its model, fine-tuned once on a random share of the pool, then frozen.

    Defaults to GRACE's warm-up. Keys that are not set come from the preset (docs/methods.md).
    """

    fraction: float = Field(
        0.05, gt=0, le=1, description="gamma: share of the pool's samples without images to train on"
    )
    min_pool: int = Field(
        100, ge=1, description="minimum number of samples without images in the pool before training starts"
    )
    release: str | None = Field(
        None,
        pattern=RELEASE,
        description="train on this release, such as grape_1@1, and ignore fraction and min_pool (multi-round GRAPE)",
    )
    start: Name | None = Field(
        None, description="start from the weights of another target's run; both runs must train every weight"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    retrain_growth: float | None = Field(
        None, gt=0, description="train again once the pool has grown by this share since the last run; null: never"
    )
    generation: int = Field(
        0, ge=0, description="increase to train again by hand, on a fresh draw from the current pool"
    )
    influence: list[Name] = Field(
        default=[], description="validation sets for which each sample's influence is accumulated during the run"
    )
    save_every: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = Field(
        None,
        description="optimizer steps between intermediate checkpoints, at which trajectories are measured; epoch: "
        "save at the end of each epoch (LESS)",
    )

    def recipe(self, seed: int | None = None) -> Recipe:
        """Return the full recipe: the preset with the overrides and the seed of this section."""
        return super().recipe(self.seed if seed is None else seed)

    def recipe_for(self, samples: int) -> Recipe:
        """Return the recipe for a number of samples: a run of few optimizer steps gets a smaller batch.

        A batch size, or a number of steps, that is set is kept.
        """
        recipe = self.recipe()
        chosen = self.batch_size or recipe.max_steps or recipe.stop_after
        if chosen or steps_of(samples, recipe) >= FEW_STEPS:
            return recipe
        return replace(recipe, batch_size=max(1, samples * recipe.epochs // FEW_STEPS))


class Perturbation(Section):
    """The perturbed checkpoints at which `perturbed_losses` are measured (TEMP, arXiv 2606.26797).

    theta_0 is the target's model before its training run.
    """

    endpoint: str | None = Field(
        None,
        description="folder of a fine-tuned model, or of a LoRA adapter for the target's model, that defines the "
        "direction; default: the target's own checkpoint (warmup)",
    )
    directional: bool = Field(
        True, description="false: use the random perturbation only (not faithful to TEMP, and reported as such)"
    )
    sigma: float | None = Field(
        None,
        gt=0,
        description="strength of the random perturbation; default: determined once by a search on a probe set",
    )
    probe_samples: int = Field(256, ge=1, description="size of the probe set for this search")
    radius_unit: RadiusUnit = Field(
        "absolute", description="distance: radii are fractions of the distance between the endpoint and the model"
    )
    largest_radius: float = Field(
        10.0, gt=0, description="R in the paper, where it is tuned for models of 7-8 B parameters"
    )
    reasoning_only: bool = Field(
        True, description="end windows where the answer begins; false: as in the released code"
    )
    skip_template_tokens: bool = Field(False, description="exclude think tags and EOS")
    seed: int = Field(0, ge=0, lt=2**63)

    def radii(self) -> tuple[float, ...]:
        """Return the radii of the eight directional checkpoints: linspace(R / 10, R, 8), like the paper's
        linspace(1, 10, 8)."""
        return tuple(radius * self.largest_radius / SOURCE_RADII[-1] for radius in SOURCE_RADII)
