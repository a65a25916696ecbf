"""Images that rows refer to or hold: which file or bytes are meant, and the digest that stands for them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from curation_assets.corpus.drafts import Refused
from curation_resources.storage.digests import bytes_digest
from curation_resources.storage.mirror import fetched

STORED = "warehouse://images/"
"""What a reference begins with that means an image whose bytes were inside a row; then comes their hash."""

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA = re.compile(r"data:([^,]*),", re.IGNORECASE)


def is_remote(reference: str) -> bool:
    """Whether a reference is a web address, which is looked at only if the configuration allows it."""
    return _REMOTE.match(reference) is not None


def decode_data_url(reference: str) -> bytes | None:
    """The bytes of a `data:` URL; None for any other reference.

    Raises:
        Refused: image_bad_data.
    """
    if reference[:5].lower() != "data:":
        return None
    head = _DATA.match(reference[:1000])
    if head is None or not head[1].lower().endswith(";base64"):
        raise Refused("image_bad_data", f"image {reference[:60]!r}: write a data: URL as data:TYPE;base64,BYTES")
    return decode_base64(reference[head.end() :])


def decode_base64(text: str) -> bytes:
    """The bytes of an image in base64; line ends in it do not matter.

    Raises:
        Refused: image_bad_data.
    """
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("image_bad_data", f"image {text[:60]!r} is not base64 ({error}); encode it again") from error
    return image_bytes(data)


def image_bytes(data: bytes) -> bytes:
    """The bytes of an image, which must be some.

    Raises:
        Refused: image_bad_data.
    """
    if not data:
        raise Refused("image_bad_data", "the image has no bytes; write the row again")
    return data


def digest_of_bytes(identity: str) -> str | None:
    """The BLAKE2b-128 of an image's bytes, from what stands for the image in the hashes; None of a web address."""
    return identity.removeprefix("file:") if identity.startswith("file:") else None


class ImageFolder:
    """The images of one landing file; each is read once however many rows refer to it.

    Args:
        root: the landing file's own folder, or None where that is no local folder.
        keep: stores bytes that were inside a row under their digest; None where nothing is to be kept.
    """

    def __init__(self, root: Path | None, keep: Callable[[str, bytes], None] | None = None) -> None:
        self._root = None if root is None else root.resolve()
        self._keep = keep
        self._kept: set[str] = set()
        self._digests: dict[str, str] = {}

    def take(self, source: str | bytes) -> tuple[str, str]:
        """The reference that `raw_corpus` keeps of an image, and what stands for it in the hashes.

        Raises:
            Refused: see `digest`.
        """
        if isinstance(source, str):
            return source, self.digest(source)
        hashed = bytes_digest(source)
        if self._keep is not None and hashed not in self._kept:
            self._keep(hashed, source)
            self._kept.add(hashed)
        return STORED + hashed, "file:" + hashed

    def digest(self, reference: str) -> str:
        """What stands for an image in the hashes: of a local file its bytes, of a URL the URL itself.

        Raises:
            Refused: image_outside_folder (absolute, `..` or a link that leads out, file: URL, our own store) or
                image_missing (no such file, not a regular file, not readable).
        """
        if reference not in self._digests:
            self._digests[reference] = self._compute(reference)
        return self._digests[reference]

    def _compute(self, reference: str) -> str:
        local = reference.lower().startswith(("file:", STORED.split("/", maxsplit=1)[0]))
        if local or PurePosixPath(reference).is_absolute():
            raise _outside(reference)
        if is_remote(reference):
            return "url:" + bytes_digest(reference.encode())
        if self._root is None:
            raise Refused(
                "image_missing",
                f"image {reference[:200]!r}: the file came without a local folder; give a URL instead",
            )
        try:
            path = (self._root / reference).resolve()
            if not path.is_relative_to(self._root):
                raise _outside(reference)
            copied = fetched(path)
            if copied is not None:
                return "file:" + copied
            # A pipe or a device must not be opened: reading it may never end.
            if not path.is_file():
                raise _missing(reference, "no such file")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        except FileNotFoundError as error:
            raise _missing(reference, "no such file") from error
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
