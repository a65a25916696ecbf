"""Buffer results on their way into the stores of their signals, and report on them once they are stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from curation_assets.signals.store import SignalStore
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_resources.scoring.samples import SampleSignals


@dataclass(frozen=True)
class Done:
    """A report on measured samples: rows of a manifest, while the data itself is in the warehouse.

    Attributes:
        samples: number of samples.
        tokens: tokens run through models for them.
        committed: whether all results up to these are in the warehouse.
        parts: paths of the parts written since the last report.
        by: the worker that measured them.
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
        stores: the stores of the signals.
        seconds: time since the last commit after which a part is committed.
        written: paths of the parts so far.
    """

    stores: Mapping[SignalName, SignalStore]
    seconds: float
    written: list[str] = field(default_factory=list)
    _pending: list[SampleSignals] = field(default_factory=list)
    _committed: float = field(default_factory=time.monotonic)

    def add(self, results: Sequence[SampleSignals]) -> bool:
        """Buffer results, and commit them if the last commit is old enough; return whether it was."""
        self._pending.extend(results)
        if time.monotonic() - self._committed < self.seconds:
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """Write one part per signal. If killed in between, the samples lack only the signals not yet written."""
        if self._pending:
            for signal, store in self.stores.items():
                self.written += store.append(SIGNALS[signal].frame(self._pending))
        # Clear only after all are written: if interrupted, they are written again under the same names.
        self._pending = []
        self._committed = time.monotonic()


def tokens_run(result: SampleSignals) -> int:
    """Return the tokens run through models for a sample, in all passes."""
    direct = sum(answer.tokens for answer in result.direct.values())
    again = result.unconditional_tokens + direct + result.backward_tokens + result.masked_tokens
    return result.tokens + again + result.elsewhere_tokens
