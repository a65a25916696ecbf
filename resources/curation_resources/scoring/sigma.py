"""Find the strength of the random perturbation: the sigma at which early losses are 2.5 times the base model's.

TEMP (arXiv 2606.26797) chooses the one of eight levels whose mean l_100 over the data set is 2 to 3 times the base
model's. Ours: one fixed draw, whose scale is bisected on some samples until the ratio is 2.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.perturbed import PerturbedPass
from curation_resources.scoring.perturbing import RANDOM_SIGMAS
from curation_resources.scoring.prefixes import cut_to_windows
from curation_resources.scoring.samples import UNRUNNABLE, Encoded, PrefixWindows, Sample

TARGET = 2.5
TOLERANCE = 0.1
"""Distance from the target ratio that ends the search."""

LOWEST, HIGHEST = 2.0, 3.0
"""Acceptable ratios when all passes are used."""

PASSES = 16
"""Maximum passes over the samples, not counting the base model's."""

WINDOWS = PrefixWindows((100,))


class SigmaError(ScoringError):
    """The search found no strength of the random perturbation with losses of the required size."""


@dataclass(frozen=True)
class Trial:
    """One strength that was tried.

    Attributes:
        sigma: standard deviation of the noise on every perturbed element.
        mean_nll: mean early loss over the samples, in nats; infinite if one of them was not finite.
        ratio: `mean_nll` over the base model's.
    """

    sigma: float
    mean_nll: float
    ratio: float


@dataclass(frozen=True)
class SigmaSearch:
    """The result of the search.

    Attributes:
        sigma: the strength, for `PerturbedRequest.sigma`.
        ratio: mean early loss at that strength over the base model's.
        base_nll: mean early loss at the base model, in nats.
        samples: number of samples in the mean.
        trials: all trials, in order.
    """

    sigma: float
    ratio: float
    base_nll: float
    samples: int
    trials: tuple[Trial, ...]


def find_sigma(
    scoring: PerturbedPass, samples: Sequence[Sample], windows: PrefixWindows = WINDOWS, passes: int = PASSES
) -> SigmaSearch:
    """Find the strength of the fixed draw at which the mean early loss is `TARGET` times the base model's.

    The strength is doubled or halved until two values enclose the target, then bisected on a logarithmic scale. The
    weights
    are back at theta_0 afterwards.

    Args:
        scoring: the pass over the model to perturb.
        samples: some hundred samples of the pool; those without an early loss are skipped.
        windows: prefix windows, of which the longest is used.
        passes: maximum passes over the samples, at least one, not counting the base model's.

    Raises:
        SigmaError: no sample can be measured, or no strength gave `LOWEST` to `HIGHEST` times the base model's loss.
    """
    encoded = [
        cut_to_windows(item, windows)
        for item in scoring.scoring.encoder.encode(samples)
        if not describe(item, 0, windows).prefix_flags and UNRUNNABLE.keys().isdisjoint(item.flags)
    ]
    return _search(scoring, encoded, windows, passes)


def _search(scoring: PerturbedPass, encoded: list[Encoded], windows: PrefixWindows, passes: int) -> SigmaSearch:
    base = _mean_loss(scoring, encoded, windows) if encoded else math.nan
    if not 0.0 < base < math.inf:
        raise SigmaError(
            f"the mean loss of the {len(encoded)} samples that can be measured is {base} at the base model. Provide "
            "samples with reasoning whose loss is finite and not 0."
        )
    trials: list[Trial] = []
    low, high = 0.0, math.inf
    sigma = RANDOM_SIGMAS[3]
    try:
        while not trials or (len(trials) < passes and abs(trials[-1].ratio - TARGET) > TOLERANCE):
            scoring.perturber.move_randomly(sigma)
            loss = _mean_loss(scoring, encoded, windows)
            trials.append(Trial(sigma, loss, loss / base))
            if loss < TARGET * base:
                low = sigma
            else:
                high = sigma
            sigma = 2.0 * low if high == math.inf else high / 2.0 if low == 0.0 else math.sqrt(low * high)
    finally:
        scoring.perturber.restore()
    best = min(trials, key=lambda trial: abs(trial.ratio - TARGET))
    if not LOWEST <= best.ratio <= HIGHEST:
        seen = ", ".join(f"{trial.sigma:.3g}: {trial.ratio:.3g}" for trial in sorted(trials, key=lambda t: t.sigma))
        raise SigmaError(
            f"no random perturbation makes the mean loss {LOWEST:g} to {HIGHEST:g} times the base model's, which is "
            f"{base:.4g}; the ratio by sigma was {seen}. Use other samples, or set sigma by hand."
        )
    return SigmaSearch(best.sigma, best.ratio, base, len(encoded), tuple(trials))


def _mean_loss(scoring: PerturbedPass, encoded: Sequence[Encoded], windows: PrefixWindows) -> float:
    """Return the mean early loss of samples at the model's current weights; infinite if one is not finite."""
    losses = [found.prefix_nll for found in scoring.losses(encoded, windows)]
    values = [math.inf if nll is None else nll[windows.longest] for nll in losses]
    return float(np.mean(values))
