"""The asset graph as a snapshot: a change of lineage shows in review as a diff.

Write it anew with `python -m tests.test_definitions` after a change that is meant.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg

from curation_assets.definitions import build_definitions
from curation_assets.workspace.workspace import Workspace

SNAPSHOT = Path(__file__).parent / "snapshots" / "asset_graph.json"

CONFIG = """\
corpus: {landing: ./landing}
targets:
  - {name: small, model: ./model}
  - {name: base_only, model: ./model, warmup: none, signals: [segment_likelihoods, step_gradients, likelihoods]}
  - {name: embedded, model: ./model, warmup: none, signals: [embeddings_mean, embeddings_last]}
scores:
  - {name: grace, target: small, method: grace}
  - {name: grace_ema, target: small, method: grace, history: {ema: 0.9}}
  - {name: grace_base, target: base_only, method: grace}
subsets:
  - {name: grace_20, score: grace, budget: {fraction: 0.2}}
  - {name: base_1000, score: grace_base, budget: {samples: 1000}}
releases: {policy: on_change}
evaluation: {benchmarks: [{name: held_out, path: ./held_out.jsonl}], target: small, models: [base_only]}
"""


def definitions(folder: Path) -> dg.Definitions:
    """Definitions of the snapshot's configuration; the model need not exist to load them."""
    (folder / "curation.yaml").write_text(CONFIG)
    return build_definitions(Workspace.load(folder / "curation.yaml"))


def graph(defs: dg.Definitions) -> dict[str, Any]:
    """Assets with dependencies, partitions, pool, condition and checks; sensors."""
    assets = {}
    resolved = defs.resolve_asset_graph()
    for node in resolved.asset_nodes:
        condition = node.automation_condition
        partitions = node.partitions_def
        assets[node.key.to_user_string()] = {
            "group": node.group_name,
            "depends_on": sorted(key.to_user_string() for key in node.parent_keys),
            "partitions": partitions.name if isinstance(partitions, dg.DynamicPartitionsDefinition) else None,
            "pools": sorted(node.pools or []),
            "condition": condition.get_label() if condition else None,
            "checks": sorted(key.name for key in node.check_keys),
            "kinds": sorted(node.kinds),
        }
    return {"assets": dict(sorted(assets.items())), "sensors": sorted(s.name for s in defs.sensors or [])}


def test_the_graph_is_the_one_in_the_snapshot(tmp_path: Path) -> None:
    assert graph(definitions(tmp_path)) == json.loads(SNAPSHOT.read_text())


def test_definitions_can_be_loaded_and_every_asset_says_what_it_is(tmp_path: Path) -> None:
    defs = definitions(tmp_path)
    dg.Definitions.validate_loadable(defs)
    for node in defs.resolve_asset_graph().asset_nodes:
        assert node.description, node.key
        assert node.group_name != "default", node.key
        assert node.kinds, node.key
        if node.is_materializable:
            assert list(node.owners) == ["team:curation"], node.key
        if "parquet" in node.kinds:
            columns = node.metadata["dagster/column_schema"].columns
            assert all(column.description for column in columns), node.key


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        SNAPSHOT.write_text(json.dumps(graph(definitions(Path(place))), indent=1) + "\n")
