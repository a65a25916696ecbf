"""Where shards arrive: what every landing area promises, naming partitions, and a folder as one.

A landing area in a bucket is `curation_resources.storage.s3_landing`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from curation_resources.errors import UserError
from curation_resources.storage.digests import DigestCache

SHARD_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")
"""Files that rows refer to: they lie among the shards by design."""
SETTLE_SECONDS = 2.0
UNREADABLE = "unreadable"
"""Stands for the content hash of a file that cannot be opened."""
# A key is the name of files of ours, with a suffix; file systems allow 255 bytes.
LONGEST_KEY = 240
HIDDEN = (".", "_")
"""Files and folders whose names begin so are not looked at."""


class LandingError(UserError):
    """The landing area cannot be read as it is."""


def partition_key(name: str) -> str:
    """A partition key for a file's path below the landing folder; `file_name` is its inverse.

    Only letters, digits, `_`, `-`, single dots and `=XX` escapes remain, so the key is also a file name,
    and can hold neither a path separator nor Dagster's range marker.
    """
    return quote(name, safe="").replace("~", "%7E").replace("..", ".%2E").replace("%", "=")


def file_name(key: str) -> str:
    """The path below the landing folder that a partition key stands for."""
    return unquote(key.replace("=", "%"))


@dataclass(frozen=True)
class LandingFile:
    """A file as one look at the landing area saw it.

    `version` changes with its content where a listing says so (in a bucket), and is empty where size and time of
    change have to do (in a folder); `modified_ns` is 0 where they need not.
    """

    name: str
    size: int
    modified_ns: int
    version: str = ""

    @property
    def shard(self) -> str:
        """The file's partition key."""
        return partition_key(self.name)


class Landing(ABC):
    """A landing area: every .jsonl, .jsonl.gz and .parquet file below it is a shard."""

    arrives_whole: bool
    """Whether a file that is seen is complete; one that may be half-copied is looked at twice."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The area as people know it: a folder, or s3://bucket/prefix."""

    @abstractmethod
    def files(self) -> list[LandingFile]:
        """All shard files, sorted by name.

        Raises:
            LandingError: the area does not exist, or cannot be listed.
        """

    @abstractmethod
    def ignored(self) -> list[str]:
        """What no shard is made of: shown to the user, so that nothing is missed.

        Files of other kinds (but for images, which rows refer to) by their names, those that cannot be shards
        also with the reason. What a terminal would not print is escaped.

        Raises:
            LandingError: as `files`.
        """

    @abstractmethod
    def settled(self, wait: bool = True) -> list[LandingFile]:
        """The files that are not being written; with `wait`, those too that only time can tell of.

        Raises:
            LandingError: as `files`.
        """

    @abstractmethod
    def digests(self, files: Iterable[LandingFile]) -> dict[str, str]:
        """What stands for the content of files, by shard."""

    @abstractmethod
    def digest(self, shard: str) -> str:
        """What stands for a file's content now, or UNREADABLE: one file must not stop the others."""

    @abstractmethod
    def exists(self, shard: str) -> bool:
        """Whether the file of a shard is there."""

    @abstractmethod
    def path(self, shard: str) -> Path:
        """The file of a shard on this machine's disk.

        Raises:
            LandingError: the key leads out of the landing area.
            OSError: it is not there (where it has to be fetched), or may not be read.
        """

    @abstractmethod
    def open(self, shard: str) -> BinaryIO:
        """The file of a shard as a stream, for a look at a part of it; raises what `path` raises."""

    @abstractmethod
    def folder(self, shard: str) -> Path:
        """The folder on this machine that relative paths in a shard's rows start from.

        Raises:
            LandingError: the key leads out of the landing area.
        """


class FolderLanding(Landing):
    """A landing folder.

    Args:
        root: the folder.
        cache: hashes of files that were seen before.
    """

    arrives_whole = False

    def __init__(self, root: Path, cache: DigestCache) -> None:
        self.root = root
        self.cache = cache

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    def files(self) -> list[LandingFile]:
        """All shard files, sorted by name.

        Raises:
            LandingError: the folder does not exist.
        """
        looks = (self._look(path) for path in self._walk() if self._objection(path) is None)
        return [look for look in looks if look is not None]

    def ignored(self) -> list[str]:
        """See `Landing.ignored`; with a reason: links that lead out or to folders, and names that cannot be keys."""
        objections = ((self._name(path), self._objection(path)) for path in self._walk())
        return told((name, reason) for name, reason in objections if reason is not None)

    def settled(self, wait: bool = True) -> list[LandingFile]:
        """The files that are not being written: same size and time at two looks.

        A file whose time lies further back than `SETTLE_SECONDS` needs no second look. With `wait`, the
        second look comes `SETTLE_SECONDS` later; without, fresh files are left for the next call.
        """
        first = self.files()
        now = time.time_ns()
        fresh = [f for f in first if abs(now - f.modified_ns) < SETTLE_SECONDS * 1e9]
        if not fresh:
            return first
        if not wait:
            return [f for f in first if f not in fresh]
        time.sleep(SETTLE_SECONDS)
        again = set(self.files())
        return [f for f in first if f in again]

    def digests(self, files: Iterable[LandingFile]) -> dict[str, str]:
        """Content hash by shard, from the cache where size and time have not changed."""
        digests = {file.shard: self.digest(file.shard) for file in files}
        self.cache.save()
        return digests

    def digest(self, shard: str) -> str:
        """Content hash of the file, or UNREADABLE."""
        try:
            return self.cache.file_digest(self.path(shard))
        except OSError:
            return UNREADABLE

    def exists(self, shard: str) -> bool:
        """Whether it is a file."""
        return self.path(shard).is_file()

    def path(self, shard: str) -> Path:
        """The file itself, where links lead."""
        try:
            path = (self.root / file_name(shard)).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise LandingError(f"shard {shard} names no file of the landing folder {self.root}: {error}") from error
        if not path.is_relative_to(self.root.resolve()):
            raise LandingError(f"shard {shard} leads out of the landing folder {self.root}")
        return path

    def open(self, shard: str) -> BinaryIO:
        """The file itself."""
        return self.path(shard).open("rb")

    def folder(self, shard: str) -> Path:
        """The file's own folder."""
        return self.path(shard).parent

    def _walk(self) -> list[Path]:
        if not self.root.is_dir():
            raise LandingError(
                f"landing folder {self.root} does not exist: create it, or set corpus.landing in curation.yaml"
            )
        return sorted(
            path
            for path in self.root.rglob("*")
            if (path.is_file() or path.is_symlink())
            and not any(part.startswith(HIDDEN) for part in path.relative_to(self.root).parts)
        )

    def _objection(self, path: Path) -> str | None:
        """Why a file is no shard, to stand behind its name (empty: it is of another kind); None if it is one."""
        name = self._name(path)
        if path.is_symlink():
            if not path.is_file():
                return " (a link to a folder, or to nothing)"
            if not path.resolve().is_relative_to(self.root.resolve()):
                return " (a link that leads out of the landing folder)"
        return name_objection(name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _look(self, path: Path) -> LandingFile | None:
        try:
            stat = path.stat()
        except FileNotFoundError:  # removed since it was listed
            return None
        return LandingFile(self._name(path), stat.st_size, stat.st_mtime_ns)


def name_objection(name: str) -> str | None:
    """Why a file of that path is no shard, to stand behind it (empty: it is of another kind); None if it is one."""
    if not name.endswith(SHARD_SUFFIXES):
        return ""
    if not _is_unicode(name):
        return " (its name is not UTF-8)"
    return " (its path is too long)" if len(partition_key(name)) > LONGEST_KEY else None


def told(objections: Iterable[tuple[str, str]]) -> list[str]:
    """What is said of files that are no shards: of images that rows may refer to nothing."""
    return [
        printable(name) + reason for name, reason in objections if reason or not name.lower().endswith(IMAGE_SUFFIXES)
    ]


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A name as one line that says all of it: what a terminal would obey, break at or leave out is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
