"""Manifest and provenance of a release: `manifest.json` (inputs and settings) and `provenance.json` (the run)."""

from __future__ import annotations

import platform
import socket
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.methods.registry import method_of
from curation_assets.releases.step_columns import steps_digest
from curation_assets.signals.perturbation import wants_perturbation
from curation_assets.signals.warmup import WarmupCheckpoint, warmup_checkpoint
from curation_assets.subsets.audited import audit_of
from curation_assets.subsets.facts import Selection
from curation_assets.subsets.select import selector_of
from curation_assets.subsets.step_positions import step_positions
from curation_assets.workspace.fingerprints import (
    base_digest,
    checkpoint_digest,
    perturbed_digest,
    sigma_of,
    signal_fingerprint,
)
from curation_assets.workspace.workspace import Workspace

SCHEMA_VERSION = 1
PACKAGES = ("curation-assets", "dagster", "torch", "transformers", "peft", "polars", "numpy", "safetensors")


def release_manifest(
    workspace: Workspace,
    subset: Subset,
    number: int,
    selection: Selection,
    rows: pl.DataFrame,
    content_digest: str,
    files: dict[str, dict[str, Any]],
    changes: dict[str, float | int | None] | None,
) -> dict[str, Any]:
    """Return the manifest of a release.

    Args:
        workspace: the current configuration.
        subset: the subset to release.
        number: its version; the parent is the version before.
        selection: the selection with its facts.
        rows: the released rows.
        content_digest: hash of the rows; equal content makes no new version.
        files: size and SHA-256 of the data files.
        changes: changes from the previous release, if there is one.
    """
    target = workspace.settings.target(workspace.settings.score_of(subset).target)
    inputs = workspace.warehouse.read_table(tables.score_manifest_path(target.name))
    sources = dict(rows.group_by("source").len().sort("source").iter_rows())
    licenses = workspace.settings.releases.licenses
    return {
        "schema_version": SCHEMA_VERSION,
        "subset": subset.name,
        "number": number,
        "parent": number - 1 or None,
        # The previous round's release, for a target trained on a release (multi-round GRAPE).
        "parent_release": None if target.warmup == "none" else target.warmup.release,
        "content_digest": content_digest,
        "subset_digest": selection.content_digest,
        "steps_digest": steps_digest(rows),
        "rows": len(rows),
        "prompts": rows["prompt_id"].n_unique(),
        "sources": sources,
        "licenses": {source: licenses.get(source) for source in sources},
        "selection": selection.facts(),
        "funnel": [asdict(stage) for stage in selection.funnel],
        "score_distribution": selection.score_distribution(),
        "changes": changes,
        "parameters": _parameters(workspace, subset, selection),
        "audit": _audit(workspace, subset),
        "step_positions": _step_positions(workspace, subset),
        "checkpoints": _checkpoints(workspace, target),
        "inputs": inputs.to_dicts(),
        "upstream": _upstream(workspace, subset),
        "config": {"digest": workspace.config_digest, "settings": workspace.settings.model_dump(mode="json")},
        "packages": package_versions(),
        "code": code_version(),
        "files": files,
    }


def _parameters(workspace: Workspace, subset: Subset, selection: Selection) -> dict[str, Any]:
    """Return all parameters of the selection, including defaults, and how it differs from the method's source."""
    score = workspace.settings.score_of(subset)
    target = workspace.settings.target(score.target)
    method = method_of(score)
    return {
        "subset": subset.model_dump(mode="json"),
        "score": score.model_dump(mode="json"),
        "selector": selector_of(workspace, subset).model_dump(mode="json"),
        "target": target.model_dump(mode="json"),
        "method": {"name": method.name, "source": method.source, "summary": method.summary},
        "unfaithful": [*method.unfaithful(target.facts(), score), *selection.warnings],
    }


def _audit(workspace: Workspace, subset: Subset) -> list[dict[str, Any]] | None:
    """Return what the last audit says about the subset's score; None if it was not audited as it is now."""
    rows = audit_of(workspace, workspace.settings.score_of(subset))
    return None if rows is None else rows.to_dicts()


def _step_positions(workspace: Workspace, subset: Subset) -> list[dict[str, float | int]] | None:
    """Return the moments of the pool's step scores by position; None if the score has no steps."""
    found = step_positions(workspace, workspace.settings.step_score_of(subset))
    return None if found is None else found.document()


def _checkpoints(workspace: Workspace, target: Target) -> dict[str, Any]:
    """Return the checkpoints that the signals were measured at."""
    warmup = None if target.warmup == "none" else warmup_checkpoint(workspace, target)
    return {
        "base_model": {"model": target.model, "revision": target.revision, "digest": base_digest(workspace, target)},
        "measured_at": checkpoint_digest(workspace, target),
        "warmup": None if warmup is None else _warmup_facts(warmup),
        "perturbation": _perturbation_facts(workspace, target) if wants_perturbation(target) else None,
        "signal_fingerprints": signal_fingerprints(workspace, target),
    }


def lineage(workspace: Workspace, subset: Subset) -> list[tuple[str, str | None]]:
    """Return the lineage of a subset as names and versions: configuration, other subsets and scores, checkpoints,
    signals, files."""
    target = workspace.settings.target(workspace.settings.score_of(subset).target)
    upstream = _upstream(workspace, subset)
    manifest = workspace.warehouse.read_table(tables.score_manifest_path(target.name)).filter("present")
    return [
        ("configuration", workspace.config_digest),
        *((f"subset {name}", version) for name, version in upstream["subsets"].items()),
        *((f"scores of {name}", facts["manifest"]) for name, facts in upstream["targets"].items()),
        ("base model", base_digest(workspace, target)),
        ("measured at", checkpoint_digest(workspace, target)),
        *((f"signal {name}", version) for name, version in signal_fingerprints(workspace, target).items()),
        ("code commit", code_version()["commit"]),
        *((f"file {path}", version) for path, version in manifest.select("path", "content_digest").iter_rows()),
    ]


def _upstream(workspace: Workspace, subset: Subset) -> dict[str, dict[str, Any]]:
    """Return the subsets that a subset is chosen from, and the other targets whose scores any of them reads.

    By name: the content digest of a subset; and of a target the versions of its scores and signals, the key of its
    warm-up, and the names of the scores and validation sets that were read.
    """
    settings, warehouse = workspace.settings, workspace.warehouse
    chain, own = settings.chain(subset), settings.score_of(subset).target
    read = [settings.score(name) for name in dict.fromkeys(name for one in chain for name in one.scores_read)]
    targets: dict[str, Any] = {}
    for name in dict.fromkeys(score.target for score in read):
        target, scores = settings.target(name), [score for score in read if score.target == name]
        warmup = None if target.warmup == "none" else warmup_checkpoint(workspace, target)
        targets[name] = {
            "manifest": warehouse.table_metadata(tables.score_manifest_path(name)).get("fingerprint"),
            "signal_fingerprints": signal_fingerprints(workspace, target),
            "warmup": None if warmup is None else warmup.key,
            "scores": [score.name for score in scores],
            "validation": sorted({one for score in scores for one in method_of(score).validation(score)}),
        }
    digests = {
        one.name: warehouse.table_metadata(tables.subset_path(one.name)).get("content_digest") for one in chain[:-1]
    }
    return {"subsets": digests, "targets": targets if set(targets) - {own} or len(chain) > 1 or len(read) > 1 else {}}


def signal_fingerprints(workspace: Workspace, target: Target) -> dict[str, str | None]:
    """Return the fingerprint of each signal behind the target's scores, including those measured on validation sets
    only."""
    settings = workspace.settings
    held_out = [signal for signal in settings.measured_signals(target) if signal not in target.signals]
    signals = [*settings.signals_of_scores(target), *held_out]
    return {signal: signal_fingerprint(workspace, target, signal) for signal in signals}


def _warmup_facts(warmup: WarmupCheckpoint) -> dict[str, Any]:
    # The key identifies the checkpoint in the warehouse; garbage collection keeps what a release names.
    facts = {name: warmup.record[name] for name in ("samples", "steps", "tokens", "recipe")}
    return {"key": warmup.key} | facts


def _perturbation_facts(workspace: Workspace, target: Target) -> dict[str, Any]:
    """Return the settings from which the perturbed checkpoints were made."""
    wanted = target.perturbation
    return {
        "digest": perturbed_digest(workspace, target),
        "sigma": sigma_of(workspace, target),
        "seed": wanted.seed,
        "endpoint": (wanted.endpoint or "the target's own checkpoint") if wanted.directional else None,
        "radii": list(wanted.radii()) if wanted.directional else [],
        "radius_unit": wanted.radius_unit,
    }


def package_versions() -> dict[str, str | None]:
    """Return the installed versions of packages that can affect a result; None for a package that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def code_version() -> dict[str, Any]:
    """Return the commit of this code's checkout and whether it has changes; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        # If this code is installed inside another project's checkout, that project's commit does not apply.
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(folder, "rev-parse", "HEAD")
        changed = bool(_git(folder, "status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": changed}


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return result.stdout.strip()


def provenance(run_id: str) -> dict[str, Any]:
    """Return the run, time and machine of the release; not in the checksums, because they differ for equal content."""
    return {
        "dagster_run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": socket.gethostname(),
        "platform": platform.platform(),
    }
