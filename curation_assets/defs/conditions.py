"""The automation condition of the cheap assets: everything after the signals."""

from collections.abc import Sequence
from typing import Any, cast

import dagster as dg

# Cast because Dagster types the union of conditions more broadly than its own methods accept.
_CHANGED = cast(
    "dg.AutomationCondition[Any]",
    dg.AutomationCondition.newly_missing()
    | dg.AutomationCondition.any_deps_updated()
    | dg.AutomationCondition.code_version_changed(),
)

FOLLOW_UPSTREAM = (
    _CHANGED.since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).with_label("follow upstream")
"""Update when an input, the code or the parameters have changed, and all inputs exist and are not in progress."""


def follow_upstream_without_waiting_for(keys: Sequence[dg.AssetKey]) -> dg.AutomationCondition[Any]:
    """Return the same condition, but without requiring that these inputs exist."""
    missing = dg.AutomationCondition.any_deps_missing()
    condition = FOLLOW_UPSTREAM.replace(missing, missing.ignore(dg.AssetSelection.assets(*keys)))
    return condition.with_label("follow upstream")
