"""From corpus rows to what the scoring and training code takes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.corpus.images import STORED, is_remote
from curation_assets.workspace import Workspace
from resources.scoring.samples import ImageFile, ImageSource, Sample, Segment


def samples_of(workspace: Workspace, rows: pl.DataFrame, steps: pl.DataFrame | None = None) -> list[Sample]:
    """Samples from rows of `raw_corpus` and, if they are to be measured by segment, `segmented_steps`."""
    spans: dict[str, list[Segment]] = {}
    if steps is not None:
        for sample_id, index, start, end in steps.select("sample_id", "step_index", "start", "end").iter_rows():
            spans.setdefault(sample_id, []).append(Segment(index, start, end))
    kept = str(workspace.warehouse.path(tables.images_dir()))
    roots: dict[str, Path] = {shard: workspace.image_root(shard) for shard in rows["shard"].unique().to_list()}
    columns = ("sample_id", "shard", "messages", "response", "images", "image_digests")
    return [
        Sample(
            sample_id,
            json.loads(messages),
            response,
            tuple(spans.get(sample_id, ())),
            tuple(
                image_source(reference, str(roots[shard]), kept, digest)
                for reference, digest in zip(images, digests, strict=True)
            ),
        )
        for sample_id, shard, messages, response, images, digests in rows.select(columns).iter_rows()
    ]


def image_source(reference: str, root: str, kept: str, digest: str | None) -> ImageSource:
    """Where the image lies that a reference of `raw_corpus` means.

    Args:
        reference: an entry of column `images`.
        root: folder of the shard's file, which relative paths start from.
        kept: the warehouse's folder of images whose bytes were inside rows.
        digest: of the image's bytes, as column `image_digests` has it.
    """
    if reference.startswith(STORED):
        return ImageFile(kept, reference.removeprefix(STORED), digest)
    return reference if is_remote(reference) else ImageFile(root, reference, digest)
