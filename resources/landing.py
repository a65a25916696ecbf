"""Where shards arrive: listing a folder, naming partitions, and waiting for half-copied files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from resources.digests import DigestCache
from resources.errors import UserError

SHARD_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")
"""Files that rows refer to: they lie among the shards by design."""
SETTLE_SECONDS = 2.0
UNREADABLE = "unreadable"
"""Stands for the content hash of a file that cannot be opened."""
# A key is the name of files of ours, with a suffix; file systems allow 255 bytes.
LONGEST_KEY = 240


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
    """A file as one look at the folder saw it."""

    name: str
    size: int
    modified_ns: int

    @property
    def shard(self) -> str:
        """The file's partition key."""
        return partition_key(self.name)


class Landing:
    """A landing folder: every .jsonl, .jsonl.gz and .parquet file below it is a shard."""

    def __init__(self, root: Path, cache: DigestCache) -> None:
        self.root = root
        self.cache = cache

    def files(self) -> list[LandingFile]:
        """All shard files, sorted by name.

        Raises:
            LandingError: the folder does not exist.
        """
        looks = (self._look(path) for path in self._walk() if self._objection(path) is None)
        return [look for look in looks if look is not None]

    def ignored(self) -> list[str]:
        """What no shard is made of: shown to the user, so that nothing is missed.

        Files of other kinds (but for images, which rows refer to) by their names; links that lead out of the
        landing folder, links to folders, and files whose names cannot be keys also with the reason. What a
        terminal would not print is escaped.
        """
        objections = ((self._name(path), self._objection(path)) for path in self._walk())
        return [
            _printable(name) + reason
            for name, reason in objections
            if reason is not None and (reason or not name.lower().endswith(IMAGE_SUFFIXES))
        ]

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
        digests = {file.shard: self.digest(self.root / file.name) for file in files}
        self.cache.save()
        return digests

    def digest(self, path: Path) -> str:
        """Content hash of a file, or UNREADABLE: one file without permission must not stop the others."""
        try:
            return self.cache.file_digest(path)
        except OSError:
            return UNREADABLE

    def path(self, shard: str) -> Path:
        """The file of a shard.

        Raises:
            LandingError: the key leads out of the landing folder.
        """
        try:
            path = (self.root / file_name(shard)).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise LandingError(f"shard {shard} names no file of the landing folder {self.root}: {error}") from error
        if not path.is_relative_to(self.root.resolve()):
            raise LandingError(f"shard {shard} leads out of the landing folder {self.root}")
        return path

    def _walk(self) -> list[Path]:
        if not self.root.is_dir():
            raise LandingError(
                f"landing folder {self.root} does not exist: create it, or set corpus.landing in curation.yaml"
            )
        hidden = (".", "_")
        return sorted(
            path
            for path in self.root.rglob("*")
            if (path.is_file() or path.is_symlink())
            and not any(p.startswith(hidden) for p in path.relative_to(self.root).parts)
        )

    def _objection(self, path: Path) -> str | None:
        """Why a file is no shard, to stand behind its name (empty: it is of another kind); None if it is one."""
        name = self._name(path)
        if path.is_symlink():
            if not path.is_file():
                return " (a link to a folder, or to nothing)"
            if not path.resolve().is_relative_to(self.root.resolve()):
                return " (a link that leads out of the landing folder)"
        if not path.name.endswith(SHARD_SUFFIXES):
            return ""
        if not _is_unicode(name):
            return " (its name is not UTF-8)"
        return " (its path is too long)" if len(partition_key(name)) > LONGEST_KEY else None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _look(self, path: Path) -> LandingFile | None:
        try:
            stat = path.stat()
        except FileNotFoundError:  # removed since it was listed
            return None
        return LandingFile(self._name(path), stat.st_size, stat.st_mtime_ns)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
