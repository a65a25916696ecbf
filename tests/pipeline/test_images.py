"""Traces with images, from the landing file to the release, with a tiny vision-language model."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from curation_assets.corpus.samples import samples_of
from curation_assets.defs.dry_run import dry_run
from curation_assets.defs.main_job import MainJob
from curation_assets.releases.data import ReleaseError
from curation_assets.signals.warmup import CheckpointError, train_warmup
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.samples import ImageFile
from tests.models import write_tiny_qwen3_vl
from tests.pipeline.workspaces import (
    PASS_SIGNALS,
    instance_of,
    landed,
    lose,
    make_workspace,
    release_folder,
    release_subset,
    rows,
    run,
    sample_scores,
    signal_rows,
    stored,
    write_config,
    write_shard,
)

SIGNAL_NAMES = ("step_gradients", "likelihoods")
RESPONSE = "Step 1: look at the square here\nStep 2: it has one colour only\nAnswer: 1"


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Qwen3-VL model."""
    return write_tiny_qwen3_vl(tmp_path_factory.mktemp("vision"))


def png(color: tuple[int, int, int], size: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, "PNG")
    return stream.getvalue()


def trace(image: Any, **further: object) -> dict[str, Any]:
    return {"prompt": "<image>\nWhat is it?", "response": RESPONSE, "image": image} | further


def put_image(landing: Path, name: str, data: bytes) -> None:
    (landing / name).parent.mkdir(parents=True, exist_ok=True)
    (landing / name).write_bytes(data)


def test_images_are_measured_from_files_and_from_rows(tmp_path: Path, vision_model: Path) -> None:
    red, blue = png((200, 0, 0)), png((0, 0, 200))
    put_image(tmp_path / "landing" / "sub", "images/red.png", red)
    inside = f"data:image/png;base64,{base64.b64encode(blue).decode()}"
    shards = {"sub/a.jsonl": [trace("images/red.png"), trace(inside), *rows(2)], "b.jsonl": [trace({"bytes": None})]}
    workspace = make_workspace(tmp_path, vision_model, shards, signals=SIGNAL_NAMES)
    write_parquet(landed(workspace) / "c.parquet", [trace({"bytes": red, "path": "x.png"})])
    # Red of a file and red of a row are one sample that lies in two shards.
    assert run(workspace).measured == {"tiny": 5}
    corpus = read_stored(workspace, "raw_corpus").collect()
    red_rows = corpus.filter(pl.col("images").list.first().str.contains("red|warehouse"))
    assert red_rows["sample_id"].n_unique() == 2
    assert len(red_rows) == 3
    scores = sample_scores(workspace)
    assert scores["flags"].list.len().sum() == 0
    assert scores["grace"].is_finite().all()
    likelihoods = signal_rows(workspace, "likelihoods")
    assert likelihoods["mean_nll"].n_unique() == len(likelihoods)  # colours make a difference
    kept = sorted(workspace.warehouse.storage.read(path) for path in stored(workspace, "images"))
    assert kept == sorted([red, blue])
    assert run(workspace).tokens_measured == 0


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    pl.DataFrame(records).write_parquet(path)


def test_references_lead_to_where_the_images_lie(tmp_path: Path, vision_model: Path) -> None:
    put_image(tmp_path / "landing" / "sub", "images/red.png", png((200, 0, 0)))
    inside = f"data:image/png;base64,{base64.b64encode(png((0, 9, 0))).decode()}"
    records = [trace(["images/red.png", inside, "https://x.org/a.png"])]
    workspace = make_workspace(tmp_path, vision_model, {"sub/a.jsonl": records}, signals=SIGNAL_NAMES)
    run(workspace)
    (sample,) = samples_of(workspace, read_stored(workspace, "raw_corpus").collect())
    file, kept, address = sample.images
    red = hashlib.blake2b(png((200, 0, 0)), digest_size=16).hexdigest()
    assert file == ImageFile(str(workspace.landing.folder(workspace.landing.files()[0].shard)), "images/red.png", red)
    assert (Path(file.root) / file.path).read_bytes() == png((200, 0, 0))
    assert isinstance(kept, ImageFile)
    assert kept.path == kept.digest
    assert (Path(kept.root) / kept.path).read_bytes() == png((0, 9, 0))
    assert address == "https://x.org/a.png"


def test_limits_leave_samples_out_until_they_are_raised(tmp_path: Path, vision_model: Path) -> None:
    put_image(tmp_path / "landing", "large.png", png((200, 0, 0), 32))
    put_image(tmp_path / "landing", "small.png", png((200, 0, 0), 16))
    shards = {"a.jsonl": [trace("large.png"), trace("small.png"), trace("https://x.invalid/a.png")]}
    strict = make_workspace(tmp_path, vision_model, shards, signals=SIGNAL_NAMES, corpus="images: {max_pixels: 500}")
    run(strict)
    flags = sample_scores(strict)["flags"].to_list()
    assert flags == [["image_too_large"], [], ["image_remote"]]
    assert run(strict).tokens_measured == 0
    generous = Workspace.load(write_config(strict.folder, vision_model, signals=SIGNAL_NAMES))
    summary = run(generous)
    # The small one is not measured again; the remote one is looked at again, and left out again.
    assert (summary.measured, summary.scored) == ({"tiny": 2}, {"tiny": 1})
    assert summary.tokens_measured > 0
    assert sample_scores(generous)["flags"].to_list() == [[], [], ["image_remote"]]
    back = Workspace.load(
        write_config(strict.folder, vision_model, signals=SIGNAL_NAMES, corpus="images: {max_pixels: 500}")
    )
    assert run(back).tokens_measured == 0
    assert sample_scores(back)["flags"].to_list() == [[], [], ["image_remote"]]


@pytest.mark.folder_only("the copy that was read stands for an image that is gone from the bucket")
def test_scores_follow_what_was_left_out_and_is_tried_again(tmp_path: Path, vision_model: Path) -> None:
    red = png((200, 0, 0))
    put_image(tmp_path / "landing", "red.png", red)
    shards = {"a.jsonl": [trace("red.png"), *rows(2)]}
    run(make_workspace(tmp_path, vision_model, shards, signals=("likelihoods",)))
    (tmp_path / "landing" / "red.png").unlink()
    workspace = Workspace.load(write_config(tmp_path, vision_model))
    run(workspace)
    assert sample_scores(workspace)["flags"].to_list() == [["image_missing"], [], []]
    put_image(tmp_path / "landing", "red.png", red)
    assert run(workspace).scored == {"tiny": 0}
    lose(workspace, *(path for path in stored(workspace, "signals") if "/left_out/" in path))
    summary = run(workspace)
    assert (summary.measured, summary.scored, summary.subsets) == ({"tiny": 1}, {"tiny": 1}, ["best"])
    assert sample_scores(workspace)["flags"].list.len().sum() == 0
    assert sample_scores(workspace)["grace"].is_finite().all()
    again = run(workspace)
    assert (again.tokens_measured, again.scored) == (0, {"tiny": 0})


@pytest.mark.folder_only("the copy that was read stands for an image that was replaced in the bucket")
def test_an_image_that_was_replaced_is_not_measured_as_the_former_one(tmp_path: Path, vision_model: Path) -> None:
    put_image(tmp_path / "landing", "a.png", png((200, 0, 0)))
    shards = {"a.jsonl": [trace("a.png"), *rows(2)]}
    run(make_workspace(tmp_path, vision_model, shards, signals=("likelihoods",)))
    put_image(tmp_path / "landing", "a.png", png((0, 0, 200)))
    workspace = Workspace.load(write_config(tmp_path, vision_model, signals=SIGNAL_NAMES))
    run(workspace)
    before = sample_scores(workspace)
    assert before["flags"].to_list() == [["image_changed"], [], []]
    # The mend: what was read of the file is deleted, so that it is read again.
    lose(workspace, *stored(workspace, "corpus/raw_corpus"))
    summary = run(workspace)
    assert (summary.read, summary.measured, summary.scored) == (1, {"tiny": 1}, {"tiny": 1})
    after = sample_scores(workspace)
    assert after["flags"].to_list() == [[], [], []]
    assert after["sample_id"][0] != before["sample_id"][0]
    assert after["sample_id"][1:].equals(before["sample_id"][1:])
    assert (run(workspace).tokens_measured, run(workspace).read) == (0, 0)


def test_a_text_model_counts_traces_with_images_apart(tmp_path: Path, tiny_model: Path) -> None:
    put_image(tmp_path / "landing", "red.png", png((200, 0, 0)))
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": [trace("red.png"), *rows(2)]}, signals=SIGNAL_NAMES)
    run(workspace)
    assert sample_scores(workspace)["flags"].to_list() == [["images_not_supported"], [], []]


def test_a_release_holds_the_images_that_were_inside_rows(tmp_path: Path, vision_model: Path) -> None:
    red = png((200, 0, 0))
    inside = f"data:image/png;base64,{base64.b64encode(red).decode()}"
    workspace = make_workspace(tmp_path, vision_model, {"a.jsonl": [trace(inside)]})
    run(workspace)
    release, _ = release_subset(workspace)
    folder = release_folder(workspace, release.number)
    (record,) = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    (name,) = record["images"]
    assert (folder / name).read_bytes() == red
    assert name in (folder / "SHA256SUMS").read_text()
    assert pl.read_parquet(folder / "data" / "train.parquet")["images"].to_list() == [[name]]


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_release_whose_image_is_gone_says_how_to_have_it_again(
    tmp_path: Path, vision_model: Path, damage: str
) -> None:
    red = png((200, 0, 0))
    inside = f"data:image/png;base64,{base64.b64encode(red).decode()}"
    workspace = make_workspace(tmp_path, vision_model, {"a.jsonl": [trace(inside)]})
    run(workspace)
    (kept,) = stored(workspace, "images")
    if damage == "lost":
        lose(workspace, kept)
    else:
        workspace.warehouse.storage.write(kept, png((0, 0, 1)))
    subset = workspace.settings.subset("best")
    with pytest.raises(ReleaseError, match=Path(kept).name) as caught:
        MainJob(workspace, instance_of(workspace)).release(subset)
    (table,) = stored(workspace, "corpus/raw_corpus")
    assert f"{workspace.warehouse.storage.shown(table)} and use `curate run`" in str(caught.value).replace(
        ", and use", " and use"
    )
    assert "a.jsonl" in str(caught.value)
    # The mend, as it is written.
    workspace.warehouse.storage.remove(kept)
    lose(workspace, table)
    assert run(workspace).tokens_measured == 0
    release, _ = MainJob(workspace, instance_of(workspace)).release(subset)
    assert (release_folder(workspace, release.number) / kept).read_bytes() == red


def test_a_dry_run_sees_the_images_where_they_are(tmp_path: Path, vision_model: Path) -> None:
    put_image(tmp_path / "landing" / "sub", "images/red.png", png((200, 0, 0)))
    workspace = make_workspace(tmp_path, vision_model, {"sub/a.jsonl": [trace("images/red.png")]})
    with dry_run(workspace, 1) as look:
        assert look.summary.rejected == {}
        assert sample_scores(look.workspace)["flags"].to_list() == [[]]


def test_a_warm_up_is_trained_on_text_and_measures_images(tmp_path: Path, vision_model: Path) -> None:
    put_image(tmp_path / "landing", "red.png", png((200, 0, 0)))
    workspace = make_workspace(
        tmp_path, vision_model, {"a.jsonl": [trace("red.png"), *rows(5)]}, warmup="{min_pool: 1, fraction: 1.0}"
    )
    assert run(workspace).measured == {"tiny": 6}
    (path,) = stored(workspace, "checkpoints/tiny/warmup", "trained_on.parquet")
    assert len(workspace.warehouse.read_table(path)) == 5
    assert sample_scores(workspace)["grace"].is_finite().all()


def test_a_warm_up_draws_its_share_from_the_text(tmp_path: Path, vision_model: Path) -> None:
    pictures = []
    for shade in range(8):
        put_image(tmp_path / "landing", f"{shade}.png", png((shade, 0, 0)))
        pictures.append(trace(f"{shade}.png"))
    said = rows(1, start=20)[0] | {"prompt": "What is <|image_pad|>?"}
    shards = {"a.jsonl": [*pictures, *rows(5), said]}
    waiting = make_workspace(tmp_path, vision_model, shards, warmup="{min_pool: 7, fraction: 0.5}")
    (line,) = run(waiting).waiting
    assert "holds 6 samples of text only (plus 8 with images, which no warm-up is trained on)" in line
    assert "Add traces of text only, lower targets.warmup.min_pool, or set warmup: none" in line
    target = waiting.settings.target("tiny")
    with pytest.raises(CheckpointError, match="6 samples of text only"):
        train_warmup(waiting, target)
    workspace = Workspace.load(write_config(tmp_path, vision_model, warmup="{min_pool: 6, fraction: 1.0}"))
    record = train_warmup(workspace, workspace.settings.target("tiny")).record
    # One of the six says the model's image token, and is trained on as little as it is measured.
    assert (record["drawn"], record["samples"]) == (6, 5)
    half = Workspace.load(write_config(tmp_path, vision_model, warmup="{min_pool: 6, fraction: 0.5}"))
    assert train_warmup(half, half.settings.target("tiny")).record["drawn"] == 3


@pytest.mark.data
@pytest.mark.slow
def test_every_puzzle_is_measured(tmp_path: Path, vision_model: Path, real_data: Path) -> None:
    source = real_data / "puzzlevqa"
    if not source.is_dir():
        pytest.skip(f"no puzzlevqa in {real_data}: set CURATION_TEST_DATA")
    shutil.copytree(source / "images", tmp_path / "landing" / "images")
    records = []
    for line in (source / "sample.jsonl").read_text().splitlines():
        puzzle = json.loads(line)
        steps = [puzzle[name] for name in ("caption", "explanation", "deduction")]
        records.append({name: puzzle[name] for name in ("question", "answer", "image")} | {"steps": steps})
    write_shard(tmp_path / "landing" / "puzzles.jsonl", records)
    columns = "columns: {prompt: question, steps: steps, answer: answer, images: image}"
    workspace = make_workspace(tmp_path, vision_model, {}, signals=PASS_SIGNALS, corpus=columns)
    summary = run(workspace)
    assert summary.rejected == {}
    gradients = signal_rows(workspace, "step_gradients")
    assert summary.measured == {"tiny": len(gradients)}
    assert gradients["gram"].null_count() == 0
    likelihoods = signal_rows(workspace, "likelihoods")
    assert likelihoods["mean_nll"].is_finite().all()
    assert likelihoods["flags"].list.len().sum() == 0
    assert run(workspace).tokens_measured == 0
