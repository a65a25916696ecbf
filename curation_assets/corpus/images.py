"""Find the images in a field or a turn of a row, and resolve them: their file or bytes, and their digest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import absent, kind, text
from curation_resources.storage.digests import bytes_digest

STORED = "warehouse://images/"
"""Prefix of a reference to an image whose bytes were inside a row; the bytes' hash follows."""

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA = re.compile(r"data:([^,]*),", re.IGNORECASE)
_REFERENCE_KEYS = ("url", "path", "image", "image_url")
_DEEPEST = 16
"""Maximum nesting of lists and objects; data sets have two or three levels."""


def image_sources(values: Iterable[object], depth: int = 0) -> Iterator[str | bytes]:
    """Yield paths, URLs and bytes of images, in order.

    A value is a path, a URL, bytes, a `data:` URL, a list of values, or an object: `{bytes, path}` as written by
    Hugging Face datasets (bytes take precedence; in JSON they are base64), `{url}`, `{path}`. Null, missing and empty
    values are skipped.

    Raises:
        Refused: wrong_type, nul_byte, image_bad_data, nested_too_deep.
    """
    if depth > _DEEPEST:
        raise Refused(
            "nested_too_deep", f"an image is nested in more than {_DEEPEST} lists and objects. Flatten the row."
        )
    for value in values:
        if absent(value) or value == "":
            continue
        if isinstance(value, list):
            yield from image_sources(value, depth + 1)
        elif isinstance(value, dict):
            yield from _of_object(value, depth)
        elif isinstance(value, bytes):
            yield image_bytes(value)
        elif isinstance(value, str):
            data = decode_data_url(value)
            yield text(value, "image") if data is None else data
        else:
            raise Refused("wrong_type", f"an image must be a path, a URL or bytes, not {kind(value)}")


def _of_object(value: dict[str, object], depth: int) -> Iterator[str | bytes]:
    data = value.get("bytes")
    if isinstance(data, str) and data:
        yield decode_base64(data)
    elif not absent(data) and data != "":
        yield from image_sources([data], depth + 1)
    else:
        found = (value[key] for key in _REFERENCE_KEYS if not absent(value.get(key)))
        yield from image_sources([next(found, None)], depth + 1)


def is_remote(reference: str) -> bool:
    """Return whether a reference is a web address, which is fetched only if the configuration allows it."""
    return _REMOTE.match(reference) is not None


def decode_data_url(reference: str) -> bytes | None:
    """Return the bytes of a `data:` URL; None for any other reference.

    Raises:
        Refused: image_bad_data.
    """
    if reference[:5].lower() != "data:":
        return None
    head = _DATA.match(reference[:1000])
    if head is None or not head[1].lower().endswith(";base64"):
        raise Refused("image_bad_data", f"image {reference[:60]!r}: unsupported data: URL. Use data:TYPE;base64,BYTES.")
    return decode_base64(reference[head.end() :])


def decode_base64(text: str) -> bytes:
    """Decode the bytes of a base64 image, ignoring line ends.

    Raises:
        Refused: image_bad_data.
    """
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("image_bad_data", f"image {text[:60]!r} is not base64 ({error}). Encode it again.") from error
    return image_bytes(data)


def image_bytes(data: bytes) -> bytes:
    """Return the bytes of an image after checking that they are not empty.

    Raises:
        Refused: image_bad_data.
    """
    if not data:
        raise Refused("image_bad_data", "the image has no bytes. Write the row again.")
    return data


def digest_of_bytes(identity: str) -> str | None:
    """Return the BLAKE2b-128 of an image's bytes from its identity; None for a web address."""
    return identity.removeprefix("file:") if identity.startswith("file:") else None


class ImageFolder:
    """The images of one landing file; each is read once, however many rows refer to it.

    Args:
        root: the landing file's own folder; None if it is not local.
        keep: stores bytes from inside a row under their digest; None to discard them.
        fetch: makes a file below the root available and returns its hash, or None for a file that is where it is.
    """

    def __init__(
        self,
        root: Path | None,
        keep: Callable[[str, bytes], None] | None = None,
        fetch: Callable[[Path], str | None] = lambda _path: None,
    ) -> None:
        self._root = None if root is None else root.resolve()
        self._keep = keep
        self._fetch = fetch
        self._kept: set[str] = set()
        self._digests: dict[str, str] = {}

    def take(self, source: str | bytes) -> tuple[str, str]:
        """Return an image's reference for `raw_corpus`, and its identity for the hashes.

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
        """Return an image's identity for the hashes: based on a local file's bytes, or on the URL itself.

        Raises:
            Refused: image_outside_folder (absolute path, `..`, a link that leads outside, file: URL, our own store) or
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
                f"image {reference[:200]!r}: the file has no local folder. Use a URL instead.",
            )
        try:
            path = (self._root / reference).resolve()
            if not path.is_relative_to(self._root):
                raise _outside(reference)
            copied = self._fetch(path)
            if copied is not None:
                return "file:" + copied
            # Never open a pipe or a device: reading it may not end.
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
        f"image {reference[:200]!r} is outside the file's folder. "
        "Put images next to the file and name them relative to it.",
    )


def _missing(reference: str, why: str) -> Refused:
    return Refused(
        "image_missing",
        f"image {reference[:200]!r} cannot be read ({why}). Copy the images before the file that names them.",
    )
