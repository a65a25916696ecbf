"""The storage contract on a folder and in object stores: whole files, one winner, no lost swap."""

from __future__ import annotations

import io
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import polars as pl
import pytest

from curation_resources.storage.files import CLAIM, FileChangedError, FolderStorage, Storage, StorageError
from curation_resources.storage.object_store import ObjectStorage, ObjectStoreOptions
from tests.s3 import Fate, Request, disturbed, new_bucket, watched
from tests.storage.test_warehouse import at_once

FRAME = pl.DataFrame({"a": [1, 2], "b": ["x", None]})


@pytest.fixture(params=["folder", "s3", pytest.param("az", marks=pytest.mark.system)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    made: Storage
    if request.param == "folder":
        made = FolderStorage(tmp_path / "root")
    else:
        made = ObjectStorage(
            request.getfixturevalue("bucket") + "/some/prefix", ObjectStoreOptions(), tmp_path / "cache"
        )
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


@pytest.mark.parametrize("path", ["nothing", "a/nothing", "a//nothing", "/nothing"])
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


@pytest.fixture
def gcs_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket for the client of Google Cloud Storage on moto's S3 server.

    Both services have the same XML API but for conditional writes. No emulator of Google Cloud Storage on PyPI or npm
    implements the part of it that obstore uses. The client escapes hyphens, which moto does not expect in a name.
    """
    address = new_bucket(s3_server, monkeypatch.setenv, f"bucket{uuid.uuid4().hex}")
    monkeypatch.setenv("GOOGLE_BASE_URL", s3_server)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
    return address.replace("s3://", "gs://")


def test_the_client_of_google_cloud_storage_reads_writes_lists_and_scans(gcs_bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{gcs_bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.prepare()
    storage.write("a/größe 題%20.parquet", parquet(FRAME))
    with storage.writing("b") as file:
        file.write_bytes(b"x" * 20_000_000)
    assert storage.read("b") == b"x" * 20_000_000
    assert [file.path for file in storage.walk("")] == ["a/größe 題%20.parquet", "b"]
    assert ([file.path for file in storage.files("")], storage.folders("")) == (["b"], ["a"])
    with storage.open_end("a/größe 題%20.parquet") as stream:
        assert pl.read_parquet(stream).equals(FRAME)
    assert storage.scan_parquet(["a/größe 題%20.parquet"], dict(FRAME.schema)).collect().equals(FRAME)
    assert [path.name for path in storage.local("a").iterdir()] == ["größe 題%20.parquet"]
    (found,) = storage.files("")
    with storage.open_lazily(found) as stream:
        stream.seek(-3, io.SEEK_END)
        assert stream.read() == b"xxx"
    storage.remove("b")
    storage.remove("b")
    assert not storage.exists("b")
    boto3.client("s3").put_object(Bucket=storage.bucket, Key="p/m//b", Body=b"")
    with pytest.raises(StorageError, match=r"m//b.*rename or remove it"):
        storage.walk("")


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
def forgetful(bucket: str, tmp_path: Path) -> Iterator[ObjectStorage]:
    """A bucket whose first answer to every put is lost: the client tries again what S3 has done already."""
    lost: set[str] = set()

    def lose(request: Request) -> Fate | None:
        if request.method != "PUT" or request.question in lost:
            return None
        lost.add(request.question)
        return "lost"

    with disturbed(lose):
        yield ObjectStorage(f"{bucket}/forgetful", ObjectStoreOptions(), tmp_path / "cache")


def test_a_put_whose_answer_is_lost_counts(forgetful: ObjectStorage) -> None:
    assert forgetful.create("a", b"mine")
    assert not forgetful.create("a", b"another's")
    assert not forgetful.create("a", b"mine")
    assert forgetful.swap("b", None, b"1")
    assert forgetful.read("b") == b"1"
    forgetful.write("c", b"2")
    assert forgetful.read("c") == b"2"
    with forgetful.writing("d") as file:
        file.write_bytes(b"3")
    assert forgetful.read("d") == b"3"


def test_a_swap_whose_answer_is_lost_counts(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write("a", b"1")
    fates: list[Fate | None] = ["lost", None]
    with disturbed(lambda request: fates.pop(0) if request.method == "PUT" and fates else None):
        assert storage.swap("a", b"1", b"2")
    assert storage.read("a") == b"2"
    assert fates == []


def test_equal_bytes_of_another_writer_are_not_its_own(bucket: str, tmp_path: Path) -> None:
    """Two writers that count to the same number at the same time must not both succeed."""
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write("counter", b"1")
    _, before = storage._get("counter")
    storage.write("counter", b"2")
    assert storage._put_if("counter", b"2", before) is None


@pytest.mark.parametrize("fate", ["lost", "cut"])
def test_a_large_upload_whose_last_answer_is_lost_counts(bucket: str, tmp_path: Path, fate: Fate) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    data = os.urandom(9 * 2**20)
    fates: list[Fate | None] = [fate]

    def disturb(request: Request) -> Fate | None:
        return fates.pop() if request.method == "POST" and "uploadId" in request.question and fates else None

    with disturbed(disturb), storage.writing("a") as file:
        file.write_bytes(data)
    assert (storage.read("a"), fates) == (data, [])


def test_a_listing_that_breaks_off_is_repeated(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write("a/b", b"")
    for look in (storage.walk, storage.files):
        fates: list[Fate | None] = ["cut", "cut"]
        with disturbed(lambda _, fates=fates: fates.pop() if fates else None):  # type: ignore[misc]
            assert [file.path for file in look("a")] == ["a/b"]
        assert fates == []


def test_a_request_is_tried_as_often_as_the_options_say(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(max_attempts=2), tmp_path)
    storage.write("a", b"1")
    with watched() as asked, disturbed(lambda request: "lost"):
        for look in (lambda: storage.read("a"), lambda: storage.create("b", b""), lambda: storage.files("")):
            asked.clear()
            with pytest.raises(StorageError, match="S3 cannot be reached"):
                look()
            assert len(asked) == 2


def test_a_claim_whose_answer_is_lost_is_not_waited_for(
    forgetful: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "curation_resources.storage.folder_claim.Claim._take_over", lambda _: pytest.fail("it waits for itself")
    )
    assert forgetful.make_folder("made", fill_with("1"), last="manifest")
    assert forgetful.read("made/deep/data") == b"1"


def test_a_maker_that_gave_up_is_not_waited_for(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ObjectStorage(f"{bucket}/gave-up", ObjectStoreOptions(), tmp_path / "cache")
    monkeypatch.setattr(
        "curation_resources.storage.folder_claim.Claim._take_over", lambda _: pytest.fail("it waits for nobody")
    )
    with monkeypatch.context() as broken:
        broken.setattr(ObjectStorage, "_upload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.make_folder("made", fill_with("1"), last="manifest")
    assert made.make_folder("made", fill_with("2"), last="manifest")
    assert made.read("made/deep/data") == b"2"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_dead_makers_claim_is_taken_over(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write(f"r/1/{CLAIM}", b"{}")
    storage.write("r/1/left by a dead maker", b"")
    monkeypatch.setattr("curation_resources.storage.folder_claim.CLAIM_PAUSE", 0.01)
    done = threading.Event()

    def make() -> None:
        storage.make_folder("r/1", fill_with("x"), "manifest")
        done.set()

    thread = threading.Thread(target=make)
    thread.start()
    assert not done.wait(0.5)
    monkeypatch.setattr("curation_resources.storage.folder_claim.CLAIM_SECONDS", -1.0)
    thread.join(20)
    assert [file.path for file in storage.walk("r")] == ["r/1/deep/data", "r/1/manifest"]
    assert not storage.exists(f"r/1/{CLAIM}")


def test_a_local_copy_is_made_once_and_again_of_other_content(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write("m/weights", b"one")
    first = storage.local("m")
    assert storage.local("m") == first
    storage.write("m/weights", b"two")
    second = storage.local("m")
    assert ((first / "weights").read_bytes(), (second / "weights").read_bytes()) == (b"one", b"two")
    with pytest.raises(FileNotFoundError):
        storage.local("nothing")


def put(storage: ObjectStorage, key: str, data: bytes) -> None:
    """Put an object under a key that need not be a valid path."""
    boto3.client("s3").put_object(Bucket=storage.bucket, Key=f"{storage.prefix}/{key}", Body=data)


@pytest.mark.parametrize("name", ["m//root", "m/../up", "m/./here", "m/\x1b[2J", "/root", "m//"])
def test_keys_that_are_no_paths_are_never_copied(bucket: str, tmp_path: Path, name: str) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.prepare()
    put(storage, name, b"x")
    storage.write("m/good", b"good")
    storage.prepare()
    assert name in [file.path for file in storage.objects()]
    assert [file.path for file in storage.walk("m")] == ["m/good"]
    assert [file.path for file in storage.files("m")] == ["m/good"]
    assert storage.folders("") == ["m"]
    assert [path.name for path in storage.local("m").iterdir()] == ["good"]


def test_a_folder_marker_is_not_a_file(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write("m/good", b"good")
    storage.write("m/empty", b"")
    for marker in ("", "m/", "m/a/", "n/"):
        put(storage, marker, b"")
    assert [file.path for file in storage.walk("")] == ["m/empty", "m/good"]
    assert [file.path for file in storage.files("m")] == ["m/empty", "m/good"]
    assert storage.folders("m") == ["a"]
    assert sorted(path.name for path in storage.local("m").iterdir()) == ["empty", "good"]


def test_a_key_that_ends_with_a_slash_and_has_content_is_not_copied_under_another_name(
    bucket: str, tmp_path: Path
) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    put(storage, "m/a/", b"x")
    with pytest.raises(FileNotFoundError):
        storage.local("m")


@pytest.mark.parametrize("uri", ["s3://", "http://bucket/x", "s3:///x", "bucket", "gs://", "az:///x"])
def test_an_address_without_a_bucket_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="write s3://BUCKET/PREFIX"):
        ObjectStorage(uri, ObjectStoreOptions(), tmp_path)


@pytest.mark.parametrize("prefix", ["a//b", "a/../b", "."])
def test_a_prefix_that_is_no_path_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="use another prefix"):
        ObjectStorage(f"s3://bucket/{prefix}", ObjectStoreOptions(), tmp_path)


def test_what_is_wrong_is_said_with_the_mend(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no such bucket: create it, or correct the address"):
        ObjectStorage("s3://nobody-made-it/p", ObjectStoreOptions(), tmp_path).prepare()
    gone = ObjectStoreOptions(endpoint_url="http://127.0.0.1:9", max_attempts=1)
    with pytest.raises(StorageError, match="S3 cannot be reached"):
        ObjectStorage(f"{bucket}/p", gone, tmp_path).prepare()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name not in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="no credentials for S3: set AWS_ACCESS_KEY_ID"):
        ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path).prepare()


@pytest.mark.parametrize(
    ("address", "environment", "message"),
    [
        ("gs://bucket/p", {"GOOGLE_BEARER_TOKEN": "x"}, "Google Cloud Storage cannot be reached.*GOOGLE_BASE_URL"),
        ("az://container/p", {}, "no credentials for Azure Blob Storage.*AZURE_STORAGE_ACCOUNT_NAME"),
        (
            "az://container/p",
            {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "aaaa"},
            "Azure Blob Storage cannot be reached.*AZURE_STORAGE_ENDPOINT",
        ),
    ],
)
def test_messages_name_the_settings_of_the_service(
    address: str, environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=message):
        ObjectStorage(address, ObjectStoreOptions(max_attempts=1), tmp_path).prepare()


def test_credentials_region_and_endpoint_come_from_the_files_of_aws(
    bucket: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        f"[profile mine]\nregion = eu-central-1\nservices = own\n[services own]\ns3 =\n  endpoint_url = {s3_server}\n"
        f"[profile role]\ncredential_process = {tmp_path}/issue\nregion = eu-central-1\nendpoint_url = {s3_server}\n"
    )
    (tmp_path / ".aws" / "credentials").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    issue = tmp_path / "issue"
    issue.write_text(
        "#!/bin/sh\n"
        f"echo asked >> {tmp_path}/asked\n"
        """echo '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c", """
        """"Expiration": "2099-01-01T00:00:00Z"}'\n"""
    )
    issue.chmod(0o755)
    for profile in ("mine", "role"):
        storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(profile=profile), tmp_path / "cache")
        storage.write("t.parquet", parquet(FRAME))
        assert storage.scan_parquet(["t.parquet"], dict(FRAME.schema)).collect().equals(FRAME)
        assert storage._aws.region == "eu-central-1"
    assert (tmp_path / "asked").read_text() == "asked\n"
    issue.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(StorageError, match="no credentials for S3"):
        ObjectStorage(f"{bucket}/p", ObjectStoreOptions(profile="role"), tmp_path / "cache").prepare()


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_a_stream_that_breaks_off_is_resumed(bucket: str, tmp_path: Path, max_attempts: int) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(max_attempts=max_attempts), tmp_path)
    data = os.urandom(3_000_000)
    storage.write("a", data)
    (file,) = storage.files("")
    fates: list[Fate | None] = ["cut", "cut"]
    with watched() as asked, disturbed(lambda _: fates.pop(0) if fates else None):
        if max_attempts == 1:
            with pytest.raises(StorageError, match="S3 cannot be reached"):
                storage.fetch(file, tmp_path / "copy")
            assert not (tmp_path / "copy").exists()
            return
        assert storage.fetch(file, tmp_path / "copy").read_bytes() == data
    assert [request.question.partition(" ")[2].startswith("bytes=") for request in asked] == [False, True, True]
    fates += ["cut", "cut"]
    with disturbed(lambda _: fates.pop(0) if fates else None):
        assert storage.read("a") == data


def test_a_stream_that_breaks_off_after_the_time_for_retries_is_resumed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    data = os.urandom(3_000_000)
    storage.write("a", data)
    monkeypatch.setitem(vars(storage), "store", storage._store_without_retries)
    fates: list[Fate | None] = ["cut", "cut"]
    pieces: list[bytes] = []
    with disturbed(lambda _: fates.pop(0) if fates else None):
        found = storage.download("a", pieces.append)
    assert b"".join(pieces) == data
    assert found is not None
    assert found.size == len(data)


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write("a", b"a" * 1_000_000)

    def replace(request: Request) -> Fate | None:
        if request.method == "PUT" or "bytes=" in request.question:
            return None
        threading.Thread(target=storage.write, args=("a", b"b" * 1_000_000)).start()
        return "cut"

    with disturbed(replace), pytest.raises((FileChangedError, StorageError)):
        storage.download("a", lambda _: None)


def test_a_file_that_was_replaced_is_not_fetched_as_the_former_one(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(f"{bucket}/p", ObjectStoreOptions(), tmp_path)
    storage.write("a", b"one")
    (file,) = storage.files("")
    storage.write("a", b"two")
    with pytest.raises(FileChangedError):
        storage.fetch(file, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>Because of this.</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region: set s3.region"),
        (400, "ExpiredToken", "the credentials have expired: renew them"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong: correct it"),
        (400, "InvalidBucketState", r"S3 failed \(InvalidBucketState\): Because of this\."),
    ],
)
def test_what_the_service_explains_reaches_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, expected: str
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = ERROR.format(code).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        storage = ObjectStorage("s3://b/p", ObjectStoreOptions(endpoint_url=address, region="us-east-1"), tmp_path)
        with pytest.raises(StorageError, match=f"s3://b/p/a: {expected}"):
            storage.read("a")
        server.shutdown()
