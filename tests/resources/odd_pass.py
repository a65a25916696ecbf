"""A pass without a model that dies, fails or waits: what a worker process can import at once."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.samples import Request, Sample, SampleSignals
from curation_resources.scoring.spec import PassSpec

if TYPE_CHECKING:
    from curation_resources.scoring.forward import ForwardPass


@dataclass(frozen=True)
class Odd:
    """A pass that dies, fails or waits at samples of some name."""

    spec: Any

    def measure(self, samples: list[Sample], _asked: object, again: bool = False) -> list[SampleSignals]:
        if any(sample.sample_id == "deadly" for sample in samples):
            os._exit(1)
        if any(sample.sample_id == "wrong" for sample in samples):
            raise ScoringError("this one is wrong")
        if any(sample.sample_id == "odd" for sample in samples):
            raise ZeroDivisionError("nobody expected this")
        time.sleep(0.01)
        return [SampleSignals(sample.sample_id, place) for place, sample in enumerate(samples)]


@dataclass(frozen=True)
class Plain:
    """A pass of a real model as workers of a Ray cluster have it; it tells of what it is given again."""

    scoring: ForwardPass

    def measure(self, samples: list[Sample], asked: Request, again: bool) -> tuple[list[SampleSignals], bool]:
        return self.scoring.measure(samples, asked), again


def make_plain(spec: PassSpec, device: str) -> Plain:
    from curation_resources.scoring.devices import make_pass

    return Plain(make_pass(spec, device))


def make_odd(spec: Any, _device: str) -> Odd:
    return Odd(spec)


class Slow:
    """A pass over anything that takes its time."""

    def measure(self, payload: list[int], _asked: object, _again: bool) -> int:
        time.sleep(0.2)
        return len(payload)


def make_slow(_spec: object, _device: str) -> Slow:
    return Slow()
