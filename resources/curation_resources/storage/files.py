"""The storage contract for files, and its implementation for a folder; `object_store` has that for a bucket.

Files are written atomically, created by exactly one of several writers, and small ones are replaced by
compare-and-swap.
Paths are relative to the storage's root, with `/`. Names that begin with a dot are reserved for the storage.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from curation_resources.errors import UserError
from curation_resources.storage.digests import atomic_write, replacing


class StorageError(UserError):
    """A storage cannot be used; the message states the fix."""


class AccessRefusedError(StorageError):
    """The current credentials may not read or write a storage, or a file in it."""


class FileChangedError(OSError):
    """A file has changed since the version that was requested."""


@dataclass(frozen=True)
class StoredFile:
    """A file in a listing.

    Attributes:
        path: below the root.
        size: in bytes.
        version: changes with the file's content.
        modified: time of the last write, in seconds since 1970.
    """

    path: str
    size: int
    version: str
    modified: float = 0.0

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rsplit("/", 1)[-1]


CLAIM = ".claim"
"""A folder in a bucket contains this file while it is being made."""

MAKING = ".making-"
"""Prefix of the names of temporary folders."""

TEMPORARY = ".tmp"
"""Suffix of the names of temporary files, which also begin with a dot."""


def is_unfinished(path: str) -> bool:
    """Return True if a path belongs to a write that is in progress, or whose process died."""
    *above, name = path.split("/")
    if any(part.startswith(MAKING) for part in above):
        return True
    return name == CLAIM or (name.startswith(".") and name.endswith(TEMPORARY))


class Storage(ABC):
    """A root with files below it."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The root for people: a folder, or an address such as s3://bucket/prefix."""

    @property
    def at_once(self) -> int:
        """The number of small files to read concurrently for best speed."""
        return 1

    def shown(self, path: str) -> str:
        """Return a path for people, including the root."""
        return f"{self.place}/{path}"

    @abstractmethod
    def prepare(self) -> None:
        """Create the root, if necessary.

        Raises:
            StorageError: it cannot be used.
        """

    @abstractmethod
    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading. The stream keeps one version of it, even if it is replaced.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def open_end(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a stream that contains at least the file's Parquet footer, at its end; see `open`."""
        return self.open(path)

    def read(self, path: str) -> bytes:
        """Read a whole file; see `open`."""
        with self.open(path) as stream:
            return stream.read()

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a file, replacing an existing one."""

    @abstractmethod
    def writing(self, path: str) -> AbstractContextManager[Path]:
        """Yield a local file to fill; it becomes `path` if the block ends without an error."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists; of several writers one succeeds. Return False if it existed."""

    @abstractmethod
    def swap(self, path: str, expected: bytes | None, new: bytes) -> bool:
        """Replace a small file if it still equals `expected` (None: does not exist); return False if it does not."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def remove_folder(self, path: str) -> None:
        """Remove a folder and everything below it, if it exists; if interrupted, a part remains."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Return True if the file exists."""

    @abstractmethod
    def files(self, folder: str) -> list[StoredFile]:
        """Return the files of a folder, sorted by path, without those in subfolders."""

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's files, sorted; does not stat each file if that is cheaper."""
        return [file.name for file in self.files(folder)]

    def sizes(self, folder: str, names: Collection[str]) -> dict[str, int]:
        """Return the sizes in bytes of the named files that exist in a folder."""
        wanted = set(names)
        return {file.name: file.size for file in self.files(folder) if file.name in wanted}

    @abstractmethod
    def walk(self, folder: str) -> list[StoredFile]:
        """Return all files below a folder, sorted by path."""

    def hidden(self, folder: str) -> list[str]:  # noqa: ARG002 - a bucket has none
        """Return the names of files that `walk` skips because a part of their path begins with a dot.

        Files of writes that are in progress are excluded.
        """
        return []

    @abstractmethod
    def unfinished(self) -> list[StoredFile]:
        """Return the files of writes that are in progress or died (`is_unfinished`), sorted by path."""

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""

    @abstractmethod
    def make_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:
        """Create a folder atomically; return False, without changes, if it exists already.

        Args:
            path: the folder.
            fill: writes the contents into the local, temporary folder that it is given.
            last: name of a file in it whose presence marks the folder as complete.
        """

    @abstractmethod
    def local(self, path: str) -> Path:
        """Return a local path for an immutable file or folder.

        Raises:
            FileNotFoundError: it does not exist.
        """

    @abstractmethod
    def scan_parquet(self, paths: Sequence[str], schema: dict[str, pl.DataType]) -> pl.LazyFrame:
        """Return a lazy frame over Parquet files; columns of the schema that a file lacks are null."""


class FolderStorage(Storage):
    """A local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    def prepare(self) -> None:
        """Create the folder."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot use the folder {self.root} ({error})") from error

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open the file: the handle keeps one version of it."""
        return (self.root / path).open("rb")

    def write(self, path: str, data: bytes) -> None:
        """Write a temporary file beside it, then rename."""
        atomic_write(self.root / path, data)

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Fill a temporary file beside it, then rename."""
        with replacing(self.root / path) as beside:
            yield beside

    def create(self, path: str, data: bytes) -> bool:
        """Write a temporary file beside it, then link, which fails if the name exists."""
        final = self.root / path
        if final.exists():
            return False
        final.parent.mkdir(parents=True, exist_ok=True)
        beside = final.with_name(f".{final.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            atomic_write(beside, data)
            os.link(beside, final)
        except FileExistsError:
            return False
        finally:
            beside.unlink(missing_ok=True)
        return True

    def swap(self, path: str, expected: bytes | None, new: bytes) -> bool:
        """Compare and replace under a lock."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / f".{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = file.read_bytes() if file.exists() else None
            if current != expected:
                return False
            atomic_write(file, new)
            return True

    def remove(self, path: str) -> None:
        """Unlink the file."""
        (self.root / path).unlink(missing_ok=True)

    def remove_folder(self, path: str) -> None:
        """Remove the tree."""
        if (self.root / path).is_dir():
            shutil.rmtree(self.root / path)

    def exists(self, path: str) -> bool:
        """Return True if it is a file."""
        return (self.root / path).is_file()

    def files(self, folder: str) -> list[StoredFile]:
        """Return the files in the folder."""
        return self._seen((self.root / folder).glob("[!.]*"))

    def names(self, folder: str) -> list[str]:
        """Return the names in the folder; only symbolic links need a stat."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sizes(self, folder: str, names: Collection[str]) -> dict[str, int]:
        """Stat each file."""
        return {file.name: file.size for file in self._seen(self.root / folder / name for name in names)}

    def walk(self, folder: str) -> list[StoredFile]:
        """Return the files below the folder."""
        top = self.root / folder
        found = top.rglob("[!.]*")
        return self._seen(p for p in found if not any(part.startswith(".") for part in p.relative_to(top).parts))

    def hidden(self, folder: str) -> list[str]:
        """Return the files with a dotted name in their path."""
        top = self.root / folder
        names = [path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()]
        dotted = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
        return sorted(name for name in dotted if not is_unfinished(name))

    def unfinished(self) -> list[StoredFile]:
        """Return the files under any temporary name."""
        found = self.root.rglob("*")
        return self._seen(path for path in found if is_unfinished(path.relative_to(self.root).as_posix()))

    def folders(self, folder: str) -> list[str]:
        """Return the folders in the folder."""
        return sorted(path.name for path in (self.root / folder).glob("[!.]*") if path.is_dir())

    def make_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:  # noqa: ARG002
        """Fill a temporary folder beside it, then rename, which fails if the target has content."""
        final = self.root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            return False
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=MAKING))
        try:
            temporary.chmod(0o755)
            fill(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            try:
                temporary.rename(final)
            except OSError:
                if final.exists():
                    return False
                raise
            _sync(final.parent)
            return True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def local(self, path: str) -> Path:
        """Return the file or folder itself."""
        return self.root / path

    def scan_parquet(self, paths: Sequence[str], schema: dict[str, pl.DataType]) -> pl.LazyFrame:
        """Scan the files in place."""
        files = [self.root / path for path in paths]
        return pl.scan_parquet(files, schema=schema, missing_columns="insert", hive_partitioning=False, glob=False)

    def _seen(self, paths: Iterable[Path]) -> list[StoredFile]:
        found = []
        for path in paths:
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced or removed since the listing
                continue
            if path.is_file():
                version = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
                relative = path.relative_to(self.root).as_posix()
                found.append(StoredFile(relative, stat.st_size, version, stat.st_mtime))
        return sorted(found, key=lambda file: file.path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
