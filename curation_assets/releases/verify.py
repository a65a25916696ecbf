"""Verify a release: every file, every row and every image."""

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
from curation_assets.subsets.facts import subset_digest
from curation_resources.scoring.samples import without_nulls
from curation_resources.storage.digests import bytes_digest
from curation_resources.storage.files import Storage, is_unfinished

NEEDED = (MANIFEST, CHECKSUMS, CARD, PROVENANCE, DATA_PARQUET, DATA_JSONL)
UNSUMMED = (CHECKSUMS, PROVENANCE)
"""Files without a checksum: the list itself, and the file that differs between releases of equal content."""

LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
COUNTED = ("rows", "prompts")


@dataclass(frozen=True)
class Problem:
    """A problem of a release: the file, and a description that follows its name."""

    file: str
    what: str


@dataclass
class Found:
    """The readable content of a release, and its problems.

    Attributes:
        files: content of every file, by path within the release.
        problems: problems found so far.
    """

    files: dict[str, bytes]
    problems: list[Problem] = field(default_factory=list)

    def say(self, file: str, what: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(file, what))


def verify_release(storage: Storage, folder: str) -> list[Problem]:
    """Return all problems of a release; an empty list if it is intact.

    Checksums detect damage, not tampering: anyone who can write to the folder can rewrite them. Other data that is
    harder to keep consistent is therefore compared as well: the manifest's sizes and checksums, its counts, and both
    data files.

    Args:
        storage: storage that holds the release.
        folder: folder of the release.

    Raises:
        ReleaseError: the folder is missing or empty.
    """
    prefix = f"{folder}/"
    walked = [file.path for file in storage.walk(folder) if not is_unfinished(file.path)]
    if not walked:
        raise ReleaseError(f"{storage.shown(folder)} is not a release: the folder is missing or empty")
    found = Found({path.removeprefix(prefix): storage.read(path) for path in walked})
    for name in NEEDED:
        if name not in found.files:
            found.say(name, "is missing")
    for name in storage.hidden(folder):
        found.say(name, "is not part of the release: its name begins with a dot")
    _sums(found)
    manifest = _manifest(found)
    if manifest is not None:
        _manifest_files(found, manifest)
    _data(found, manifest or {})
    return found.problems


def _sums(found: Found) -> None:
    """Check every file against its checksum, and every checksum against its file."""
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
            found.say(name, "is missing, although it has a checksum")
        elif hashlib.sha256(found.files[name]).hexdigest() != expected:
            found.say(name, "does not match its checksum")
    for name in sorted(found.files.keys() - named.keys() - set(UNSUMMED)):
        found.say(name, "is not part of the release: it has no checksum")


def _manifest(found: Found) -> dict[str, Any] | None:
    """Return the manifest if it can be read and has a supported version."""
    if MANIFEST not in found.files:
        return None
    try:
        manifest = json.loads(found.files[MANIFEST])
    except ValueError as error:
        found.say(MANIFEST, f"is not JSON ({error})")
        return None
    for what in wrong_with_manifest(manifest):
        found.say(MANIFEST, what)
    readable = isinstance(manifest, dict) and manifest.get("schema_version") == SCHEMA_VERSION
    return manifest if readable else None


def _manifest_files(found: Found, manifest: Mapping[str, Any]) -> None:
    """Check the data files against the sizes and checksums in the manifest."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        found.say(MANIFEST, "lists no files")
        return
    for name, facts in sorted(files.items()):
        data = found.files.get(name)
        if data is None or not isinstance(facts, dict):
            continue
        if len(data) != facts.get("bytes"):
            found.say(name, f"has {len(data):,} bytes, but the manifest states {facts.get('bytes')!r}")
        elif hashlib.sha256(data).hexdigest() != facts.get("sha256"):
            found.say(name, "does not match the manifest")
    for name in (DATA_PARQUET, DATA_JSONL):
        if name not in files:
            found.say(MANIFEST, f"does not list {name}")


def _data(found: Found, manifest: Mapping[str, Any]) -> None:
    """Check both data files against each other, the manifest's counts, and the images that rows refer to."""
    frame, lines = _parquet(found), _jsonl(found)
    if frame is not None:
        counts = {"rows": len(frame), "prompts": frame["prompt_id"].n_unique()}
        for name in COUNTED:
            if manifest and manifest.get(name) != counts[name]:
                found.say(DATA_PARQUET, f"has {counts[name]} {name}, but the manifest states {manifest.get(name)!r}")
        if frame["sample_id"].is_duplicated().any():
            found.say(DATA_PARQUET, "contains a sample twice")
        if frame["rank"].to_list() != list(range(1, len(frame) + 1)):
            found.say(DATA_PARQUET, "is not sorted by rank")
        if manifest and manifest.get("subset_digest") != subset_digest(frame.select(*tables.SUBSET.columns)):
            found.say(DATA_PARQUET, "does not match the selection (samples, ranks, scores, weights) in the manifest")
        if manifest and manifest.get("steps_digest") not in (None, _steps(frame)):
            found.say(DATA_PARQUET, "does not match the steps in the manifest")
        _images(found, frame)
    if frame is None or lines is None:
        return
    if [line.get("sample_id") for line in lines] != frame["sample_id"].to_list():
        found.say(DATA_JSONL, "does not contain the samples of the Parquet file in the same order")
    elif [line.get("messages") for line in lines] != without_nulls(frame["messages"].to_list()):
        found.say(DATA_JSONL, "has messages that differ from the Parquet file")


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
    # Rows with the right columns can be checked further, whatever other problems they have.
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
    # Not splitlines(): texts may contain other characters that it treats as line ends.
    for number, line in enumerate(data.decode("utf-8", "replace").removesuffix("\n").split("\n"), 1):
        try:
            read = json.loads(line)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            found.say(DATA_JSONL, f"line {number} is not a JSON object")
            return None
        lines.append(read)
    return lines


def _images(found: Found, frame: pl.DataFrame) -> None:
    """Check that images are named by their hash and used by a row, and that all images that rows refer to exist."""
    shown = {name for name in _shown(frame) if name.startswith(f"{IMAGES}/")}
    there = {name for name in found.files if name.startswith(f"{IMAGES}/")}
    for name in sorted(shown - there):
        found.say(name, "is missing, although a row refers to it")
    for name in sorted(there - shown):
        found.say(name, "is not used by any row")
    for name in sorted(there):
        if bytes_digest(found.files[name]) != name.removeprefix(f"{IMAGES}/"):
            found.say(name, "does not match the hash in its name")


def _shown(frame: pl.DataFrame) -> Iterator[str]:
    yield from frame["images"].explode().drop_nulls().to_list()
