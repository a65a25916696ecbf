"""Find the images in a field or a turn of a row, in the forms that data sets use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import absent, kind, text
from curation_assets.corpus.images import decode_base64, decode_data_url, image_bytes

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
