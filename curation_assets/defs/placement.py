"""Placement of launched runs: determine which runs need a device, and tag them so that a launcher provides one.

A run is one process (a model is loaded once for a range of shards), so GPUs are assigned to runs, not to steps.
Launchers of whole runs, such as those for Kubernetes and ECS, read the placement from a run's tags.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import dagster as dg

from curation_assets.config.running_settings import Engine
from curation_assets.config.settings import Target
from curation_assets.defs.audit import AUDIT_KEY
from curation_assets.defs.checkpoints import perturbation_key_of, warmup_key_of
from curation_assets.defs.evaluation import EVALUATION_KEY
from curation_assets.defs.signals import signal_keys
from curation_assets.defs.validation import validation_signals_key
from curation_assets.workspace.workspace import Workspace


def run_tags(engine: Engine) -> dict[str, str]:
    """Return `engine.run_tags` in Dagster's form: values other than text become JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in engine.run_tags.items()
    }


def device_keys(workspace: Workspace) -> frozenset[dg.AssetKey]:
    """Return the assets that are made on a device of the run's own machine.

    This excludes those made by a judge, and those measured by the workers of a Ray cluster.
    """
    found = {EVALUATION_KEY, AUDIT_KEY}
    for target in workspace.settings.targets:
        if target.kind != "judge":
            found |= {warmup_key_of(target), perturbation_key_of(target)}
            found |= set() if workspace.settings.engine.kind == "ray" else _measured(target)
    return frozenset(found)


def placed(workspace: Workspace, requests: Iterable[dg.RunRequest]) -> list[dg.RunRequest]:
    """Add the tags of `engine.run_tags` to requests that need a device."""
    tags, keys = run_tags(workspace.settings.engine), device_keys(workspace)
    return [
        # The sensor's own tags take precedence.
        request.with_replaced_attrs(tags={**tags, **request.tags})
        if keys & set(request.asset_selection or ())
        else request
        for request in requests
    ]


def placed_jobs(workspace: Workspace) -> Sequence[dg.UnresolvedAssetJobDefinition]:
    """Return audit and evaluation as jobs with these tags: no sensor requests them, so a person has to start them."""
    tags = run_tags(workspace.settings.engine)
    if not tags:
        return []
    jobs = [dg.define_asset_job("audit", selection=[AUDIT_KEY], tags=tags)]
    if workspace.settings.evaluation is not None and workspace.settings.subsets:
        jobs.append(dg.define_asset_job("evaluation", selection=[EVALUATION_KEY], tags=tags))
    return jobs


def _measured(target: Target) -> set[dg.AssetKey]:
    return {*signal_keys(target), validation_signals_key(target)}
