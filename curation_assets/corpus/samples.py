"""From corpus rows to what the scoring and training code takes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.corpus.images import STORED, is_remote
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.samples import ImageFile, ImageSource, Sample, Segment
from curation_resources.storage.mirror import fetched


def samples_of(workspace: Workspace, rows: pl.DataFrame, steps: pl.DataFrame | None = None) -> list[Sample]:
    """Samples from rows of `raw_corpus` and, if they are to be measured by segment, `segmented_steps`."""
    spans: dict[str, list[Segment]] = {}
    if steps is not None:
        for sample_id, index, start, end in steps.select("sample_id", "step_index", "start", "end").iter_rows():
            spans.setdefault(sample_id, []).append(Segment(index, start, end))
    roots: dict[str, Path] = {shard: workspace.image_root(shard) for shard in rows["shard"].unique().to_list()}
    columns = ("sample_id", "shard", "messages", "response", "images", "image_digests")
    return [
        Sample(
            sample_id,
            json.loads(messages),
            response,
            tuple(spans.get(sample_id, ())),
            tuple(
                image_source(workspace, reference, str(roots[shard]), digest)
                for reference, digest in zip(images, digests, strict=True)
            ),
        )
        for sample_id, shard, messages, response, images, digests in rows.select(columns).iter_rows()
    ]


def image_source(workspace: Workspace, reference: str, root: str, digest: str | None) -> ImageSource:
    """Where the image lies that a reference of `raw_corpus` means.

    Args:
        workspace: whose warehouse keeps the images whose bytes were inside rows.
        reference: an entry of column `images`.
        root: folder of the shard's file, which relative paths start from.
        digest: of the image's bytes, as column `image_digests` has it.
    """
    if reference.startswith(STORED):
        name = reference.removeprefix(STORED)
        try:
            kept = workspace.warehouse.local(f"{tables.images_dir()}/{name}")
        except FileNotFoundError:
            # Whoever opens it says that it is missing.
            kept = Path(tables.images_dir()) / name
        return ImageFile(str(kept.parent), name, digest)
    if is_remote(reference):
        return reference
    # Whoever opens it says what is wrong with it.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        fetched((Path(root) / reference).resolve(), digest)
    return ImageFile(root, reference, digest)
