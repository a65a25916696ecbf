"""The automation condition of the cheap assets: everything after the signals."""

from collections.abc import Sequence
from typing import Any, cast

import dagster as dg

# The cast: Dagster types the union of conditions more widely than its own methods take.
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
"""Made anew when an input, the code or the parameters changed and every input is there and at rest."""


def follow_upstream_without_waiting_for(keys: Sequence[dg.AssetKey]) -> dg.AutomationCondition[Any]:
    """The same, but made also while some of these inputs have never been there."""
    missing = dg.AutomationCondition.any_deps_missing()
    condition = FOLLOW_UPSTREAM.replace(missing, missing.ignore(dg.AssetSelection.assets(*keys)))
    return condition.with_label("follow upstream")
