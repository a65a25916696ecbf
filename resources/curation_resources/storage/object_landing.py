"""A prefix of a bucket as a landing area.

Objects appear atomically and their ETag changes with their content, so a single listing shows what is new, without
waiting, downloading or hashing. Objects that are read are copied to this machine, once for each ETag.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
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
from curation_resources.storage.mirror import Mirror
from curation_resources.storage.object_store import ObjectStorage, is_valid_path

ETAG = "etag:"
"""Prefix of an object's version, so that an ETag never equals the hash of a file."""

ATTEMPTS = 3
"""Attempts to fetch an object that is replaced meanwhile."""

KEEP_SECONDS = 3600.0
"""Seconds for which copies of former versions stay, because another process may be reading them."""


class ObjectLanding(Landing):
    """Every object below a prefix whose key has a shard's suffix.

    Args:
        storage: the prefix.
        cache: local folder for copies.
        image_bytes: larger images are hashed, but not kept in full.
    """

    arrives_whole = True

    def __init__(self, storage: ObjectStorage, cache: Path, image_bytes: int) -> None:
        self.storage = storage
        place = cache / digest("landing", storage.options.endpoint_url, storage.place)
        self._copies = place / "shards"
        self._images = (place / "files").resolve()
        self._seen: dict[str, StoredFile] = {}
        self._mirror = Mirror(storage, self._images, image_bytes)

    @property
    def place(self) -> str:
        """The address, such as s3://bucket/prefix."""
        return self.storage.place

    def files(self) -> list[LandingFile]:
        """Return the objects that are shards. A prefix without objects is an empty area, if the bucket exists."""
        found = [file for file, objection in self._listed() if objection is None]
        self._seen = {partition_key(file.path): file for file in found}
        return [LandingFile(file.path, file.size, 0, ETAG + file.version) for file in found]

    def ignored(self) -> list[str]:
        """See `Landing.ignored`; with a reason: keys that are not valid file paths, and those that are too long."""
        return told((file.path, objection) for file, objection in self._listed() if objection is not None)

    def settled(self, wait: bool = True) -> list[LandingFile]:  # noqa: ARG002
        """Return all files, because objects appear atomically."""
        return self.files()

    def digests(self, files: Iterable[LandingFile]) -> dict[str, str]:
        """Return the ETags from the listing."""
        return {file.shard: file.version for file in files}

    def digest(self, shard: str) -> str:
        """Return the object's ETag."""
        try:
            found = self._look(shard)
        except AccessRefusedError:
            return UNREADABLE
        return UNREADABLE if found is None else ETAG + found.version

    def exists(self, shard: str) -> bool:
        """Return True if the object exists, or access to it is denied."""
        try:
            return self._look(shard) is not None
        except AccessRefusedError:
            return True

    def path(self, shard: str) -> Path:
        """Return a copy of the object: the version last seen if it is still current, else the current one."""
        for _ in range(ATTEMPTS):
            file = self._last(shard)
            # Keep the name's suffix, which shows the file type.
            target = self._copies / shard / digest(file.version) / shard
            try:
                copied = self.storage.fetch(file, target)
            except FileChangedError:
                self._seen.pop(shard, None)
                continue
            except AccessRefusedError as error:
                raise PermissionError(errno.EACCES, str(error)) from error
            _remove_other_versions(target.parent)
            return copied
        raise FileChangedError(
            f"{self.storage.shown(file_name(shard))}: replaced {ATTEMPTS} times while it was read. Run again once its "
            "upload has ended."
        )

    def open(self, shard: str) -> BinaryIO:
        """Open the object; only the parts that are read are fetched."""
        return self.storage.open_lazily(self._last(shard))

    def folder(self, shard: str) -> Path:
        """Return the local folder for files that rows refer to, which are copied on demand (`storage.mirror`)."""
        folder = (self._images / file_name(shard)).resolve().parent
        if not folder.is_relative_to(self._images):
            raise LandingError(f"shard {shard} points outside the landing area {self.place}")
        return folder

    def fetch(self, path: Path, wanted: str | None = None) -> str | None:
        """Copy the object behind a path below `folder`, unless the copy is current; see `Landing.fetch`."""
        return self._mirror.fetch(path, wanted) if path.is_relative_to(self._images) else None

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
            raise LandingError(f"{error} (corpus.landing in curation.yaml)") from error
        return [(file, _objection(file.path)) for file in found]

    def _objects(self) -> Iterator[StoredFile]:
        """Yield objects that are neither hidden nor the folder markers that consoles create."""
        for file in self.storage.objects():
            parts = file.path.split("/")
            hidden = is_valid_path(file.path) and any(part.startswith(HIDDEN) for part in parts)
            mark = not parts[-1] and not file.size
            if not hidden and not mark:
                yield file


def _objection(path: str) -> str | None:
    return name_objection(path) if is_valid_path(path) else " (its key is not a valid file path)"


def _remove_other_versions(version: Path) -> None:
    """Remove the copies of a shard's other versions once no process can still be reading them."""
    for copy in version.parent.glob("*/*"):
        # Another process may remove it at the same time.
        with contextlib.suppress(FileNotFoundError):
            if copy.parent != version and time.time() - copy.stat().st_mtime > KEEP_SECONDS:
                copy.unlink()
                copy.parent.rmdir()
