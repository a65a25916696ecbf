"""The sides of the ingest benchmark that run in our environment, each in a process of its own.

python -m tests.benchmarks.ingest_sides ours|polars IN OUT
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from curation_resources.workers import cores

CONFIG = """\
corpus: {{landing: {source}}}
warehouse: {out}/warehouse
targets: [{{name: none, model: ./no-model-is-loaded}}]
"""


def ours(source: Path, out: Path) -> float:
    """From files to validated, normalised, hashed `raw_corpus` and `rejected_rows`."""
    from curation_assets.corpus.ingest import ingest_shard
    from curation_assets.corpus.many_shards import map_shards
    from curation_assets.workspace.workspace import Workspace

    config = out / "curation.yaml"
    config.write_text(CONFIG.format(source=source, out=out))
    workspace = Workspace.load(config)
    started = time.perf_counter()
    # Their content is hashed first, as the sensor and `curate run` do.
    shards = list(workspace.landing.digests(workspace.landing.files()))
    for found in map_shards(workspace, shards, ingest_shard):
        assert found.account.balanced, found
        assert not found.reasons, found
    return time.perf_counter() - started


def polars(source: Path, out: Path) -> float:
    """Polars' own lazy reader and writer, which neither looks at rows nor hashes them."""
    import polars as pl

    started = time.perf_counter()
    for file in sorted(source.glob("*.jsonl")):
        pl.scan_ndjson(file).sink_parquet(out / f"{file.stem}.parquet", compression="zstd")
    return time.perf_counter() - started


if __name__ == "__main__":
    side, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    seconds = {"ours": ours, "polars": polars}[side](source, out)
    # Of all processes: each of the largest of them may have been at its peak at the same time.
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = (own + children * (cores() if children else 0)) / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))
