"""A prefix of an S3 bucket as a landing area.

An object appears whole and its ETag changes with its content, so one listing tells all: nothing is waited for,
downloaded or hashed to see what is new. What is read is copied to this machine, once for each ETag.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from curation_resources.storage.digests import digest
from curation_resources.storage.files import AccessRefusedError, FileChangedError, StorageError, StoredFile
from curation_resources.storage.landing import (
    HIDDEN,
    UNREADABLE,
    Landing,
    LandingError,
    LandingFile,
    file_name,
    name_objection,
    partition_key,
    told,
)
from curation_resources.storage.mirror import Mirror, mount
from curation_resources.storage.s3 import S3Storage

ETAG = "etag:"
"""What the version of an object begins with: an ETag never equals the hash of a file."""

ATTEMPTS = 3
"""Times that an object which is replaced while it is fetched is asked for."""

KEEP_SECONDS = 3600.0
"""How long a copy of a former version stays: another process may be reading it."""


class S3Landing(Landing):
    """Every object below a prefix whose key ends as a shard's name does.

    Args:
        storage: the prefix.
        cache: a folder of this machine for copies.
        image_bytes: images of more bytes than this are hashed, but not kept whole.
    """

    arrives_whole = True

    def __init__(self, storage: S3Storage, cache: Path, image_bytes: int) -> None:
        self.storage = storage
        place = cache / digest("landing", storage.options.endpoint_url, storage.place)
        self._copies = place / "shards"
        self._images = (place / "files").resolve()
        self._seen: dict[str, StoredFile] = {}
        mount(Mirror(storage, self._images, image_bytes))

    @property
    def place(self) -> str:
        """s3://bucket/prefix."""
        return self.storage.place

    def files(self) -> list[LandingFile]:
        """The objects that are shards. A prefix with none is an empty area, if the bucket is there."""
        found = [file for file, objection in self._listed() if objection is None]
        self._seen = {partition_key(file.path): file for file in found}
        return [LandingFile(file.path, file.size, 0, ETAG + file.version) for file in found]

    def ignored(self) -> list[str]:
        """See `Landing.ignored`; with a reason: keys that are no paths of files, and those that are too long."""
        return told((file.path, objection) for file, objection in self._listed() if objection is not None)

    def settled(self, wait: bool = True) -> list[LandingFile]:  # noqa: ARG002
        """All files: an object appears whole."""
        return self.files()

    def digests(self, files: Iterable[LandingFile]) -> dict[str, str]:
        """The ETags that the listing gave."""
        return {file.shard: file.version for file in files}

    def digest(self, shard: str) -> str:
        """The object's ETag."""
        try:
            found = self._look(shard)
        except AccessRefusedError:
            return UNREADABLE
        return UNREADABLE if found is None else ETAG + found.version

    def exists(self, shard: str) -> bool:
        """Whether there is an object; one that may not be looked at is there."""
        try:
            return self._look(shard) is not None
        except AccessRefusedError:
            return True

    def path(self, shard: str) -> Path:
        """A copy of the object, as it was last seen if it still is so, else as it is now."""
        for _ in range(ATTEMPTS):
            file = self._last(shard)
            # The ending of the name stays, as it says what the file is.
            target = self._copies / shard / digest(file.version) / shard
            try:
                copied = self.storage.fetch(file, target)
            except FileChangedError:
                self._seen.pop(shard, None)
                continue
            except AccessRefusedError as error:
                raise PermissionError(errno.EACCES, str(error)) from error
            _forget_others(target.parent)
            return copied
        raise FileChangedError(f"{self.storage.shown(file_name(shard))}: changes again and again while it is read")

    def open(self, shard: str) -> BinaryIO:
        """The object, of which only what is read is fetched."""
        return self.storage.open_lazily(self._last(shard))

    def folder(self, shard: str) -> Path:
        """A folder into which the files that rows refer to are copied as they are asked for (`storage.mirror`)."""
        folder = (self._images / file_name(shard)).resolve().parent
        if not folder.is_relative_to(self._images):
            raise LandingError(f"shard {shard} leads out of the landing area {self.place}")
        return folder

    def _last(self, shard: str) -> StoredFile:
        found = self._seen.get(shard) or self._look(shard)
        if found is None:
            raise FileNotFoundError(self.storage.shown(file_name(shard)))
        return found

    def _look(self, shard: str) -> StoredFile | None:
        found = self.storage.seen(file_name(shard))
        if found is None:
            self._seen.pop(shard, None)
        else:
            self._seen[shard] = found
        return found

    def _listed(self) -> list[tuple[StoredFile, str | None]]:
        try:
            found = sorted(self._objects(), key=lambda file: file.path)
        except (StorageError, FileNotFoundError) as error:
            raise LandingError(f"{error}; the landing area is corpus.landing in curation.yaml") from error
        return [(file, _objection(file.path)) for file in found]

    def _objects(self) -> Iterator[StoredFile]:
        """What is neither hidden nor the mark that consoles make for a folder."""
        for file in self.storage.objects():
            parts = file.path.split("/")
            hidden = _is_path(file.path) and any(part.startswith(HIDDEN) for part in parts)
            mark = not parts[-1] and not file.size
            if not hidden and not mark:
                yield file


def _objection(path: str) -> str | None:
    return name_objection(path) if _is_path(path) else " (its key is no path of a file)"


def _is_path(key: str) -> bool:
    return "\0" not in key and key == str(PurePosixPath(key)) and not {"", ".", ".."} & set(key.split("/"))


def _forget_others(version: Path) -> None:
    """Remove the copies of other versions of a shard, once nobody can still be reading them."""
    for copy in version.parent.glob("*/*"):
        # Another process may forget it, too.
        with contextlib.suppress(FileNotFoundError):
            if copy.parent != version and time.time() - copy.stat().st_mtime > KEEP_SECONDS:
                copy.unlink()
                copy.parent.rmdir()
