"""How strong the random perturbation has to be: the sigma at which early losses are 2.5 times the base model's.

TEMP (arXiv 2606.26797) takes the one of eight levels whose mean l_100 over the data set is 2 to 3 times the base
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
"""A ratio that is so near to the target ends the search."""

LOWEST, HIGHEST = 2.0, 3.0
"""Ratios that will do when the passes are used up."""

PASSES = 16
"""Passes over the samples at most, the base model's not counted."""

WINDOWS = PrefixWindows((100,))


class SigmaError(ScoringError):
    """No strength of the random perturbation gives losses of the wanted size."""


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
    """What the search found.

    Attributes:
        sigma: the strength, for `PerturbedRequest.sigma`.
        ratio: mean early loss there over the base model's.
        base_nll: mean early loss at the base model, in nats.
        samples: how many samples it is the mean of.
        trials: all that was tried, in order.
    """

    sigma: float
    ratio: float
    base_nll: float
    samples: int
    trials: tuple[Trial, ...]


def find_sigma(
    scoring: PerturbedPass, samples: Sequence[Sample], windows: PrefixWindows = WINDOWS, passes: int = PASSES
) -> SigmaSearch:
    """The strength of the one fixed draw at which the mean early loss is `TARGET` times the base model's.

    It is doubled or halved until two strengths enclose the target, then bisected on a logarithmic scale. The weights
    are back at theta_0 afterwards.

    Args:
        scoring: the pass over the model that is perturbed.
        samples: some hundred samples of the pool; those that have no early loss are left out.
        windows: the longest counts.
        passes: how often the samples are run at most, once or more, the base model's pass not counted.

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
            f"the mean loss of the {len(encoded)} samples that can be measured is {base} at the base model: give "
            "samples with reasoning whose loss is finite and not 0"
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
            f"{base:.4g}; the ratio by sigma was {seen}. Give other samples, or set sigma by hand"
        )
    return SigmaSearch(best.sigma, best.ratio, base, len(encoded), tuple(trials))


def _mean_loss(scoring: PerturbedPass, encoded: Sequence[Encoded], windows: PrefixWindows) -> float:
    """Mean early loss of samples at the weights that the model has now; infinite if one is not finite."""
    losses = [found.prefix_nll for found in scoring.losses(encoded, windows)]
    values = [math.inf if nll is None else nll[windows.longest] for nll in losses]
    return float(np.mean(values))
