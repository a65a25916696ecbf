"""Find and remove stored data that nothing refers to any more: `curate gc`.

It keeps whatever the configuration wants now, whatever a release depends on (according to its manifest), and anything
recent, since another machine may be working with another configuration. Rows, rejected rows and releases are never
considered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from curation_assets import tables
from curation_assets.corpus.purging import used_images
from curation_assets.releases.build import read_manifest
from curation_assets.releases.file_names import MANIFEST
from curation_assets.signals.perturbation import wants_perturbation
from curation_assets.signals.store import signal_dir
from curation_assets.tables.audit import AUDIT
from curation_assets.workspace.fingerprints import WARMUP_ROLE, sigma_folder, warmup_key
from curation_assets.workspace.workspace import Workspace
from curation_resources.progress import track
from curation_resources.storage.files import MAKING, StoredFile
from curation_resources.storage.warehouse import Warehouse
from curation_resources.training.files import RECORD

DAY = 24 * 60 * 60.0
WANTED = "the configuration wants it"
UNWANTED = "neither the configuration nor a release names it"
UNFINISHED = "left behind by an interrupted write"

PLACES = (
    r"(?:audit/)?signals/[^/]+/[^/]+/[^/]+/[^/]+(?=/)",
    r"checkpoints/[^/]+/[^/]+/[^/]+(?=/)",
    r"scores/[^/]+/step_scores/[^/]+(?=/)",
    r"scores/[^/]+/sample_scores(?=/)",
    r"scores/[^/]+/score_manifest\.parquet$",
    r"subsets/[^/]+\.(?:parquet|json)$",
    r"validation/[^/]+\.parquet$",
)
"""Patterns of removable paths, following `curation_assets.tables`: folders with their contents, and single tables."""


@dataclass(frozen=True)
class Find:
    """Data in the warehouse that is kept or removed as a unit.

    Attributes:
        what: the label to display: a path, or a number of images.
        why: the reason for keeping or removing it.
        remove: whether to remove it.
        files: all of its files.
        folder: its folder; None for single files.
    """

    what: str
    why: str
    remove: bool
    files: Sequence[StoredFile]
    folder: str | None = None

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(file.size for file in self.files)

    @property
    def modified(self) -> float:
        """Time of the latest write to any of its files, in seconds since 1970."""
        return max(file.modified for file in self.files)


@dataclass(frozen=True)
class Named:
    """Everything that releases refer to.

    Attributes:
        reasons: by path, the release that depends on it.
        signals: by target, signal and fingerprint, the release that depends on it.
        targets: by target name, a release that depends on one of the target's checkpoints without recording which.
    """

    reasons: dict[str, str]
    signals: dict[tuple[str, str, str], str]
    targets: dict[str, str]

    def why(self, path: str) -> str | None:
        """Return the reason to keep a folder or table that a release depends on; None if no release does."""
        parts = path.split("/")
        release = self.reasons.get(path)
        if parts[0] == "signals":
            _, target, _, signal, fingerprint = parts
            release = self.signals.get((target, signal, fingerprint))
        if parts[0] == "checkpoints":
            release = release or self.targets.get(parts[1])
        return None if release is None else f"release {release} depends on it"


def find_unused(workspace: Workspace, older_than_days: float, clock: float | None = None) -> list[Find]:
    """List everything that can be removed, and whether it will be.

    Args:
        workspace: the configuration.
        older_than_days: keep anything written more recently than this. Remains of interrupted writes use one day.
        clock: the current time, in seconds since 1970.

    Raises:
        ModelError: a target's model is not available, so we cannot determine which of its files are wanted.
        ReleaseError: a release's manifest is damaged, so we cannot determine what it depends on.
    """
    now = time.time() if clock is None else clock
    wanted, named = _wanted(workspace), _named(workspace.warehouse)
    finds = []
    for path, files in _things(workspace.warehouse):
        why = WANTED if path in wanted else named.why(path)
        finds.append(_find(path, path, files, why, now, older_than_days))
    return [*finds, *_images(workspace.warehouse, now, older_than_days), *_unfinished(workspace.warehouse, now)]


def clear(workspace: Workspace, finds: Iterable[Find]) -> list[Find]:
    """Remove the finds marked for removal; return those that were kept because they were written to in the meantime."""
    warehouse = workspace.warehouse
    removed = [find for find in finds if find.remove]
    changed = []
    with track("removing", len(removed)) as advance:
        for find in removed:
            if find.folder is None:
                for file in find.files:
                    warehouse.storage.remove(file.path)
            elif not _seen(warehouse.files(find.folder)) <= _seen(find.files):
                changed.append(find)
            else:
                # Remove the record first: a checkpoint must not look complete if we are killed halfway.
                warehouse.storage.remove(f"{find.folder}/{RECORD}")
                warehouse.storage.remove_folder(find.folder)
            advance(1)
    return changed


def _seen(files: Iterable[StoredFile]) -> set[tuple[str, str]]:
    return {(file.path, file.version) for file in files}


def _find(
    what: str, folder: str, files: Sequence[StoredFile], why: str | None, now: float, older_than_days: float
) -> Find:
    """Return the find for a folder, or for the one file at that path; it is kept if it has a reason or is recent."""
    of = None if [file.path for file in files] == [folder] else folder
    found = Find(what, why or UNWANTED, why is None, files, of)
    if found.remove and now - found.modified < older_than_days * DAY:
        return Find(what, f"younger than {older_than_days:g} days", False, files, of)
    return found


def _wanted(workspace: Workspace) -> set[str]:
    """Return the folders and tables that the configuration wants now."""
    settings = workspace.settings
    wanted = {path(subset.name) for subset in settings.subsets for path in (tables.subset_path, tables.selection_path)}
    wanted |= {tables.validation_path(validation.name) for validation in settings.validation}
    for target in settings.targets:
        wanted |= {tables.sample_scores_dir(target.name), tables.score_manifest_path(target.name)}
        wanted |= {tables.step_scores_dir(target.name, score.name) for score in settings.scores_of(target.name)}
        if target.warmup != "none":
            wanted.add(tables.checkpoint_dir(target.name, WARMUP_ROLE, warmup_key(workspace, target)))
        if wants_perturbation(target):
            wanted.add(sigma_folder(workspace, target))
        folders = [signal_dir(workspace, target, signal) for signal in settings.measured_signals(target)]
        wanted |= {place + folder for folder in folders if folder is not None for place in ("", AUDIT)}
    return wanted


def _named(warehouse: Warehouse) -> Named:
    """Collect what the releases of all subsets refer to, including subsets that are no longer configured."""
    named = Named({}, {}, {})
    for subset in warehouse.storage.folders("releases"):
        for number in warehouse.made_folders(tables.release_dir(subset), MANIFEST):
            manifest = read_manifest(warehouse, f"{tables.release_dir(subset)}/{number}")
            _add_release(named, f"{subset}@{number}", manifest)
    return named


def _add_release(named: Named, release: str, manifest: dict[str, Any]) -> None:
    parameters, checkpoints = manifest["parameters"], manifest["checkpoints"]
    target, score = parameters["target"]["name"], parameters["score"]
    for signal, fingerprint in checkpoints["signal_fingerprints"].items():
        named.signals[target, signal, fingerprint] = release
    paths = [tables.sample_scores_dir(target), tables.score_manifest_path(target)]
    paths += [tables.step_scores_dir(target, score["name"])]
    paths += [tables.subset_path(manifest["subset"]), tables.selection_path(manifest["subset"])]
    sets = score.get("validation") or []
    # Older manifests name a single set.
    paths += [tables.validation_path(name) for name in ([sets] if isinstance(sets, str) else sets)]
    upstream = manifest.get("upstream") or {}
    for name in upstream.get("subsets", {}):
        paths += [tables.subset_path(name), tables.selection_path(name)]
    for name, facts in upstream.get("targets", {}).items():
        for signal, fingerprint in facts["signal_fingerprints"].items():
            named.signals[name, signal, fingerprint] = release
        paths += [tables.sample_scores_dir(name), tables.score_manifest_path(name)]
        paths += [tables.step_scores_dir(name, one) for one in facts["scores"]]
        paths += [tables.validation_path(one) for one in facts["validation"]]
        if facts["warmup"] is not None:
            paths.append(tables.checkpoint_dir(name, WARMUP_ROLE, facts["warmup"]))
    warmup = checkpoints["warmup"]
    if warmup is not None and "key" in warmup:
        paths.append(tables.checkpoint_dir(target, WARMUP_ROLE, warmup["key"]))
    elif warmup is not None:
        # Older manifests do not record which of the target's checkpoints was used.
        named.targets[target] = release
    named.reasons.update(dict.fromkeys(paths, release))


def _things(warehouse: Warehouse) -> Iterator[tuple[str, list[StoredFile]]]:
    """Yield the units of removal: fingerprint folders, checkpoints, scores by name, subsets, validation sets.

    Any other file in these places is not ours to remove.
    """
    things: dict[str, list[StoredFile]] = {}
    for top in ("signals", f"{AUDIT}signals", "checkpoints", "scores", "subsets", "validation"):
        for file in warehouse.files(top):
            place = _place(file.path)
            if place is not None:
                things.setdefault(place, []).append(file)
    yield from things.items()


def _place(path: str) -> str | None:
    """Return the folder or table that a file belongs to."""
    found = [match[0] for place in PLACES if (match := re.match(place, path)) is not None]
    return found[0] if found else None


def _images(warehouse: Warehouse, now: float, older_than_days: float) -> Iterator[Find]:
    """Yield the stored images of rows, grouped by outcome."""
    files = warehouse.files(tables.images_dir())
    if not files:
        return
    used = used_images(warehouse)
    copied = {file.name for file in warehouse.files("releases") if "/images/" in file.path}
    groups: dict[tuple[str, bool], list[StoredFile]] = {}
    for file in files:
        if file.name in used:
            why: str | None = "used by rows"
        else:
            why = "copied into a release" if file.name in copied else None
        found = _find(file.name, file.path, [file], why, now, older_than_days)
        groups.setdefault((found.why if found.why != UNWANTED else "unused by rows", found.remove), []).append(file)
    for (why, remove), own in groups.items():
        yield Find(f"{len(own):,} images", why, remove, own)


def _unfinished(warehouse: Warehouse, now: float) -> Iterator[Find]:
    """Yield the remains of interrupted writes: no write takes a day."""
    things: dict[tuple[str, bool], list[StoredFile]] = {}
    for file in warehouse.storage.unfinished():
        parts = file.path.split("/")
        making = [depth for depth, part in enumerate(parts, start=1) if part.startswith(MAKING)]
        things.setdefault(("/".join(parts[: making[0]]), True) if making else (file.path, False), []).append(file)
    for (path, is_folder), files in things.items():
        old = now - max(file.modified for file in files) >= DAY
        yield Find(path, UNFINISHED if old else "a write may be in progress", old, files, path if is_folder else None)
