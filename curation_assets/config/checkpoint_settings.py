"""The part of `curation.yaml` that says how a target's checkpoints are made: trained, by whose recipe, or perturbed."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from curation_resources.scoring.spec import SOURCE_RADII, RadiusUnit
from curation_resources.sections import Name, Section
from curation_resources.training.recipe import PRESETS, Adapter, Likelihood, Normalise, Recipe, Schedule, recipe_of

Preset = Literal["grace", "temp", "grape", "s2l", "less"]
assert set(get_args(Preset)) == set(PRESETS)

RELEASE = r"^[a-z][a-z0-9_]*@[1-9][0-9]*$"
"""A subset's name and the number of its release."""


class FineTuning(Section):
    """Hyper-parameters of a fine-tuning run: a preset's, but for what is said here (docs/methods.md)."""

    preset: Preset = Field("grace", description="whose recipe: hyper-parameters that are not named here are its")
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
    likelihood_weights: Likelihood | None = Field(
        None, description="current: a token's loss is weighted by its likelihood (token-level GRAPE)"
    )
    normalise: Normalise | None = Field(None, description="mean1: these weights have mean 1 in each response")

    def recipe(self, seed: int = 0) -> Recipe:
        """The whole recipe: the preset's with what is said here."""
        said = self.model_dump(include=set(FineTuning.model_fields) - {"preset"})
        return recipe_of(self.preset, **said, seed=seed)


class Warmup(FineTuning):
    """The run that makes a target's checkpoint: its model, fine-tuned once on a random share of the pool, then frozen.

    By default GRACE's warm-up. What is not said is the preset's (docs/methods.md).
    """

    fraction: float = Field(0.05, gt=0, le=1, description="gamma, share of the pool's samples without images")
    min_pool: int = Field(100, ge=1, description="samples without images that the pool must hold before it is trained")
    release: str | None = Field(
        None,
        pattern=RELEASE,
        description="train on a release, as in grape_1@1: fraction and min_pool do not count (multi-round GRAPE)",
    )
    start: Name | None = Field(
        None, description="go on from the weights that another target's run came to; both train every weight"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    retrain_growth: float | None = Field(
        None, gt=0, description="train once more when the pool has grown by this share since; null: never"
    )
    generation: int = Field(
        0, ge=0, description="raised, it is trained once more, on a draw of the pool as it is then (by hand)"
    )
    influence: list[Name] = Field(
        default=[], description="validation sets on which every sample's influence is summed up as the run goes on"
    )
    save_every: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = Field(
        None,
        description="optimizer steps between checkpoints on the way, which trajectories are measured at; epoch: at the "
        "end of each (LESS)",
    )

    def recipe(self, seed: int | None = None) -> Recipe:
        """The whole recipe: the preset's with what is said here, its seed included."""
        return super().recipe(self.seed if seed is None else seed)


class Perturbation(Section):
    """The perturbed checkpoints at which early losses are measured (TEMP, arXiv 2606.26797): what perturbed_losses are
    measured at. theta_0 is the target's model as it was before its training run."""

    endpoint: str | None = Field(
        None,
        description="folder of a fine-tuned model, or of a LoRA adapter over the target's model, that gives the "
        "direction; default: the target's own checkpoint (warmup)",
    )
    directional: bool = Field(True, description="false: the random perturbation only (unfaithful to TEMP, reported so)")
    sigma: float | None = Field(
        None, gt=0, description="strength of the random perturbation; default: searched for once, on a probe set"
    )
    probe_samples: int = Field(256, ge=1, description="samples that it is searched for on")
    radius_unit: RadiusUnit = Field(
        "absolute", description="distance: radii are fractions of the endpoint's distance from the model"
    )
    largest_radius: float = Field(10.0, gt=0, description="R of the source, which is tuned to 7-8 B parameters")
    reasoning_only: bool = Field(
        True, description="windows end where the answer begins; false: as released code has it"
    )
    skip_template_tokens: bool = Field(False, description="think tags and EOS do not count")
    seed: int = Field(0, ge=0, lt=2**63)

    def radii(self) -> tuple[float, ...]:
        """Of the eight directional checkpoints: linspace(R / 10, R, 8), as the source's linspace(1, 10, 8)."""
        return tuple(radius * self.largest_radius / SOURCE_RADII[-1] for radius in SOURCE_RADII)
