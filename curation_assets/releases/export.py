"""Export a release to a trainer's format, as a new folder that is created completely or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation_assets.releases.card import dataset_header
from curation_assets.releases.checking import wrong_with_manifest, wrong_with_rows
from curation_assets.releases.file_names import DATA_PARQUET, IMAGES, MANIFEST
from curation_assets.releases.formats import DATASETS, FORMATS, NAMES, Format, Row, scores_of
from curation_assets.releases.ground_truth import ORIGINS, with_ground_truth
from curation_assets.releases.step_columns import STEP_COLUMNS
from curation_resources.errors import UserError, in_a_line
from curation_resources.scoring.samples import Segment
from curation_resources.sections import unknown
from curation_resources.storage.files import Storage
from curation_resources.storage.landing import printable

PLAIN_NAME = re.compile(r"[0-9a-zA-Z_-]+")
"""Names of images in a release: hashes."""


DEFAULT_THRESHOLD = 0.0

LOW_SHARES = (0.2, 0.5, 0.8)
"""Shares of steps below the thresholds to propose; the first one that separates the scores is proposed."""


class ExportError(UserError):
    """A release cannot be exported."""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: the exported folder.
        rows: number of rows.
        left_out: number of rows that do not belong into the format, or that it cannot represent, by reason.
        loses: description of the content that the format omits.
        notes: further counts, such as the share of steps on each side of the threshold.
    """

    folder: Path
    rows: int
    left_out: Mapping[str, int]
    loses: str
    notes: Sequence[str] = ()


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
    threshold: float | None = None,
    leave_out: bool = False,
    tokenizer: str | None = None,
    siblings: Callable[[Sequence[str]], pl.DataFrame] | None = None,
) -> Exported:
    """Export a release to a format.

    Args:
        storage: storage that holds the release.
        place: its folder there.
        form: one of NAMES.
        to: a folder that does not exist, or is empty.
        threshold: steps with a lower score are labelled bad, masked, or given weight 0, depending on the format. None:
            DEFAULT_THRESHOLD, unless the format labels steps and it gives all of them the same label.
        leave_out: skip and count rows that the format cannot represent, instead of raising an error.
        tokenizer: folder or hub id; format `weights` then has token_ids and token_weights [T] for every response.
        siblings: returns further responses to these prompts, for `with_ground_truth`; None: only the release's rows.

    Raises:
        ExportError: the format is unknown, the folder is not empty, a row cannot be represented, the default threshold
            labels all steps alike, or a required package is not installed.
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
            if FORMATS[form].needs_truth:
                others = None if siblings is None else siblings(frame["prompt_id"].unique().to_list())
                frame = with_ground_truth(frame, others)
            exported = _write(frame, FORMATS[form], folder, threshold, leave_out, tokenizer)
        _copy_images(storage, place, frame, folder)
        (folder / "README.md").write_text(_readme(manifest, form, exported), encoding="utf-8")
        if to.exists():
            to.rmdir()
        folder.replace(to)
    return replace(exported, folder=to)


def _write(
    frame: pl.DataFrame, form: Format, folder: Path, threshold: float | None, leave_out: bool, tokenizer: str | None
) -> Exported:
    rows, skipped, lacking = _rows_of(frame, form)
    if lacking and not leave_out:
        why = "; ".join(f"{len(ids)} rows: {reason} (such as {ids[0]})" for reason, ids in lacking.items())
        raise ExportError(
            f"{form.name} cannot represent {why}. Choose another format, or skip these rows with --leave-out."
        )
    left_out = skipped | {reason: len(ids) for reason, ids in lacking.items()}
    if not rows:
        raise ExportError(
            f"no row of the release can be represented as {form.name}: {'; '.join(left_out) or 'it is empty'}"
        )
    limit = DEFAULT_THRESHOLD if threshold is None else threshold
    notes = []
    if form.threshold != "unused":
        notes.append(_sides(rows, form, limit, explicit=threshold is not None or form.threshold == "weighs"))
    if form.needs_truth:
        origins = Counter(row["ground_truth_from"] for row in rows)
        notes.append(f"ground truth: {', '.join(f'{origins[one]} from {one}' for one in ORIGINS if origins[one])}")
    made = [form.record(row, limit) for row in rows]
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
    return Exported(folder, len(made), left_out, form.loses, notes)


def _rows_of(frame: pl.DataFrame, form: Format) -> tuple[list[Row], dict[str, int], dict[str, list[str]]]:
    """Return the rows to export, the number of rows that do not belong into the format, and the ids of those that it
    cannot represent; both by reason."""
    rows, skipped, lacking, asked = list[Row](), dict[str, int](), dict[str, list[str]](), set[str]()
    for row in frame.iter_rows(named=True):
        # Rows are sorted best first, so this keeps each prompt's best representable row.
        if form.once_a_prompt and row["prompt_id"] in asked:
            continue
        if (reason := form.skips(row)) is not None:
            skipped[reason] = skipped.get(reason, 0) + 1
        elif (reason := form.cannot(row)) is not None:
            lacking.setdefault(reason, []).append(row["sample_id"])
        else:
            rows.append(row)
            asked.add(row["prompt_id"])
    return rows, skipped, lacking


def _sides(rows: Sequence[Row], form: Format, threshold: float, *, explicit: bool) -> str:
    """Return the share of steps on each side of the threshold.

    Raises:
        ExportError: all are on one side, and the threshold was not given explicitly.
    """
    scores = [score for row in rows for score in scores_of(row) if score is not None]
    if not scores:
        if not explicit:
            raise ExportError(
                f"no step of the release has a score, so {form.name} would label all steps alike. Choose another "
                "format, release a subset by a score of steps (method: grace), or pass --step-threshold 0 to export "
                "anyway."
            )
        return "no step has a score, so the threshold has no effect"
    high = sum(score >= threshold for score in scores)
    low = len(scores) - high
    if not explicit and not (high and low):
        raise ExportError(
            f"all {len(scores):,} steps have a score {'of at least' if high else 'below'} {threshold:g}, the default "
            f"threshold, so {form.name} would label all of them alike. {_proposal(scores)}, or pass --step-threshold "
            f"{threshold:g} to export anyway."
        )
    return (
        f"steps with a score of at least {threshold:g}: {high:,} of {len(scores):,} ({high / len(scores):.1%}); "
        f"below: {low:,} ({low / len(scores):.1%})"
    )


def _proposal(scores: Sequence[float]) -> str:
    """Return a threshold to propose: a quantile with scores on both sides of it."""
    values = np.sort(np.array(scores))
    for share in LOW_SHARES:
        limit = float(f"{np.quantile(values, share, method='higher'):.6g}")
        low = float((values < limit).mean())
        if 0 < low < 1:
            return f"Pass --step-threshold {limit:g}, which {low:.0%} of the scores are below"
    return (
        f"No threshold separates them well (they are between {values[0]:g} and {values[-1]:g}): choose another format"
    )


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
    # As a dictionary of one split, so that both the folder and `train` in it can be loaded.
    datasets.DatasetDict({"train": datasets.Dataset.from_polars(frame)}).save_to_disk(str(folder))
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


def _readme(manifest: dict[str, Any], form: str, made: Exported) -> str:
    release = f"{manifest['subset']}@{manifest['number']}"
    file = FORMATS[form].file if form in FORMATS else "train/*.arrow"
    consumer = FORMATS[form].summary if form in FORMATS else 'datasets.load_from_disk("FOLDER")["train"]'
    lines = [
        *dataset_header(manifest, f"{release} as {form}", made.rows, file, form),
        f"# {release} as {form}",
        "",
        f"For {consumer}.",
        "",
        f"- content digest of the release: `{manifest['content_digest']}`",
        f"- rows: {made.rows}",
        *(f"- {note}" for note in made.notes),
        *(f"- skipped {count} rows: {reason}" for reason, count in made.left_out.items()),
        f"- not included in this format: {made.loses}",
        "",
    ]
    return "\n".join(lines)
