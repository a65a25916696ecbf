"""A warehouse of version 0.1 opens, measures nothing, and reproduces its releases' data byte for byte.

`make_v0_1.py` is the recipe of the archive.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from curation_assets import tables
from curation_assets.corpus.ingest import pool_rows
from curation_assets.defs.main_job import MainJob
from curation_assets.demo.tour import MODEL
from curation_assets.releases.build import read_release
from curation_assets.releases.reproduce import reproduce
from curation_assets.signals.carrying import carried
from curation_assets.signals.store import SignalStore
from curation_assets.steps.segmentation import EXAMPLES, SAMPLES, SETTINGS, VERSION, WITHOUT_ANSWER
from curation_assets.workspace.workspace import Workspace

ARCHIVE = Path(__file__).parent / "v0_1.tar.xz"
RELEASED = ("grace_20", "grape_tokens")
IGNORED = ("made", "ARROW:schema", "fingerprint", VERSION, SETTINGS, SAMPLES, WITHOUT_ANSWER, EXAMPLES)
DATA = ("data/train.parquet", "data/train.jsonl")


@pytest.fixture
def old(tmp_path: Path) -> Workspace:
    """The workspace as version 0.1 left it, with the model that it was measured with."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copytree(MODEL, tmp_path / "model")
    return Workspace.load(tmp_path / "curation.yaml")


def contents(warehouse: Path) -> dict[str, object]:
    """Rows and metadata of every table but its time and its fingerprints, and the bytes of everything else.

    Fingerprints change when the corpus is read, or steps are cut, by a newer version, and tables of steps name that
    version. Records of measured shards (`shards/*.json`) say
    what the last visit did, so they are left out.
    """
    found: dict[str, object] = {}
    for path in sorted(warehouse.rglob("*")):
        name = path.relative_to(warehouse).as_posix()
        if path.suffix == ".parquet":
            own = pl.read_parquet_metadata(path)
            metadata = {key: own[key] for key in own if key not in IGNORED}
            rows = pl.read_parquet(path).select(pl.exclude("^.*fingerprint$"))
            found[name] = (rows.to_dict(as_series=False), metadata)
        elif path.is_file() and path.parent.name != "shards":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_a_run_measures_nothing_and_changes_no_row(old: Workspace) -> None:
    before = contents(old.folder / "warehouse")
    with dg.DagsterInstance.ephemeral() as instance:
        summary = MainJob(old, instance).run()
    assert summary.tokens_measured == 0
    assert summary.measured == {"tiny": 0, "base": 0}
    after = contents(old.folder / "warehouse")
    assert [path for path in before if before[path] != after.get(path)] == []
    assert len(before) > 60


def test_only_samples_that_are_cut_differently_are_measured_again(old: Workspace) -> None:
    path = old.folder / "warehouse" / tables.segmented_steps_dir() / "part-0.jsonl.parquet"
    frame, metadata = pl.read_parquet(path), pl.read_parquet_metadata(path)
    changed = frame["sample_id"].sort()[0]
    # As if version 1 had found another end of this sample's first step.
    first = (pl.col("sample_id") == changed) & (pl.col("step_index") == 1)
    cut = frame.with_columns(end=pl.when(first).then(pl.col("end") - 1).otherwise(pl.col("end")))
    cut.write_parquet(path, metadata={key: own for key, own in metadata.items() if key != "ARROW:schema"})
    target = old.settings.target("tiny")
    missing = SignalStore.of(old, target, "step_gradients").missing(pool_rows(old)["sample_id"])
    assert missing - carried(old, target, {"step_gradients": missing})["step_gradients"] == {changed}
    with dg.DagsterInstance.ephemeral() as instance:
        summary = MainJob(old, instance).run()
        assert summary.measured == {"tiny": 1, "base": 1}
        assert MainJob(old, instance).run().measured == {"tiny": 0, "base": 0}


def test_what_another_table_of_steps_measured_is_not_carried_over(old: Workspace) -> None:
    """Settings may have changed and changed back since: then the stored steps are not those that were measured."""
    target, path = old.settings.target("tiny"), old.folder / "warehouse" / tables.segmented_steps_dir()
    missing = SignalStore.of(old, target, "step_gradients").missing(pool_rows(old)["sample_id"])
    assert carried(old, target, {"step_gradients": missing}) == {"step_gradients": missing}
    for file in path.glob("*.parquet"):
        own = {key: value for key, value in pl.read_parquet_metadata(file).items() if key != "ARROW:schema"}
        pl.read_parquet(file).write_parquet(file, metadata=own | {"fingerprint": "cut with other settings"})
    assert carried(old, target, {"step_gradients": missing}) == {"step_gradients": set()}


def test_releases_are_reproduced_to_the_byte(old: Workspace) -> None:
    for name in RELEASED:
        release = read_release(old, old.settings.subset(name), 1)
        made = reproduce(old, release.manifest, release.folder)
        assert made.files == dict.fromkeys(DATA, True), name
        assert made.identical
        # The version of segmentation is raised, though these samples are cut as before.
        assert [what.split()[0] for what in made.differs] == (["step_gradients"] if name == "grace_20" else [])


def test_a_new_release_of_the_same_subset_has_the_same_data(old: Workspace) -> None:
    """Made again from the stored subset after the old release is gone: same files and content digest."""
    folder = old.folder / "warehouse" / tables.release_dir("grace_20") / "1"
    before = json.loads((folder / "manifest.json").read_text())
    shutil.rmtree(folder)
    with dg.DagsterInstance.ephemeral() as instance:
        job = MainJob(old, instance)
        job.run()
        release, new = job.release(old.settings.subset("grace_20"))
    assert new
    assert release.manifest["content_digest"] == before["content_digest"]
    for path in DATA:
        assert release.manifest["files"][path] == before["files"][path]


def test_a_changed_sample_is_noticed(old: Workspace) -> None:
    """The tests above can fail: a score that is written differently is another release."""
    path = old.folder / "warehouse" / tables.subset_path("grace_20")
    rows = pl.read_parquet(path)
    release = read_release(old, old.settings.subset("grace_20"), 1)
    scores = old.folder / "warehouse" / tables.sample_scores_dir("tiny")
    for file in scores.glob("*.parquet"):
        frame = pl.read_parquet(file)
        metadata = pl.read_parquet_metadata(file)
        changed = frame.with_columns(grace=pl.col("grace") + 1e-3)
        changed.write_parquet(file, metadata={k: v for k, v in metadata.items() if k != "ARROW:schema"})
    assert len(rows)
    assert not reproduce(old, release.manifest, release.folder).identical
