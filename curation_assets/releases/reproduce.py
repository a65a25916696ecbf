"""Reproduce a release's rows from stored measurements with its own settings, and compare the bytes."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError
from ruamel.yaml import YAML

from curation_assets import tables
from curation_assets.config.settings import Settings
from curation_assets.releases.changes import Changes, changes_of
from curation_assets.releases.checking import wrong_with_manifest
from curation_assets.releases.data import ReleaseError, release_rows, write_data
from curation_assets.releases.export import release_frame
from curation_assets.releases.file_names import DATA_JSONL, DATA_PARQUET
from curation_assets.subsets.select import SelectionError, select_into
from curation_assets.workspace.fingerprints import signal_fingerprint
from curation_assets.workspace.purge_list import PurgedList
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.model_files import ModelError


@dataclass(frozen=True)
class Reproduced:
    """The result of reproducing a release.

    Attributes:
        release: its name.
        files: by data file, whether its bytes equal the release's.
        changes: changes of the rows, if they differ.
        damaged: data files of the release that do not match its manifest.
        differs: inputs and measurements that differ from the release's, which may explain changed rows.
    """

    release: str
    files: Mapping[str, bool]
    changes: Changes | None
    damaged: tuple[str, ...]
    differs: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Return True if all data files have the same bytes."""
        return all(self.files.values())


def reproduce(workspace: Workspace, manifest: Mapping[str, Any], folder: str) -> Reproduced:
    """Recompute a release's data: equal settings, inputs and stored measurements give equal bytes.

    Files that arrived later and the current configuration are ignored.

    Args:
        workspace: workspace with the warehouse.
        manifest: manifest of the release.
        folder: folder of the release in the warehouse.

    Raises:
        ReleaseError: the release's settings belong to another version, or its scores are no longer stored.
        ExportError: the release was modified, so its rows cannot be compared.
    """
    for what in wrong_with_manifest(manifest):
        raise ReleaseError(f"the manifest of {folder} {what}. Run `curate verify` for all problems.")
    release = f"{manifest['subset']}@{manifest['number']}"
    frozen = as_it_was(workspace, manifest)
    subset = frozen.settings.subset(manifest["subset"])
    damaged, differs = tuple(_damaged(workspace, manifest, folder)), tuple(_differences(frozen, manifest))
    try:
        pieces = [tables.SUBSET.empty()]
        select_into(frozen, subset, pieces.append)
        if not any(map(len, pieces)):
            raise SelectionError("no sample is left that it would select")
        with tempfile.TemporaryDirectory(prefix="curation-reproduce-") as made:
            rows = release_rows(frozen, subset, pl.concat(pieces))
            write_data(frozen, Path(made), rows)
            files = {
                name: hashlib.sha256((Path(made) / name).read_bytes()).hexdigest() == manifest["files"][name]["sha256"]
                for name in (DATA_PARQUET, DATA_JSONL)
            }
    except SelectionError as error:
        why = f" ({'; '.join(differs)})" if differs else ""
        raise ReleaseError(
            f"{release} cannot be reproduced from the current scores{why}: {error.cause}. To score as it was "
            f"scored, use `curate reproduce {release} --settings-to FILE`, then `curate run --config FILE`. That "
            "measures nothing again, but replaces the current scores until the next run with your own configuration."
        ) from error
    if all(files.values()):
        return Reproduced(release, files, None, damaged, differs)
    before, _ = release_frame(workspace.warehouse.storage, folder)
    return Reproduced(release, files, changes_of(before, rows), damaged, differs)


def as_it_was(workspace: Workspace, manifest: Mapping[str, Any]) -> Workspace:
    """Return the workspace with a release's settings, restricted to the files in its pool.

    Raises:
        ReleaseError: this version does not support the settings.
    """
    try:
        settings = Settings.model_validate(manifest["config"]["settings"])
    except ValidationError as error:
        raise ReleaseError(
            f"{manifest['subset']}@{manifest['number']} was made with settings that this version does not support "
            f"({error.errors()[0]['msg']}). Use the version named in its manifest."
        ) from error
    # Locations and the machine's resources may have changed since.
    here = workspace.settings
    places = {"warehouse": here.warehouse, "s3": here.s3, "engine": here.engine}
    corpus = settings.corpus.model_copy(update={"landing": here.corpus.landing})
    settings = settings.model_copy(update={**places, "corpus": corpus})
    shards = frozenset(one["shard"] for one in manifest["inputs"] if one["present"])
    return replace(workspace, settings=settings, config_digest=manifest["config"]["digest"], only_shards=shards)


def write_settings(manifest: Mapping[str, Any], to: Path, beside: Path) -> None:
    """Write the configuration of a release as a configuration file beside the current one.

    Raises:
        ReleaseError: the file exists or is in another folder, or the manifest is not valid.
    """
    for what in wrong_with_manifest(manifest):
        raise ReleaseError(f"the manifest {what}. Run `curate verify` for all problems.")
    if to.exists():
        raise ReleaseError(f"{to} exists. Name another file with --settings-to.")
    if to.absolute().parent.resolve() != beside.resolve():
        raise ReleaseError(
            f"paths in the configuration are relative to {beside}. Name a file in that folder with --settings-to."
        )
    text = io.StringIO()
    YAML().dump(manifest["config"]["settings"], text)
    to.write_text(text.getvalue(), encoding="utf-8")


def _damaged(workspace: Workspace, manifest: Mapping[str, Any], folder: str) -> Iterator[str]:
    """Yield the data files of the release that do not match its manifest."""
    for name in (DATA_PARQUET, DATA_JSONL):
        try:
            data = workspace.warehouse.storage.read(f"{folder}/{name}")
        except FileNotFoundError:
            yield f"{name} of the release is missing. Restore it from a copy."
            continue
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
            yield f"{name} of the release does not match its manifest. Restore it from a copy."


def _differences(workspace: Workspace, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield inputs and measurements that differ from the release's."""
    for one in manifest["inputs"]:
        if not one["present"]:
            continue
        facts = workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{one['shard']}.parquet")
        if facts.get("content_digest") != one["content_digest"]:
            what = "has changed" if facts else "is gone"
            yield f"{one['path']} {what}"
    purged = PurgedList.read(workspace.warehouse).ids()
    if purged:
        yield f"{len(purged)} samples have been purged since and cannot be selected again"
    measured = {manifest["parameters"]["target"]["name"]: manifest["checkpoints"]["signal_fingerprints"]}
    for name, facts in manifest.get("upstream", {}).get("targets", {}).items():
        measured.setdefault(name, facts["signal_fingerprints"])
    for name, fingerprints in measured.items():
        target, of = workspace.settings.target(name), f" of target {name}" if len(measured) > 1 else ""
        for signal, fingerprint in fingerprints.items():
            try:
                now = signal_fingerprint(workspace, target, signal)
            except ModelError as error:
                yield f"the current fingerprint of {signal}{of} cannot be determined: {error}"
                continue
            if now != fingerprint:
                yield f"{signal}{of} now has another fingerprint (model, template or code)"
