"""What a run left, table by table, and how it differs from what an undisturbed run left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from curation_assets.stored_tables import read_stored
from curation_assets.workspace import Workspace

RELATIVE = 1e-5
"""Signals, and what is arithmetic over them, may differ by so much: batches are cut differently after a fault."""

KEYS: dict[str, tuple[str, ...]] = {
    "raw_corpus": ("shard", "row", "candidate"),
    "rejected_rows": ("shard", "row", "candidate"),
    "segmented_steps": ("sample_id", "step_index"),
    "step_gradients": ("sample_id",),
    "likelihoods": ("sample_id",),
    "step_scores": ("sample_id", "step_index"),
    "sample_scores": ("shard", "row", "candidate"),
    "score_manifest": ("shard",),
    "subset": ("sample_id",),
}
MEASURED = frozenset({"step_gradients", "likelihoods", "step_scores", "sample_scores", "subset"})
"""Tables that rest on signals; all others must be equal to the bit."""


@dataclass
class Difference:
    """Rows that one has and the other has not, rows that are there twice, and what else differs."""

    lost: int = 0
    doubled: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def none(self) -> bool:
        """Whether there is no difference."""
        return not self.lost and not self.doubled and not self.others


def final_tables(config: Path) -> dict[str, pl.DataFrame]:
    """Every table of a workspace, sorted by its key."""
    workspace = Workspace.load(config)
    found = {}
    for name, key in KEYS.items():
        found[name] = read_stored(workspace, name).sort(key).collect()
    return found


def compare(found: dict[str, pl.DataFrame], wanted: dict[str, pl.DataFrame]) -> Difference:
    """How the tables of a run differ from those of the undisturbed one."""
    difference = Difference()
    for name, key in KEYS.items():
        own, twin = found[name], wanted[name]
        keys, twin_keys = own.select(key), twin.select(key)
        lost = len(twin_keys.join(keys, on=key, how="anti", nulls_equal=True))
        extra = len(keys.join(twin_keys, on=key, how="anti", nulls_equal=True))
        doubled = len(keys) - len(keys.unique()) + extra
        difference.lost += lost
        difference.doubled += doubled
        if lost or doubled:
            difference.others.append(f"{name}: {lost} rows lost, {doubled} too many")
            continue
        try:
            if name in MEASURED:
                assert_frame_equal(own, twin, rel_tol=RELATIVE, abs_tol=1e-9)
            else:
                assert_frame_equal(own, twin, check_exact=True)
        except AssertionError as error:
            difference.others.append(f"{name}: {str(error).splitlines()[0]}")
    return difference
