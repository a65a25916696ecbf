"""Results on their way into the stores of their signals, and what is said of them once they are there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from curation_assets.signals.catalog import SIGNALS
from curation_assets.signals.store import SignalStore
from curation_resources.scoring.samples import SampleSignals
from curation_resources.sections import SignalName


@dataclass(frozen=True)
class Done:
    """What is said of samples that were measured: rows of a manifest, where the data itself lies in the warehouse.

    Attributes:
        samples: how many.
        tokens: that were run through models for them.
        committed: whether all results up to these are in the warehouse.
        parts: paths of the parts that were written since the last word.
        by: what measured them.
    """

    samples: int
    tokens: int
    committed: bool
    parts: tuple[str, ...] = ()
    by: str = ""


@dataclass
class Parts:
    """Results of samples that lack the same signals, committed part by part.

    Attributes:
        stores: of the signals.
        seconds: a part is committed when the last one is so old.
        written: paths of the parts so far.
    """

    stores: Mapping[SignalName, SignalStore]
    seconds: float
    written: list[str] = field(default_factory=list)
    _pending: list[SampleSignals] = field(default_factory=list)
    _committed: float = field(default_factory=time.monotonic)

    def add(self, results: Sequence[SampleSignals]) -> bool:
        """Take results, and commit what is there if the last part is old enough; whether it was."""
        self._pending.extend(results)
        if time.monotonic() - self._committed < self.seconds:
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """One part a signal; killed in between, the samples lack only the signals that have none."""
        if self._pending:
            for signal, store in self.stores.items():
                self.written += store.append(SIGNALS[signal].frame(self._pending))
        # Not before all are written: interrupted here, they are written once more, under the same names.
        self._pending = []
        self._committed = time.monotonic()


def tokens_run(result: SampleSignals) -> int:
    """Tokens that were run through models for a sample, in all passes."""
    return result.tokens + result.unconditional_tokens + result.backward_tokens + result.elsewhere_tokens
