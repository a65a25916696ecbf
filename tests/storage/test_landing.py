"""The landing folder: names of partitions, what is a shard, and files that are still being copied."""

from __future__ import annotations

import os
import re
import string
import threading
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation_resources.storage import landing as landing_module
from curation_resources.storage.digests import DigestCache, bytes_digest
from curation_resources.storage.landing import LONGEST_KEY, FolderLanding, LandingError, file_name, partition_key

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
odd_names = st.lists(st.sampled_from(["..", "...", ".", "%", "=", "~", "/", " ", "=2E", "%2e", "ü", "题", "a"])).map(
    "".join
)
ALLOWED = set(string.ascii_letters + string.digits + "_-.=")


def make(root: Path, cache: DigestCache | None = None) -> FolderLanding:
    return FolderLanding(root, cache or DigestCache())


def put(root: Path, *files: str, age: float = 3600.0) -> None:
    """Files that came to rest some time ago."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        when = time.time_ns() - int(age * 1e9)
        os.utime(path, ns=(when, when))


def seen(landing: FolderLanding) -> list[str]:
    return [file.name for file in landing.files()]


@settings(deadline=None)
@given(names | odd_names)
@example("a/b c/../d...jsonl")
@example("..=2Fx")
@example("....")
@example("100%~=.jsonl")
def test_keys_and_names_are_inverse_and_keys_are_safe(name: str) -> None:
    key = partition_key(name)
    assert file_name(key) == name
    assert set(key) <= ALLOWED
    assert ".." not in key


@settings(deadline=None)
@given(names | odd_names, names | odd_names)
def test_two_names_never_share_a_key(first: str, second: str) -> None:
    assert (partition_key(first) == partition_key(second)) == (first == second)


def test_plain_names_stay_readable() -> None:
    assert partition_key("gsm8k-train_01.jsonl") == "gsm8k-train_01.jsonl"
    assert partition_key("math/part 1.jsonl.gz") == "math=2Fpart=201.jsonl.gz"


def test_every_kind_of_shard_is_listed_in_order_and_nothing_hidden(tmp_path: Path) -> None:
    put(tmp_path, "b.jsonl", "a.parquet", "deep/er/c.jsonl.gz")
    put(tmp_path, ".d.jsonl", "_SUCCESS", "_tmp/e.jsonl", ".git/f.jsonl", "deep/_g.jsonl", "b.jsonl.crc", "B.JSONL")
    put(tmp_path, "README.md", "h.json", "deep/i.csv", "deep/k.PNG")
    assert seen(make(tmp_path)) == ["B.JSONL", "a.parquet", "b.jsonl", "deep/er/c.jsonl.gz"]
    assert make(tmp_path).ignored() == ["README.md", "b.jsonl.crc", "deep/i.csv", "h.json"]


@settings(deadline=None, max_examples=50)
@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60))
def test_whatever_a_file_is_called_it_is_listed_or_reported(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("landing")
    name += ".jsonl"
    if len(name.encode()) > 255:
        return
    (root / name).write_bytes(b"{}")
    landing = make(root)
    hidden = name.startswith((".", "_"))
    assert len(landing.files()) + len(landing.ignored()) == (0 if hidden else 1)
    for file in landing.files():
        assert file.name == name
        assert landing.path(file.shard).read_bytes() == b"{}"
        # The key is a file name of ours, with the longest of our suffixes.
        (root / f"{file.shard}.parquet").touch()


def test_names_that_cannot_be_keys_are_reported_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, "题" * 40 + ".jsonl", "a.jsonl")
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_bytes(b"{}")
    landing = make(tmp_path)
    assert seen(landing) == ["a.jsonl"]
    long, not_unicode = landing.ignored()
    assert long == "题" * 40 + ".jsonl (its path is too long)"
    assert not_unicode == "\\udcff.jsonl (its name is not UTF-8)"
    assert len(partition_key("题" * 40 + ".jsonl")) > LONGEST_KEY


def test_names_that_speak_to_terminals_are_shown_escaped(tmp_path: Path) -> None:
    put(tmp_path, "\x1b[2Ja.txt")
    assert make(tmp_path).ignored() == ["\\x1b[2Ja.txt"]


def test_links_inside_are_shards_and_links_out_are_reported(tmp_path: Path) -> None:
    root, outside = tmp_path / "landing", tmp_path / "outside"
    put(root, "a.jsonl")
    put(outside, "secret.jsonl")
    (root / "inside.jsonl").symlink_to("a.jsonl")
    (root / "leads_out.jsonl").symlink_to(outside / "secret.jsonl")
    (root / "folder.jsonl").symlink_to(outside)
    (root / "nowhere.jsonl").symlink_to("gone.jsonl")
    (root / "loop.jsonl").symlink_to("loop.jsonl")
    landing = make(root)
    assert seen(landing) == ["a.jsonl", "inside.jsonl"]
    assert landing.ignored() == [
        "folder.jsonl (a link to a folder, or to nothing)",
        "leads_out.jsonl (a link that points outside the landing folder)",
        "loop.jsonl (a link to a folder, or to nothing)",
        "nowhere.jsonl (a link to a folder, or to nothing)",
    ]
    for file in landing.files():
        assert landing.path(file.shard).read_bytes() == b"a.jsonl"
    for name in ("leads_out.jsonl", "loop.jsonl"):
        with pytest.raises(LandingError, match="landing folder"):
            landing.path(name)


@pytest.mark.parametrize(
    "key", ["..=2Fx.jsonl", "=2Fetc=2Fpasswd", "a=2F..=2F..=2Fx", "=2E=2E=2Fx", "../x", "/etc/passwd", "a=00b"]
)
def test_crafted_keys_lead_nowhere(tmp_path: Path, key: str) -> None:
    put(tmp_path, "landing/a.jsonl", "x", "x.jsonl")
    with pytest.raises(LandingError, match=re.escape(str(tmp_path / "landing"))):
        make(tmp_path / "landing").path(key)


def test_a_landing_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "real", "a.jsonl")
    (tmp_path / "landing").symlink_to("real")
    landing = make(tmp_path / "landing")
    assert seen(landing) == ["a.jsonl"]
    assert landing.path("a.jsonl").read_bytes() == b"a.jsonl"


def test_a_missing_folder_is_an_error_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "none", tmp_path / "file"):
        for look in (make(root).files, make(root).ignored, make(root).settled):
            with pytest.raises(LandingError, match=r"does not exist\. Create it, or set corpus\.landing"):
                look()


def test_files_at_rest_need_no_second_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited for files at rest"))
    assert [file.name for file in make(tmp_path).settled()] == ["a.jsonl", "b.jsonl"]


def test_fresh_files_are_left_for_the_next_call_or_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing_module, "SETTLE_SECONDS", 0.2)
    put(tmp_path, "old.jsonl")
    put(tmp_path, "fresh.jsonl", age=0)
    landing = make(tmp_path)
    assert [file.name for file in landing.settled(wait=False)] == ["old.jsonl"]
    assert [file.name for file in landing.settled()] == ["fresh.jsonl", "old.jsonl"]
    time.sleep(0.2)
    assert [file.name for file in landing.settled(wait=False)] == ["fresh.jsonl", "old.jsonl"]


def test_a_file_that_grows_is_not_taken_until_it_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing_module, "SETTLE_SECONDS", 0.3)
    put(tmp_path, "rests.jsonl", age=0)
    stop = threading.Event()

    def copy() -> None:
        with (tmp_path / "grows.jsonl").open("wb", buffering=0) as stream:
            while not stop.wait(0.02):
                stream.write(b"{}\n")

    copying = threading.Thread(target=copy)
    copying.start()
    try:
        while not (tmp_path / "grows.jsonl").exists():
            time.sleep(0.01)
        landing = make(tmp_path)
        for _ in range(2):
            assert [file.name for file in landing.settled()] == ["rests.jsonl"]
    finally:
        stop.set()
        copying.join()
    assert [file.name for file in landing.settled()] == ["grows.jsonl", "rests.jsonl"]


def test_a_file_rewritten_or_removed_between_looks_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "rewritten.jsonl", "removed.jsonl", "rests.jsonl", age=0)

    def meanwhile(_: float) -> None:
        (tmp_path / "rewritten.jsonl").write_bytes(b"rewritten.JSONL")
        (tmp_path / "removed.jsonl").unlink()
        put(tmp_path, "arrived.jsonl", age=0)

    monkeypatch.setattr("time.sleep", meanwhile)
    assert [file.name for file in make(tmp_path).settled()] == ["rests.jsonl"]


def test_files_that_vanish_while_they_are_listed_stop_nothing(tmp_path: Path) -> None:
    put(tmp_path, "rests.jsonl")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for number in range(20):
                (tmp_path / f"copy{number}.jsonl").write_bytes(b"")
            for number in range(20):
                (tmp_path / f"copy{number}.jsonl").unlink()

    coming = threading.Thread(target=come_and_go)
    coming.start()
    try:
        for _ in range(100):
            assert "rests.jsonl" in seen(make(tmp_path))
    finally:
        stop.set()
        coming.join()


def test_digests_are_of_content_and_remembered(tmp_path: Path) -> None:
    root, memory = tmp_path / "landing", tmp_path / "digests.json"
    put(root, "a b.jsonl", "copy.jsonl")
    (root / "copy.jsonl").write_bytes(b"a b.jsonl")
    landing = make(root, DigestCache(memory))
    expected = bytes_digest(b"a b.jsonl")
    assert landing.digests(landing.files()) == {"a=20b.jsonl": expected, "copy.jsonl": expected}
    assert memory.exists()
