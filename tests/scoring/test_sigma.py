"""The search for the random perturbation's strength: what it finds holds, and what it cannot find it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation_resources.scoring import sigma
from curation_resources.scoring.perturbed import PerturbedPass, make_perturbed_pass
from curation_resources.scoring.perturbing import RANDOM_SIGMAS
from curation_resources.scoring.samples import PerturbedRequest, PrefixWindows, Sample
from curation_resources.scoring.sigma import SigmaError, find_sigma
from curation_resources.scoring.spec import PassSpec, PerturbedSpec
from tests.scoring.cases import random_samples


@pytest.fixture(scope="module")
def scoring(tiny_model: Path) -> PerturbedPass:
    return make_perturbed_pass(PerturbedSpec(PassSpec(tiny_model), seed=2), "cpu")


def with_losses(monkeypatch: pytest.MonkeyPatch, scoring: PerturbedPass, loss_at: Any) -> list[float]:
    """Let the mean loss be a given function of sigma; returns the sigmas that are tried."""
    tried: list[float] = []
    monkeypatch.setattr(scoring.perturber, "move_randomly", tried.append)
    monkeypatch.setattr(sigma, "_mean_loss", lambda *_: loss_at(tried[-1] if tried else 0.0))
    return tried


def test_the_found_strength_gives_the_wanted_ratio(scoring: PerturbedPass) -> None:
    model = scoring.scoring.checkpoint.model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    samples = random_samples(6)
    found = find_sigma(scoring, samples)
    assert 2.4 <= found.ratio <= 2.6
    assert found.samples == 6
    assert found.trials[-1].sigma == found.sigma
    # Measured anew, by what it is for.
    results = scoring.measure(samples, PerturbedRequest(sigma=found.sigma, directional=False))
    base = float(np.mean([result.base[100] for result in results if result.base]))
    random = float(np.mean([result.random[100] for result in results if result.random]))
    assert base == pytest.approx(found.base_nll, rel=1e-5)
    assert random / base == pytest.approx(found.ratio, rel=1e-5)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("scale", [1e-4, 0.03, 1.0, 4.0])
def test_it_brackets_then_bisects(scale: float, scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = with_losses(monkeypatch, scoring, lambda s: 0.7 * (1.0 + (s / scale) ** 2))
    found = find_sigma(scoring, random_samples(2))
    assert found.ratio == pytest.approx(2.5, abs=0.1)
    assert found.sigma == pytest.approx(scale * math.sqrt(1.5), rel=0.1)
    assert tried == [trial.sigma for trial in found.trials]
    assert tried[0] == RANDOM_SIGMAS[3]
    assert len(tried) <= 16


def test_a_loss_that_is_not_finite_is_too_large(scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, scoring, lambda s: 1.0 + s / 0.001 if s < 0.002 else math.inf)
    found = find_sigma(scoring, random_samples(2))
    assert found.trials[0].mean_nll == math.inf
    assert found.sigma == pytest.approx(0.0015, rel=0.1)


def test_near_enough_will_do_when_the_passes_are_used_up(
    scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loss leaps over the target.
    tried = with_losses(monkeypatch, scoring, lambda s: 1.0 if s == 0 else 2.2 if s < 0.01 else 9.0)
    found = find_sigma(scoring, random_samples(2), passes=7)
    assert found.ratio == 2.2
    assert len(tried) == 7


@pytest.mark.parametrize(("loss_at", "seen"), [(lambda s: 1.0, "704: 1"), (lambda s: 1.0 + 8.0 * (s > 0), "0.0055: 9")])
def test_no_strength_is_an_error_that_says_what_was_seen(
    loss_at: Any, seen: str, scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = with_losses(monkeypatch, scoring, loss_at)
    with pytest.raises(SigmaError, match=r"no random perturbation makes the mean loss 2 to 3 times.*set sigma by hand"):
        find_sigma(scoring, random_samples(2))
    assert len(tried) == sigma.PASSES


def test_samples_without_early_loss_are_left_out(scoring: PerturbedPass) -> None:
    none = Sample("none", [{"role": "user", "content": "q"}], "")
    samples = random_samples(3)
    found = find_sigma(scoring, [none, *samples], PrefixWindows((20,)))
    assert found.samples == 3
    with pytest.raises(SigmaError, match="0 samples that can be measured"):
        find_sigma(scoring, [none])
