"""Limits on what a run may measure: an allowance of tokens and device hours, and what is left of it.

`curate run` has an allowance of its own: each call may spend all of it. Runs that Dagster launches share one a day
(UTC), which is kept in the warehouse: a sensor that sees what is due would else ask for the rest at once, again and
again, and no limit would be one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from curation_assets import tables
from curation_assets.config.running_settings import Limits
from curation_resources.errors import UserError
from curation_resources.storage.warehouse import Warehouse

HOUR = 3600.0


class LimitReachedError(UserError):
    """The allowance of tokens or device hours is spent; what was measured is kept, the rest stays due."""


@dataclass(frozen=True)
class Spent:
    """What was measured with one allowance: tokens that were run, and seconds of devices."""

    tokens: int = 0
    device_seconds: float = 0.0

    def plus(self, tokens: int, device_seconds: float) -> Spent:
        """The same and some more."""
        return Spent(self.tokens + tokens, self.device_seconds + device_seconds)

    def reached(self, limits: Limits) -> str | None:
        """The limit that is reached, as people say it; None if none is."""
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return f"{limits.tokens:,} tokens (limits.tokens)"
        if limits.device_hours is not None and self.device_seconds >= limits.device_hours * HOUR:
            return f"{limits.device_hours:g} device hours (limits.device_hours)"
        return None


@dataclass
class Allowance:
    """What may still be measured, and what was left undone for want of it.

    Attributes:
        limits: the limits.
        spent: with this allowance so far.
        unfinished: targets and shards, or validation sets, that were left undone.
        samples: that were measured, by target, of shards that were left undone: no record tells of them.
        tokens: that were run for these, by target.
    """

    limits: Limits
    spent: Spent = Spent()
    unfinished: set[tuple[str, str]] = field(default_factory=set)
    samples: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def reached(self) -> str | None:
        """The limit that is reached; None if none is."""
        return self.spent.reached(self.limits)

    def spend(self, tokens: int, device_seconds: float) -> None:
        """Note what a batch took."""
        self.spent = self.spent.plus(tokens, device_seconds)

    def settle(self) -> None:
        """Called now and then, and when a visit to a shard ends: what was spent is to be kept somewhere."""

    def leave(self, target: str, shard: str, samples: int, tokens: int) -> LimitReachedError:
        """Note that a shard is left undone; gives the error that ends the visit to it.

        Args:
            target: whose signals.
            shard: the shard, or validation set.
            samples: of it that were measured in this visit.
            tokens: that were run for them.
        """
        self.unfinished.add((target, shard))
        self.samples[target] = self.samples.get(target, 0) + samples
        self.tokens[target] = self.tokens.get(target, 0) + tokens
        return LimitReachedError(f"{shard}: stopped at the limit of {self.reached()}")


class DayAllowance(Allowance):
    """The allowance that all runs of a day (UTC) share, of which the warehouse keeps the account."""

    def __init__(self, limits: Limits, warehouse: Warehouse) -> None:
        super().__init__(limits, spent_today(warehouse))
        self._warehouse = warehouse
        self._kept = self.spent

    def settle(self) -> None:
        """Add what was spent since the last time to the account."""
        tokens = self.spent.tokens - self._kept.tokens
        seconds = self.spent.device_seconds - self._kept.device_seconds
        if not tokens and not seconds:
            return
        while True:
            before = self._warehouse.read_text(tables.spent_path())
            spent = _of_today(before).plus(tokens, seconds)
            document = {"day": _today(), "tokens": spent.tokens, "device_seconds": spent.device_seconds}
            if self._warehouse.compare_and_swap(tables.spent_path(), before, json.dumps(document)):
                self._kept = self.spent = spent
                return


def spent_today(warehouse: Warehouse) -> Spent:
    """What runs that Dagster launched have measured since midnight (UTC)."""
    return _of_today(warehouse.read_text(tables.spent_path()))


def waits_for_tomorrow(limits: Limits, warehouse: Warehouse) -> str | None:
    """Why nothing more is measured today by launched runs, and the mend; None if it may be."""
    reached = spent_today(warehouse).reached(limits) if limits.any else None
    if reached is None:
        return None
    return (
        f"the limit of {reached} a day is reached: measuring goes on after midnight (UTC); `curate run`, which has an "
        "allowance of its own, goes on now"
    )


def today_if_limited(limits: Limits) -> str:
    """The day (UTC), which makes a request for what was left undone another one than yesterday's; empty unlimited."""
    return _today() if limits.any else ""


def _of_today(text: str | None) -> Spent:
    document = {} if text is None else json.loads(text)
    if document.get("day") != _today():
        return Spent()
    return Spent(document["tokens"], document["device_seconds"])


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def launched_allowance(limits: Limits, warehouse: Warehouse) -> Allowance:
    """Return the allowance of a run that Dagster launched: the day's, if there are limits."""
    return DayAllowance(limits, warehouse) if limits.any else Allowance(limits)


class Meter:
    """Spends an allowance as batches come in: their tokens, and the time since the last one on every device.

    Args:
        allowance: what is spent.
        devices: how many there are now.
    """

    def __init__(self, allowance: Allowance, devices: Callable[[], int]) -> None:
        self._allowance = allowance
        self._devices = devices
        self._last = time.monotonic()

    def batch(self, tokens: int) -> None:
        """Note a batch."""
        now = time.monotonic()
        self._allowance.spend(tokens, (now - self._last) * self._devices())
        self._last = now
