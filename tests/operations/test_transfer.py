"""Measurements that moved to another warehouse: nothing is measured again there, and nothing false gets in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.operations.purge import purge
from curation_assets.operations.transfer import INDEX, TransferError, export_measurements, import_measurements
from curation_assets.signals.store import shard_record_path, signal_dir
from curation_assets.signals.warmup import warmup_checkpoint
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.purge_list import add_purged
from curation_assets.workspace.workspace import Workspace
from curation_resources.training.files import TRAINED_ON
from tests.pipeline.workspaces import make_workspace, rows, run, subset_ids

SIGNALS = ("step_gradients", "likelihoods", "embeddings_mean")
SHARDS = {"a.jsonl": rows(7), "b.jsonl": rows(5, start=30)}
WARMUP = "{min_pool: 5, fraction: 0.4}"


def workspace_at(folder: Path, model: Path, warehouse: str = "./warehouse") -> Workspace:
    made = make_workspace(folder, model, SHARDS, warmup=WARMUP, signals=SIGNALS, part_seconds=0.0)
    made.config_file.write_text(made.config_file.read_text().replace("./warehouse", warehouse))
    return Workspace.load(made.config_file)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    made = workspace_at(tmp_path_factory.mktemp("here"), tiny_model)
    run(made)
    return made


@pytest.fixture
def exported(measured: Workspace, tmp_path: Path) -> Path:
    export_measurements(measured, str(tmp_path / "export"))
    return tmp_path / "export"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("by", ["folder", "s3"])
def test_a_fresh_warehouse_has_nothing_to_measure(
    measured: Workspace, tmp_path: Path, tiny_model: Path, by: str, request: pytest.FixtureRequest
) -> None:
    bucket = request.getfixturevalue("bucket") if by == "s3" else str(tmp_path)
    place = f"{bucket}/export"
    moved = export_measurements(measured, place)
    assert [one.copied for one in moved] == [one.files for one in moved]
    fresh = workspace_at(tmp_path / "there", tiny_model, f"{bucket}/warehouse")
    taken = import_measurements(fresh, place)
    assert {one.folder for one in taken} == {one.folder for one in moved}
    assert all(one.wanted and one.copied == one.files for one in taken)
    summary = run(fresh)
    assert (summary.tokens_measured, summary.measured) == (0, {"tiny": 0})
    target = fresh.settings.targets[0]
    for signal in target.signals:
        for shard, held in SHARDS.items():
            record = fresh.warehouse.read_json(shard_record_path(str(signal_dir(fresh, target, signal)), shard))
            # What measures names its device: no model was loaded.
            assert (record["measured"], record["device"], record["rows"]) == (0, "", len(held))
        assert_frame_equal(read_stored(fresh, signal).collect(), read_stored(measured, signal).collect())
    assert_frame_equal(read_stored(fresh, "sample_scores").collect(), read_stored(measured, "sample_scores").collect())
    assert subset_ids(fresh) == subset_ids(measured)


def test_doing_either_again_changes_nothing(
    measured: Workspace, exported: Path, tmp_path: Path, tiny_model: Path
) -> None:
    fresh = workspace_at(tmp_path / "there", tiny_model)
    import_measurements(fresh, str(exported))
    before = files(exported), files(fresh.warehouse.root)
    assert [one.copied for one in export_measurements(measured, str(exported))] == [0] * 4
    assert [one.copied for one in import_measurements(fresh, str(exported))] == [0] * 4
    assert (files(exported), files(fresh.warehouse.root)) == before


def test_an_export_of_one_target_is_added_to(measured: Workspace, tmp_path: Path, tiny_model: Path) -> None:
    place = str(tmp_path / "export")
    export_measurements(measured, place)
    other = make_workspace(tmp_path / "o", tiny_model, SHARDS, signals=("likelihoods",))
    run(other)
    export_measurements(other, place)
    index = json.loads((tmp_path / "export" / INDEX).read_text())
    assert {entry["role"] for entry in index["entries"] if entry["kind"] == "signal"} == {"base", "warmup"}
    assert len(index["entries"]) == 5
    means = next(entry["means"] for entry in index["entries"] if entry.get("signal") == "step_gradients")
    assert means["proxy"] == "bias"
    assert means["segmentation"]["strategy"] == "auto"


def test_a_corrupted_part_is_refused_by_name(exported: Path, tmp_path: Path, tiny_model: Path) -> None:
    fresh = workspace_at(tmp_path / "there", tiny_model)
    part = next(exported.rglob("likelihoods/*/part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(TransferError, match=rf"{part.name} is damaged"):
        import_measurements(fresh, str(exported))
    assert not list(fresh.warehouse.root.rglob(part.name))
    part.unlink()
    with pytest.raises(TransferError, match=rf"{part.name} is missing"):
        import_measurements(fresh, str(exported))
    # What got in before is sound: the run measures the rest.
    assert run(fresh).tokens_measured > 0


def test_a_damaged_part_is_not_exported(measured: Workspace, tmp_path: Path) -> None:
    shutil.copytree(measured.folder, tmp_path / "copy")
    copy = Workspace.load(tmp_path / "copy" / "curation.yaml")
    part = next(copy.warehouse.root.rglob("likelihoods/*/part-*.parquet"))
    part.write_bytes(b"x")
    with pytest.raises(TransferError, match="do not match its name"):
        export_measurements(copy, str(tmp_path / "export"))


def test_a_frozen_warm_up_is_never_replaced(exported: Path, tmp_path: Path, tiny_model: Path) -> None:
    fresh = make_workspace(tmp_path / "there", tiny_model, {"other.jsonl": rows(9, start=70)}, warmup=WARMUP)
    run(fresh)
    before = files(fresh.warehouse.root)
    checkpoint = warmup_checkpoint(fresh, fresh.settings.targets[0])
    assert checkpoint is not None
    assert (exported / checkpoint.folder).is_dir()
    with pytest.raises(TransferError, match="another warm-up of the same recipe"):
        import_measurements(fresh, str(exported))
    assert files(fresh.warehouse.root) == before


@pytest.mark.parametrize(
    "path", ["../outside.parquet", "shards/a.jsonl.json", ".hidden.parquet", "part.pkl", "a\\b.parquet"]
)
def test_an_index_that_leads_elsewhere_is_refused(exported: Path, tmp_path: Path, tiny_model: Path, path: str) -> None:
    index = json.loads((exported / INDEX).read_text())
    folder = index["entries"][0]["folder"]
    index["files"].append({"path": f"{folder}/{path}", "bytes": 1, "digest": "0" * 32})
    (exported / INDEX).write_text(json.dumps(index))
    fresh = workspace_at(tmp_path / "there", tiny_model)
    with pytest.raises(TransferError, match="has unexpected files"):
        import_measurements(fresh, str(exported))


def test_what_is_no_export(measured: Workspace, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(TransferError, match="there is no"):
        import_measurements(measured, str(tmp_path))
    (tmp_path / INDEX).write_text('{"schema_version": 2}')
    with pytest.raises(TransferError, match="schema version 2"):
        import_measurements(measured, str(tmp_path))
    with pytest.raises(TransferError, match="schema version 2"):
        export_measurements(measured, str(tmp_path))
    with pytest.raises(TransferError, match="is the warehouse itself"):
        export_measurements(measured, str(measured.warehouse.root))
    with pytest.raises(TransferError, match="did you mean 'tiny'"):
        export_measurements(measured, str(tmp_path), "tinny")
    empty = make_workspace(tmp_path / "empty", tiny_model, SHARDS)
    with pytest.raises(TransferError, match="nothing is measured"):
        export_measurements(empty, str(tmp_path / "export"))


def test_the_commands_say_what_the_configuration_wants(exported: Path, tmp_path: Path, tiny_model: Path) -> None:
    other = make_workspace(tmp_path / "there", tiny_model, SHARDS, signals=("likelihoods",))
    shown = CliRunner().invoke(app, ["import-measurements", str(exported), "-c", str(other.config_file)])
    assert shown.exit_code == 0, shown.output
    assert "used if the configuration needs them later" in shown.output
    run(other)
    out = ["export-measurements", str(tmp_path / "out"), "--target", "tiny", "-c", str(other.config_file)]
    assert CliRunner().invoke(app, out).exit_code == 0
    assert (tmp_path / "out" / INDEX).exists()


def test_an_imported_checkpoint_that_was_trained_on_a_purged_sample_is_named(
    measured: Workspace, exported: Path, tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = workspace_at(tmp_path / "here", tiny_model)
    checkpoint = warmup_checkpoint(measured, measured.settings.targets[0])
    assert checkpoint is not None
    sample_id = measured.warehouse.read_table(f"{checkpoint.folder}/{TRAINED_ON}")["sample_id"][0]
    add_purged(here.warehouse, sample_id, "", [])
    import_measurements(here, str(exported))
    assert f"was trained on purged samples ({sample_id}). Delete the folder to retrain it." in caplog.text


def test_what_was_purged_does_not_come_back(exported: Path, tmp_path: Path, tiny_model: Path) -> None:
    fresh = workspace_at(tmp_path / "there", tiny_model)
    import_measurements(fresh, str(exported))
    run(fresh)
    gone = read_stored(fresh, "raw_corpus").collect()["sample_id"][0]
    purge(fresh, gone)
    again = [import_measurements(fresh, str(exported)) for _ in range(2)][1]
    assert [one.copied for one in again] == [0] * 4
    for signal in SIGNALS:
        assert gone not in read_stored(fresh, signal).collect()["sample_id"].to_list()
    assert run(fresh).tokens_measured == 0
