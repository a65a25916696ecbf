"""datatrove's JSONL reader to its Parquet writer; imports nothing of ours, it runs in datatrove's own environment.

python datatrove_worker.py IN OUT WORKERS
"""

from __future__ import annotations

import json
import resource
import sys
import time


def main() -> None:
    """Read every file of a folder and write it as Parquet; print seconds and peak memory of the largest process."""
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found]
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
    from datatrove.pipeline.writers import ParquetWriter  # type: ignore[import-not-found]

    source, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    pipeline = [
        JsonlReader(source, text_key="response", id_key="id"),
        ParquetWriter(f"{out}/parquet", compression="zstd"),
    ]
    started = time.perf_counter()
    LocalPipelineExecutor(pipeline=pipeline, tasks=8, workers=workers, logging_dir=f"{out}/log").run()
    seconds = time.perf_counter() - started
    who = [resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN]
    peak = max(resource.getrusage(one).ru_maxrss for one in who) / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))


if __name__ == "__main__":
    main()
