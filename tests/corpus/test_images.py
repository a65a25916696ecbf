"""Images: bytes are hashed, and no path leads out of the file's folder."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.images import ImageFolder
from tests.corpus.helpers import data_file, jsonl, parquet, read, reasons


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


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("../secret.png", "image_outside_folder"),
        ("images/../../secret.png", "image_outside_folder"),
        ("/etc/passwd", "image_outside_folder"),
        ("file:///etc/passwd", "image_outside_folder"),
        ("warehouse://images/00", "image_outside_folder"),
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
    digests = [hashlib.blake2b(data, digest_size=16).hexdigest() for data in (b"one", b"one", b"two")]
    assert [row["image_digests"] for row in (one, same, other)] == [[digest] for digest in digests]
    assert none["images"] == []


def test_an_image_alone_is_a_prompt(folder: Path) -> None:
    rows = read(jsonl({"prompt": "", "response": "r", "images": ["images/a.png"]}), images_root=folder)
    assert rows.accepted.height == 1


PNG = b"\x89PNG one"
ENCODED = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "image",
    [
        "images/a.png",
        f"data:image/png;base64,{ENCODED}",
        f"DATA:;Base64,{ENCODED[:4]}\n{ENCODED[4:]}",
        {"bytes": ENCODED, "path": "elsewhere.png"},
        {"bytes": None, "path": "images/a.png"},
        {"url": f"data:image/png;base64,{ENCODED}"},
        [f"data:image/png;base64,{ENCODED}"],
    ],
)
def test_the_same_image_however_a_row_holds_it(folder: Path, image: object) -> None:
    (folder / "images" / "a.png").write_bytes(PNG)
    row = {"prompt": "q", "response": "r"}
    kept: dict[str, bytes] = {}
    shard = read(jsonl(row | {"image": "images/a.png"}, row | {"image": image}), images_root=folder, kept=kept)
    one, other = shard.accepted.to_dicts()
    assert (one["sample_id"], one["prompt_id"]) == (other["sample_id"], other["prompt_id"])
    (reference,) = other["images"]
    assert one["image_digests"] == other["image_digests"] == [hashlib.blake2b(PNG, digest_size=16).hexdigest()]
    if reference != "images/a.png":
        assert kept == {reference.removeprefix("warehouse://images/"): PNG}
    assert other["extra"] == "{}"


@pytest.mark.parametrize("image", [PNG, {"bytes": PNG, "path": None}, [{"bytes": PNG, "path": "x.png"}]])
def test_bytes_in_parquet_are_the_image_of_that_path(folder: Path, image: object) -> None:
    (folder / "images" / "a.png").write_bytes(PNG)
    row = {"prompt": "q", "response": "r"}
    kept: dict[str, bytes] = {}
    inside = read(parquet(row | {"image": image}), "a.parquet", folder, kept)
    path = read(jsonl(row | {"image": "images/a.png"}), images_root=folder)
    assert inside.accepted["sample_id"].to_list() == path.accepted["sample_id"].to_list()
    assert list(kept.values()) == [PNG]


def test_bytes_are_kept_once_however_many_rows_have_them() -> None:
    calls: list[str] = []
    images = ImageFolder(None, lambda digest, data: calls.append(digest))
    assert images.take(PNG) == images.take(PNG) == (f"warehouse://images/{calls[0]}", f"file:{calls[0]}")
    assert len(calls) == 1


@pytest.mark.parametrize(
    "image",
    [
        "data:image/png;base64,not base64!",
        "data:image/png;base64,AAA",
        "data:image/png;base64,",
        "data:image/png,raw",
        "data:",
        {"bytes": "not base64!"},
        {"url": "data:nonsense"},
    ],
)
def test_bad_base64_is_a_reason(image: object) -> None:
    rows = read(jsonl({"prompt": "q", "response": "r", "image": image}, {"prompt": "q", "response": "r"}))
    assert reasons(rows) == [(0, -1, "image_bad_data")]
    assert "base64" in rows.rejected["detail"][0] or "no bytes" in rows.rejected["detail"][0]


def test_empty_bytes_are_a_reason() -> None:
    rows = read(parquet({"prompt": "q", "response": "r", "image": {"bytes": b"", "path": "a.png"}}), "a.parquet")
    assert reasons(rows) == [(0, -1, "image_bad_data")]


@pytest.mark.data
def test_puzzles_keep_their_images() -> None:
    path = data_file("puzzlevqa/sample.jsonl")
    rows = read(path, columns={"prompt": "question", "response": "explanation"})
    assert rows.rejected.is_empty()
    assert rows.accepted.height == 200
    puzzles = [json.loads(line) for line in path.read_text().splitlines()]
    distinct = {(puzzle["question"], (path.parent / puzzle["image"]).read_bytes()) for puzzle in puzzles}
    assert rows.accepted["prompt_id"].n_unique() == len(distinct)
