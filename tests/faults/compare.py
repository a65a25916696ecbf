"""What a run left, table by table, and how it differs from what an undisturbed run left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal, assert_series_equal

from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace

RELATIVE = 1e-5
"""Signals, and what is arithmetic over them, may differ by so much of their scale: batches are cut differently after a
fault. The scale of a product of two gradients is that of their norms, however near to orthogonal they are; that of a
score made of cosines is 1."""

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
ABSOLUTE = {
    "step_gradients": 1e-9,
    "likelihoods": 1e-9,
    "step_scores": RELATIVE,
    "sample_scores": RELATIVE,
    "subset": RELATIVE,
}
"""Tables that rest on signals, and what their numbers may differ by whatever their size; all others must be equal to
the bit."""


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
            if name == "step_gradients":
                # Cosines, whose scale is 1, beside the norms.
                assert_series_equal(_cosines(own), _cosines(twin), rel_tol=0.0, abs_tol=RELATIVE)
                own, twin = own.drop("gram", strict=False), twin.drop("gram", strict=False)
            if name in ABSOLUTE:
                assert_frame_equal(own, twin, rel_tol=RELATIVE, abs_tol=ABSOLUTE[name])
            else:
                assert_frame_equal(own, twin, check_exact=True)
        except AssertionError as error:
            difference.others.append(f"{name}: {str(error).splitlines()[0]}")
    return difference


def _cosines(rows: pl.DataFrame) -> pl.Series:
    """Gram matrices over the products of norms: upper triangles by rows; null where there is none."""
    if "gram" not in rows.columns:
        return pl.Series("cosines", [], dtype=pl.List(pl.Float64))
    made: list[list[float] | None] = []
    for gram, norms in rows.select("gram", "norms").iter_rows():
        if gram is None:
            made.append(None)
            continue
        size = np.array(norms)
        places = np.triu_indices(len(size))
        made.append((np.array(gram) / np.maximum(size[places[0]] * size[places[1]], 1e-24)).tolist())
    return pl.Series("cosines", made, dtype=pl.List(pl.Float64))
