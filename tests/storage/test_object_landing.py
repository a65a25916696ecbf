"""A landing area in a bucket (moto's server): one listing tells all, and what is read is copied once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest

from curation_resources.storage import object_landing
from curation_resources.storage.digests import bytes_digest
from curation_resources.storage.files import FileChangedError
from curation_resources.storage.landing import LONGEST_KEY, UNREADABLE, LandingError, partition_key
from curation_resources.storage.mirror import Mirror
from curation_resources.storage.object_landing import ObjectLanding
from curation_resources.storage.object_store import ObjectStorage, ObjectStoreOptions
from tests.s3 import watched

IMAGE_BYTES = 100


def make(bucket: str, tmp_path: Path) -> ObjectLanding:
    return ObjectLanding(
        ObjectStorage(f"{bucket}/traces", ObjectStoreOptions(), tmp_path / "s3"), tmp_path / "cache", IMAGE_BYTES
    )


def put(landing: ObjectLanding, *names: str, data: bytes | None = None) -> None:
    for name in names:
        body = name.encode() if data is None else data
        boto3.client("s3").put_object(Bucket=landing.storage.bucket, Key=f"traces/{name}", Body=body)


@pytest.fixture
def landing(bucket: str, tmp_path: Path) -> ObjectLanding:
    return make(bucket, tmp_path)


def test_every_kind_of_shard_is_listed_in_order_and_nothing_hidden(landing: ObjectLanding) -> None:
    put(landing, "b.jsonl", "a.parquet", "deep/er/c.jsonl.gz", "größe 題.jsonl", "a=b&c?d#e%20f+.jsonl")
    put(landing, ".d.jsonl", "_SUCCESS", "_tmp/e.jsonl", "deep/_g.jsonl", "B.JSONL", "README.md", "deep/k.PNG")
    put(landing, "deep/", "empty/", data=b"")
    assert [file.name for file in landing.files()] == sorted(
        ["B.JSONL", "a.parquet", "a=b&c?d#e%20f+.jsonl", "b.jsonl", "deep/er/c.jsonl.gz", "größe 題.jsonl"]
    )
    assert landing.ignored() == ["README.md"]
    for file in landing.files():
        assert landing.path(file.shard).read_bytes() == file.name.encode()
        with landing.open(file.shard) as stream:
            assert stream.read() == file.name.encode()


def test_keys_that_cannot_be_shards_are_named_with_the_reason(landing: ObjectLanding) -> None:
    long = "题" * 40 + ".jsonl"
    put(landing, "a//b.jsonl", "../up.jsonl", "./here.jsonl", "/root.jsonl", long, "a.jsonl", "\x1b[2Ja.txt", "x/")
    assert [file.name for file in landing.files()] == ["a.jsonl"]
    no_path = " (its key is not a valid file path)"
    assert sorted(landing.ignored()) == sorted(
        [name + no_path for name in ("\\x1b[2Ja.txt", "../up.jsonl", "./here.jsonl", "/root.jsonl", "a//b.jsonl", "x/")]
        + [f"{long} (its path is too long)"]
    )
    assert len(partition_key(long)) > LONGEST_KEY


def test_one_listing_tells_every_version(landing: ObjectLanding) -> None:
    put(landing, *(f"{n}.jsonl" for n in range(5)))
    with watched() as asked:
        before = landing.digests(landing.settled())
    assert [(request.method, request.key) for request in asked] == [("GET", "")]
    assert before["3.jsonl"] == f"etag:{hashlib.md5(b'3.jsonl').hexdigest()}"
    assert set(before.values()).isdisjoint({bytes_digest(f"{n}.jsonl".encode()) for n in range(5)})
    put(landing, "3.jsonl", data=b"other")
    after = landing.digests(landing.settled(wait=False))
    assert [shard for shard in before if before[shard] != after[shard]] == ["3.jsonl"]
    assert landing.digest("3.jsonl") == after["3.jsonl"]
    assert landing.digest("gone.jsonl") == UNREADABLE
    assert (landing.exists("3.jsonl"), landing.exists("gone.jsonl")) == (True, False)


def test_an_unchanged_object_is_fetched_once(landing: ObjectLanding, bucket: str, tmp_path: Path) -> None:
    put(landing, "deep/a.jsonl.gz", data=b"one")
    (file,) = landing.files()
    again = make(bucket, tmp_path)
    again.files()
    with watched() as asked:
        first = landing.path(file.shard)
        assert first.read_bytes() == b"one"
        assert landing.path(file.shard) == first
        assert again.path(file.shard) == first
    assert [(request.method, request.key) for request in asked] == [("GET", "traces/deep/a.jsonl.gz")]
    put(landing, "deep/a.jsonl.gz", data=b"two")
    landing.files()
    assert landing.path(file.shard).read_bytes() == b"two"
    assert first.exists()  # somebody may be reading it


def test_copies_of_former_versions_go_after_a_while(landing: ObjectLanding, monkeypatch: pytest.MonkeyPatch) -> None:
    put(landing, "a.jsonl", data=b"one")
    landing.files()
    first = landing.path("a.jsonl")
    old = time.time() - object_landing.KEEP_SECONDS - 1
    os.utime(first, (old, old))
    put(landing, "a.jsonl", data=b"two")
    landing.files()
    assert landing.path("a.jsonl").read_bytes() == b"two"
    assert not first.exists()


def test_an_object_that_changed_since_it_was_listed_is_read_as_it_is_now(landing: ObjectLanding) -> None:
    put(landing, "a.jsonl", data=b"one")
    landing.files()
    put(landing, "a.jsonl", data=b"two")
    with landing.open("a.jsonl") as stream, pytest.raises(FileChangedError):
        stream.read()
    assert landing.path("a.jsonl").read_bytes() == b"two"
    landing.storage.remove("a.jsonl")
    landing.files()
    with pytest.raises(FileNotFoundError):
        landing.path("a.jsonl")


def test_a_large_object_is_read_in_parts(landing: ObjectLanding) -> None:
    data = os.urandom(9 * 2**20)
    put(landing, "a.parquet", data=data)
    landing.files()
    with watched() as asked, landing.open("a.parquet") as stream:
        assert stream.read(1000) == data[:1000]
        stream.seek(-1000, os.SEEK_END)
        assert stream.read() == data[-1000:]
        assert stream.read() == b""
    assert [request.method for request in asked] == ["GET"] * 2


@pytest.mark.parametrize("look", [ObjectLanding.files, ObjectLanding.ignored, ObjectLanding.settled])
def test_a_bucket_that_cannot_be_listed_is_an_error_with_the_mend(
    look: Callable[[ObjectLanding], Any], bucket: str, tmp_path: Path
) -> None:
    with pytest.raises(LandingError, match=r"no such bucket: create it.*corpus\.landing"):
        look(make(f"{bucket}-x", tmp_path))


def test_a_prefix_with_nothing_is_an_empty_area(landing: ObjectLanding) -> None:
    assert (landing.files(), landing.ignored()) == ([], [])


def test_files_that_rows_name_come_as_they_are_asked_for(landing: ObjectLanding) -> None:
    put(landing, "sub/a.jsonl", "sub/images/red.png", "sub/other.png")
    folder = landing.folder(partition_key("sub/a.jsonl"))
    red = folder / "images" / "red.png"
    with watched() as asked:
        assert landing.fetch(red) == bytes_digest(b"sub/images/red.png")
        assert red.read_bytes() == b"sub/images/red.png"
        assert not (folder / "other.png").exists()
        # A second look asks whether it is still the same; who knows its hash need not.
        assert landing.fetch(red) == bytes_digest(b"sub/images/red.png")
        landing.fetch(red, bytes_digest(b"sub/images/red.png"))
    assert [request.method for request in asked] == ["GET"] * 2
    put(landing, "sub/images/red.png", data=b"blue")
    assert landing.fetch(red) == bytes_digest(b"blue")
    assert red.read_bytes() == b"blue"
    with pytest.raises(FileNotFoundError):
        landing.fetch(folder / "no.png")
    assert landing.fetch(folder.parent.parent / "elsewhere.png") is None


def test_a_copy_that_somebody_changed_is_fetched_again(landing: ObjectLanding) -> None:
    put(landing, "a.png")
    path = landing.folder("a.jsonl") / "a.png"
    landing.fetch(path)
    path.write_bytes(b"damaged")
    assert landing.fetch(path, bytes_digest(b"a.png")) == bytes_digest(b"a.png")
    assert path.read_bytes() == b"a.png"


def test_of_a_file_that_is_too_large_the_hash_is_right_and_little_is_kept(landing: ObjectLanding) -> None:
    data = os.urandom(5000)
    put(landing, "a.png", data=data)
    path = landing.folder("a.jsonl") / "a.png"
    assert landing.fetch(path) == bytes_digest(data)
    assert path.read_bytes() == data[: IMAGE_BYTES + 1]
    larger = Mirror(landing.storage, landing.folder("a.jsonl"), 10_000)
    assert larger.fetch(path, bytes_digest(data)) == bytes_digest(data)
    assert path.read_bytes() == data


def test_a_shard_that_leads_out_has_no_folder(landing: ObjectLanding) -> None:
    with pytest.raises(LandingError, match="points outside"):
        landing.folder(partition_key("../../a.jsonl"))
