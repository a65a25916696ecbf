"""Stored tables by name, written as one file of any kind, and single traces."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curation_assets import tables
from curation_assets.config.settings import Settings
from curation_assets.subsets.stored_tables import TableRequestError, find_trace, pick_columns, read_stored, write_frame
from curation_assets.workspace.workspace import Workspace

FRAME = pl.DataFrame(
    {
        "sample_id": ["größe 题", 'a "b", c', ""],
        "steps": [["one\n", "zwei ×"], [], None],
        "gram": pl.Series([[1.5, None], None, [0.25]], dtype=pl.List(pl.Float32)),
        "score": [0.5, None, -1e-9],
        "correct": [True, None, False],
        "shares": [{"line": 0.5, "names": ["a"]}, None, {"line": None, "names": []}],
    }
)
NESTED = ("steps", "gram", "shares")


@pytest.mark.parametrize("folder", ["plain", "new/deep [v2]"])
def test_parquet_is_the_frame_itself(tmp_path: Path, folder: str) -> None:
    out = tmp_path / folder / "out.parquet"
    assert write_frame(FRAME.lazy(), out) == 3
    assert_frame_equal(pl.read_parquet(out, glob=False), FRAME)


def test_json_lines_are_one_row_each(tmp_path: Path) -> None:
    frame = FRAME.with_columns(score=pl.Series([0.5, float("nan"), float("inf")]))
    write_frame(frame.lazy(), tmp_path / "out.jsonl")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == FRAME["sample_id"].to_list()
    assert [row["steps"] for row in rows] == FRAME["steps"].to_list()
    assert [row["score"] for row in rows] == [0.5, None, None]


def test_lists_and_structs_are_json_in_csv(tmp_path: Path) -> None:
    write_frame(FRAME.lazy(), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["sample_id"] for row in rows] == FRAME["sample_id"].to_list()
    for name in NESTED:
        assert [json.loads(row[name]) if row[name] else None for row in rows] == FRAME[name].to_list()
    assert [row["correct"] for row in rows] == ["true", "", "false"]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_table_without_rows_is_written_too(tmp_path: Path, suffix: str) -> None:
    assert write_frame(FRAME.clear().lazy(), tmp_path / f"out.{suffix}") == 0
    assert (tmp_path / f"out.{suffix}").exists()


@pytest.mark.parametrize("name", ["out.xlsx", "out", "out.csv.gz", "out.PARQUET"])
def test_other_endings_are_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    lazy = FRAME.lazy().filter(pl.col("no_such_column"))
    with pytest.raises(TableRequestError, match=r"unsupported file extension\. Use one of \.parquet, \.csv, \.jsonl"):
        write_frame(lazy, tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()


# By name


def make_workspace(tmp_path: Path, targets: int = 1, scores: int = 1, subsets: int = 1) -> Workspace:
    settings = Settings.model_validate(
        {
            "corpus": {"landing": "./landing"},
            "targets": [{"name": f"target{n}", "model": "m"} for n in range(targets)],
            "scores": [{"name": f"score{n}", "target": "target0", "method": "grace"} for n in range(scores)],
            "subsets": [{"name": f"subset{n}", "score": "score0", "budget": {"samples": 1}} for n in range(subsets)],
        }
    )
    return Workspace(tmp_path / "curation.yaml", settings, "0f")


def corpus_of(*ids: str, shard: str = "a.jsonl") -> pl.DataFrame:
    rows = [
        {"sample_id": i, "prompt_id": "p", "shard": shard, "row": n, "candidate": 0, "source": "s", "images": []}
        | {"image_digests": [], "messages": "[]", "response": f"response of {i}", "extra": "{}"}
        for n, i in enumerate(ids)
    ]
    table = tables.RAW_CORPUS
    absent = [pl.lit(None).alias(name) for name in table.columns if name not in rows[0]]
    return table.conform(pl.DataFrame(rows).with_columns(absent))


def put_corpus(workspace: Workspace, *ids: str, shard: str = "a.jsonl") -> None:
    workspace.warehouse.write_table(f"{tables.raw_corpus_dir()}/{shard}.parquet", corpus_of(*ids, shard=shard), {})


def test_an_unknown_table_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TableRequestError, match=r"there is no table 'steps'; tables are raw_corpus, .*, subset"):
        read_stored(make_workspace(tmp_path), "steps")


@pytest.mark.parametrize(
    "name",
    ["raw_corpus", "rejected_rows", "segmented_steps", "sample_scores", "step_scores", "score_manifest", "subset"],
)
def test_a_table_that_holds_nothing_yet(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableRequestError, match=rf"table {name} has not been made yet\. Run `curate run`"):
        read_stored(make_workspace(tmp_path), name)


def test_columns_are_picked_by_name() -> None:
    assert pick_columns(FRAME.lazy(), "score, sample_id").collect_schema().names() == ["score", "sample_id"]


def test_several_targets_scores_or_subsets_must_be_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, targets=2, scores=2, subsets=2)
    for name, kind, listed in (
        ("sample_scores", "target", "target0, target1"),
        ("subset", "subset", "subset0, subset1"),
    ):
        with pytest.raises(TableRequestError, match=rf"choose a {kind} with --{kind}: {listed}$"):
            read_stored(workspace, name)
        with pytest.raises(TableRequestError, match=rf"there is no {kind} 'none'; {kind}s are {listed}$"):
            read_stored(workspace, name, target="none", subset="none")
    with pytest.raises(TableRequestError, match=r"choose a score with --score: score0, score1$"):
        read_stored(workspace, "step_scores", target="target0")
    with pytest.raises(
        TableRequestError, match=r"target target1 has no score of single steps\. Add one with method: gr"
    ):
        read_stored(workspace, "step_scores", target="target1")


def test_shards_are_one_table_and_equal_steps_count_once(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    put_corpus(workspace, "a", "b")
    put_corpus(workspace, "b", "c", shard="b.jsonl")
    assert read_stored(workspace, "raw_corpus").collect()["sample_id"].to_list() == ["a", "b", "b", "c"]
    row = {
        "sample_id": "b",
        "step_index": 1,
        "kind": "step",
        "start": 0,
        "end": 3,
        "strategy": "lines",
        "merged": False,
    }
    steps = tables.SEGMENTED_STEPS.conform(pl.DataFrame([row]))
    for shard in ("a.jsonl", "b.jsonl"):
        workspace.warehouse.write_table(f"{tables.segmented_steps_dir()}/{shard}.parquet", steps, {})
    assert len(read_stored(workspace, "segmented_steps").collect()) == 1


def test_a_subset_is_read_by_its_name(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, subsets=2)
    rows = pl.DataFrame({"sample_id": ["a"], "rank": [1], "score": [0.5], "weight": [1.0], "reason": ["best"]})
    workspace.warehouse.write_table(tables.subset_path("subset1"), tables.SUBSET.conform(rows), {})
    assert read_stored(workspace, "subset", subset="subset1").collect()["sample_id"].to_list() == ["a"]


def test_a_trace_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    put_corpus(workspace, "aa1", "aa2", "b.c")
    put_corpus(workspace, "b.c", shard="b.jsonl")  # a copy is no second sample
    found = find_trace(workspace, "b")
    assert found.row["response"] == "response of b.c"
    assert found.facts == {"sample_id": "b.c", "flags": "not scored"}
    assert found.steps.is_empty()
    assert found.scores.schema == tables.STEP_SCORES.empty().schema
    with pytest.raises(TableRequestError, match=r"aa: matches 2 samples \(aa1, aa2\)"):
        find_trace(workspace, "aa")
    for absent in ("x", ".", "b.c.", "B"):
        with pytest.raises(TableRequestError, match="no sample has such an id"):
            find_trace(workspace, absent)
    for options in ({"target": "none"}, {"score": "none"}):
        with pytest.raises(TableRequestError, match=r"there is no (target|score) 'none'"):
            find_trace(workspace, "b", **options)
