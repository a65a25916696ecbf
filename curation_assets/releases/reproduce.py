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
from curation_assets.fingerprints import signal_fingerprint
from curation_assets.releases.changes import Changes, changes_of
from curation_assets.releases.data import ReleaseError, release_rows, write_data
from curation_assets.releases.files import DATA_JSONL, DATA_PARQUET
from curation_assets.settings import Settings
from curation_assets.subsets.select import SelectionError, select
from curation_assets.workspace import Workspace


@dataclass(frozen=True)
class Reproduced:
    """What making a release again gave.

    Attributes:
        release: its name.
        files: by data file, whether its bytes are the release's.
        changes: of the rows, where they are other ones.
        differs: inputs and measurements that are other ones than the release's, and so may be why.
    """

    release: str
    files: Mapping[str, bool]
    changes: Changes | None
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
    """
    release = f"{manifest['subset']}@{manifest['number']}"
    frozen = as_it_was(workspace, manifest)
    subset = frozen.settings.subset(manifest["subset"])
    differs = tuple(_differences(frozen, manifest))
    try:
        chosen = select(frozen, subset).rows
        with tempfile.TemporaryDirectory(prefix="curation-reproduce-") as made:
            rows = release_rows(frozen, subset, chosen)
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
        return Reproduced(release, files, None, differs)
    data = workspace.warehouse.storage.read(f"{folder}/{DATA_PARQUET}")
    return Reproduced(release, files, changes_of(pl.read_parquet(io.BytesIO(data)), rows), differs)


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
    # Where things lie may be another place by now.
    here = workspace.settings
    places = {"warehouse": here.warehouse, "s3": here.s3}
    corpus = settings.corpus.model_copy(update={"landing": here.corpus.landing})
    settings = settings.model_copy(update={**places, "corpus": corpus})
    shards = frozenset(one["shard"] for one in manifest["inputs"] if one["present"])
    return replace(workspace, settings=settings, config_digest=manifest["config"]["digest"], only_shards=shards)


def write_settings(manifest: Mapping[str, Any], to: Path) -> None:
    """Write the configuration of a release as a file that commands take.

    Raises:
        ReleaseError: there is a file already.
    """
    if to.exists():
        raise ReleaseError(f"{to} is there already: name another file with --settings-to")
    with to.open("w", encoding="utf-8") as stream:
        YAML().dump(manifest["config"]["settings"], stream)


def _differences(workspace: Workspace, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Inputs and measurements that are not those of the release."""
    for one in manifest["inputs"]:
        if not one["present"]:
            continue
        facts = workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{one['shard']}.parquet")
        if facts.get("content_digest") != one["content_digest"]:
            what = "is another file now" if facts else "is gone"
            yield f"{one['path']} {what}"
    target = workspace.settings.target(manifest["parameters"]["target"]["name"])
    for signal, fingerprint in manifest["checkpoints"]["signal_fingerprints"].items():
        if signal_fingerprint(workspace, target, signal) != fingerprint:
            yield f"{signal} is measured under another fingerprint now (model, template or code)"
