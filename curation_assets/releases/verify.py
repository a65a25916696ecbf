"""Holding a release against what it says of itself: every file, every row, every image."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.releases.checking import wrong_with_manifest, wrong_with_rows
from curation_assets.releases.data import ReleaseError
from curation_assets.releases.file_names import CARD, CHECKSUMS, DATA_JSONL, DATA_PARQUET, IMAGES, MANIFEST, PROVENANCE
from curation_assets.releases.manifest import SCHEMA_VERSION
from curation_assets.releases.step_columns import STEP_COLUMNS, steps_digest
from curation_assets.subsets.selection import subset_digest
from curation_resources.storage.digests import bytes_digest
from curation_resources.storage.files import Storage, is_unfinished

NEEDED = (MANIFEST, CHECKSUMS, CARD, PROVENANCE, DATA_PARQUET, DATA_JSONL)
UNSUMMED = (CHECKSUMS, PROVENANCE)
"""Files that checksums do not cover: themselves, and what differs between two releases of the same content."""

LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
COUNTED = ("rows", "prompts")


@dataclass(frozen=True)
class Problem:
    """Something about a release that is not as it says: the file, and what is wrong with it."""

    file: str
    what: str


@dataclass
class Found:
    """What a release holds, as far as it can be read.

    Attributes:
        files: bytes of every file by its path in the release.
        problems: so far.
    """

    files: dict[str, bytes]
    problems: list[Problem] = field(default_factory=list)

    def say(self, file: str, what: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(file, what))


def verify_release(storage: Storage, folder: str) -> list[Problem]:
    """Everything about a release that is not as it should be; nothing, if it is whole.

    Checksums tell damage, not intent: who may write the folder may write them anew. What is not as easily brought to
    agree is held against them: the manifest's own sizes and sums, its counts, and both files of the data.

    Args:
        storage: where it lies.
        folder: of the release.

    Raises:
        ReleaseError: there is no such folder, or nothing in it.
    """
    prefix = f"{folder}/"
    walked = [file.path for file in storage.walk(folder) if not is_unfinished(file.path)]
    if not walked:
        raise ReleaseError(f"{storage.shown(folder)} is no release: there is nothing in it")
    found = Found({path.removeprefix(prefix): storage.read(path) for path in walked})
    for name in NEEDED:
        if name not in found.files:
            found.say(name, "is missing")
    for name in storage.hidden(folder):
        found.say(name, "is not a file of the release: its name begins with a dot")
    _sums(found)
    manifest = _manifest(found)
    if manifest is not None:
        _manifest_files(found, manifest)
    _data(found, manifest or {})
    return found.problems


def _sums(found: Found) -> None:
    """Every file against its checksum, and every checksum against a file."""
    if CHECKSUMS not in found.files:
        return
    named = {}
    for number, line in enumerate(found.files[CHECKSUMS].decode("utf-8", "replace").splitlines(), 1):
        match = LINE.fullmatch(line)
        if match is None:
            found.say(CHECKSUMS, f"line {number} is not a checksum and a name")
            continue
        named[match[2]] = match[1]
    for name, expected in named.items():
        if name not in found.files:
            found.say(name, "is missing, and has a checksum")
        elif hashlib.sha256(found.files[name]).hexdigest() != expected:
            found.say(name, "is not the file that the checksum is of")
    for name in sorted(found.files.keys() - named.keys() - set(UNSUMMED)):
        found.say(name, "is not a file of the release: it has no checksum")


def _manifest(found: Found) -> dict[str, Any] | None:
    """The manifest, if it can be read and is of a kind that we know."""
    if MANIFEST not in found.files:
        return None
    try:
        manifest = json.loads(found.files[MANIFEST])
    except ValueError as error:
        found.say(MANIFEST, f"is no JSON ({error})")
        return None
    for what in wrong_with_manifest(manifest):
        found.say(MANIFEST, what)
    readable = isinstance(manifest, dict) and manifest.get("schema_version") == SCHEMA_VERSION
    return manifest if readable else None


def _manifest_files(found: Found, manifest: Mapping[str, Any]) -> None:
    """Sizes and sums that the manifest gives of the data."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        found.say(MANIFEST, "names no files")
        return
    for name, facts in sorted(files.items()):
        data = found.files.get(name)
        if data is None or not isinstance(facts, dict):
            continue
        if len(data) != facts.get("bytes"):
            found.say(name, f"has {len(data):,} bytes, the manifest says {facts.get('bytes')!r}")
        elif hashlib.sha256(data).hexdigest() != facts.get("sha256"):
            found.say(name, "is not the file that the manifest names")
    for name in (DATA_PARQUET, DATA_JSONL):
        if name not in files:
            found.say(MANIFEST, f"does not name {name}")


def _data(found: Found, manifest: Mapping[str, Any]) -> None:
    """Both files of the data against one another, the manifest's counts, and the images that rows show."""
    frame, lines = _parquet(found), _jsonl(found)
    if frame is not None:
        counts = {"rows": len(frame), "prompts": frame["prompt_id"].n_unique()}
        for name in COUNTED:
            if manifest and manifest.get(name) != counts[name]:
                found.say(DATA_PARQUET, f"has {counts[name]} {name}, the manifest says {manifest.get(name)!r}")
        if frame["sample_id"].is_duplicated().any():
            found.say(DATA_PARQUET, "holds a sample twice")
        if frame["rank"].to_list() != list(range(1, len(frame) + 1)):
            found.say(DATA_PARQUET, "is not in the order of its ranks")
        if manifest and manifest.get("subset_digest") != subset_digest(frame.select(*tables.SUBSET.columns)):
            found.say(DATA_PARQUET, "does not hold the choice (samples, ranks, scores, weights) of the manifest")
        if manifest and manifest.get("steps_digest") not in (None, _steps(frame)):
            found.say(DATA_PARQUET, "does not hold the steps of the manifest")
        _images(found, frame)
    if frame is None or lines is None:
        return
    if [line.get("sample_id") for line in lines] != frame["sample_id"].to_list():
        found.say(DATA_JSONL, "does not hold the samples of the Parquet file in their order")
    elif [line.get("messages") for line in lines] != frame["messages"].to_list():
        found.say(DATA_JSONL, "holds other messages than the Parquet file")


def _parquet(found: Found) -> pl.DataFrame | None:
    data = found.files.get(DATA_PARQUET)
    if data is None:
        return None
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        found.say(DATA_PARQUET, f"cannot be read ({str(error).splitlines()[0]})")
        return None
    wrong = list(wrong_with_rows(frame))
    for what in wrong:
        found.say(DATA_PARQUET, what)
    # Rows of the right kind can be looked at further, whatever is wrong with them.
    return (
        None if any(what.startswith(("has no column", "has columns", "has rows without")) for what in wrong) else frame
    )


def _steps(frame: pl.DataFrame) -> str:
    return steps_digest(frame) if set(STEP_COLUMNS) <= set(frame.columns) else "no steps"


def _jsonl(found: Found) -> list[dict[str, Any]] | None:
    data = found.files.get(DATA_JSONL)
    if data is None:
        return None
    lines = []
    # Not splitlines(): a text may hold other marks that it takes for the end of a line.
    for number, line in enumerate(data.decode("utf-8", "replace").removesuffix("\n").split("\n"), 1):
        try:
            read = json.loads(line)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            found.say(DATA_JSONL, f"line {number} is no JSON object")
            return None
        lines.append(read)
    return lines


def _images(found: Found, frame: pl.DataFrame) -> None:
    """Images that lie in the release are named by their hash, and shown by some row; those shown are there."""
    shown = {name for name in _shown(frame) if name.startswith(f"{IMAGES}/")}
    there = {name for name in found.files if name.startswith(f"{IMAGES}/")}
    for name in sorted(shown - there):
        found.say(name, "is shown by a row, and missing")
    for name in sorted(there - shown):
        found.say(name, "is shown by no row")
    for name in sorted(there):
        if bytes_digest(found.files[name]) != name.removeprefix(f"{IMAGES}/"):
            found.say(name, "is not the image that its name is the hash of")


def _shown(frame: pl.DataFrame) -> Iterator[str]:
    yield from frame["images"].explode().drop_nulls().to_list()
