"""Assets of the releases stage: one per subset, with one partition per release."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from curation_assets.config.settings import Subset
from curation_assets.defs.asset_metadata import OWNERS, column_schema, facts_table, markdown_table
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.partitions import release_partitions
from curation_assets.defs.steps import SEGMENTED_STEPS_KEY
from curation_assets.defs.subsets import subset_key
from curation_assets.releases.build import Release, broken_files, make_release
from curation_assets.releases.changes import changes_text
from curation_assets.releases.data import RELEASE
from curation_assets.releases.file_names import CARD, PAGE
from curation_assets.tables import RAW_CORPUS, SUBSET
from curation_assets.workspace.workspace import Workspace


def release_asset_key(subset: Subset) -> dg.AssetKey:
    """Return the key of a subset's releases."""
    return dg.AssetKey(["releases", subset.name])


def release_asset(subset: Subset) -> dg.AssetsDefinition:
    """Return the asset of a subset's releases."""

    @dg.asset(
        key=release_asset_key(subset),
        deps=[subset_key(subset)],
        group_name="releases",
        description=f"Immutable versions of {subset.name}; made by `curate release {subset.name}`.",
        metadata=column_schema(RELEASE),
        owners=OWNERS,
        kinds={"parquet", "json"},
        partitions_def=release_partitions(subset.name),
        check_specs=[dg.AssetCheckSpec("checksums", asset=release_asset_key(subset))],
    )
    def release(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        number = int(context.partition_key.rsplit("@", 1)[1])
        made = make_release(workspace, subset, number, context.run.run_id)
        broken = broken_files(workspace, made)
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(made.manifest["content_digest"]),
            metadata=_metadata(made) | {"dagster/column_lineage": _column_lineage(subset)},
            check_results=[dg.AssetCheckResult(passed=not broken, metadata={"broken_files": broken})],
        )

    return release


def _column_lineage(subset: Subset) -> dg.TableColumnLineage:
    """Return the source columns of each column of a release."""
    steps = {**dict.fromkeys(("step_spans", "answer_span"), ("start", "end")), "messages": ("messages", "response")}
    found = {}
    for name in RELEASE.columns:
        if name in SUBSET.columns:
            sources = [(subset_key(subset), name)]
        elif name in RAW_CORPUS.columns:
            sources = [(RAW_CORPUS_KEY, column) for column in steps.get(name, (name,))]
        else:
            sources = [(SEGMENTED_STEPS_KEY, column) for column in steps.get(name, ())]
        found[name] = [dg.TableColumnDep(asset_key=key, column_name=column) for key, column in sources]
    return dg.TableColumnLineage(deps_by_column=found)


def _metadata(release: Release) -> dict[str, Any]:
    manifest = release.manifest
    checkpoints = manifest["checkpoints"]
    lineage = [
        ("configuration", manifest["config"]["digest"]),
        ("base model", checkpoints["base_model"]["digest"]),
        ("measured at", checkpoints["measured_at"]),
        *((f"signal {name}", version) for name, version in checkpoints["signal_fingerprints"].items()),
        ("code commit", manifest["code"]["commit"]),
    ]
    inputs = [(i["path"], i["rows"], i["content_digest"]) for i in manifest["inputs"] if i["present"]]
    return {
        "folder": dg.MetadataValue.path(str(release.folder)),
        "traces": dg.MetadataValue.path(f"{release.folder}/{PAGE}"),
        "card": dg.MetadataValue.path(f"{release.folder}/{CARD}"),
        "dagster/partition_row_count": manifest["rows"],
        "content_digest": manifest["content_digest"],
        "selection": facts_table(manifest["selection"]),
        "changes": changes_text(manifest["changes"]) if manifest["changes"] else "the first release",
        "lineage": markdown_table(("what", "version"), lineage),
        "inputs": markdown_table(("file", "rows", "content digest"), inputs[:50]),
    }
