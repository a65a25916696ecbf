"""Local folders that mirror a prefix of a bucket; each file is downloaded on first use.

Rows name images by paths relative to their shard's file. Code that resolves such a path calls `Landing.fetch` first,
which does nothing for an ordinary folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curation_resources.storage.digests import atomic_write, digest
from curation_resources.storage.files import AccessRefusedError
from curation_resources.storage.object_store import ObjectStorage

if TYPE_CHECKING:
    from obstore import GetOptions


@dataclass(frozen=True)
class _Copy:
    """A copy's record: the object's version, hash and size, and the size and time that identify the copy."""

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
        limit: of a larger file only `limit` + 1 bytes are kept, enough to see that it is too large.
    """

    def __init__(self, storage: ObjectStorage, root: Path, limit: int) -> None:
        self.root = root
        self._storage = storage
        self._limit = limit

    def fetch(self, path: Path, wanted: str | None = None) -> str:
        """Bring the copy up to date; return the BLAKE2b-128 hash of all the object's bytes.

        Args:
            path: of the copy, below the root.
            wanted: a hash: a copy with this hash is used without a request.

        Raises:
            OSError: the object does not exist, may not be read, or cannot be stored.
            StorageError: the bucket cannot be used.
        """
        known = self._known(path)
        if known is not None and known.digest == wanted:
            return known.digest
        condition: GetOptions | None = None if known is None else {"if_none_match": f'"{known.version}"'}
        path.parent.mkdir(parents=True, exist_ok=True)
        hashed = hashlib.blake2b(digest_size=16)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:

                def take(piece: bytes) -> None:
                    hashed.update(piece)
                    stream.write(piece[: max(0, self._limit + 1 - stream.tell())])

                found = self._storage.download(path.relative_to(self.root).as_posix(), take, condition)
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
        """Return a copy's record; None if the copy has changed, or less of it was kept than the limit allows now."""
        try:
            copy = _Copy(**json.loads(self._record(path).read_text()))
            stat = path.stat()
        except (OSError, ValueError, TypeError):
            # A copy without a readable record is fetched again.
            return None
        unchanged = (copy.kept, copy.modified_ns) == (stat.st_size, stat.st_mtime_ns)
        return copy if unchanged and copy.kept >= min(copy.size, self._limit + 1) else None

    def _record(self, path: Path) -> Path:
        return self.root.with_name("records") / f"{digest(path.relative_to(self.root).as_posix())}.json"
