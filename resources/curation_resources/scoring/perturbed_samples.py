"""Input and output of the pass over perturbed checkpoints, as plain data like `curation_resources.scoring.samples`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from curation_resources.scoring.samples import PrefixWindows


@dataclass(frozen=True, kw_only=True)
class PerturbedRequest:
    """The early losses to measure in one pass over perturbed checkpoints (TEMP, arXiv 2606.26797).

    Attributes:
        base: measure `filter_windows` at the base model.
        sigma: measure `filter_windows` at theta_0 + sigma z; None: do not. `curation_resources.scoring.sigma` finds
            one.
        draws: number of the source's random draws in z.
        directional: measure `path_windows` at every directional checkpoint.
        filter_windows: lengths in tokens (the source's difficulty filter: l_100).
        path_windows: lengths in tokens (the source's budgets and clusters: l_100 and l_1000).
        reasoning_only: see `PrefixWindows`.
        skip_template_tokens: see `PrefixWindows`.
    """

    base: bool = True
    sigma: float | None = None
    draws: int = 1
    directional: bool = True
    filter_windows: tuple[int, ...] = (100,)
    path_windows: tuple[int, ...] = (100, 1000)
    reasoning_only: bool = True
    skip_template_tokens: bool = False

    def windows(self, lengths: tuple[int, ...]) -> PrefixWindows:
        """Return windows of these lengths."""
        return PrefixWindows(lengths, self.reasoning_only, self.skip_template_tokens)


@dataclass(frozen=True)
class Realised:
    """The distance that the weights of a perturbed checkpoint moved.

    Attributes:
        aim: the target radius: r_j, or sigma * sqrt(n) of n perturbed elements.
        radius: ||displacement|| in fp32, before the cast; within 1 % of the aim from 1e5 elements on, unless a few
            of them hold most of the direction.
        cast_radius: ||theta - theta_0||, after the cast to the weights' precision; in float32 estimated from a part of
            the
            large tensors, as is the cosine.
        cosine: between the displacement and theta - theta_0 after the cast; well below 1 if the precision is too coarse
            for so small a radius, in which case measure in float32. 0 if nothing moved.
    """

    aim: float
    radius: float
    cast_radius: float
    cosine: float


@dataclass
class PerturbedSignals:
    """Early losses of one sample at the base model and at perturbed checkpoints.

    A value that was not requested, or cannot be measured for this sample, is None; a flag gives the reason.

    Attributes:
        sample_id: the sample.
        position: its position in the input.
        tokens: tokens run through the model at all checkpoints together.
        prompt_tokens: tokens of the prompt, image tokens included.
        response_tokens: tokens of the response, without EOS.
        flags: `UNRUNNABLE`, truncation flags, `non_finite`.
        prefix_flags: `empty_reasoning` (not measured).
        base: mean -log p at the base model, in nats, by window length.
        random: the same at theta_0 + sigma z.
        directional: the same at every directional checkpoint; also None if one of them is not finite.
        realised: distances of the checkpoints, the random one (if requested) before the directional ones; one object
            for all samples of a window.
    """

    sample_id: str
    position: int
    tokens: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    flags: list[str] = field(default_factory=list)
    prefix_flags: list[str] = field(default_factory=list)
    base: dict[int, float] | None = None
    random: dict[int, float] | None = None
    directional: list[dict[int, float]] | None = None
    realised: Sequence[Realised] = ()
