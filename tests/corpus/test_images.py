"""Images: bytes are hashed, and no path leads out of the file's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.images import ImageFolder
from tests.corpus.helpers import data_file, jsonl, read, reasons


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "landing"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(b"one")
    (root / "images" / "same.png").write_bytes(b"one")
    (root / "images" / "b.png").write_bytes(b"two")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "inside.png").symlink_to(root / "images" / "a.png")
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    return root


def test_equal_bytes_are_equal_images(folder: Path) -> None:
    images = ImageFolder(folder)
    assert images.digest("images/a.png") == images.digest("images/same.png") == images.digest("inside.png")
    assert images.digest("images/a.png") == images.digest("images/../images/a.png")
    assert images.digest("images/a.png") != images.digest("images/b.png")


def test_a_url_stands_for_itself(folder: Path) -> None:
    images = ImageFolder(folder)
    assert images.digest("https://x.org/a.png") == ImageFolder(None).digest("https://x.org/a.png")
    assert images.digest("https://x.org/a.png") != images.digest("https://x.org/b.png")
    assert images.digest("data:image/png;base64,AAAA").startswith("url:")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("../secret.png", "image_outside_folder"),
        ("images/../../secret.png", "image_outside_folder"),
        ("/etc/passwd", "image_outside_folder"),
        ("file:///etc/passwd", "image_outside_folder"),
        ("outside.png", "image_outside_folder"),
        ("up/secret.png", "image_outside_folder"),
        ("none.png", "image_missing"),
        ("images", "image_missing"),
        ("pipe.png", "image_missing"),
        ("loop.png", "image_missing"),
        ("x" * 5000, "image_missing"),
    ],
)
def test_what_is_no_image_of_the_folder(folder: Path, reference: str, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        ImageFolder(folder).digest(reference)
    assert caught.value.reason == reason
    assert "secret\n" not in caught.value.detail


def test_without_a_folder_only_urls_work() -> None:
    with pytest.raises(Refused, match="image_missing"):
        ImageFolder(None).digest("a.png")


def test_rows_with_images(folder: Path) -> None:
    row = {"instruction": "q", "output": "r"}
    names = ["images/a.png", "images/same.png", "images/b.png", "none.png", "../secret.png"]
    path = folder / "a.jsonl"
    path.write_bytes(jsonl(*(row | {"image_url": name} for name in names), row | {"image_url": None}))
    rows = read(path, format="mmathcot")
    assert reasons(rows) == [(3, -1, "image_missing"), (4, -1, "image_outside_folder")]
    one, same, other, none = rows.accepted.to_dicts()
    assert one["sample_id"] == same["sample_id"] != other["sample_id"]
    assert one["prompt_id"] == same["prompt_id"] != none["prompt_id"]
    assert one["images"] == ["images/a.png"]
    assert none["images"] == []


def test_an_image_alone_is_a_prompt(folder: Path) -> None:
    rows = read(jsonl({"prompt": "", "response": "r", "images": ["images/a.png"]}), images_root=folder)
    assert rows.accepted.height == 1


@pytest.mark.data
def test_puzzles_keep_their_images() -> None:
    path = data_file("puzzlevqa/sample.jsonl")
    rows = read(path, columns={"prompt": "question", "response": "explanation"})
    assert rows.rejected.is_empty()
    assert rows.accepted.height == 200
    puzzles = [json.loads(line) for line in path.read_text().splitlines()]
    distinct = {(puzzle["question"], (path.parent / puzzle["image"]).read_bytes()) for puzzle in puzzles}
    assert rows.accepted["prompt_id"].n_unique() == len(distinct)
