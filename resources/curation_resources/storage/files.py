"""Where files are kept: a folder, or a prefix of an S3 bucket (`storage.s3`), with the same promises.

A file is written whole or not at all, created once however many try, and a small one is replaced by compare-and-swap.
Paths are relative to the storage's root, with `/`. Names that begin with a dot are the storage's own.
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
    """A storage cannot be used as it is; the message says how to mend it."""


class AccessRefusedError(StorageError):
    """A storage, or a file of it, may not be read or written with the rights at hand."""


class FileChangedError(OSError):
    """A file is another one than the one that was asked for."""


@dataclass(frozen=True)
class StoredFile:
    """A file as a listing saw it.

    Attributes:
        path: below the root.
        size: in bytes.
        version: what changes with its content.
        modified: when it was last written, in seconds since 1970.
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
"""A folder of a bucket that is being made holds this file meanwhile."""

MAKING = ".making-"
"""What the name of a temporary folder begins with."""

TEMPORARY = ".tmp"
"""What the name of a temporary file ends with; it begins with a dot."""


def is_unfinished(path: str) -> bool:
    """Whether a path is of something that is being written, or that was, by a process that died over it."""
    *above, name = path.split("/")
    if any(part.startswith(MAKING) for part in above):
        return True
    return name == CLAIM or (name.startswith(".") and name.endswith(TEMPORARY))


class Storage(ABC):
    """A root with files below it."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The root as people know it: a folder, or s3://bucket/prefix."""

    @property
    def at_once(self) -> int:
        """How many small files are best read at the same time."""
        return 1

    def shown(self, path: str) -> str:
        """A path as people know it."""
        return f"{self.place}/{path}"

    @abstractmethod
    def prepare(self) -> None:
        """Make the root, if that is needed.

        Raises:
            StorageError: it cannot be used.
        """

    @abstractmethod
    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """A file for reading: one state of it, whoever replaces it meanwhile.

        Raises:
            FileNotFoundError: there is none.
        """

    def open_end(self, path: str) -> AbstractContextManager[BinaryIO]:
        """A stream that ends as a file does, with at least its Parquet footer; see `open`."""
        return self.open(path)

    def read(self, path: str) -> bytes:
        """A whole file; see `open`."""
        with self.open(path) as stream:
            return stream.read()

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a file, replacing what was there."""

    @abstractmethod
    def writing(self, path: str) -> AbstractContextManager[Path]:
        """A file of this machine to be filled, which becomes `path` when the block ends without an error."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a file, unless there is one: of several makers one wins. False if there was one."""

    @abstractmethod
    def swap(self, path: str, expected: bytes | None, new: bytes) -> bool:
        """Replace a small file if it still reads `expected` (None: there is none); False if it does not."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def remove_folder(self, path: str) -> None:
        """Remove a folder with all that lies below it, if it is there; killed meanwhile, some of it is left."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file of that path."""

    @abstractmethod
    def files(self, folder: str) -> list[StoredFile]:
        """The files of a folder, sorted by path; not those of folders in it."""

    def names(self, folder: str) -> list[str]:
        """Names of the files of a folder, sorted; where that is cheaper, without a look at each."""
        return [file.name for file in self.files(folder)]

    def sizes(self, folder: str, names: Collection[str]) -> dict[str, int]:
        """Bytes of those of the named files that are in a folder."""
        wanted = set(names)
        return {file.name: file.size for file in self.files(folder) if file.name in wanted}

    @abstractmethod
    def walk(self, folder: str) -> list[StoredFile]:
        """All files below a folder, sorted by path."""

    def hidden(self, folder: str) -> list[str]:  # noqa: ARG002 - a bucket has none
        """Names, in the folder, of files that `walk` leaves out since they, or a folder of theirs, begin with a dot;
        those of writes that are in progress are not among them."""
        return []

    @abstractmethod
    def unfinished(self) -> list[StoredFile]:
        """Files of writes that are in progress, or that died (`is_unfinished`), sorted by path."""

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted."""

    @abstractmethod
    def make_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:
        """Make a folder whole, or not at all; False if it is there already (and nothing is changed).

        Args:
            path: the folder.
            fill: writes the contents into the local, temporary folder that it is given.
            last: the name of a file in it: a folder that holds this one is whole.
        """

    @abstractmethod
    def local(self, path: str) -> Path:
        """A file or folder, which is never changed once it is there, as one on this machine's disk.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def scan_parquet(self, paths: Sequence[str], schema: dict[str, pl.DataType]) -> pl.LazyFrame:
        """Lazy frame over Parquet files; a column of the schema that a file lacks is null there."""


class FolderStorage(Storage):
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    def prepare(self) -> None:
        """Make the folder."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.root} cannot be used ({error})") from error

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open the file: a handle stays with one state of it."""
        return (self.root / path).open("rb")

    def write(self, path: str, data: bytes) -> None:
        """Write beside it, then rename."""
        atomic_write(self.root / path, data)

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Fill a file beside it, then rename."""
        with replacing(self.root / path) as beside:
            yield beside

    def create(self, path: str, data: bytes) -> bool:
        """Write beside it, then link, which fails if there is one."""
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
        """Whether it is a file."""
        return (self.root / path).is_file()

    def files(self, folder: str) -> list[StoredFile]:
        """What lies in the folder."""
        return self._seen((self.root / folder).glob("[!.]*"))

    def names(self, folder: str) -> list[str]:
        """What lies in the folder; of links alone it is asked what they lead to."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sizes(self, folder: str, names: Collection[str]) -> dict[str, int]:
        """A look at each."""
        return {file.name: file.size for file in self._seen(self.root / folder / name for name in names)}

    def walk(self, folder: str) -> list[StoredFile]:
        """What lies below the folder."""
        top = self.root / folder
        found = top.rglob("[!.]*")
        return self._seen(p for p in found if not any(part.startswith(".") for part in p.relative_to(top).parts))

    def hidden(self, folder: str) -> list[str]:
        """What begins with a dot."""
        top = self.root / folder
        names = [path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()]
        dotted = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
        return sorted(name for name in dotted if not is_unfinished(name))

    def unfinished(self) -> list[StoredFile]:
        """What lies anywhere under a temporary name."""
        found = self.root.rglob("*")
        return self._seen(path for path in found if is_unfinished(path.relative_to(self.root).as_posix()))

    def folders(self, folder: str) -> list[str]:
        """Folders in the folder."""
        return sorted(path.name for path in (self.root / folder).glob("[!.]*") if path.is_dir())

    def make_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:  # noqa: ARG002
        """Fill a temporary folder beside it, then rename, which fails onto one that has content."""
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
        """The file or folder itself."""
        return self.root / path

    def scan_parquet(self, paths: Sequence[str], schema: dict[str, pl.DataType]) -> pl.LazyFrame:
        """Scan the files where they are."""
        files = [self.root / path for path in paths]
        return pl.scan_parquet(files, schema=schema, missing_columns="insert", hive_partitioning=False, glob=False)

    def _seen(self, paths: Iterable[Path]) -> list[StoredFile]:
        found = []
        for path in paths:
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced or removed since it was listed
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
