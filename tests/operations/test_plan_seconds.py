"""Records of visits: what was measured together is counted once, whatever else happened to a shard."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from curation_assets.operations.plan_seconds import visits
from curation_assets.tables.signals import SignalName

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def record(signal: SignalName, end: float, seconds: float, **facts: Any) -> tuple[SignalName, dict[str, Any]]:
    """A signal's record of a visit that ended so many seconds after noon."""
    finished = (NOON + timedelta(seconds=end)).isoformat()
    figures = {"samples_visited": 9, "measured": 9, "tokens_run": 900, "device": "cpu", "seconds": seconds}
    return signal, figures | {"finished": finished} | facts


def test_records_of_one_visit_are_one_visit() -> None:
    (visit,) = visits("a", [record("likelihoods", 5.02, 5.02), record("step_gradients", 5.0, 5.0)])
    assert visit.signals == ("likelihoods", "step_gradients")
    assert (visit.samples, visit.tokens, visit.seconds) == (9, 900, 5.02)


def test_the_same_work_at_another_time_is_another_visit() -> None:
    found = visits("a", [record("likelihoods", 5.0, 5.0), record("token_likelihoods", 11.0, 5.0)])
    assert [visit.signals for visit in found] == [("likelihoods",), ("token_likelihoods",)]
    assert sum(visit.tokens for visit in found) == 1800


def test_other_work_at_the_same_time_is_another_visit() -> None:
    found = visits("a", [record("likelihoods", 5.0, 5.0), record("token_likelihoods", 6.0, 5.0, tokens_run=899)])
    assert len(found) == 2


def test_what_was_not_measured_in_a_visit_is_not_of_it() -> None:
    found = visits("a", [record("likelihoods", 5.0, 5.0), record("step_gradients", 5.0, 5.0, measured=0)])
    assert [visit.signals for visit in found] == [("likelihoods",)]
    assert visits("a", [record("likelihoods", 1.0, 0.1, samples_visited=0, measured=0, tokens_run=0)]) == []
