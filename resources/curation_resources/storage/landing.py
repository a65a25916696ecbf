"""The landing area for shards: its contract, the naming of partitions, and the implementation for a folder.

`curation_resources.storage.object_landing` implements a landing area in a bucket.
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
"""Suffixes of images that rows refer to, which are expected among the shards."""
SETTLE_SECONDS = 2.0
UNREADABLE = "unreadable"
"""Replaces the content hash of a file that cannot be opened."""
# Keys become file names of ours, with a suffix; file systems allow 255 bytes.
LONGEST_KEY = 240
HIDDEN = (".", "_")
"""Prefixes of the names of files and folders to ignore."""


class LandingError(UserError):
    """The landing area cannot be read."""


def partition_key(name: str) -> str:
    """Return the partition key of a file's path below the landing folder; `file_name` is the inverse.

    A key consists only of letters, digits, `_`, `-`, single dots and `=XX` escapes, so it is also a file name, and can
    contain neither a path separator nor Dagster's range marker.
    """
    return quote(name, safe="").replace("~", "%7E").replace("..", ".%2E").replace("%", "=")


def file_name(key: str) -> str:
    """Return the path below the landing folder of a partition key."""
    return unquote(key.replace("=", "%"))


@dataclass(frozen=True)
class LandingFile:
    """A file in a listing of the landing area.

    `version` changes with its content if the listing provides one (in a bucket), and is empty if size and modification
    time have to suffice (in a folder). `modified_ns` is 0 if it is not needed.
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
    """True if a listed file is always complete; otherwise it may be half-copied and is checked twice."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The area for people: a folder, or an address such as s3://bucket/prefix."""

    @abstractmethod
    def files(self) -> list[LandingFile]:
        """Return all shard files, sorted by name.

        Raises:
            LandingError: the area does not exist, or cannot be listed.
        """

    @abstractmethod
    def ignored(self) -> list[str]:
        """Return the files that are not shards, for display, so that users notice missing data.

        Files of other types (except images, which rows refer to) are listed by name, those with a shard's suffix also
        with the
        reason. Unprintable characters are escaped.

        Raises:
            LandingError: as `files`.
        """

    @abstractmethod
    def settled(self, wait: bool = True) -> list[LandingFile]:
        """Return the files that are not being written; with `wait`, also check files that need time for it.

        Raises:
            LandingError: as `files`.
        """

    @abstractmethod
    def digests(self, files: Iterable[LandingFile]) -> dict[str, str]:
        """Return the content hash (or version) of files, by shard."""

    @abstractmethod
    def digest(self, shard: str) -> str:
        """Return a file's current content hash or version, or UNREADABLE: one file must not block the others."""

    @abstractmethod
    def exists(self, shard: str) -> bool:
        """Return True if the shard's file exists."""

    @abstractmethod
    def path(self, shard: str) -> Path:
        """Return the local path of a shard's file.

        Raises:
            LandingError: the key points outside the landing area.
            OSError: the file does not exist (if it has to be downloaded), or may not be read.
        """

    @abstractmethod
    def open(self, shard: str) -> BinaryIO:
        """Open a shard's file as a stream, for reading a part of it; raises the same errors as `path`."""

    @abstractmethod
    def folder(self, shard: str) -> Path:
        """Return the local folder that relative paths in a shard's rows start from.

        Raises:
            LandingError: the key points outside the landing area.
        """

    def fetch(self, _path: Path, _wanted: str | None = None) -> str | None:
        """Make the file at a resolved path below `folder` available; return its hash if it is a copy, else None.

        Files of a landing folder are where they are. An area elsewhere copies them on demand.

        Args:
            _path: the file.
            _wanted: a hash: a copy that has it is used without asking whether it changed.

        Raises:
            OSError: the file does not exist, or cannot be read or copied.
            StorageError: the area cannot be reached.
        """
        return None


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
        """Return all shard files, sorted by name.

        Raises:
            LandingError: the folder does not exist.
        """
        looks = (self._look(path) for path in self._walk() if self._objection(path) is None)
        return [look for look in looks if look is not None]

    def ignored(self) -> list[str]:
        """See `Landing.ignored`; with a reason: links to folders or outside, and names that cannot be keys."""
        objections = ((self._name(path), self._objection(path)) for path in self._walk())
        return told((name, reason) for name, reason in objections if reason is not None)

    def settled(self, wait: bool = True) -> list[LandingFile]:
        """Return the files that are not being written: size and time are equal at two looks.

        A file older than `SETTLE_SECONDS` needs no second look. With `wait`, the second look follows after
        `SETTLE_SECONDS`; without, fresh files are left for the next call. The landing sensor does not use this: it
        compares with its previous scan (`curation_assets.defs.sensors`).
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
        """Return content hashes by shard, from the cache where size and time have not changed."""
        digests = {file.shard: self.digest(file.shard) for file in files}
        self.cache.save()
        return digests

    def digest(self, shard: str) -> str:
        """Return the file's content hash, or UNREADABLE."""
        try:
            return self.cache.file_digest(self.path(shard))
        except OSError:
            return UNREADABLE

    def exists(self, shard: str) -> bool:
        """Return True if it is a file."""
        return self.path(shard).is_file()

    def path(self, shard: str) -> Path:
        """Return the file's path with links resolved."""
        try:
            path = (self.root / file_name(shard)).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise LandingError(
                f"shard {shard} is not a valid path below the landing folder {self.root}: {error}"
            ) from error
        if not path.is_relative_to(self.root.resolve()):
            raise LandingError(f"shard {shard} points outside the landing folder {self.root}")
        return path

    def open(self, shard: str) -> BinaryIO:
        """Open the file itself."""
        return self.path(shard).open("rb")

    def folder(self, shard: str) -> Path:
        """Return the file's own folder."""
        return self.path(shard).parent

    def _walk(self) -> list[Path]:
        if not self.root.is_dir():
            raise LandingError(
                f"landing folder {self.root} does not exist. Create it, or set corpus.landing in curation.yaml."
            )
        return sorted(
            path
            for path in self.root.rglob("*")
            if (path.is_file() or path.is_symlink() or path.name.lower().endswith(SHARD_SUFFIXES))
            and not any(part.startswith(HIDDEN) for part in path.relative_to(self.root).parts)
        )

    def _objection(self, path: Path) -> str | None:
        """Return why a file is not a shard, as a suffix to its name (empty: another file type); None if it is one."""
        name = self._name(path)
        if path.is_symlink():
            if not path.is_file():
                return " (a link to a folder, or to nothing)"
            if not path.resolve().is_relative_to(self.root.resolve()):
                return " (a link that points outside the landing folder)"
        elif path.is_dir():
            return " (a folder)"
        elif not path.is_file():
            return " (a pipe, socket or device, not a file)"
        return name_objection(name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _look(self, path: Path) -> LandingFile | None:
        try:
            stat = path.stat()
        except FileNotFoundError:  # removed since the listing
            return None
        return LandingFile(self._name(path), stat.st_size, stat.st_mtime_ns)


def name_objection(name: str) -> str | None:
    """Return why a path is not a shard's, as a suffix to the path (empty: another file type); None if it is one."""
    if not name.lower().endswith(SHARD_SUFFIXES):
        return ""
    if not _is_unicode(name):
        return " (its name is not UTF-8)"
    return " (its path is too long)" if len(partition_key(name)) > LONGEST_KEY else None


def told(objections: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names and reasons of files that are not shards, without images that rows may refer to."""
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
    """Return a name as one complete line: characters that a terminal would interpret, break at or omit are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
