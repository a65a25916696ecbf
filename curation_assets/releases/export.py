"""Export a release to a trainer's format, as a new folder that is created completely or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation_assets.releases.checking import wrong_with_manifest, wrong_with_rows
from curation_assets.releases.file_names import DATA_PARQUET, IMAGES, MANIFEST
from curation_assets.releases.formats import DATASETS, FORMATS, NAMES, Format, records
from curation_assets.releases.step_columns import STEP_COLUMNS
from curation_resources.errors import UserError, in_a_line
from curation_resources.scoring.samples import Segment
from curation_resources.sections import unknown
from curation_resources.storage.files import Storage
from curation_resources.storage.landing import printable

PLAIN_NAME = re.compile(r"[0-9a-zA-Z_-]+")
"""Names of images in a release: hashes."""


class ExportError(UserError):
    """A release cannot be exported."""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: the exported folder.
        rows: number of rows.
        left_out: number of rows that the format cannot represent, by reason.
        loses: description of the content that the format omits.
    """

    folder: Path
    rows: int
    left_out: Mapping[str, int]
    loses: str


def release_frame(storage: Storage, place: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the rows of a release and its manifest; step columns missing from early releases are added as null.

    Raises:
        ExportError: the folder is not a release, or its files cannot be read.
    """
    try:
        manifest = json.loads(storage.read(f"{place}/{MANIFEST}"))
        for what in wrong_with_manifest(manifest):
            raise ExportError(f"{storage.shown(place)}: {MANIFEST} {what}. Run `curate verify` for all problems.")
        data = storage.read(f"{place}/{DATA_PARQUET}")
        if hashlib.sha256(data).hexdigest() != manifest["files"][DATA_PARQUET]["sha256"]:
            raise ExportError(
                f"{storage.shown(place)}: {DATA_PARQUET} does not match the manifest. Restore it from a copy; "
                "`curate verify` lists all problems."
            )
        frame = pl.read_parquet(io.BytesIO(data))
        for what in wrong_with_rows(frame):
            raise ExportError(f"{storage.shown(place)}: {DATA_PARQUET} {what}. Run `curate verify` for all problems.")
    except FileNotFoundError as error:
        raise ExportError(f"{storage.shown(place)} is not a release: {error} is missing") from error
    except (pl.exceptions.PolarsError, ValueError, LookupError, TypeError) as error:
        raise ExportError(
            f"{storage.shown(place)} cannot be read ({in_a_line(error)}). Run `curate verify` for all problems."
        ) from error
    missing = {name: dtype for name, dtype in STEP_COLUMNS.items() if name not in frame.columns}
    return frame.with_columns(pl.lit(None, dtype=dtype).alias(name) for name, dtype in missing.items()), manifest


def export_release(
    storage: Storage,
    place: str,
    form: str,
    to: Path,
    *,
    threshold: float = 0.0,
    leave_out: bool = False,
    tokenizer: str | None = None,
) -> Exported:
    """Export a release to a format.

    Args:
        storage: storage that holds the release.
        place: its folder there.
        form: one of NAMES.
        to: a folder that does not exist, or is empty.
        threshold: steps with a lower score are labelled bad, masked, or given weight 0, depending on the format.
        leave_out: skip and count rows that the format cannot represent, instead of raising an error.
        tokenizer: folder or hub id; format `weights` then has token_ids and token_weights [T] for every response.

    Raises:
        ExportError: the format is unknown, the folder is not empty, a row cannot be represented, or a required
            package is not installed.
    """
    if form not in NAMES:
        raise ExportError(unknown("format", form, NAMES))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"{to} exists and is not empty. Name another folder with --to.")
    if tokenizer is not None and form != "weights":
        raise ExportError(f"--tokenizer requires --format weights, but the format is {form}")
    frame, manifest = release_frame(storage, place)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{to.parent} is not a folder ({error.strerror}). Name another one with --to.") from error
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as made:
        folder = Path(made) / "whole"
        folder.mkdir()
        if form == DATASETS:
            exported = _write_datasets(frame, folder)
        else:
            exported = _write(frame, FORMATS[form], folder, threshold, leave_out, tokenizer)
        _copy_images(storage, place, frame, folder)
        release = f"{manifest['subset']}@{manifest['number']}"
        (folder / "README.md").write_text(_readme(release, manifest, form, threshold, exported), encoding="utf-8")
        if to.exists():
            to.rmdir()
        folder.replace(to)
    return Exported(to, exported.rows, exported.left_out, exported.loses)


def _write(
    frame: pl.DataFrame, form: Format, folder: Path, threshold: float, leave_out: bool, tokenizer: str | None
) -> Exported:
    made, left_out, first, asked = [], Counter[str](), dict[str, str](), set[str]()
    for row, record in records(frame.iter_rows(named=True), form, threshold):
        # Rows are sorted best first, so this keeps each prompt's best representable row.
        if form.once_a_prompt and row["prompt_id"] in asked:
            continue
        if isinstance(record, str):
            left_out[record] += 1
            first.setdefault(record, row["sample_id"])
        else:
            made.append(record)
            asked.add(row["prompt_id"])
    if left_out and not leave_out:
        why = "; ".join(f"{count} rows: {reason} (such as {first[reason]})" for reason, count in left_out.items())
        raise ExportError(
            f"{form.name} cannot represent {why}. Choose another format, or skip these rows with --leave-out."
        )
    if not made:
        raise ExportError(
            f"no row of the release can be represented as {form.name}: {'; '.join(left_out) or 'it is empty'}"
        )
    if tokenizer is not None:
        made = _with_token_weights(made, tokenizer)
    path = folder / form.file
    if path.suffix == ".parquet":
        pl.DataFrame(made, infer_schema_length=None).write_parquet(path)
    else:
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in made)
    if form.registers is not None:
        _register(made, form, folder)
    return Exported(folder, len(made), left_out, form.loses)


def _register(made: list[dict[str, Any]], form: Format, folder: Path) -> None:
    """Write LLaMA-Factory's `dataset_info.json`, so that the folder can be used as `dataset_dir`."""
    assert form.registers is not None
    entry = {"file_name": form.file, **form.registers, "columns": dict(form.registers["columns"])}
    if any("images" in record for record in made):
        entry["columns"]["images"] = "images"
    if "system" in entry["columns"] and not any("system" in record for record in made):
        del entry["columns"]["system"]
    (folder / "dataset_info.json").write_text(json.dumps({"curated": entry}, indent=1) + "\n", encoding="utf-8")


def _with_token_weights(made: list[dict[str, Any]], tokenizer: str) -> list[dict[str, Any]]:
    """Add each response's tokens, weighted by the sample's weight times that of the step in which the token begins."""
    from transformers import AutoTokenizer

    try:
        tokens = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ExportError(f"{tokenizer} has no tokenizer: {str(error).splitlines()[0]}") from error
    if not tokens.is_fast:
        raise ExportError(f"the tokenizer of {tokenizer} does not provide token offsets. Use a fast tokenizer.")
    weighted = []
    for record in made:
        encoded = tokens(record["response"], add_special_tokens=False, return_offsets_mapping=True)
        weights = token_weights(record, encoded["offset_mapping"])
        weighted.append(record | {"token_ids": encoded["input_ids"], "token_weights": weights})
    return weighted


def token_weights(record: Mapping[str, Any], offsets: list[tuple[int, int]]) -> list[float]:
    """Return the weight of every token [T] from its characters [start, end) in the response.

    Tokens map to steps exactly as during measurement: by their first character other than a space. Outside all
    steps, a token has the sample's weight.
    """
    from curation_resources.scoring.encoding import anchors_of, segment_of_anchors  # noqa: PLC0415 - loads torch

    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    steps = [Segment(index, span["start"], span["end"]) for index, span in enumerate(record["step_spans"] or [])]
    of_steps = segment_of_anchors(anchors_of(record["response"], starts, ends), steps)
    # The index -1, for tokens outside steps, selects the last weight.
    return [float(weight) for weight in record["weight"] * np.array([*record["step_weights"], 1.0])[of_steps]]


def _write_datasets(frame: pl.DataFrame, folder: Path) -> Exported:
    try:
        import datasets  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ExportError("format datasets requires `pip install datasets`") from error
    datasets.Dataset.from_polars(frame).save_to_disk(str(folder / "train"))
    return Exported(folder, len(frame), {}, "nothing")


def _copy_images(storage: Storage, place: str, frame: pl.DataFrame, folder: Path) -> None:
    shown = frame["images"].explode().drop_nulls().unique().sort()
    for name in shown.filter(shown.str.starts_with(f"{IMAGES}/")):
        # A copy from elsewhere may name anything, so paths outside its images are neither read nor written.
        if PLAIN_NAME.fullmatch(name.removeprefix(f"{IMAGES}/")) is None:
            raise ExportError(
                f"{storage.shown(place)} refers to an image named {printable(name)}, which no release contains. The "
                "copy was tampered with."
            )
        (folder / IMAGES).mkdir(exist_ok=True)
        try:
            (folder / name).write_bytes(storage.read(f"{place}/{name}"))
        except FileNotFoundError as error:
            raise ExportError(
                f"{storage.shown(place)} lacks {name}, which a row refers to. Run `curate verify` for all problems."
            ) from error


def _readme(release: str, manifest: dict[str, Any], form: str, threshold: float, made: Exported) -> str:
    left = "".join(f"- skipped {count} rows: {reason}\n" for reason, count in made.left_out.items())
    summary = FORMATS[form].summary if form in FORMATS else "datasets.load_from_disk"
    return (
        f"# {release} as {form}\n\nFor {summary}.\n\n- content digest of the release: `{manifest['content_digest']}`\n"
        f"- rows: {made.rows}\n- threshold of step scores, if the format uses them: {threshold}\n{left}"
        f"- not included in this format: {made.loses}\n"
    )
