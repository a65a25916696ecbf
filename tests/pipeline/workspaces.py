"""Small workspaces for tests: a landing area, a configuration, a tiny real model.

Landing area and warehouse are folders, or prefixes of a bucket where `pytest --storage s3` says so. Tests put files
into the folder `landed` in both cases; `arrive` carries them to the bucket.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from curation_assets import tables
from curation_assets.defs.main_job import MainJob, RunSummary
from curation_assets.releases.build import Release
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest
from curation_resources.storage.object_landing import ObjectLanding

OTHER_PASSES = (
    "text_embeddings",
    "unconditional_likelihoods",
    "direct_answer_likelihoods",
    "headed_answer_likelihoods",
    "loss_trajectories",
    "step_gradient_trajectories",
    "base_likelihoods",
    "perturbed_losses",
    "gradient_spectra",
    "gradient_norms",
    "gradient_features",
    "gradient_feature_trajectories",
    "adam_feature_trajectories",
    "in_run_influence",
    "rewards",
    "process_rewards",
    "attention_influence",
    "instruction_tags",
    "difficulty",
    "complexity",
    "quality",
    "solve_rate",
)
PASS_SIGNALS = tuple(signal for signal in SIGNALS if signal not in OTHER_PASSES)
"""All signals of one pass over a language model, of its weights as they are."""

CONFIG = """\
corpus: {{landing: {place}/landing{corpus}}}
warehouse: {place}/warehouse
targets:
  - {{name: tiny, model: {model}, warmup: {warmup}, signals: [{signals}]}}
{scores}engine: {{{engine}device: cpu, part_seconds: {part_seconds}, batch_tokens: {batch_tokens}}}
releases: {{policy: {policy}}}
"""

SCORES = """\
scores:
  - {{name: grace, target: tiny, method: grace, alpha: {alpha}}}
subsets:
  - {{name: best, score: grace, budget: {{fraction: 0.5}}}}
"""


_buckets: list[str] = []
_engines: list[str] = []


def use_bucket(address: str | None) -> None:
    """Have workspaces that are made from now on lie in a bucket, or in folders (None)."""
    _buckets[:] = [] if address is None else [address]


def use_engine(kind: str) -> None:
    """Have workspaces that are made from now on measure on this engine."""
    _engines[:] = [] if kind == "local" else [kind]


def place_of(folder: Path) -> str:
    """What a workspace's landing area and warehouse lie in."""
    return f"{_buckets[0]}/{digest(str(folder))}" if _buckets else "."


def landed(workspace: Workspace) -> Path:
    """The folder into which tests put files, and out of which they take them."""
    return workspace.folder / "landing"


def arrive(workspace: Workspace) -> None:
    """Make the landing area hold what `landed` holds, if it is another place."""
    if not isinstance(workspace.landing, ObjectLanding):
        return
    storage, folder = workspace.landing.storage, landed(workspace)
    there = {file.path: file.version for file in storage.objects()}
    here = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, data in here.items():
        if there.get(name) != hashlib.md5(data).hexdigest():
            storage.write(name, data)
    for name in there.keys() - here.keys():
        storage.remove(name)


def content_digest(workspace: Workspace, name: str) -> str:
    """What stands for the content of a file that landed."""
    data = (landed(workspace) / name).read_bytes()
    if isinstance(workspace.landing, ObjectLanding):
        return f"etag:{hashlib.md5(data).hexdigest()}"
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def stored(workspace: Workspace, folder: str = "", pattern: str = "*") -> list[str]:
    """Paths of the warehouse's files below a folder whose names match a pattern."""
    found = workspace.warehouse.storage.walk(folder)
    return [file.path for file in found if fnmatch.fnmatchcase(file.name, pattern)]


def lose(workspace: Workspace, *paths: str) -> None:
    """Have files of the warehouse gone."""
    for path in paths:
        assert workspace.warehouse.storage.exists(path)
        workspace.warehouse.storage.remove(path)


def release_folder(workspace: Workspace, number: int = 1, subset: str = "best") -> Path:
    """A release on this machine's disk."""
    return workspace.warehouse.local(f"{tables.release_dir(subset)}/{number}")


def rows(count: int, start: int = 0, steps: int = 3) -> list[dict[str, Any]]:
    """Distinct traces with steps and an answer."""
    made = []
    for n in range(start, start + count):
        lines = [f"Step {k}: {n} + {k} = {n + k}" for k in range(1, steps + 1 + n % 3)]
        made.append({"prompt": f"Count on from {n}.", "response": "\n".join([*lines, f"Answer: {n + len(lines)}"])})
    return made


def write_shard(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as JSON lines, with an old modification time, so that no test waits for it to settle."""

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    old = path.stat().st_mtime - 60
    os.utime(path, (old, old))


def write_config(
    folder: Path,
    model: Path,
    *,
    warmup: str = "none",
    alpha: float = 0.7,
    policy: str = "manual",
    part_seconds: float = 5.0,
    batch_tokens: int = 8192,
    signals: Sequence[str] = ("step_gradients",),
    corpus: str = "",
) -> Path:
    """Write curation.yaml into a folder; `corpus` is further keys of that section, in flow style.

    Scores and subsets are configured if the signals allow it.
    """
    path = folder / "curation.yaml"
    text = CONFIG.format(
        place=place_of(folder),
        model=model,
        warmup=warmup,
        signals=", ".join(signals),
        scores=SCORES.format(alpha=alpha) if "step_gradients" in signals else "",
        corpus=corpus and f", {corpus}",
        policy=policy,
        part_seconds=part_seconds,
        batch_tokens=batch_tokens,
        engine="kind: ray, address: local, workers: 2, " if _engines else "",
    )
    path.write_text(text)
    return path


def make_workspace(folder: Path, model: Path, shards: dict[str, list[dict[str, Any]]], **config: Any) -> Workspace:
    """A workspace in a folder, with the given shards landed."""
    (folder / "landing").mkdir(parents=True, exist_ok=True)
    for name, records in shards.items():
        write_shard(folder / "landing" / name, records)
    workspace = Workspace.load(write_config(folder, model, **config))
    arrive(workspace)
    return workspace


_instances: dict[Path, dg.DagsterInstance] = {}


def instance_of(workspace: Workspace) -> dg.DagsterInstance:
    """The workspace's own Dagster instance, in memory: a SQLite one costs seconds a run."""
    return _instances.setdefault(workspace.folder, dg.DagsterInstance.ephemeral())


def run(workspace: Workspace, *, accept_removals: bool = False) -> RunSummary:
    """Run the main job once, on what has landed."""
    arrive(workspace)
    return MainJob(workspace, instance_of(workspace), accept_removals=accept_removals).run()


def release_subset(workspace: Workspace, subset: str = "best") -> tuple[Release, bool]:
    """Release a subset that a run has made; gives the release, and whether it is new."""
    return MainJob(workspace, instance_of(workspace)).release(workspace.settings.subset(subset))


def signal_rows(workspace: Workspace, signal: SignalName) -> pl.DataFrame:
    """A signal of every sample, by sample_id."""
    return read_stored(workspace, signal).collect()


def sample_scores(workspace: Workspace) -> pl.DataFrame:
    """All sample scores of the target."""
    scan = workspace.warehouse.scan(tables.sample_scores_dir("tiny"))
    assert scan is not None
    return scan.collect().sort("shard", "row")


def subset_ids(workspace: Workspace, name: str = "best") -> list[str]:
    """The samples of a subset, best first."""
    return workspace.warehouse.read_table(tables.subset_path(name))["sample_id"].to_list()
