"""Records of visits: what was measured together is counted once, whatever else happened to a shard."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from curation_assets.operations.plan_seconds import MeasuredPass, recorded_seconds, visits
from curation_assets.operations.plan_tokens import TokenCount
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


def counted(tokens: int) -> TokenCount:
    """One sample of so many tokens that lacks likelihoods."""
    rows = pl.DataFrame(
        {"lacking": ["likelihoods"], "forward": [tokens], "alone": [0], "weight": [1.0]},
        schema_overrides={"forward": pl.Int64, "alone": pl.Int64},
    )
    return TokenCount(rows, of=1, exact=True, margin=0.0)


def passed(tokens: int, seconds: float) -> MeasuredPass:
    return MeasuredPass(("likelihoods",), 1, 1, tokens, seconds, ("cpu",), None)


def test_a_short_record_is_no_speed_for_a_long_run() -> None:
    pilot = passed(100, 6.0)
    assert recorded_seconds(counted(50), [pilot]) == 3.0
    # Most of these six seconds may have been the loading of the model.
    assert recorded_seconds(counted(50_000), [pilot]) is None
    long = passed(100_000, 100.0)
    assert recorded_seconds(counted(500_000), [long]) == 500.0
