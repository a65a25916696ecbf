"""Hashes of values and files, the memory of them, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_resources.storage.digests import DigestCache, atomic_write, bytes_digest, digest, hash_file

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def reversed_keys(value: Any) -> Any:
    """The same value, its mappings written in the opposite order."""
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(list(value))}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(values)
def test_the_order_of_keys_does_not_count(value: Any) -> None:
    assert digest(value) == digest(reversed_keys(value))
    assert len(digest(value)) == 32


@settings(deadline=None)
@given(values, values)
def test_different_values_have_different_hashes(first: Any, second: Any) -> None:
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (digest(first) == digest(second)) == same


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", "b"), ("ab",)),
        (("a", "b"), (["a", "b"],)),
        (("a",), ("a", None)),
        ((1,), (True,)),
        ((1,), ("1",)),
        (({"a": {"b": 1}},), ({"a": {"b": 2}},)),
        (([1, 2],), ([2, 1],)),
    ],
)
def test_what_looks_alike_is_told_apart(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert digest(*first) != digest(*second)


def test_what_has_no_one_way_to_be_written_is_refused() -> None:
    for value in (float("nan"), float("inf"), object(), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            digest(value)


def test_a_file_is_hashed_in_chunks_as_its_bytes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation_resources.storage.digests.CHUNK_BYTES", 7)
    for size in (0, 6, 7, 8, 700):
        file = tmp_path / "file"
        file.write_bytes(os.urandom(size))
        assert hash_file(file) == bytes_digest(file.read_bytes())


def overwrite_keeping_the_time(file: Path, data: bytes) -> None:
    """Change a file in a way that size and time do not show: what remembers is not told."""
    stat = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file whose bytes are read, in order."""
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hash_file(path)

    monkeypatch.setattr("curation_resources.storage.digests.hash_file", counted)
    return read


def test_a_remembered_file_is_not_read_again(tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    cache = DigestCache()
    assert [cache.file_digest(file) for _ in range(3)] == [bytes_digest(b"one")] * 3
    assert hashed == [file]


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    cache = DigestCache()
    cache.file_digest(file)
    overwrite_keeping_the_time(file, b"two")
    assert cache.file_digest(file) == bytes_digest(b"two")


def test_another_size_or_another_time_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    cache = DigestCache()
    cache.file_digest(file)
    overwrite_keeping_the_time(file, b"longer")
    assert cache.file_digest(file) == bytes_digest(b"longer")
    overwrite_keeping_the_time(file, b"LONGER")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert cache.file_digest(file) == bytes_digest(b"LONGER")


def test_memory_outlives_the_process_that_saved_it(tmp_path: Path, hashed: list[Path]) -> None:
    file, memory = tmp_path / "file", tmp_path / "deep" / "digests.json"
    file.write_bytes(b"one")
    cache = DigestCache(memory)
    cache.file_digest(file)
    assert not memory.exists()
    cache.save()
    assert DigestCache(memory).file_digest(file) == bytes_digest(b"one")
    assert hashed == [file]


def test_paths_to_one_file_share_their_memory(tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    (tmp_path / "link").symlink_to(file)
    cache = DigestCache()
    cache.file_digest(tmp_path / "link")
    assert cache.file_digest(tmp_path / "x" / ".." / "file") == bytes_digest(b"one")
    assert hashed == [file]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xfe",
        b'{"a": 1}',
        b'{"a": [1, 2]}',
        b'{"a": ["x", 2, "d"]}',
        b'{"a": [Infinity, 2, "d"]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_memory_is_no_memory(tmp_path: Path, damaged: bytes) -> None:
    file, memory = tmp_path / "file", tmp_path / "digests.json"
    file.write_bytes(b"one")
    memory.write_bytes(damaged)
    cache = DigestCache(memory)
    assert cache.file_digest(file) == bytes_digest(b"one")
    cache.save()
    assert list(json.loads(memory.read_bytes())) == [str(file.resolve())]


def test_a_memory_that_cannot_be_kept_stops_nothing(tmp_path: Path) -> None:
    """As under a home that is read-only."""
    file = tmp_path / "file"
    file.write_bytes(b"one")
    for memory in (file / "digests.json", tmp_path):
        cache = DigestCache(memory)
        assert cache.file_digest(file) == bytes_digest(b"one")
        cache.save()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    atomic_write(file, b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            atomic_write(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    atomic_write(file, b"new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_onto_a_folder_fails_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_write(tmp_path / "folder", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o644


def test_of_concurrent_writers_one_wins_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = [bytes([65 + writer]) * 200_000 for writer in range(6)]
    atomic_write(file, contents[0])
    seen: set[bytes] = set()
    done = threading.Event()

    def write(content: bytes) -> None:
        for _ in range(10):
            atomic_write(file, content)

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen <= set(contents)
    assert file.read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_caches_that_save_at_once_lose_memory_and_nothing_else(tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    files = [tmp_path / f"file{number}" for number in range(8)]
    for file in files:
        file.write_bytes(file.name.encode())

    def remember(file: Path) -> None:
        cache = DigestCache(memory)
        for _ in range(10):
            assert cache.file_digest(file) == bytes_digest(file.name.encode())
            os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
            cache.save()

    threads = [threading.Thread(target=remember, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(memory.read_bytes())
    assert not list(tmp_path.glob(".*"))
