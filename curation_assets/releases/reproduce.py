"""Making a release's rows again from stored measurements, under its own settings, and holding the bytes against it."""

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
    """What making a release again gave.

    Attributes:
        release: its name.
        files: by data file, whether its bytes are the release's.
        changes: of the rows, where they are other ones.
        damaged: data files of the release that are not those of its manifest.
        differs: inputs and measurements that are other ones than the release's, and so may be why.
    """

    release: str
    files: Mapping[str, bool]
    changes: Changes | None
    damaged: tuple[str, ...]
    differs: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether all data files have the same bytes."""
        return all(self.files.values())


def reproduce(workspace: Workspace, manifest: Mapping[str, Any], folder: str) -> Reproduced:
    """Make a release's data again: the same settings, inputs and stored measurements give the same bytes.

    Files that landed since are left out, and so is what the configuration says now.

    Args:
        workspace: where the warehouse is.
        manifest: of the release.
        folder: of the release in the warehouse.

    Raises:
        ReleaseError: the release's settings are of another version, or its scores are not stored any more.
        ExportError: the release was changed, and its rows cannot be held against those that were made.
    """
    for what in wrong_with_manifest(manifest):
        raise ReleaseError(f"the manifest of {folder} {what}: `curate verify` says all that is wrong")
    release = f"{manifest['subset']}@{manifest['number']}"
    frozen = as_it_was(workspace, manifest)
    subset = frozen.settings.subset(manifest["subset"])
    damaged, differs = tuple(_damaged(workspace, manifest, folder)), tuple(_differences(frozen, manifest))
    try:
        pieces = [tables.SUBSET.empty()]
        select_into(frozen, subset, pieces.append)
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
            f"{release} cannot be made again from what is stored now: {error}{why}. Its own configuration comes back "
            f"with `curate reproduce {release} --settings-to FILE`; `curate run --config FILE` scores by it, from what "
            "is measured"
        ) from error
    if all(files.values()):
        return Reproduced(release, files, None, damaged, differs)
    before, _ = release_frame(workspace.warehouse.storage, folder)
    return Reproduced(release, files, changes_of(before, rows), damaged, differs)


def as_it_was(workspace: Workspace, manifest: Mapping[str, Any]) -> Workspace:
    """The workspace under a release's settings, with the files that its pool was made of and no others.

    Raises:
        ReleaseError: this version does not know these settings.
    """
    try:
        settings = Settings.model_validate(manifest["config"]["settings"])
    except ValidationError as error:
        raise ReleaseError(
            f"{manifest['subset']}@{manifest['number']} was made under settings that this version does not know "
            f"({error.errors()[0]['msg']}): use the version that its manifest names"
        ) from error
    # Where things lie, and what this machine has room for, may be another by now.
    here = workspace.settings
    places = {"warehouse": here.warehouse, "s3": here.s3, "engine": here.engine}
    corpus = settings.corpus.model_copy(update={"landing": here.corpus.landing})
    settings = settings.model_copy(update={**places, "corpus": corpus})
    shards = frozenset(one["shard"] for one in manifest["inputs"] if one["present"])
    return replace(workspace, settings=settings, config_digest=manifest["config"]["digest"], only_shards=shards)


def write_settings(manifest: Mapping[str, Any], to: Path, beside: Path) -> None:
    """Write the configuration of a release as a file that commands take, in the folder of the present one.

    Raises:
        ReleaseError: there is a file already, it is elsewhere, or the manifest is not as it should be.
    """
    for what in wrong_with_manifest(manifest):
        raise ReleaseError(f"the manifest {what}: `curate verify` says all that is wrong")
    if to.exists():
        raise ReleaseError(f"{to} is there already: name another file with --settings-to")
    if to.absolute().parent.resolve() != beside.resolve():
        raise ReleaseError(f"paths in it are relative to {beside}: name a file there with --settings-to")
    text = io.StringIO()
    YAML().dump(manifest["config"]["settings"], text)
    to.write_text(text.getvalue(), encoding="utf-8")


def _damaged(workspace: Workspace, manifest: Mapping[str, Any], folder: str) -> Iterator[str]:
    """Data files of the release that are not those of its manifest."""
    for name in (DATA_PARQUET, DATA_JSONL):
        try:
            data = workspace.warehouse.storage.read(f"{folder}/{name}")
        except FileNotFoundError:
            yield f"{name} of the release is missing: put it back from a copy"
            continue
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
            yield f"{name} of the release is not the file that its manifest names: put it back from a copy"


def _differences(workspace: Workspace, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Inputs and measurements that are not those of the release."""
    for one in manifest["inputs"]:
        if not one["present"]:
            continue
        facts = workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{one['shard']}.parquet")
        if facts.get("content_digest") != one["content_digest"]:
            what = "is another file now" if facts else "is gone"
            yield f"{one['path']} {what}"
    purged = PurgedList.read(workspace.warehouse).ids()
    if purged:
        yield f"{len(purged)} samples were purged by now: they cannot be chosen again"
    target = workspace.settings.target(manifest["parameters"]["target"]["name"])
    for signal, fingerprint in manifest["checkpoints"]["signal_fingerprints"].items():
        try:
            now = signal_fingerprint(workspace, target, signal)
        except ModelError as error:
            yield f"what {signal} was measured with is not known: {error}"
            continue
        if now != fingerprint:
            yield f"{signal} is measured under another fingerprint now (model, template or code)"
