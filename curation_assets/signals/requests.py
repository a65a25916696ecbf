"""Build the request of one pass from the declarations of the signals that it measures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from curation_assets.config.settings import Target
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_resources.scoring.samples import NON_FINITE, Request


def request_for(target: Target, signals: Collection[SignalName]) -> Request:
    """Return what one pass has to measure for these signals of a target."""
    # An option of the target, whichever signals are asked for.
    fields: dict[str, Any] = {"flattened_cosines": target.gradients.parity == "as_coded"}
    for name, signal in SIGNALS.items():
        if name in signals:
            _unite(fields, signal.request(target))
    return Request(**fields)


def _unite(fields: dict[str, Any], more: Mapping[str, object]) -> None:
    for field, value in more.items():
        former = fields.get(field)
        if isinstance(value, frozenset):
            fields[field] = value | (former or frozenset())
        elif isinstance(value, tuple):
            fields[field] = (*(former or ()), *value)
        else:
            fields[field] = value


def non_finite(reasons: Mapping[str, int]) -> int:
    """Return the number of samples without a value because of NaN or Inf."""
    return sum(count for flags, count in reasons.items() if NON_FINITE in flags.split("+"))
