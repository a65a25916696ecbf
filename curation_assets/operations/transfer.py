"""Move measured signals between warehouses: parts under their fingerprints, and the warm-ups that they depend on.

An export is a folder, local or in a bucket, with the paths of a warehouse. `measurements.json`, written last, describes
each folder and lists the digest of each file. Shard records are not exported; the next run rebuilds them from the
parts. Samples that could not be measured because of an image (`left_out`) are not exported either, since the other
place may have the image.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.signals.perturbation import wants_perturbation
from curation_assets.signals.store import SignalStore, role_of, signal_dir
from curation_assets.signals.warmup import warmup_checkpoint
from curation_assets.tables.signals import PROXY_SIGNALS, SEGMENTED_SIGNALS, SignalName
from curation_assets.workspace.fingerprints import (
    PERTURBED_ROLE,
    WARMUP_ROLE,
    base_digest,
    checkpoint_digest,
    gradient_facts,
    sigma_folder,
    sigma_path,
)
from curation_assets.workspace.purge_list import PurgedList
from curation_assets.workspace.versions import SIGNAL_VERSIONS
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.models.model_files import ModelError
from curation_resources.progress import track
from curation_resources.sections import unknown
from curation_resources.storage.digests import bytes_digest
from curation_resources.storage.files import Storage
from curation_resources.storage.part_store import Measurements
from curation_resources.storage.warehouse import DOCUMENT, TABLE
from curation_resources.training.files import RECORD, TRAINED_ON

logger = logging.getLogger("curation")

INDEX = "measurements.json"
SCHEMA_VERSION = 1
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*")
CHECKPOINT_FILES = (".safetensors", DOCUMENT, TABLE, ".md")
"""File types that a checkpoint may contain: none of them runs code when loaded."""


class TransferError(UserError):
    """Measurements cannot be exported or imported; the message gives the reason and the fix."""


@dataclass(frozen=True)
class Moved:
    """One copied signal or checkpoint.

    Attributes:
        folder: its path in the warehouse and in the export.
        files: number of files.
        copied: number of files that were not there yet.
        size: total size in bytes.
        wanted: whether the current configuration uses it; None if that requires a model that is not available.
    """

    folder: str
    files: int
    copied: int
    size: int
    wanted: bool | None


def export_measurements(workspace: Workspace, place: str, target: str | None = None) -> list[Moved]:
    """Copy the measurements under the current fingerprints, adding to an existing export.

    Args:
        workspace: the configuration.
        place: a folder, or s3://bucket/prefix.
        target: export only this target.

    Raises:
        TransferError: nothing is measured, a part is damaged, or the place holds other data.
        MeasuringError: a target's warm-up has not been trained.
    """
    settings = workspace.settings
    names = [item.name for item in settings.targets]
    if target is not None and target not in names:
        raise TransferError(unknown("target", target, names))
    there = _storage(workspace, place)
    there.prepare()
    entries = [entry for item in settings.targets if target in (None, item.name) for entry in _entries(workspace, item)]
    paths = {entry["folder"]: _own_files(workspace.warehouse.storage, entry) for entry in entries}
    if not any(paths[entry["folder"]] for entry in entries if entry["kind"] == "signal"):
        raise TransferError("nothing is measured under the current configuration. Run `curate run` first.")
    index: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "entries": [], "files": []}
    if there.exists(INDEX):
        index = _read_index(there)
    files = {file["path"]: file for file in index["files"]}
    moved = []
    with track("exporting", sum(map(len, paths.values()))) as advance:
        for folder, own in paths.items():
            copied = 0
            for path in own:
                data = workspace.warehouse.storage.read(path)
                files[path] = {"path": path, "bytes": len(data), "digest": bytes_digest(data)}
                _check_name(workspace.warehouse.storage.shown(path), path, files[path]["digest"])
                copied += _add(there, path, data)
                advance(1)
            moved.append(Moved(folder, len(own), copied, sum(files[path]["bytes"] for path in own), wanted=True))
    known = {entry["folder"]: entry for entry in [*index["entries"], *entries]}
    document = index | {"entries": list(known.values()), "files": [files[path] for path in sorted(files)]}
    there.write(INDEX, json.dumps(document, indent=1).encode())
    return moved


def import_measurements(workspace: Workspace, place: str) -> list[Moved]:
    """Add exported measurements to the warehouse; repeating it changes nothing.

    Raises:
        TransferError: the place holds no export, a file differs from the export's index, or a warm-up differs from the
            warehouse's own, which is frozen.
    """
    there = _storage(workspace, place)
    index = _read_index(there)
    files = {entry["folder"]: _listed(there, index, entry) for entry in index["entries"]}
    checkpoints = [entry["folder"] for entry in index["entries"] if entry["kind"] == "checkpoint"]
    for folder in checkpoints:
        _refuse_another(workspace, folder, files[folder])
    purged = PurgedList.read(workspace.warehouse).ids()
    moved = []
    with track("importing", sum(map(len, files.values()))) as advance:
        # Checkpoints first: the wanted fingerprints depend on them.
        for folder in sorted(files, key=lambda folder: folder not in checkpoints):
            own = files[folder]
            if folder in checkpoints:
                copied = _import_checkpoint(workspace, there, folder, own)
                advance(len(own))
            else:
                copied = 0
                for file in own:
                    copied += _import_part(workspace, there, file, purged)
                    advance(1)
            moved.append((folder, own, copied))
    wanted = _wanted(workspace)
    return [
        Moved(folder, len(own), copied, sum(f["bytes"] for f in own), None if wanted is None else folder in wanted)
        for folder, own, copied in moved
    ]


def _storage(workspace: Workspace, place: str) -> Storage:
    there = workspace.storage_at(place)
    if there.place == workspace.warehouse.storage.place:
        raise TransferError(f"{place} is the warehouse itself. Name another place.")
    return there


def _entries(workspace: Workspace, target: Target) -> list[dict[str, Any]]:
    """Return the index entries of a target's signals, and of the warm-up that they depend on."""
    made = [_signal_entry(workspace, target, signal) for signal in workspace.settings.measured_signals(target)]
    checkpoint = None if target.warmup == "none" else warmup_checkpoint(workspace, target)
    if checkpoint is not None:
        made.append(
            {
                "kind": "checkpoint",
                "folder": checkpoint.folder,
                "target": target.name,
                "role": WARMUP_ROLE,
                "key": checkpoint.key,
                "means": {"base_model": target.model, "base_digest": base_digest(workspace, target)}
                | {name: checkpoint.record[name] for name in ("samples", "steps", "recipe")},
            }
        )
    if _found_strength(workspace, target):
        folder = sigma_folder(workspace, target)
        record = workspace.warehouse.read_json(sigma_path(workspace, target)) or {}
        made.append(
            {
                "kind": "checkpoint",
                "folder": folder,
                "target": target.name,
                "role": PERTURBED_ROLE,
                "key": folder.rsplit("/", 1)[-1],
                "means": {"base_model": target.model, "base_digest": base_digest(workspace, target)}
                | {name: record[name] for name in ("sigma", "ratio", "samples")},
            }
        )
    return made


def _found_strength(workspace: Workspace, target: Target) -> bool:
    """Return whether the strength of a target's random perturbation has been found."""
    return wants_perturbation(target) and workspace.warehouse.read_json(sigma_path(workspace, target)) is not None


def _signal_entry(workspace: Workspace, target: Target, signal: SignalName) -> dict[str, Any]:
    store = SignalStore.of(workspace, target, signal)
    means: dict[str, Any] = {
        "model": target.model,
        "revision": target.revision,
        "base_digest": base_digest(workspace, target),
        "measured_at": checkpoint_digest(workspace, target),
        "template": target.template,
        "max_length": target.max_length,
        "dtype": target.dtype,
        "signal_version": SIGNAL_VERSIONS[signal],
    }
    if signal in PROXY_SIGNALS:
        means["proxy"] = target.proxy
    gradients = gradient_facts(target, signal)
    if gradients is not None:
        means["gradients"] = gradients
    if signal in SEGMENTED_SIGNALS:
        means["segmentation"] = workspace.settings.corpus.segmentation.model_dump(mode="json")
    return {
        "kind": "signal",
        "folder": store.folder,
        "target": target.name,
        "role": role_of(target),
        "signal": signal,
        "fingerprint": store.fingerprint,
        "means": means,
    }


def _own_files(storage: Storage, entry: dict[str, Any]) -> list[str]:
    """Return the files of a checkpoint, or the parts of a signal."""
    if entry["kind"] == "checkpoint":
        return [file.path for file in storage.walk(entry["folder"])]
    return [file.path for file in storage.files(entry["folder"]) if file.name.endswith(TABLE)]


def _read_index(there: Storage) -> dict[str, Any]:
    """Read an export's index.

    Raises:
        TransferError: the index is missing, incomplete, or of another version.
    """
    shown = there.shown(INDEX)
    try:
        index = json.loads(there.read(INDEX))
    except FileNotFoundError as error:
        raise TransferError(
            f"there is no {shown}. Name the place that `curate export-measurements` wrote to, and let it finish."
        ) from error
    except ValueError as error:
        raise TransferError(f"{shown} is not JSON ({error}). Export again.") from error
    found = index.get("schema_version") if isinstance(index, dict) else None
    if found != SCHEMA_VERSION:
        raise TransferError(f"{shown} has schema version {found}; this version reads {SCHEMA_VERSION}. Export again.")
    assert isinstance(index, dict)
    return index


def _listed(there: Storage, index: dict[str, Any], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the files of a signal or checkpoint from the index, after checking that their paths are safe.

    Raises:
        TransferError: the index lists a file that no export contains.
    """
    own = [file for file in index["files"] if file["path"].startswith(f"{entry['folder']}/")]
    if entry["kind"] == "signal":
        folder = tables.signal_dir(entry["target"], entry["role"], entry["signal"], entry["fingerprint"])
        sound = all(f["path"].count("/") == folder.count("/") + 1 and f["path"].endswith(TABLE) for f in own)
    else:
        folder = tables.checkpoint_dir(entry["target"], entry["role"], entry["key"])
        sound = all(file["path"].endswith(CHECKPOINT_FILES) for file in own)
        sound = sound and f"{folder}/{RECORD}" in {file["path"] for file in own}
    names = [part for file in own for part in file["path"].split("/")]
    if folder != entry["folder"] or not sound or not all(SAFE_NAME.fullmatch(name) for name in names):
        raise TransferError(f"{there.shown(INDEX)}: {entry['folder']} has unexpected files. Export again.")
    return own


def _verified(there: Storage, file: dict[str, Any]) -> bytes:
    """Read an exported file and verify its digest.

    Raises:
        TransferError: the file is missing, or its bytes differ from the exported ones.
    """
    shown = there.shown(file["path"])
    try:
        data = there.read(file["path"])
    except FileNotFoundError as error:
        raise TransferError(f"{shown} is missing. Copy the whole export again.") from error
    if bytes_digest(data) != file["digest"]:
        raise TransferError(
            f"{shown} is damaged: its bytes differ from the exported ones. Copy or export it again. Files imported "
            "before it are intact and stay."
        )
    _check_name(shown, file["path"], file["digest"])
    return data


def _check_name(shown: str, path: str, digest: str) -> None:
    """Verify that a part's content matches the digest in its name."""
    name = re.fullmatch(r"part-([0-9a-f]{32})", path.rsplit("/", 1)[-1].removesuffix(TABLE))
    if name is not None and name[1] != digest:
        raise TransferError(
            f"{shown} is damaged: its bytes do not match its name. Delete it where it was "
            "measured, measure again there, and export again."
        )


def _add(storage: Storage, path: str, data: bytes) -> bool:
    """Write an immutable file; return False if it already exists.

    Raises:
        TransferError: the existing file has other content.
    """
    if storage.create(path, data):
        return True
    if storage.read(path) != data:
        raise TransferError(f"{storage.shown(path)} {_other_bytes(path)}")
    return False


def _other_bytes(path: str) -> str:
    """Return why a file that exists with other bytes stands in the way, and the fix."""
    if re.search(r"/part-[0-9a-f]{32}\.parquet$", path):
        return "does not match its name: it is damaged. Delete it and try again."
    return (
        "exists with other content, probably from another training of the same recipe. Export to another place, or "
        "delete that folder there if nobody uses what was measured with it."
    )


def _import_part(workspace: Workspace, there: Storage, file: dict[str, Any], purged: Sequence[str]) -> bool:
    """Add a part, without samples purged from this warehouse; return whether it was new."""
    data = _verified(there, file)
    held = pl.read_parquet(io.BytesIO(data), columns=["sample_id"])["sample_id"].is_in(list(purged))
    if not held.any():
        return _add(workspace.warehouse.storage, file["path"], data)
    kept = pl.read_parquet(io.BytesIO(data)).filter(~held)
    parts = Measurements(workspace.warehouse, file["path"].rsplit("/", 1)[0])
    if kept.is_empty() or not parts.missing(kept["sample_id"]):
        return False
    parts.append(kept)
    return True


def _refuse_another(workspace: Workspace, folder: str, files: Sequence[dict[str, Any]]) -> bool:
    """Return whether the warehouse already has this exact checkpoint.

    Raises:
        TransferError: the warehouse has a different checkpoint in its place.
    """
    storage = workspace.warehouse.storage
    if not storage.exists(f"{folder}/{RECORD}"):
        return False
    here = {file.path: bytes_digest(storage.read(file.path)) for file in storage.walk(folder)}
    if here != {file["path"]: file["digest"] for file in files}:
        raise TransferError(
            f"{storage.shown(folder)} holds another warm-up of the same recipe, and warm-ups are frozen. Nothing was "
            "imported. Import into a new warehouse, or delete that folder, which invalidates what was measured with it."
        )
    return True


def _import_checkpoint(workspace: Workspace, there: Storage, folder: str, files: Sequence[dict[str, Any]]) -> int:
    """Create the checkpoint's folder atomically if it is missing; return the number of copied files."""
    if _refuse_another(workspace, folder, files):
        return 0
    contents = {file["path"].removeprefix(f"{folder}/"): _verified(there, file) for file in files}

    def fill(place: Path) -> None:
        for name, data in contents.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)

    if workspace.warehouse.create_folder(folder, fill, last=RECORD):
        _name_purged(workspace, folder)
        return len(files)
    # Another process created it in the meantime.
    _refuse_another(workspace, folder, files)
    return 0


def _name_purged(workspace: Workspace, folder: str) -> None:
    """Log a warning if an imported checkpoint was trained on purged samples, since it cannot be changed."""
    warehouse, path = workspace.warehouse, f"{folder}/{TRAINED_ON}"
    ids = warehouse.read_columns(path, "sample_id")["sample_id"] if warehouse.storage.exists(path) else ()
    purged = set(ids).intersection(PurgedList.read(warehouse).ids())
    if purged:
        named = warehouse.storage.shown(folder), ", ".join(sorted(purged))
        logger.warning("checkpoint %s was trained on purged samples (%s). Delete the folder to retrain it.", *named)


def _wanted(workspace: Workspace) -> set[str] | None:
    """Return the folders that the configuration uses; None if a target's model is not available."""
    try:
        return {folder for target in workspace.settings.targets for folder in _wanted_of(workspace, target)}
    except ModelError:
        return None


def _wanted_of(workspace: Workspace, target: Target) -> Iterable[str]:
    folders = [signal_dir(workspace, target, signal) for signal in workspace.settings.measured_signals(target)]
    checkpoint = None if target.warmup == "none" else warmup_checkpoint(workspace, target)
    strength = [sigma_folder(workspace, target)] if wants_perturbation(target) else []
    return [folder for folder in folders if folder] + ([checkpoint.folder] if checkpoint else []) + strength
