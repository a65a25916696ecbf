"""Build releases: immutable folders with full lineage, created once or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Subset, score_title
from curation_assets.releases.card import dataset_card, license_of
from curation_assets.releases.changes import changes_of
from curation_assets.releases.croissant import croissant
from curation_assets.releases.data import ReleaseError, content_digest, release_rows, write_data
from curation_assets.releases.export import ExportError, release_frame
from curation_assets.releases.file_names import CARD, CHECKSUMS, CROISSANT, MANIFEST, PAGE, PROVENANCE
from curation_assets.releases.manifest import provenance, release_manifest
from curation_assets.releases.release_plots import write_plots
from curation_assets.releases.step_columns import step_columns, steps_digest
from curation_assets.releases.trace_images import release_pictures
from curation_assets.releases.trace_page import page_text
from curation_assets.releases.traces import traces_of
from curation_assets.subsets.select import stored_selection, wanted_fingerprint
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.files import FolderStorage
from curation_resources.storage.warehouse import Warehouse

logger = logging.getLogger("curation")

IN_EVERY_MANIFEST = ("subset", "number", "rows", "content_digest", "subset_digest", "parameters", "checkpoints")
"""Keys of a manifest that other modules read."""

PAGE_TRACES = 2_000
"""Maximum number of traces on a release's page; `curate report` writes larger pages."""


@dataclass(frozen=True)
class Release:
    """An existing release: its subset, number, folder (as shown to users) and manifest."""

    subset: str
    number: int
    folder: str
    manifest: Mapping[str, Any]


def release_numbers(workspace: Workspace, subset: str) -> list[int]:
    """Return the numbers of the subset's releases in ascending order."""
    names = workspace.warehouse.made_folders(tables.release_dir(subset), MANIFEST)
    return sorted(int(name) for name in names if name.isdigit())


def read_release(workspace: Workspace, subset: Subset, number: int) -> Release:
    """Return an existing release.

    Raises:
        ReleaseError: it does not exist, or its manifest is damaged.
    """
    folder = f"{tables.release_dir(subset.name)}/{number}"
    manifest = read_manifest(workspace.warehouse, folder)
    return Release(subset.name, number, workspace.warehouse.storage.shown(folder), manifest)


def read_manifest(warehouse: Warehouse, folder: str) -> dict[str, Any]:
    """Return the manifest of the release in a folder of the warehouse.

    Raises:
        ReleaseError: it is missing, is not JSON, or lacks required keys.
    """
    shown = warehouse.storage.shown(f"{folder}/{MANIFEST}")
    mend = f"Run `curate verify {warehouse.storage.shown(folder)}`; restore the folder from a copy, or delete it."
    try:
        manifest = warehouse.read_json(f"{folder}/{MANIFEST}")
    except ValueError as error:
        raise ReleaseError(f"{shown} is not JSON ({error}). {mend}") from error
    lacking = [key for key in IN_EVERY_MANIFEST if not isinstance(manifest, dict) or key not in manifest]
    if lacking:
        raise ReleaseError(f"{shown} lacks {', '.join(lacking)}. {mend}")
    found: dict[str, Any] = manifest
    return found


def latest_release(workspace: Workspace, subset: Subset) -> Release | None:
    """Return the latest existing release, or None."""
    numbers = release_numbers(workspace, subset.name)
    return read_release(workspace, subset, numbers[-1]) if numbers else None


def next_release(workspace: Workspace, subset: Subset) -> int:
    """Return the number for a release of the current subset: the latest one's if the content is equal.

    Raises:
        ReleaseError: the subset is missing or outdated.
    """
    _check_current(workspace, subset)
    latest = latest_release(workspace, subset)
    if latest is None:
        return 1
    stored = workspace.warehouse.table_metadata(tables.subset_path(subset.name))
    if latest.manifest["subset_digest"] == stored["content_digest"]:
        # Same samples and scores: a sample_id identifies the content, but not the steps.
        ids = workspace.warehouse.read_table(tables.subset_path(subset.name))["sample_id"]
        if latest.manifest.get("steps_digest") == steps_digest(step_columns(workspace, subset, ids)):
            return latest.number
    same = latest.manifest["content_digest"] == content_digest(_rows(workspace, subset))
    return latest.number if same else latest.number + 1


def make_release(workspace: Workspace, subset: Subset, number: int, run_id: str) -> Release:
    """Return the release of that number, creating it if needed; then point LATEST at the newest release.

    Raises:
        ReleaseError: the number is not the next one, or another process made it with different content.
    """
    numbers = release_numbers(workspace, subset.name)
    if number not in numbers:
        if number != (numbers[-1] if numbers else 0) + 1:
            raise ReleaseError(
                f"release {subset.name}@{number} is not the next one: releases are {numbers or 'none yet'}. Use "
                f"`curate release {subset.name}`."
            )
        _create(workspace, subset, number, run_id)
    _move_latest(workspace, subset)
    release = read_release(workspace, subset, number)
    refuse_broken(workspace, release)
    return release


def refuse_broken(workspace: Workspace, release: Release) -> None:
    """Check a release's files against its checksums.

    Raises:
        ReleaseError: some files do not match.
    """
    broken = broken_files(workspace, release)
    if broken:
        raise ReleaseError(
            f"release {release.folder}: checksums do not match for {', '.join(broken)}. Run `curate verify "
            f"{release.subset}@{release.number}`; restore the folder from a copy, or delete it and release again."
        )


def broken_files(workspace: Workspace, release: Release) -> list[str]:
    """Return the files of a release that are missing or do not match their checksums."""
    storage = workspace.warehouse.storage
    folder = f"{tables.release_dir(release.subset)}/{release.number}"
    broken = []
    try:
        sums = storage.read(f"{folder}/{CHECKSUMS}").decode()
    except (FileNotFoundError, UnicodeDecodeError):
        return [CHECKSUMS]
    for line in filter(None, sums.splitlines()):
        expected, _, name = line.partition("  ")
        try:
            found = hashlib.sha256(storage.read(f"{folder}/{name}")).hexdigest()
        except OSError:
            # A malformed line may name anything.
            found = None
        if found != expected:
            broken.append(name)
    return broken


def _check_current(workspace: Workspace, subset: Subset) -> None:
    wanted = wanted_fingerprint(workspace, subset)
    stored = workspace.warehouse.table_metadata(tables.subset_path(subset.name)).get("fingerprint")
    if wanted is None or stored != wanted:
        raise ReleaseError(
            f"subset {subset.name} is not up to date with its scores. Materialize subsets/{subset.name}, or use "
            "`curate run`."
        )


def _rows(workspace: Workspace, subset: Subset) -> pl.DataFrame:
    return release_rows(workspace, subset, workspace.warehouse.read_table(tables.subset_path(subset.name)))


def _create(workspace: Workspace, subset: Subset, number: int, run_id: str) -> None:
    _check_current(workspace, subset)
    rows = _rows(workspace, subset)
    selection = stored_selection(workspace, subset)
    folder = f"{tables.release_dir(subset.name)}/{number}"

    def fill(place: Path) -> None:
        written = write_data(workspace, place, rows)
        plots = write_plots(place, selection, score_title(subset.score))
        changes = _changes(workspace, subset, number, rows)
        manifest = release_manifest(
            workspace, subset, number, selection, rows, content_digest(rows), _sizes_and_sums(place), changes
        )
        _write_json(place / MANIFEST, manifest)
        _write_json(place / CROISSANT, croissant(manifest, license_of(manifest["licenses"])))
        _write(place / CARD, dataset_card(manifest, plots))
        _write(place / PAGE, _page(place, written, manifest))
        sums = _sizes_and_sums(place)
        lines = [f"{facts['sha256']}  {name}\n" for name, facts in sums.items()]
        _write(place / CHECKSUMS, "".join(lines))
        _write_json(place / PROVENANCE, provenance(run_id))

    if not workspace.warehouse.create_folder(folder, fill, last=MANIFEST):
        found = read_release(workspace, subset, number)
        if found.manifest["content_digest"] != content_digest(rows):
            raise ReleaseError(
                f"another process has made release {subset.name}@{number} with other content. Run `curate release "
                f"{subset.name}`, which makes the next number."
            )


def _changes(
    workspace: Workspace, subset: Subset, number: int, rows: pl.DataFrame
) -> dict[str, float | int | None] | None:
    """Return the changes from the previous release; None without one, or if it cannot be read."""
    if number == 1:
        return None
    try:
        before, was = release_frame(workspace.warehouse.storage, f"{tables.release_dir(subset.name)}/{number - 1}")
    except ExportError as error:
        logger.warning("release %s@%d records no changes from the previous release: %s", subset.name, number, error)
        return None
    now = workspace.settings.score_of(subset).model_dump(mode="json")
    return changes_of(before, rows, same_score=was["parameters"]["score"] == now).facts()


def _page(place: Path, rows: pl.DataFrame, manifest: Mapping[str, Any]) -> str:
    """Return the page with the traces of a release that is being made in a folder."""
    pictures = release_pictures(FolderStorage(place.parent), place.name)
    return page_text(traces_of(rows, manifest, PAGE_TRACES), pictures)


def _sizes_and_sums(place: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {
        path.relative_to(place).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }


def _write_json(path: Path, document: object) -> None:
    _write(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _move_latest(workspace: Workspace, subset: Subset) -> None:
    """Point LATEST at the newest release, also after a crash between creating a release and pointing at it."""
    path = f"{tables.release_dir(subset.name)}/LATEST"
    while True:
        newest = str(release_numbers(workspace, subset.name)[-1])
        current = workspace.warehouse.read_text(path)
        if current == newest or workspace.warehouse.compare_and_swap(path, current, newest):
            return
