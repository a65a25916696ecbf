"""Images of traces as small pictures inside a page."""

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
"""Pixels of a side."""

LIMITS = ImageLimits()
"""Of images of a release, which may have come from anywhere."""

Picture = dict[str, str]
"""`name` and `data`, a data URL; or `name` and `why` there is none."""

Pictures = Callable[[Mapping[str, Any]], Sequence[Picture]]
"""Of a row of `Traces`."""


def no_pictures(row: Mapping[str, Any]) -> list[Picture]:
    """Names alone."""
    return [{"name": str(name), "why": "without images"} for name in row["images"] or ()]


def subset_pictures(workspace: Workspace) -> Pictures:
    """Pictures of images where the corpus has them; web addresses as the configuration allows."""
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
    """Pictures of the images that a release carries; of others it has the names alone."""

    def pictures(row: Mapping[str, Any]) -> list[Picture]:
        return [_carried(storage, place, str(name)) for name in row["images"] or ()]

    return pictures


def _carried(storage: Storage, place: str, name: str) -> Picture:
    folder, _, plain = name.partition("/")
    if folder != IMAGES or not plain.isalnum():
        return {"name": name, "why": "the release does not carry it"}
    try:
        return {"name": name, "data": data_url(open_image(storage.read(f"{place}/{name}"), LIMITS))}
    except (ImageError, OSError) as error:
        return {"name": name, "why": str(error)}


def data_url(image: Image.Image) -> str:
    """A small picture of an image."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
