"""Local processes and a Ray cluster fill the same tables; a run goes on with another number of workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from curation_assets.sections import SignalName
from curation_assets.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows, run, signal_rows, subset_ids

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SIGNALS: tuple[SignalName, ...] = ("step_gradients", "likelihoods", "token_likelihoods", "gradient_norms")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=3, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    yield
    ray.shutdown()


def on_ray(workspace: Workspace, workers: int) -> Workspace:
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(
        text.replace("engine: {device: cpu", f"engine: {{kind: ray, address: local, workers: {workers}, device: cpu")
    )
    return Workspace.load(workspace.config_file)


def test_both_engines_fill_the_same_tables(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(9), "b.jsonl": rows(5, start=30)}
    local = make_workspace(tmp_path / "local", tiny_model, shards, signals=SIGNALS)
    far = on_ray(make_workspace(tmp_path / "ray", tiny_model, shards, signals=SIGNALS), 2)
    summaries = [run(local), run(far)]
    assert summaries[0].measured == summaries[1].measured
    assert summaries[0].tokens_measured == summaries[1].tokens_measured
    for signal in SIGNALS:
        assert_frame_equal(signal_rows(local, signal), signal_rows(far, signal), rel_tol=1e-4, abs_tol=1e-5)
    assert subset_ids(local) == subset_ids(far)
    assert run(far).tokens_measured == 0


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
    for signal in along["signals"]:
        assert_frame_equal(signal_rows(local, signal), signal_rows(far, signal), rel_tol=1e-4, abs_tol=1e-5)


def test_what_one_engine_measured_the_other_does_not_measure_again(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(6)}, signals=("likelihoods",))
    assert run(made).tokens_measured > 0
    local = made.config_file.read_text()
    for workers in (1, 2):
        assert run(on_ray(made, workers)).tokens_measured == 0
        made.config_file.write_text(local)
