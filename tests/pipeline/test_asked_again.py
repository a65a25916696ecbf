"""Training runs and searches of strength that are asked for: anew, again after a kill, and not before they can be."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import pytest
from transformers import AutoModelForCausalLM

from curation_assets.corpus import reading
from curation_assets.defs import sensors
from curation_assets.defs.dead_runs import FIRST_PAUSE, PAUSE_FACTOR
from curation_assets.defs.dry_run import dry_run
from curation_assets.defs.sensors import rescue_requests
from curation_assets.operations.plan import make_plan
from curation_assets.signals import warmup
from curation_assets.signals.perturbation import search_sigma
from curation_assets.signals.store import MeasuringError, SignalStore
from curation_assets.signals.warmup import CheckpointError, train_warmup, warmup_checkpoint
from curation_assets.workspace.fingerprints import sigma_of
from curation_assets.workspace.workspace import Workspace
from curation_resources.training.trainer import TrainingRecord, train
from tests.pipeline.daemon import Daemon
from tests.pipeline.test_temp import of_temp
from tests.pipeline.workspaces import landed, lose, make_workspace, rows, run, write_shard

WARMUP = "{min_pool: 4, fraction: 0.5, batch_size: 2}"
WARMUP_KEY = dg.AssetKey(["tiny", "warmup_checkpoint"])
PERTURBATION_KEY = dg.AssetKey(["tiny", "perturbation"])


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def registered(workspace: Workspace, instance: dg.DagsterInstance) -> Daemon:
    """A daemon whose files are registered and read."""
    daemon = Daemon(workspace, instance)
    for _ in range(2):
        daemon.tick("landing")
    (request,) = daemon.scoring()
    assert daemon.run(request).success
    return daemon


def asked(daemon: Daemon) -> list[dg.AssetKey]:
    """Assets of all that the scoring sensor asks for now."""
    return [key for request in daemon.scoring() for key in request.asset_selection or []]


def kill(daemon: Daemon, request: dg.RunRequest) -> None:
    """Leave behind what a run does whose process was killed: a failure, and no step that failed."""
    job = daemon.defs.resolve_implicit_global_asset_job_def()
    selection = frozenset(request.asset_selection or ())
    run = daemon.instance.create_run_for_job(job, tags=dict(request.tags), asset_selection=selection)
    daemon.instance.report_run_failed(run, "killed")


class Clock:
    """The sensors' clock, which tests move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sensors, "time", made)
    return made


def test_another_recipe_asks_for_another_run(tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance) -> None:
    daemon = registered(make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)}, warmup=WARMUP), instance)
    assert asked(daemon) == [WARMUP_KEY]
    assert asked(daemon) == []
    config = daemon.workspace.config_file
    config.write_text(config.read_text().replace("batch_size: 2", "batch_size: 2, learning_rate: 0.01"))
    daemon.reload()
    assert asked(daemon) == [WARMUP_KEY]


def test_a_killed_run_is_asked_for_again_after_pauses_that_grow(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance, clock: Clock
) -> None:
    daemon = registered(make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)}, warmup=WARMUP), instance)
    pause = FIRST_PAUSE
    for attempt in range(1, 5):
        (request,) = daemon.scoring()
        assert request.asset_selection == [WARMUP_KEY]
        kill(daemon, request)
        clock.ahead = pause - 5
        waits = daemon.tick("scoring")
        assert isinstance(waits, dg.SkipReason)
        assert f"tiny/warmup_checkpoint failed (run {instance.get_runs(limit=1)[0].run_id[:8]}" in str(waits)
        assert f"attempt {attempt}) and is requested again in " in str(waits)
        clock.ahead = pause + 1
        pause *= PAUSE_FACTOR


def test_a_shard_that_fails_the_run_does_not_stop_the_others(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {f"{name}.jsonl": rows(2) for name in "abcmyz"}
    daemon = Daemon(make_workspace(tmp_path, tiny_model, shards), instance)
    for _ in range(2):
        daemon.tick("landing")
    pieces = reading.ShardReader.pieces

    def failing(self: reading.ShardReader) -> Iterator[reading.Piece]:
        if self._shard == "m.jsonl":
            raise OSError(errno.EIO, "the disk is broken")
        yield from pieces(self)

    monkeypatch.setattr(reading.ShardReader, "pieces", failing)
    for _ in range(8):
        # Halves wait too, longer each time: what makes all shards fail must not start run after run.
        clock.ahead += 1000
        for request in daemon.scoring():
            daemon.run(request)
    stored = set(daemon.workspace.warehouse.names("corpus/raw_corpus"))
    # The partition of the shard stays as it was: without a table.
    assert stored == {f"{name}.jsonl" for name in "abcyz"}
    # Runs ended by the real clock.
    clock.ahead = 0.0
    assert "corpus: m.jsonl failed" in str(daemon.tick("scoring"))
    monkeypatch.setattr(reading.ShardReader, "pieces", pieces)
    clock.ahead = 86_400.0
    requests = daemon.scoring()
    assert requests
    assert all(daemon.run(request).success for request in requests)
    assert "m.jsonl" in daemon.workspace.warehouse.names("corpus/raw_corpus")


def test_a_file_that_the_reader_cannot_take_is_an_empty_partition(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2), "m.jsonl": rows(3), "z.jsonl": rows(4, 10)})
    pieces = reading.ShardReader.pieces

    def failing(self: reading.ShardReader) -> Iterator[reading.Piece]:
        yield from pieces(self)
        if self._shard == "m.jsonl":
            raise RuntimeError("no reader is ready for this")

    monkeypatch.setattr(reading.ShardReader, "pieces", failing)
    summary = run(workspace)
    assert summary.measured == {"tiny": 6}
    refused = workspace.warehouse.read_table("corpus/rejected_rows/m.jsonl.parquet")
    assert refused["reason"].to_list() == ["reader_failed"]
    assert "m.jsonl cannot be read: RuntimeError: no reader is ready for this" in refused["detail"].item()


def test_a_run_that_failed_by_itself_is_not_asked_for_at_once(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance
) -> None:
    diverging = "{min_pool: 4, fraction: 1.0, batch_size: 1, learning_rate: 1.0e+30, adapter: full, warmup_ratio: 0}"
    daemon = registered(make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)}, warmup=diverging), instance)
    (request,) = daemon.scoring()
    assert not daemon.run(request).success
    assert asked(daemon) == []


def test_early_losses_wait_for_their_strength_and_other_signals_do_not(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance
) -> None:
    workspace = of_temp(tmp_path, tiny_model, "{directional: false, probe_samples: 12}", warmup="none")
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace("corpus: {", "corpus: {filters: {near_duplicates: 0.99}, ", 1))
    daemon = Daemon(Workspace.load(workspace.config_file), instance)
    daemon.conditions()  # the first evaluation is the initial one
    runs = daemon.carry_through()
    assert sum("tiny/perturbation" in one for one in runs) == 1
    measured = [one for one in runs if "tiny/perturbed_losses" in one]
    assert measured
    assert runs.index("tiny/perturbation") < runs.index(measured[0])
    assert any("subsets/best" in one for one in runs)


def test_with_an_empty_pool_the_rest_is_measured_and_the_reason_is_told(tmp_path: Path, tiny_model: Path) -> None:
    workspace = of_temp(tmp_path, tiny_model, "{directional: false, probe_samples: 12}", warmup="none")
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(
        text.replace("corpus: {", "corpus: {filters: {languages: [ja], language_confidence: 0.0}, ", 1)
    )
    workspace = Workspace.load(workspace.config_file)
    summary = run(workspace)
    (reason,) = summary.waiting
    assert "searched for on the pool, which is still empty" in reason
    assert "set perturbation.sigma" in reason
    assert summary.measured == {"tiny": 26}
    target = workspace.settings.target("tiny")
    with pytest.raises(CheckpointError, match=r"searched for on the pool, which is empty\. Read and filter"):
        search_sigma(workspace, target, None)  # type: ignore[arg-type]
    with pytest.raises(MeasuringError, match="Materialize tiny/perturbation"):
        SignalStore.of(workspace, target, "perturbed_losses")


def test_a_killed_search_is_asked_for_again(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance, clock: Clock
) -> None:
    workspace = of_temp(tmp_path, tiny_model, "{directional: false, probe_samples: 12}", warmup="none")
    daemon = registered(workspace, instance)
    (request,) = daemon.scoring()
    assert request.asset_selection == [PERTURBATION_KEY]
    kill(daemon, request)
    clock.ahead = FIRST_PAUSE + 1
    assert asked(daemon) == [PERTURBATION_KEY]


def test_a_dry_run_finds_endpoints_and_does_without_releases(tmp_path: Path, tiny_model: Path) -> None:
    given = "{endpoint: ./endpoint, sigma: 0.05, radius_unit: distance, largest_radius: 1.0, probe_samples: 4}"
    workspace = of_temp(tmp_path, tiny_model, given, warmup="none")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    next(iter(model.parameters())).data[0] += 1.0
    model.save_pretrained(tmp_path / "endpoint")
    with dry_run(workspace, 6) as look:
        assert look.summary.measured == {"tiny": 6}
        assert sigma_of(look.workspace, look.workspace.settings.target("tiny")) == 0.05


def test_each_warehouse_and_draw_has_a_folder_to_train_in(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def work_folder(self: Workspace, name: str) -> Path:
        used.append(name)
        return tmp_path / "training" / name

    monkeypatch.setattr(Workspace, "work_folder", work_folder)
    for name, count in (("one", 8), ("two", 8), ("three", 10)):
        workspace = make_workspace(tmp_path / name, tiny_model, {"a.jsonl": rows(count)}, warmup=WARMUP)
        run(workspace)
        assert warmup_checkpoint(workspace, workspace.settings.target("tiny")) is not None
    assert len(set(used)) == 3
    assert [path.name for path in (tmp_path / "training").iterdir() if path.is_dir()] == []


def test_only_one_process_trains_and_the_other_takes_what_it_made(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)}, warmup=WARMUP)
    run(workspace)
    target = workspace.settings.target("tiny")
    checkpoint = warmup_checkpoint(workspace, target)
    assert checkpoint is not None
    workspace.warehouse.storage.remove_folder(checkpoint.folder)
    trained = []

    def counted(*args: Any, **more: Any) -> TrainingRecord:
        trained.append(args)
        return train(*args, **more)

    monkeypatch.setattr(warmup, "train", counted)
    threads = [Thread(target=train_warmup, args=(Workspace.load(workspace.config_file), target)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1


def test_what_rests_on_a_model_that_is_here_is_rescued_beside_one_that_is_gone(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)})
    config = workspace.config_file
    daemon = Daemon(workspace, instance)
    daemon.conditions()
    daemon.carry_through()
    text = config.read_text()
    config.write_text(text.replace("targets:\n", "targets:\n  - {name: gone, model: ./gone, warmup: none}\n", 1))
    daemon.reload()
    lose(daemon.workspace, "subsets/best.parquet")
    late, _ = rescue_requests(daemon.workspace, instance, {}, now=0.0)
    assert late == []
    monkeypatch.setattr(sensors, "PATIENCE_SECONDS", 0.0)
    late, _ = rescue_requests(daemon.workspace, instance, {}, now=0.0)
    assert [list(request.asset_selection or []) for request in late] == [[dg.AssetKey(["subsets", "best"])]]


def test_a_run_is_trained_once_more_when_the_pool_has_grown_and_not_before(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance
) -> None:
    growing = WARMUP.replace("}", ", retrain_growth: 0.5}")
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)}, warmup=growing)
    target = workspace.settings.target("tiny")
    run(workspace)
    first = warmup_checkpoint(workspace, target)
    assert first is not None
    write_shard(landed(workspace) / "b.jsonl", rows(3, start=50))
    assert run(workspace).measured == {"tiny": 3}
    assert warmup_checkpoint(workspace, target) == first
    write_shard(landed(workspace) / "c.jsonl", rows(1, start=90))
    assert make_plan(workspace, probe=False).targets[0].warmup is not None
    assert run(workspace).measured == {"tiny": 12}
    second = warmup_checkpoint(workspace, target)
    assert second is not None
    assert (second.record["pool"], second.record["drawn"]) == (12, 6)
    assert second.folder != first.folder
    assert run(workspace).tokens_measured == 0
    # The sensor asks for it, too.
    write_shard(landed(workspace) / "d.jsonl", rows(6, start=120))
    daemon = registered(workspace, instance)
    assert asked(daemon) == [WARMUP_KEY]


def test_a_generation_is_trained_by_hand_and_the_former_one_is_found_again(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)}, warmup=WARMUP)
    run(workspace)
    write_shard(landed(workspace) / "b.jsonl", rows(8, start=50))
    run(workspace)
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace("batch_size: 2", "batch_size: 2, generation: 1", 1))
    again = Workspace.load(workspace.config_file)
    assert run(again).measured == {"tiny": 16}
    checkpoint = warmup_checkpoint(again, again.settings.target("tiny"))
    assert checkpoint is not None
    assert checkpoint.record["drawn"] == 8
    workspace.config_file.write_text(text)
    assert run(Workspace.load(workspace.config_file)).tokens_measured == 0
