"""Clearing away: what the configuration or a release names stays, whatever else there is; the rest goes."""

from __future__ import annotations

import base64
import os
import random
import time
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli.app import app
from curation_assets.corpus.images import STORED
from curation_assets.defs.instance import open_instance
from curation_assets.operations.gc import DAY, clear, find_unused
from curation_assets.releases.build import broken_files, make_release, read_release
from curation_assets.releases.file_names import MANIFEST
from curation_assets.signals.store import signal_dir
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows, run, write_config

LATER = 30 * DAY

SIGNALS = ("step_gradients", "likelihoods", "embeddings_mean")


def removed(workspace: Workspace, days: float = 7, clock: float | None = None) -> set[str]:
    """Look as if a month had passed, and clear away; gives what was."""
    finds = find_unused(workspace, days, time.time() + LATER if clock is None else clock)
    assert clear(workspace, finds) == []
    return {find.what for find in finds if find.remove}


def paths(workspace: Workspace) -> set[str]:
    return {file.path for file in workspace.warehouse.files("")}


def configured(workspace: Workspace, model: Path, signals: tuple[str, ...], length: int, corpus: str = "") -> Workspace:
    """Another configuration on the same warehouse: other signals, another maximum length."""
    config = write_config(workspace.folder, model, signals=signals, corpus=corpus)
    config.write_text(config.read_text().replace("warmup: none", f"warmup: none, max_length: {length}"))
    return Workspace.load(config)


@pytest.mark.parametrize("seed", range(3))
def test_what_the_configuration_or_a_release_names_is_never_removed(
    tmp_path: Path, tiny_model: Path, seed: int
) -> None:
    draw = random.Random(seed)
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)})
    configurations = [(("step_gradients", *draw.sample(SIGNALS[1:], draw.randint(0, 2))), n) for n in (300, 400, 500)]
    named: set[str] = set()
    for signals, length in configurations:
        made = configured(made, tiny_model, signals, length)
        run(made)
        if draw.random() < 0.5:
            number = len(made.warehouse.made_folders(tables.release_dir("best"), MANIFEST)) + 1
            make_release(made, made.settings.subset("best"), number, "run")
            # Scores rest on the gradients alone.
            named.add(str(signal_dir(made, made.settings.targets[0], "step_gradients")))
    chosen = draw.choice(configurations)
    made = configured(made, tiny_model, *chosen)
    wanted = {str(signal_dir(made, made.settings.targets[0], signal)) for signal in made.settings.targets[0].signals}
    before = paths(made)
    folders = {"/".join(path.split("/")[:5]) for path in before if path.startswith("signals/")}
    assert removed(made) == folders - wanted - named
    gone = before - paths(made)
    assert gone == {path for path in before if "/".join(path.split("/")[:5]) in folders - wanted - named}
    assert run(made).tokens_measured == 0
    for name in made.warehouse.made_folders(tables.release_dir("best"), MANIFEST):
        assert broken_files(made, read_release(made, made.settings.subset("best"), int(name))) == []
    assert removed(made) == set()


def test_what_is_young_stays(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    run(made)
    former = str(signal_dir(made, made.settings.targets[0], "step_gradients"))
    other = configured(made, tiny_model, SIGNALS[:1], 300)
    run(other)
    assert removed(other, clock=time.time() + 6.9 * DAY) == set()
    assert removed(other, days=8, clock=time.time() + 7.9 * DAY) == set()
    assert removed(other, days=0, clock=time.time()) == {former}
    # Going back is measuring anew.
    back = Workspace.load(write_config(made.folder, tiny_model))
    assert run(back).measured == {"tiny": 2}


def test_targets_scores_and_subsets_that_are_gone(tmp_path: Path, tiny_model: Path) -> None:
    warmup = "{min_pool: 2, fraction: 1.0}"
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)}, warmup=warmup, signals=SIGNALS)
    run(made)
    config = made.config_file
    text = config.read_text()
    config.write_text(
        text.replace("tiny,", "small,")
        .replace(": grace, target", ": other, target")
        .replace(": best, score: grace", ": first, score: other")
    )
    renamed = Workspace.load(config)
    run(renamed)
    make_release(renamed, renamed.settings.subset("first"), 1, "run")
    before = paths(renamed)
    gone = removed(renamed)
    assert {path.split("/")[0] for path in gone} == {"signals", "checkpoints", "scores", "subsets"}
    assert {path for path in before if "/tiny/" in path or "best" in path} == before - paths(renamed)
    # And back: the release of the other name keeps its checkpoint, measurements and scores.
    config.write_text(text)
    back = Workspace.load(config)
    run(back)
    before = paths(back)
    scored = tables.step_scores_dir("small", "other")
    kept = [f"checkpoints/small/{p.split('/')[2]}" for p in before if p.startswith("checkpoints/small")]
    assert kept
    left_out = {path.rsplit("/", 1)[0] for path in before if path.startswith("signals/small") and "part-" in path}
    assert removed(back) == {folder for folder in left_out if "step_gradients" not in folder}
    assert any(path.startswith(scored) for path in paths(back))
    assert any(path.startswith("checkpoints/small") for path in paths(back))


def test_a_release_that_does_not_name_its_checkpoint_keeps_all_of_its_target(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)}, warmup="{min_pool: 2, fraction: 1.0}")
    run(made)
    make_release(made, made.settings.subset("best"), 1, "run")
    path = f"{tables.release_dir('best')}/1/{MANIFEST}"
    manifest = made.warehouse.read_json(path)
    del manifest["checkpoints"]["warmup"]["key"]
    made.warehouse.write_json(path, manifest)
    made = Workspace.load(write_config(made.folder, tiny_model))
    run(made)
    assert not {path for path in removed(made) if path.startswith("checkpoints")}


def test_images_that_nothing_shows(tmp_path: Path, tiny_model: Path) -> None:
    image = base64.b64encode(b"shown").decode()
    row = {"prompt": "<image> a", "response": "one", "images": [{"bytes": image}]}
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": [row]}, signals=("likelihoods",))
    run(made)
    made.warehouse.storage.write("images/unused", b"unused")
    made.warehouse.storage.write("images/copied", b"copied")
    made.warehouse.storage.write("releases/best/1/images/copied", b"copied")
    assert removed(made) == {"1 images"}
    (shown,) = read_stored(made, "raw_corpus").collect()["images"].explode()
    assert {file.name for file in made.warehouse.files("images")} == {"copied", shown.removeprefix(STORED)}


def test_what_dead_writes_left(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)}, signals=("likelihoods",))
    root = made.warehouse.root
    left = [root / "scores" / ".a.tmp", root / "releases" / "best" / ".making-x" / "data" / "part"]
    young = root / ".young.tmp"
    lock = root / "releases" / "best" / ".LATEST.lock"
    for path in [*left, young, lock]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        if path is not young:
            os.utime(path, (time.time() - 1.1 * DAY,) * 2)
    assert removed(made, clock=time.time()) == {"scores/.a.tmp", "releases/best/.making-x"}
    assert young.exists()
    assert lock.exists()
    assert not (root / "releases" / "best" / ".making-x").exists()


def test_in_s3(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    config = made.config_file
    config.write_text(config.read_text().replace("./warehouse", f"{bucket}/w"))
    made = Workspace.load(config)
    run(made)
    former = str(signal_dir(made, made.settings.targets[0], "step_gradients"))
    config.write_text(config.read_text().replace("warmup: none", "warmup: none, max_length: 300"))
    made = Workspace.load(config)
    run(made)
    made.warehouse.storage.write("releases/best/1/.claim", b"{}")
    assert removed(made, clock=time.time()) == set()
    assert removed(made) == {former, "releases/best/1/.claim"}
    assert not made.warehouse.files(former)
    assert made.warehouse.storage.unfinished() == []
    assert run(made).tokens_measured == 0


def test_what_is_written_to_meanwhile_stays(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    run(made)
    other = configured(made, tiny_model, SIGNALS[:1], 300)
    run(other)
    finds = find_unused(other, 7, time.time() + LATER)
    (former,) = [find for find in finds if find.remove]
    other.warehouse.storage.write(f"{former.what}/part-new.parquet", b"x")
    assert clear(other, finds) == [former]
    assert other.warehouse.files(former.what)


def test_the_command_shows_asks_and_waits_for_runs(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    run(made)
    other = configured(made, tiny_model, SIGNALS[:1], 300)
    run(other)
    before = paths(other)
    words = ["gc", "--older-than", "0", "--config", str(other.config_file)]
    shown = CliRunner().invoke(app, [*words, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "would be removed" in shown.output
    assert "the configuration" in shown.output
    refused = CliRunner().invoke(app, words)
    assert (refused.exit_code, "pass --yes to confirm" in refused.stderr) == (1, True)
    with open_instance(other) as instance:
        going = dg.DagsterRun(job_name="other", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(going)
        assert "in progress" in CliRunner().invoke(app, [*words, "--yes"]).stderr
        instance.delete_run(going.run_id)
    assert paths(other) == before
    done = CliRunner().invoke(app, [*words, "--yes"])
    assert done.exit_code == 0, done.output
    assert len(paths(other)) < len(before)
    assert "nothing to remove" in CliRunner().invoke(app, [*words, "--yes"]).output


def test_what_is_not_ours_stays(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)}, signals=("likelihoods",))
    run(made)
    strangers = {"signals/notes.txt", "scores/notes.txt", "subsets/notes.txt", "validation/deep/a.parquet", "own/file"}
    for path in strangers:
        made.warehouse.storage.write(path, b"x")
    assert removed(made) == set()
    assert strangers < paths(made)
