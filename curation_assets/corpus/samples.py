"""Convert corpus rows into samples for the scoring and training code."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.corpus.images import STORED, is_remote
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.samples import ImageFile, ImageSource, Sample, Segment


def samples_of(workspace: Workspace, rows: pl.DataFrame, steps: pl.DataFrame | None = None) -> list[Sample]:
    """Build samples from rows of `raw_corpus` and, if they are measured by segment, `segmented_steps`."""
    spans: dict[str, list[Segment]] = {}
    if steps is not None:
        for sample_id, index, start, end in steps.select("sample_id", "step_index", "start", "end").iter_rows():
            spans.setdefault(sample_id, []).append(Segment(index, start, end))
    roots: dict[str, Path] = {shard: workspace.image_root(shard) for shard in rows["shard"].unique().to_list()}
    if "answer" not in rows.columns:
        rows = rows.with_columns(answer=pl.lit(None, pl.String))
    columns = ("sample_id", "shard", "messages", "response", "images", "image_digests", "answer")
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
            answer,
        )
        for sample_id, shard, messages, response, images, digests, answer in rows.select(columns).iter_rows()
    ]


def image_source(workspace: Workspace, reference: str, root: str, digest: str | None) -> ImageSource:
    """Return the location of the image that a reference in `raw_corpus` denotes.

    Args:
        workspace: the workspace whose warehouse stores images from inside rows.
        reference: an entry of column `images`.
        root: folder of the shard's file, which relative paths start from.
        digest: digest of the image's bytes, from column `image_digests`.
    """
    if reference.startswith(STORED):
        name = reference.removeprefix(STORED)
        try:
            kept = workspace.warehouse.local(f"{tables.images_dir()}/{name}")
        except FileNotFoundError:
            # The code that opens the image reports that it is missing.
            kept = Path(tables.images_dir()) / name
        return ImageFile(str(kept.parent), name, digest)
    if is_remote(reference):
        return reference
    # The code that opens the image reports any problem.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        workspace.fetch_image((Path(root) / reference).resolve(), digest)
    return ImageFile(root, reference, digest)
