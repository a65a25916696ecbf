"""The pool's filters from end to end: what is left out, why, who follows, and what is never measured twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from curation_assets import tables
from curation_assets.config.config_file import ConfigError
from curation_assets.config.corpus_settings import CorpusFilters
from curation_assets.definitions import build_definitions
from curation_assets.defs.sensors import scoring_requests
from curation_assets.quality import checks
from curation_assets.quality.checks import QualityError, checks_key
from curation_assets.quality.filtered_pool import apply, by_benchmark, pool_due, quality_due, without_filtered
from curation_assets.signals.warmup import trainable_rows
from curation_assets.subsets.select import pool_of, select
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.subsets.what_if import what_if
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run, write_shard

KNOWN = "If Anna buys seven red apples and gives three of them to her brother, how many are left for her?"
GERMAN = (
    "Step 1: Zuerst zählen wir alle Äpfel, die auf dem Tisch liegen, und schreiben die Zahl auf.\n"
    "Step 2: Danach nehmen wir die Äpfel weg, die der Bruder gegessen hat, und rechnen weiter.\nAnswer: vier"
)
COPIED = "Step 1: take the long way over the hill, past the mill and down to the river.\nStep 2: count the boats"
REPEATED = "Step 1: again and again.\n" + "Step 2: again and again and again.\n" * 20 + "Answer: 1"


def records() -> list[dict[str, Any]]:
    return [
        *rows(6),
        {"prompt": KNOWN, "response": "Step 1: 7 - 3 = 4 apples are left.\nStep 2: so four.\nAnswer: 4"},
        {"prompt": "Wie viele?", "response": GERMAN},
        {"prompt": "How many boats?", "response": f"{COPIED} that you can see there.\nAnswer: 4"},
        {"prompt": "How many boats?", "response": f"{COPIED} that you can see there. \nAnswer: 4 "},
        {"prompt": "Once more?", "response": REPEATED},
    ]


FILTERS = (
    "filters: {near_duplicates: 0.7, contamination: [./held/*.jsonl], languages: [en], "
    "repetition: {limits: {duplicate_line_share: 0.5}}}"
)


def configured(folder: Path, tiny_model: Path, corpus: str = FILTERS, **config: Any) -> Workspace:
    (folder / "held").mkdir(parents=True, exist_ok=True)
    (folder / "held" / "apples.jsonl").write_text(json.dumps({"question": KNOWN}) + "\n")
    return make_workspace(folder, tiny_model, {"a.jsonl": records()}, corpus=corpus, **config)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    made = configured(tmp_path_factory.mktemp("filters"), tiny_model)
    run(made)
    return made


def reasons(workspace: Workspace) -> dict[str, list[str]]:
    pool = read_stored(workspace, "pool").collect()
    corpus = read_stored(workspace, "raw_corpus").select("sample_id", "response").collect()
    joined = pool.join(corpus, on="sample_id").drop_nulls("reason")
    return {reason: group["response"].to_list() for (reason,), group in joined.group_by("reason")}


def test_each_filter_leaves_out_what_it_is_for(workspace: Workspace) -> None:
    found = reasons(workspace)
    assert found.keys() == {"contaminated", "language", "repetitive", "near_duplicate"}
    assert [len(found[reason]) for reason in sorted(found)] == [1, 1, 1, 1]
    assert found["contaminated"][0].startswith("Step 1: 7 - 3")
    assert found["language"] == [GERMAN]
    assert found["repetitive"] == [REPEATED]
    assert found["near_duplicate"][0].startswith(COPIED)


def test_only_benchmarks_that_reach_the_share_are_blamed() -> None:
    rows_ = [("a", ["one", "two"], [0.9, 0.03]), ("b", ["two"], [0.03]), ("c", None, None), ("d", [], [])]
    columns = ["sample_id", "benchmarks", "benchmark_share"]
    types = {"benchmarks": pl.List(pl.String), "benchmark_share": pl.List(pl.Float64)}
    frame = pl.DataFrame(rows_, schema=columns, orient="row", schema_overrides=types)
    quality = frame.with_columns(signature=pl.lit(None))
    filters = CorpusFilters.model_validate({"contamination": ["x.jsonl"]})
    pool = apply(quality, filters)
    assert pool.rows() == [("a", "contaminated", "one"), *((name, None, None) for name in "bcd")]


def test_a_benchmark_that_changes_while_shards_are_checked_is_checked_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    made.warehouse.local(f"{tables.sample_quality_dir()}/a.jsonl.parquet").unlink()
    real = checks.benchmark_index

    def replaced_after_it_was_read(workspace: Workspace) -> Any:
        index = real(workspace)
        (tmp_path / "held" / "apples.jsonl").write_text(json.dumps({"question": "Another one."}) + "\n")
        return index

    monkeypatch.setattr(checks, "benchmark_index", replaced_after_it_was_read)
    assert len(list(checks.check_shards(made, ["a.jsonl"]))) == 1
    assert quality_due(made, ["a.jsonl"]) == ["a.jsonl"]


def test_why_is_said_in_detail(workspace: Workspace) -> None:
    pool = read_stored(workspace, "pool").collect()
    details = dict(pool.drop_nulls("reason").select("reason", "detail").iter_rows())
    assert (details["contaminated"], details["language"]) == ("apples", "de")
    assert details["repetitive"] == "duplicate_line_share"
    assert details["near_duplicate"] in pool.filter(pl.col("reason").is_null())["sample_id"].to_list()
    scan = workspace.warehouse.scan(tables.sample_quality_dir())
    assert scan is not None
    assert by_benchmark(scan, 0.5).rows() == [("apples", 1, 1, 1.0)]


def test_the_budget_is_a_share_of_what_is_left(workspace: Workspace) -> None:
    subset = workspace.settings.subset("best")
    chosen, selection = select(workspace, subset)
    facts = selection.facts()
    assert (facts["pool"], facts["selected"]) == (7, 4)  # half of those that are left
    assert {
        name: facts[f"filtered_{name}"] for name in ("contaminated", "language", "repetitive", "near_duplicate")
    } == {"contaminated": 1, "language": 1, "repetitive": 1, "near_duplicate": 1}
    out = read_stored(workspace, "pool").drop_nulls("reason").collect()["sample_id"].to_list()
    assert not set(out) & set(chosen["sample_id"])
    assert what_if(workspace, "best").rows.equals(chosen)
    assert set(trainable_rows(workspace)["sample_id"]) == set(pool_of(workspace, subset, chosen)["sample_id"])


def test_a_source_whose_samples_were_all_filtered_out_is_not_in_the_pool(tmp_path: Path, tiny_model: Path) -> None:
    sources = {REPEATED: "echo", GERMAN: "german"}
    rows_ = [{**row, "source": sources.get(row["response"], "other")} for row in records()]
    repetition = "filters: {repetition: {limits: {duplicate_line_share: 0.5}}}"
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows_}, corpus=repetition)
    run(made)
    remarks = what_if(made, "best", ["filters.sources=[echo, german, nosuch]"]).remarks()
    assert [remark for remark in remarks if "in the pool" in remark] == [
        "no sample in the pool has source 'echo'",
        "no sample in the pool has source 'nosuch'",
    ]


def test_a_second_run_does_nothing(workspace: Workspace) -> None:
    before = {path: path.stat().st_mtime_ns for path in workspace.warehouse.local("corpus").rglob("*.parquet")}
    summary = run(workspace)
    assert summary.subsets == []
    assert before == {path: path.stat().st_mtime_ns for path in workspace.warehouse.local("corpus").rglob("*.parquet")}


def test_a_threshold_makes_the_pool_anew_and_checks_nothing_again(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    quality = tmp_path / "warehouse" / "corpus" / "sample_quality" / "a.jsonl.parquet"
    before = quality.stat().st_mtime_ns
    loose = configured(
        tmp_path, tiny_model, FILTERS.replace("0.5", "0.99").replace("languages: [en]", "languages: [en, de]")
    )
    summary = run(loose)
    assert summary.subsets == ["best"]
    assert reasons(loose).keys() == {"contaminated", "near_duplicate"}
    assert quality.stat().st_mtime_ns == before


def test_another_benchmark_checks_again(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    key = checks_key(made)
    question = rows(1)[0]["response"].replace("\n", " ")
    (tmp_path / "held" / "counting.jsonl").write_text(json.dumps({"question": question}) + "\n")
    assert checks_key(made) != key
    run(made)
    assert len(reasons(made)["contaminated"]) == 2


def test_a_removed_file_gives_its_copies_back(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model, "filters: {near_duplicates: 0.7}")
    copies = [record for record in records() if record["prompt"] == "How many boats?"]
    write_shard(tmp_path / "landing" / "a.jsonl", [*rows(6), copies[0]])
    for number in range(6):
        write_shard(tmp_path / "landing" / f"b{number}.jsonl", rows(1, 20 + number))
    write_shard(tmp_path / "landing" / "c.jsonl", copies[1:])
    run(made)
    pool = read_stored(made, "pool").collect()
    copied = pool.drop_nulls("reason")
    assert len(copied) == 1
    corpus = read_stored(made, "raw_corpus").collect()
    kept = corpus.filter(pl.col("sample_id") == copied["detail"][0])["shard"][0]
    (tmp_path / "landing" / kept).unlink()
    if kept == "a.jsonl":
        write_shard(tmp_path / "landing" / "a2.jsonl", rows(6))
    run(made)
    assert read_stored(made, "pool").drop_nulls("reason").collect().is_empty()


def test_a_benchmark_that_is_gone_stops_no_measuring(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    (tmp_path / "held" / "apples.jsonl").unlink()
    write_shard(tmp_path / "landing" / "b.jsonl", rows(2, 40))
    instance = instance_of(made)
    instance.add_dynamic_partitions("shards", ["b.jsonl"])
    (reading,), _ = scoring_requests(made, instance, 0.0)
    assert reading.tags["curation/stage"] == "corpus"
    job = build_definitions(made).resolve_implicit_global_asset_job_def()
    tags = dict(reading.tags)
    job.execute_in_process(instance=instance, asset_selection=list(reading.asset_selection or []), tags=tags)
    _, reasons = scoring_requests(made, instance, 0.0)
    assert "matches no file" in reasons[0]


def test_a_pool_that_goes_back_and_forth_is_asked_for_each_time(tmp_path: Path, tiny_model: Path) -> None:
    loose = FILTERS.replace("near_duplicates: 0.7", "near_duplicates: 0.9")
    made = configured(tmp_path, tiny_model)
    run(made)
    keys = []
    for filters in (loose, FILTERS, loose):
        changed = configured(tmp_path, tiny_model, filters)
        requests, _ = scoring_requests(changed, instance_of(made), 0.0)
        keys += [request.run_key for request in requests if request.tags["curation/stage"] == "pool"]
        run(changed)
    assert len(set(keys)) == 3


def test_a_pool_that_dagster_never_saw_is_asked_for(workspace: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as fresh:
        fresh.add_dynamic_partitions("shards", ["a.jsonl"])
        fresh.report_runless_asset_event(dg.AssetMaterialization("sample_quality", partition="a.jsonl"))
        for key in ("raw_corpus", "rejected_rows", "segmented_steps"):
            fresh.report_runless_asset_event(dg.AssetMaterialization(key, partition="a.jsonl"))
        requests, _ = scoring_requests(workspace, fresh, 0.0)
    assert "pool" in [request.tags["curation/stage"] for request in requests]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ("filters: {languages: [english]}", "languages"),
        ("filters: {repetition: {limits: {duplicate_lines: 0.3}}}", "unknown limit 'duplicate_lines'. Known limits:"),
    ],
)
def test_filters_that_mean_nothing_are_refused_at_load(
    tmp_path: Path, tiny_model: Path, filters: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, tiny_model, filters)


def test_without_filters_nothing_is_looked_at(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model, "")
    run(made)
    assert not made.warehouse.local("corpus/sample_quality").exists()
    assert not pool_due(made, ["a.jsonl"])
    assert CorpusFilters().any is False


def test_samples_that_were_not_checked_are_an_error_and_not_a_pass(workspace: Workspace) -> None:
    unknown = pl.DataFrame({"sample_id": ["0" * 32]})
    with pytest.raises(QualityError, match="1 samples have not been checked by the filters of the corpus"):
        without_filtered(workspace, unknown)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ("filters: {contamination: [./none/*.jsonl]}", "'./none/\\*.jsonl' matches no file"),
        ("filters: {contamination: {files: [./held/apples.jsonl], field: colour}}", "apples.jsonl"),
    ],
)
def test_benchmarks_that_cannot_be_read_are_named(tmp_path: Path, tiny_model: Path, filters: str, message: str) -> None:
    made = configured(tmp_path, tiny_model, filters)
    with pytest.raises(Exception, match=message):
        run(made)
