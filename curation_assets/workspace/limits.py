"""Limits on what a run may measure: an allowance of tokens and device hours, and its use so far.

Each call of `curate run` has its own allowance. Runs that Dagster launches share one allowance per day (UTC), which
is recorded in the warehouse. Without it, a sensor would request the remaining work immediately, again and again, and
the limit would have no effect.
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
    """The allowance of tokens or device hours is used up; measurements so far are kept, the rest stays due."""


@dataclass(frozen=True)
class Spent:
    """Consumption of one allowance: tokens processed, and seconds times devices."""

    tokens: int = 0
    device_seconds: float = 0.0

    def plus(self, tokens: int, device_seconds: float) -> Spent:
        """Return the consumption increased by these amounts."""
        return Spent(self.tokens + tokens, self.device_seconds + device_seconds)

    def reached(self, limits: Limits) -> str | None:
        """Return a description of the limit that is reached; None if none is."""
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return f"{limits.tokens:,} tokens (limits.tokens)"
        if limits.device_hours is not None and self.device_seconds >= limits.device_hours * HOUR:
            return f"{limits.device_hours:g} device hours (limits.device_hours)"
        return None


@dataclass
class Allowance:
    """An allowance for measuring, and the work left unfinished because of it.

    Attributes:
        limits: the limits.
        spent: consumption so far.
        unfinished: pairs of target and shard (or validation set) left unfinished.
        samples: by target, samples measured in shards left unfinished, which no record counts.
        tokens: by target, tokens processed for these samples.
        until: device seconds of `spent` at which a budget ends that was given beside the limits; None without one.
    """

    limits: Limits
    spent: Spent = Spent()
    unfinished: set[tuple[str, str]] = field(default_factory=set)
    samples: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    until: float | None = None

    def allow(self, device_seconds: float) -> None:
        """Stop after so many device seconds from now, if no limit is reached before."""
        self.until = self.spent.device_seconds + device_seconds

    def reached(self) -> str | None:
        """Return the limit that is reached; None if none is."""
        if self.until is not None and self.spent.device_seconds >= self.until:
            return "the minutes that were given (budget)"
        return self.spent.reached(self.limits)

    def spend(self, tokens: int, device_seconds: float) -> None:
        """Add the consumption of a batch."""
        self.spent = self.spent.plus(tokens, device_seconds)

    def settle(self) -> None:
        """Persist the consumption; called periodically and when a shard is done."""

    def leave(self, target: str, shard: str, samples: int, tokens: int) -> LimitReachedError:
        """Record that a shard is left unfinished, and return the error that ends its measurement.

        Args:
            target: the target that measures.
            shard: the shard, or validation set.
            samples: samples of the shard measured so far.
            tokens: tokens processed for them.
        """
        self.unfinished.add((target, shard))
        self.samples[target] = self.samples.get(target, 0) + samples
        self.tokens[target] = self.tokens.get(target, 0) + tokens
        return LimitReachedError(f"{shard}: stopped at the limit of {self.reached()}")


class DayAllowance(Allowance):
    """The allowance shared by all runs of a day (UTC), recorded in the warehouse."""

    def __init__(self, limits: Limits, warehouse: Warehouse) -> None:
        super().__init__(limits, spent_today(warehouse))
        self._warehouse = warehouse
        self._kept = self.spent

    def settle(self) -> None:
        """Add the consumption since the last call to the warehouse's record."""
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
    """Return the consumption of runs that Dagster launched since midnight (UTC)."""
    return _of_today(warehouse.read_text(tables.spent_path()))


def waits_for_tomorrow(limits: Limits, warehouse: Warehouse) -> str | None:
    """Return why launched runs cannot measure any more today, with the way out; None if they can."""
    reached = spent_today(warehouse).reached(limits) if limits.any else None
    if reached is None:
        return None
    return (
        f"the daily limit of {reached} is reached. Measuring continues after midnight (UTC); to continue now, use "
        "`curate run`, which has its own allowance."
    )


def today_if_limited(limits: Limits) -> str:
    """Return the day (UTC) if there are limits, else an empty string.

    It makes a request for unfinished work differ from the previous day's.
    """
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
    """Charges an allowance as batches arrive: their tokens, and the time since the previous batch on every device.

    Args:
        allowance: the allowance to charge.
        devices: returns the current number of devices.
    """

    def __init__(self, allowance: Allowance, devices: Callable[[], int]) -> None:
        self._allowance = allowance
        self._devices = devices
        self._last = time.monotonic()

    def batch(self, tokens: int) -> None:
        """Charge a batch."""
        now = time.monotonic()
        self._allowance.spend(tokens, (now - self._last) * self._devices())
        self._last = now
