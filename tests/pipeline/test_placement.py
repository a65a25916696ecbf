"""Which launched runs carry the tags of `engine.run_tags`: those that need a device, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from curation_assets.config.config_file import ConfigError, parse_settings
from curation_assets.definitions import build_definitions
from curation_assets.defs.partitions import STAGE_TAG
from curation_assets.defs.placement import device_keys, placed, run_tags
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.daemon import Daemon
from tests.pipeline.workspaces import make_workspace, rows, write_shard
from tests.test_definitions import definitions

POD = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}
TAGS = f"""\
  run_tags:
    dagster-k8s/config: {json.dumps(POD)}
    dagster/priority: "3"
"""
STAGES_ON_A_DEVICE = {"warmup", "perturbation", "validation", "signals"}


def placed_apart(workspace: Workspace, tags: str = TAGS) -> Workspace:
    """The workspace with tags for runs on a device."""
    text = workspace.config_file.read_text()
    block = "engine:\n  device: cpu\n  part_seconds: 5.0\n  batch_tokens: 8192\n" + tags
    lines = [block.rstrip("\n") if line.startswith("engine:") else line for line in text.splitlines()]
    workspace.config_file.write_text("\n".join(lines) + "\n")
    return Workspace.load(workspace.config_file)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def asked(daemon: Daemon) -> dict[str, list[dict[str, str]]]:
    """Tags of everything that a daemon's scoring sensor asks for until nothing is due, by stage."""
    found: dict[str, list[dict[str, str]]] = {}
    daemon.tick("landing")
    daemon.tick("landing")
    for _ in range(10):
        requests = daemon.scoring()
        if not requests:
            return found
        for request in requests:
            assert daemon.run(request).success
            found.setdefault(request.tags[STAGE_TAG], []).append(dict(request.tags))
    raise AssertionError(f"it never comes to rest: {sorted(found)}")


def held_out(workspace: Workspace, folder: Path) -> Workspace:
    """The workspace with a check for repetition, a validation set, a method that looks at it, and TEMP's signal."""
    write_shard(folder / "held_out.jsonl", rows(3, start=900))
    text = workspace.config_file.read_text()
    text = text.replace("/landing}", "/landing, filters: {repetition: {paper: true}}}")
    text = text.replace(
        "scores:\n",
        "validation:\n  - {name: held_out, path: ./held_out.jsonl}\n"
        "scores:\n  - {name: near, target: tiny, method: rds_plus, validation: held_out}\n",
    )
    workspace.config_file.write_text(text)
    return Workspace.load(workspace.config_file)


@pytest.mark.slow
def test_runs_that_need_a_device_carry_the_tags_and_others_do_not(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance
) -> None:
    signals = ["step_gradients", "embeddings_position_weighted", "perturbed_losses"]
    warmup = "{fraction: 0.5, min_pool: 4, max_steps: 1, batch_size: 2}"
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8)}, warmup=warmup, signals=signals)
    daemon = Daemon(placed_apart(held_out(workspace, tmp_path)), instance)
    found = asked(daemon)
    assert set(found) >= {"corpus", "quality", "pool", *STAGES_ON_A_DEVICE}
    for stage, several in found.items():
        for tags in several:
            assert ("dagster/priority" in tags) == (stage in STAGES_ON_A_DEVICE), stage
            if stage in STAGES_ON_A_DEVICE:
                assert json.loads(tags["dagster-k8s/config"]) == POD
    # What follows by conditions, or is asked for again, is arithmetic.
    assert not {key.path[-1] for key in device_keys(daemon.workspace)} & {
        name.split("/")[-1] for name, _ in daemon.conditions()
    }


def test_a_gpu_does_not_wait_while_files_are_read(
    tmp_path: Path, tiny_model: Path, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    assert set(asked(Daemon(placed_apart(workspace), instance))) == {"corpus", "signals"}


def test_what_a_sensor_says_of_its_run_it_says_last(tmp_path: Path, tiny_model: Path) -> None:
    workspace = placed_apart(make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(1)}))
    key = dg.AssetKey(["tiny", "step_gradients"])
    (request,) = placed(workspace, [dg.RunRequest(asset_selection=[key], tags={"dagster/priority": "9"})])
    assert request.tags["dagster/priority"] == "9"


def test_every_asset_of_the_pool_is_placed(tmp_path: Path) -> None:
    # Held against what the assets themselves say, so that a new one cannot be forgotten.
    graph = definitions(tmp_path).resolve_asset_graph()
    pooled = {node.key for node in graph.asset_nodes if "gpu" in (node.pools or set())}
    others = {node.key for node in graph.asset_nodes} - pooled
    keys = device_keys(Workspace.load(tmp_path / "curation.yaml"))
    assert pooled <= keys
    assert not others & keys


CONFIGURED = """\
corpus: {{landing: ./landing}}
targets:
  - {{name: model, model: ./model, warmup: {{fraction: 0.5}}}}
  - {{name: reward, model: ./model, warmup: none, signals: [rewards]}}
  - name: judge
    model: judge
    warmup: none
    signals: [difficulty]
    endpoint: {{url: "http://127.0.0.1:1/v1"}}
engine: {{kind: {kind}}}
"""


@pytest.mark.parametrize(("kind", "signals"), [("local", True), ("ray", False)])
def test_what_others_compute_needs_no_device_here(tmp_path: Path, kind: str, signals: bool) -> None:
    (tmp_path / "curation.yaml").write_text(CONFIGURED.format(kind=kind))
    keys = {key.to_user_string() for key in device_keys(Workspace.load(tmp_path / "curation.yaml"))}
    assert ({"model/step_gradients", "reward/rewards"} <= keys) is signals
    assert "model/warmup_checkpoint" in keys
    assert "judge/difficulty" not in keys


EVALUATED = """\
scores:
  - {name: grace, target: model, method: grace}
subsets:
  - {name: best, score: grace, budget: {fraction: 0.5}}
evaluation: {benchmarks: [{name: held_out, path: ./held_out.jsonl}]}
"""


@pytest.mark.parametrize(("engine", "jobs"), [("{}", []), ("{run_tags: {team: curation}}", ["audit", "evaluation"])])
def test_audit_and_evaluation_are_jobs_on_a_device(tmp_path: Path, engine: str, jobs: list[str]) -> None:
    text = CONFIGURED.format(kind="local").replace("{kind: local}", engine) + EVALUATED
    (tmp_path / "curation.yaml").write_text(text)
    defs = build_definitions(Workspace.load(tmp_path / "curation.yaml"))
    assert [job.name for job in defs.jobs or [] if job.name != "accept_removals"] == jobs
    for name in jobs:
        assert defs.resolve_job_def(name).tags == {"team": "curation"}


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ("{curation/stage: mine}", "curation/stage is reserved for tags that the pipeline sets itself"),
        ("{dagster/asset_partition_range_start: a}", "is reserved for tags that the pipeline sets itself"),
        ("{since: {day: 2026-01-01}}", "cannot be encoded as JSON"),
        ("{since: 1}", "run_tags"),
    ],
)
def test_tags_that_cannot_be_are_refused(tags: str, reason: str) -> None:
    text = CONFIGURED.format(kind=f"local, run_tags: {tags}")
    with pytest.raises(ConfigError, match=reason):
        parse_settings(text.encode(), Path("curation.yaml"))


def test_tags_are_text_or_json() -> None:
    value: dict[str, Any] = {"b": [1, {"c": None}], "a": "x"}
    text = CONFIGURED.format(kind=f"local, run_tags: {{one: plain, two: {json.dumps(value)}}}")
    found = run_tags(parse_settings(text.encode(), Path("curation.yaml")).engine)
    assert found["one"] == "plain"
    assert json.loads(found["two"]) == value
