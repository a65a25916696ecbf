"""Folders of this machine that stand for a prefix of a bucket: a file comes as it is asked for.

Rows name images by paths relative to their shard's file. Who follows such a path below a folder asks `fetched`
first, which leaves paths of ordinary folders alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from curation_resources.storage.digests import atomic_write, digest
from curation_resources.storage.files import AccessRefusedError
from curation_resources.storage.s3 import S3Storage

_MOUNTED: dict[Path, Mirror] = {}


@dataclass(frozen=True)
class _Copy:
    """What is known of a copy: the object's version, hash and size, and what tells the copy from another one."""

    version: str
    digest: str
    size: int
    kept: int
    modified_ns: int


class Mirror:
    """A folder of copies.

    Args:
        storage: the prefix.
        root: the folder, with its links resolved.
        limit: of a larger file only as many bytes, and one, are kept: enough to see that it is too large.
    """

    def __init__(self, storage: S3Storage, root: Path, limit: int) -> None:
        self.root = root
        self._storage = storage
        self._limit = limit

    def fetch(self, path: Path, wanted: str | None = None) -> str:
        """Bring the copy up to date; gives the BLAKE2b-128 of the object's bytes, as many as they are.

        Args:
            path: of the copy, below the root.
            wanted: a hash: a copy that has it is left as it is, and nothing is asked for.

        Raises:
            OSError: there is no such object, it may not be read, or it cannot be kept.
            StorageError: S3 cannot be used.
        """
        known = self._known(path)
        if known is not None and known.digest == wanted:
            return known.digest
        condition = {} if known is None else {"IfNoneMatch": f'"{known.version}"'}
        path.parent.mkdir(parents=True, exist_ok=True)
        hashed = hashlib.blake2b(digest_size=16)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:

                def take(piece: bytes) -> None:
                    hashed.update(piece)
                    stream.write(piece[: max(0, self._limit + 1 - stream.tell())])

                found = self._storage.download(path.relative_to(self.root).as_posix(), take, **condition)
            if found is None:
                assert known is not None
                return known.digest
            Path(temporary).replace(path)
        except AccessRefusedError as error:
            raise PermissionError(errno.EACCES, str(error)) from error
        finally:
            Path(temporary).unlink(missing_ok=True)
        stat = path.stat()
        copy = _Copy(found.version, hashed.hexdigest(), found.size, stat.st_size, stat.st_mtime_ns)
        atomic_write(self._record(path), json.dumps(asdict(copy)).encode())
        return copy.digest

    def _known(self, path: Path) -> _Copy | None:
        """What is recorded of a copy; None if it is another one, or less is kept of it than is allowed now."""
        try:
            copy = _Copy(**json.loads(self._record(path).read_text()))
            stat = path.stat()
        except (OSError, ValueError, TypeError):
            # A copy of which nothing is known is fetched again.
            return None
        as_it_was = (copy.kept, copy.modified_ns) == (stat.st_size, stat.st_mtime_ns)
        return copy if as_it_was and copy.kept >= min(copy.size, self._limit + 1) else None

    def _record(self, path: Path) -> Path:
        return self.root.with_name("records") / f"{digest(path.relative_to(self.root).as_posix())}.json"


def mount(mirror: Mirror) -> None:
    """Have `fetched` ask this mirror for what lies below its root."""
    _MOUNTED[mirror.root] = mirror


def fetched(path: Path, wanted: str | None = None) -> str | None:
    """Have the file of a resolved path there, if it lies in a mirror; gives its hash then, else None.

    Args:
        path: the file.
        wanted: see `Mirror.fetch`.

    Raises:
        OSError: it is in a mirror and cannot be had.
        StorageError: the mirror's bucket cannot be used.
    """
    for parent in path.parents:
        mirror = _MOUNTED.get(parent)
        if mirror is not None:
            return mirror.fetch(path, wanted)
    return None
