"""`curate run --sample N`: N rows are read, the whole is estimated as a plan does, and rejections are explained."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.cli.show_cost import total_line
from curation_assets.corpus.ingest import corpus_rows, pool_rows
from curation_assets.defs.dry_run import dry_run
from curation_assets.operations.plan import make_plan
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import landed, make_workspace, rows, write_shard


def sampled(workspace: Workspace, count: int) -> dict[str, int]:
    """The number of rows that a dry run reads of each file."""
    with dry_run(workspace, count) as look:
        ids = pool_rows(look.workspace)["sample_id"].to_list()
        content = corpus_rows(look.workspace, ids).group_by("shard").len().sort("shard")
        return dict(content.iter_rows())


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([30], 20, [20]),
        ([30, 30, 30], 20, [7, 7, 6]),
        # A short file leaves its share to the others, wherever it is.
        ([2, 30, 30], 20, [2, 9, 9]),
        ([30, 30, 2], 20, [9, 9, 2]),
        ([2, 3, 30], 20, [2, 3, 15]),
        ([2, 3, 4], 20, [2, 3, 4]),
        # Of more files than rows, some are read.
        ([9] * 6, 3, [1, 0, 1, 0, 1, 0]),
    ],
)
def test_as_many_rows_are_read_as_asked(
    tmp_path: Path, tiny_model: Path, sizes: list[int], count: int, expected: list[int]
) -> None:
    shards = {f"{place}.jsonl": rows(size, start=100 * place) for place, size in enumerate(sizes)}
    workspace = make_workspace(tmp_path, tiny_model, shards, signals=("likelihoods",))
    found = sampled(workspace, count)
    assert sorted(found.values()) == sorted(number for number in expected if number)
    assert sum(found.values()) == min(count, sum(sizes))


def test_rows_of_every_kind_of_file_count(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)}, signals=("likelihoods",))
    (landed(workspace) / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n\n" for row in rows(30)))
    lines = "".join(f"{json.dumps(row)}\n" for row in rows(30, start=100))
    (landed(workspace) / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pl.DataFrame(rows(30, start=200)).write_parquet(landed(workspace) / "c.parquet")
    assert sum(sampled(workspace, 20).values()) == 20


def curate_sample(workspace: Workspace, count: int, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["run", "--sample", str(count), "--config", str(workspace.config_file)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_the_whole_is_estimated_as_a_plan_does(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(40), "b.jsonl": [{"prompt": 3}, *rows(3, 90)]})
    said = curate_sample(workspace, 8)
    assert "rejected: 1 x" in said
    planned = total_line(make_plan(workspace, probe=False))
    # Samples, tokens and F are the plan's; time and bytes come from a probe.
    assert planned in said
    assert re.search(re.escape(planned) + r", about .* to write", said)


@pytest.mark.parametrize("records", [[{"prompt": "a"}] * 5, [{"text": "a"}] * 5])
def test_when_every_row_is_rejected_it_says_so(tmp_path: Path, tiny_model: Path, records: list[dict[str, Any]]) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": []})
    write_shard(landed(workspace) / "a.jsonl", records)
    said = curate_sample(workspace, 4, code=1)
    assert "every row was rejected, so there is nothing to measure" in said
    assert re.search(r"[14] x \w+: .* \(such as a\.jsonl, row -?\d\)", said)
    assert "curate run" not in said.replace("`curate run`", "")
