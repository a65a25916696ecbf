"""A pass without a model that dies, fails or waits: what a worker process can import at once."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from resources.scoring.errors import ScoringError
from resources.scoring.samples import Sample, SampleSignals


@dataclass(frozen=True)
class Odd:
    """A pass that dies, fails or waits at samples of some name."""

    spec: Any

    def measure(self, samples: list[Sample], _asked: object) -> list[SampleSignals]:
        if any(sample.sample_id == "deadly" for sample in samples):
            os._exit(1)
        if any(sample.sample_id == "wrong" for sample in samples):
            raise ScoringError("this one is wrong")
        if any(sample.sample_id == "odd" for sample in samples):
            raise ZeroDivisionError("nobody expected this")
        time.sleep(0.01)
        return [SampleSignals(sample.sample_id, place) for place, sample in enumerate(samples)]


def make_odd(spec: Any, _device: str) -> Odd:
    return Odd(spec)
