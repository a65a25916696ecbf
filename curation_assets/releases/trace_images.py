"""Thumbnails of images for trace pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
from PIL import Image

from curation_assets.corpus.samples import samples_of
from curation_assets.releases.file_names import IMAGES
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.images import ImageError, ImageLimits, open_image
from curation_resources.storage.files import Storage

LARGEST = 512
"""Pixels of the longer side."""

LIMITS = ImageLimits()
"""Limits for images of a release, which may have any origin."""

Picture = dict[str, str]
"""`name` and `data`, a data URL; or `name` and `why` the image is not shown."""

Pictures = Callable[[Mapping[str, Any]], Sequence[Picture]]
"""Returns the pictures of a row of `Traces`."""


def no_pictures(row: Mapping[str, Any]) -> list[Picture]:
    """Return only the names."""
    return [{"name": str(name), "why": "without images"} for name in row["images"] or ()]


def subset_pictures(workspace: Workspace) -> Pictures:
    """Return a function for thumbnails of the corpus' images; web addresses are fetched if the configuration allows
    it."""
    images = workspace.settings.corpus.images
    limits = ImageLimits(images.max_pixels, images.max_bytes, images.fetch_remote)

    def pictures(row: Mapping[str, Any]) -> list[Picture]:
        columns = ("sample_id", "shard", "messages", "response", "images", "image_digests")
        (sample,) = samples_of(workspace, pl.DataFrame([{name: row[name] for name in columns}], strict=False))
        found = []
        for name, source in zip(row["images"], sample.images, strict=True):
            try:
                found.append({"name": str(name), "data": data_url(open_image(source, limits))})
            except ImageError as error:
                found.append({"name": str(name), "why": str(error)})
        return found

    return pictures


def release_pictures(storage: Storage, place: str) -> Pictures:
    """Return a function for thumbnails of the images that a release contains; for others it returns only names."""

    def pictures(row: Mapping[str, Any]) -> list[Picture]:
        return [_carried(storage, place, str(name)) for name in row["images"] or ()]

    return pictures


def _carried(storage: Storage, place: str, name: str) -> Picture:
    folder, _, plain = name.partition("/")
    if folder != IMAGES or not plain.isalnum():
        return {"name": name, "why": "the release does not contain it"}
    try:
        return {"name": name, "data": data_url(open_image(storage.read(f"{place}/{name}"), LIMITS))}
    except (ImageError, OSError) as error:
        return {"name": name, "why": str(error)}


def data_url(image: Image.Image) -> str:
    """Return a thumbnail of an image as a data URL."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
