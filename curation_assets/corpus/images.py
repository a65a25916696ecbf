"""Images that rows refer to: which file a reference means, and the digest of its bytes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

from curation_assets.corpus.drafts import Refused

_REMOTE = re.compile(r"(?:[a-z][a-z0-9+.-]*://|data:)", re.IGNORECASE)


class ImageFolder:
    """The images beside one landing file; each is read once however many rows refer to it.

    `root` is the landing file's own folder, or None where that is no local folder.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else root.resolve()
        self._digests: dict[str, str] = {}

    def digest(self, reference: str) -> str:
        """What stands for an image in the hashes: of a local file its bytes, of a URL the URL itself.

        Raises:
            Refused: image_outside_folder (absolute, `..` or a link that leads out, file: URL) or
                image_missing (no such file, not a regular file, not readable).
        """
        if reference not in self._digests:
            self._digests[reference] = self._compute(reference)
        return self._digests[reference]

    def _compute(self, reference: str) -> str:
        if _REMOTE.match(reference) and not reference.lower().startswith("file:"):
            return "url:" + hashlib.blake2b(reference.encode(), digest_size=16).hexdigest()
        if reference.lower().startswith("file:") or PurePosixPath(reference).is_absolute():
            raise _outside(reference)
        if self._root is None:
            raise Refused(
                "image_missing",
                f"image {reference[:200]!r}: the file came without a local folder; give a URL instead",
            )
        try:
            path = (self._root / reference).resolve()
            if not path.is_relative_to(self._root):
                raise _outside(reference)
            # A pipe or a device must not be opened: reading it may never end.
            if not path.is_file():
                raise _missing(reference, "no such file")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            raise _missing(reference, type(error).__name__) from error
        return "file:" + digest.hexdigest()


def _outside(reference: str) -> Refused:
    return Refused(
        "image_outside_folder",
        f"image {reference[:200]!r} lies outside the file's folder; "
        "put images beside the file and name them relative to it",
    )


def _missing(reference: str, why: str) -> Refused:
    return Refused(
        "image_missing",
        f"image {reference[:200]!r} cannot be read ({why}); copy the images before the file that names them",
    )
