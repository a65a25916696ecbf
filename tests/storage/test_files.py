"""What every storage promises, on a folder and on S3 (moto's server): whole files, one winner, no lost swap."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curation_resources.storage.files import CLAIM, FileChangedError, FolderStorage, Storage, StorageError
from curation_resources.storage.s3 import S3Options, S3Storage
from tests.storage.test_warehouse import at_once

FRAME = pl.DataFrame({"a": [1, 2], "b": ["x", None]})


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    made: Storage
    if request.param == "folder":
        made = FolderStorage(tmp_path / "root")
    else:
        made = S3Storage(request.getfixturevalue("bucket") + "/some/prefix", S3Options(), tmp_path / "cache")
    made.prepare()
    return made


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def test_files_come_back_and_are_replaced(storage: Storage) -> None:
    storage.write("a/b.txt", b"one")
    assert storage.read("a/b.txt") == b"one"
    storage.write("a/b.txt", b"two")
    with storage.open("a/b.txt") as stream:
        storage.write("a/b.txt", b"three")
        assert stream.read() == b"two"
    storage.remove("a/b.txt")
    storage.remove("a/b.txt")
    assert not storage.exists("a/b.txt")


def test_a_file_that_is_being_filled_is_not_there_yet(storage: Storage) -> None:
    with storage.writing("a/b.txt") as file:
        file.write_bytes(b"one")
        assert not storage.exists("a/b.txt")
        assert storage.files("a") == []
    assert storage.read("a/b.txt") == b"one"
    with pytest.raises(FileNotFoundError), storage.writing("a/b.txt") as file:
        (file.with_name("nothing")).rename(file)
    assert storage.read("a/b.txt") == b"one"
    assert [found.name for found in storage.files("a")] == ["b.txt"]


@pytest.mark.parametrize("path", ["nothing", "a/nothing"])
def test_what_is_not_there(storage: Storage, path: str) -> None:
    for look in (storage.read, lambda p: storage.open_end(p).__enter__()):
        with pytest.raises(FileNotFoundError):
            look(path)
    assert not storage.exists(path)
    assert storage.files(path) == []
    assert storage.walk(path) == []
    assert storage.folders(path) == []


@pytest.mark.parametrize("name", ["plain", "with space", "größe 題", "a=b&c?d#e%20f+", "it's", "[x]*"])
def test_any_name_is_kept_as_it_is(storage: Storage, name: str) -> None:
    storage.write(f"{name}/{name}", b"1")
    assert storage.read(f"{name}/{name}") == b"1"
    assert [file.name for file in storage.files(name)] == [name]
    assert storage.folders("") == [name]
    assert storage.local(f"{name}/{name}").read_bytes() == b"1"
    storage.write(f"{name}/t.parquet", parquet(FRAME))
    scanned = storage.scan_parquet([f"{name}/t.parquet"], dict(FRAME.schema)).collect()
    assert scanned.equals(FRAME)


def test_listings(storage: Storage) -> None:
    for path in ("f/b", "f/a", "f/deep/c", "f/.hidden", "f/.deep/d", "fa"):
        storage.write(path, path.encode())
    assert [file.path for file in storage.files("f")] == ["f/a", "f/b"]
    assert [(file.path, file.size) for file in storage.walk("f")] == [("f/a", 3), ("f/b", 3), ("f/deep/c", 8)]
    assert storage.folders("f") == ["deep"]
    assert storage.folders("") == ["f"]
    assert [file.path for file in storage.files("")] == ["fa"]


def test_many_files_are_listed(storage: Storage) -> None:
    for number in range(1050 if isinstance(storage, FolderStorage) else 1005):
        storage.write(f"many/{number:05d}", b"")
    found = storage.files("many")
    assert len(found) >= 1005
    assert [file.name for file in found] == sorted(file.name for file in found)


def test_a_version_changes_with_the_content(storage: Storage) -> None:
    storage.write("v", b"one")
    (before,) = storage.files("")
    storage.write("v", b"two")
    (after,) = storage.files("")
    assert before.version != after.version


def test_of_makers_of_one_file_exactly_one_wins(storage: Storage) -> None:
    won: list[int] = []
    at_once(lambda number: won.append(number) if storage.create("once", str(number).encode()) else None, 8)
    assert len(won) == 1
    assert storage.read("once") == str(won[0]).encode()
    assert not storage.create("once", b"again")


def test_counting_by_swaps_loses_nothing(storage: Storage) -> None:
    def count(_number: int) -> None:
        done = 0
        while done < 5:
            current = storage.read("counter") if storage.exists("counter") else None
            done += storage.swap("counter", current, str(int(current or b"0") + 1).encode())

    at_once(count, 4)
    assert storage.read("counter") == b"20"
    assert not storage.swap("counter", None, b"x")
    assert not storage.swap("counter", b"19", b"x")
    assert not storage.swap("other", b"19", b"x")


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(place: Path) -> None:
        (place / "deep").mkdir()
        (place / "deep" / "data").write_text(text)
        (place / "manifest").write_text(text)

    return fill


def test_a_folder_is_made_whole_and_only_once(storage: Storage) -> None:
    assert storage.make_folder("r/1", fill_with("first"), "manifest")
    assert not storage.make_folder("r/1", fill_with("second"), "manifest")
    assert [file.path for file in storage.walk("r")] == ["r/1/deep/data", "r/1/manifest"]
    assert storage.read("r/1/deep/data") == b"first"
    local = storage.local("r/1")
    assert (local / "deep" / "data").read_text() == (local / "manifest").read_text() == "first"


def test_of_makers_of_one_folder_one_wins_and_it_is_whole(storage: Storage) -> None:
    won: list[int] = []

    def make(number: int) -> None:
        if storage.make_folder("r/1", fill_with(str(number)), "manifest"):
            won.append(number)

    at_once(make, 4)
    assert len(won) == 1
    assert storage.read("r/1/deep/data") == storage.read("r/1/manifest") == str(won[0]).encode()


def test_a_folder_whose_filling_fails_is_not_made(storage: Storage) -> None:
    def fail(place: Path) -> None:
        (place / "manifest").write_text("half")
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        storage.make_folder("r/1", fail, "manifest")
    assert storage.walk("r") == []
    assert storage.make_folder("r/1", fill_with("x"), "manifest")


def test_scans_have_the_columns_of_the_schema(storage: Storage) -> None:
    storage.write("t/1.parquet", parquet(FRAME))
    storage.write("t/2.parquet", parquet(FRAME.drop("b")))
    found = storage.scan_parquet(["t/1.parquet", "t/2.parquet"], dict(FRAME.schema)).collect()
    assert found["a"].to_list() == [1, 2, 1, 2]
    assert found["b"].to_list() == ["x", None, None, None]


@pytest.mark.parametrize("columns", [1, 3000])
def test_the_end_of_a_file_holds_its_footer(storage: Storage, columns: int) -> None:
    frame = pl.DataFrame({f"column_{n:06d}": [n] for n in range(columns)})
    buffer = io.BytesIO()
    frame.write_parquet(buffer, metadata={"fingerprint": "f" * 100})
    storage.write("wide.parquet", buffer.getvalue())
    with storage.open_end("wide.parquet") as stream:
        assert pl.read_parquet_metadata(stream)["fingerprint"] == "f" * 100


@pytest.fixture
def forgetful(bucket: str, tmp_path: Path) -> S3Storage:
    """A bucket whose answer to every put is lost once: the client tries again what S3 has done already."""
    made = S3Storage(f"{bucket}/forgetful", S3Options(), tmp_path / "cache")
    lost: set[str] = set()

    def lose(request_dict: dict[str, Any], **_: Any) -> int | None:
        if request_dict["url"] in lost:
            return None
        lost.add(request_dict["url"])
        return 0

    made.client.meta.events.register_first("needs-retry.s3.PutObject", lose)
    return made


def test_a_put_whose_answer_is_lost_counts(forgetful: S3Storage) -> None:
    assert forgetful.create("a", b"mine")
    assert not forgetful.create("a", b"another's")
    assert not forgetful.create("a", b"mine")
    assert forgetful.swap("b", None, b"1")
    assert forgetful.read("b") == b"1"


def test_a_claim_whose_answer_is_lost_is_not_waited_for(forgetful: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "curation_resources.storage.s3_claim.Claim._take_over", lambda _: pytest.fail("it waits for itself")
    )
    assert forgetful.make_folder("made", fill_with("1"), last="manifest")
    assert forgetful.read("made/deep/data") == b"1"


def test_a_maker_that_gave_up_is_not_waited_for(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = S3Storage(f"{bucket}/gave-up", S3Options(), tmp_path / "cache")
    monkeypatch.setattr(
        "curation_resources.storage.s3_claim.Claim._take_over", lambda _: pytest.fail("it waits for nobody")
    )
    with monkeypatch.context() as broken:
        broken.setattr(S3Storage, "_upload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.make_folder("made", fill_with("1"), last="manifest")
    assert made.make_folder("made", fill_with("2"), last="manifest")
    assert made.read("made/deep/data") == b"2"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_dead_makers_claim_is_taken_over(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = S3Storage(f"{bucket}/p", S3Options(), tmp_path)
    storage.write(f"r/1/{CLAIM}", b"{}")
    storage.write("r/1/left by a dead maker", b"")
    monkeypatch.setattr("curation_resources.storage.s3_claim.CLAIM_PAUSE", 0.01)
    done = threading.Event()

    def make() -> None:
        storage.make_folder("r/1", fill_with("x"), "manifest")
        done.set()

    thread = threading.Thread(target=make)
    thread.start()
    assert not done.wait(0.5)
    monkeypatch.setattr("curation_resources.storage.s3_claim.CLAIM_SECONDS", -1.0)
    thread.join(20)
    assert [file.path for file in storage.walk("r")] == ["r/1/deep/data", "r/1/manifest"]
    assert not storage.exists(f"r/1/{CLAIM}")


def test_a_local_copy_is_made_once_and_again_of_other_content(bucket: str, tmp_path: Path) -> None:
    storage = S3Storage(f"{bucket}/p", S3Options(), tmp_path)
    storage.write("m/weights", b"one")
    first = storage.local("m")
    assert storage.local("m") == first
    storage.write("m/weights", b"two")
    second = storage.local("m")
    assert ((first / "weights").read_bytes(), (second / "weights").read_bytes()) == (b"one", b"two")
    with pytest.raises(FileNotFoundError):
        storage.local("nothing")


@pytest.mark.parametrize("name", ["m//root", "m/../up", "m/a/"])
def test_keys_that_are_no_paths_are_never_copied(bucket: str, tmp_path: Path, name: str) -> None:
    storage = S3Storage(f"{bucket}/p", S3Options(), tmp_path)
    storage.client.put_object(Bucket=storage.bucket, Key=f"p/{name}", Body=b"x")
    storage.write("m/good", b"good")
    assert [file.path for file in storage.walk("m")] == ["m/good"]
    assert [path.name for path in storage.local("m").iterdir()] == ["good"]


@pytest.mark.parametrize("uri", ["s3://", "http://bucket/x", "s3:///x", "bucket"])
def test_an_address_without_a_bucket_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="write s3://BUCKET/PREFIX"):
        S3Storage(uri, S3Options(), tmp_path)


def test_what_is_wrong_is_said_with_the_mend(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no such bucket: create it, or correct the address"):
        S3Storage("s3://nobody-made-it/p", S3Options(), tmp_path).prepare()
    gone = S3Options(endpoint_url="http://127.0.0.1:9", max_attempts=1)
    with pytest.raises(StorageError, match="S3 cannot be reached"):
        S3Storage(f"{bucket}/p", gone, tmp_path).prepare()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name not in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="no credentials for S3: set AWS_ACCESS_KEY_ID"):
        S3Storage(f"{bucket}/p", S3Options(), tmp_path).prepare()


def test_a_stream_that_breaks_off_is_taken_up_where_it_was(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ResponseStreamingError  # type: ignore[import-untyped]
    from botocore.response import StreamingBody  # type: ignore[import-untyped]

    storage = S3Storage(f"{bucket}/p", S3Options(), tmp_path)
    data = os.urandom(3000)
    storage.write("a", data)
    real = StreamingBody.iter_chunks
    broken: list[int] = []

    def breaks(body: Any, chunk_size: int = 1000) -> Iterator[bytes]:
        for number, piece in enumerate(real(body, 1000)):
            if number == 1 and len(broken) < 2:
                broken.append(number)
                raise ResponseStreamingError(error="connection reset")
            yield piece

    monkeypatch.setattr(StreamingBody, "iter_chunks", breaks)
    (file,) = storage.files("")
    assert storage.fetch(file, tmp_path / "copy").read_bytes() == data
    assert len(broken) == 2


def test_a_file_that_was_replaced_is_not_fetched_as_the_former_one(bucket: str, tmp_path: Path) -> None:
    storage = S3Storage(f"{bucket}/p", S3Options(), tmp_path)
    storage.write("a", b"one")
    (file,) = storage.files("")
    storage.write("a", b"two")
    with pytest.raises(FileChangedError):
        storage.fetch(file, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
