"""The main job: what is due is done, once, and nothing else."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from curation_assets import tables
from curation_assets.config.settings import Settings
from curation_assets.corpus.ingest import pool_rows, refuse_losses
from curation_assets.definitions import build_definitions
from curation_assets.defs.main_job import MainJob
from curation_assets.defs.stage_assets import CORPUS_KEYS
from curation_assets.subsets.select import SelectionError, select
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.model_files import ModelError
from curation_resources.storage.landing import UNREADABLE, FolderLanding, LandingError
from curation_resources.storage.warehouse import DAMAGED
from tests.models import write_tiny_model
from tests.pipeline.workspaces import (
    arrive,
    instance_of,
    landed,
    lose,
    make_workspace,
    release_folder,
    release_subset,
    rows,
    run,
    sample_scores,
    stored,
    subset_ids,
    write_config,
    write_shard,
)

TARGET_ASSETS = ("step_gradients", "step_scores", "sample_scores")


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path) -> Workspace:
    return make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(8), "b.jsonl": rows(6, start=100)})


def test_the_whole_path_and_a_second_call_with_nothing_due(workspace: Workspace) -> None:
    first = run(workspace)
    assert (first.new_shards, first.read, first.measured, first.scored) == (2, 2, {"tiny": 14}, {"tiny": 2})
    assert first.tokens_measured > 0
    scores = sample_scores(workspace)
    assert scores["grace"].is_finite().all()
    assert subset_ids(workspace) == _slow_selection(scores, 7)
    before = _files(workspace)
    second = run(workspace)
    assert (second.new_shards, second.read, second.tokens_measured, second.subsets) == (0, 0, 0, [])
    assert _files(workspace) == before


def _slow_selection(scores: pl.DataFrame, count: int) -> list[str]:
    eligible = [row for row in scores.iter_rows(named=True) if row["n_steps"] >= 2]
    best = sorted(eligible, key=lambda row: (-row["grace"], row["sample_id"]))
    return [row["sample_id"] for row in best[:count]]


def _files(workspace: Workspace) -> dict[str, bytes]:
    return {path: workspace.warehouse.storage.read(path) for path in stored(workspace)}


def test_a_new_file_is_measured_and_nothing_else(workspace: Workspace) -> None:
    run(workspace)
    write_shard(landed(workspace) / "sub" / "c d.jsonl", rows(4, start=200))
    summary = run(workspace)
    assert (summary.new_shards, summary.measured, summary.subsets) == (1, {"tiny": 4}, ["best"])
    assert len(sample_scores(workspace)) == 18


def test_a_changed_file_costs_only_its_changed_rows(workspace: Workspace) -> None:
    run(workspace)
    write_shard(landed(workspace) / "a.jsonl", [*rows(6), *rows(3, start=300)])
    summary = run(workspace)
    assert (summary.read, summary.measured) == (1, {"tiny": 3})
    scores = sample_scores(workspace)
    assert len(scores.filter(pl.col("shard") == "a.jsonl")) == 9


def test_a_copy_of_known_rows_is_not_measured_and_not_selected_twice(workspace: Workspace) -> None:
    run(workspace)
    chosen = subset_ids(workspace)
    write_shard(landed(workspace) / "copy.jsonl", rows(8))
    summary = run(workspace)
    assert summary.tokens_measured == 0
    assert subset_ids(workspace) == chosen


def test_a_removed_file_leaves_the_subset_and_its_tables_stay(workspace: Workspace) -> None:
    run(workspace)
    (landed(workspace) / "b.jsonl").unlink()
    # One file of few may go; five of six may not.
    summary = run(workspace)
    assert summary.tokens_measured == 0
    assert summary.subsets == ["best"]
    kept = sample_scores(workspace).filter(pl.col("shard") == "a.jsonl")["sample_id"].to_list()
    assert set(subset_ids(workspace)) <= set(kept)
    manifest = workspace.warehouse.read_table(tables.score_manifest_path("tiny"))
    assert dict(manifest.select("shard", "present").iter_rows()) == {"a.jsonl": True, "b.jsonl": False}


def test_another_alpha_measures_nothing(workspace: Workspace, tiny_model: Path) -> None:
    run(workspace)
    before = sample_scores(workspace)
    changed = Workspace.load(write_config(workspace.folder, tiny_model, alpha=0.0))
    summary = run(changed)
    assert summary.tokens_measured == 0
    assert summary.scored == {"tiny": 2}
    assert not sample_scores(changed)["grace"].equals(before["grace"])


def test_a_subset_is_never_selected_from_other_scores(workspace: Workspace, tiny_model: Path) -> None:
    run(workspace)
    changed = Workspace.load(write_config(workspace.folder, tiny_model, alpha=0.0))
    with pytest.raises(SelectionError, match="are outdated"):
        select(changed, changed.settings.subset("best"))


def test_other_weights_are_another_measurement_and_the_first_stays(workspace: Workspace, tmp_path: Path) -> None:
    run(workspace)
    before = sample_scores(workspace)
    other = write_tiny_model(tmp_path / "other", seed=5)
    changed = Workspace.load(write_config(workspace.folder, other))
    assert run(changed).measured == {"tiny": 14}
    assert not sample_scores(changed)["grace"].equals(before["grace"])
    # Back to the first model: its measurements are still there.
    back = Workspace.load(write_config(workspace.folder, Path(workspace.settings.targets[0].model)))
    assert run(back).tokens_measured == 0
    assert sample_scores(back)["grace"].equals(before["grace"])


def test_equal_weights_elsewhere_are_the_same_measurement(
    workspace: Workspace, tiny_model: Path, tmp_path: Path
) -> None:
    run(workspace)
    shutil.copytree(tiny_model, tmp_path / "renamed")
    changed = Workspace.load(write_config(workspace.folder, tmp_path / "renamed"))
    assert run(changed).tokens_measured == 0


def test_row_and_shard_order_do_not_change_the_choice(workspace: Workspace, tiny_model: Path, tmp_path: Path) -> None:
    run(workspace)
    mixed = list(reversed(rows(6, start=100) + rows(8)))
    shards = {"z.jsonl": mixed[:5], "y.jsonl": mixed[5:]}
    other = make_workspace(tmp_path / "mixed", tiny_model, shards)
    run(other)
    assert set(subset_ids(other)) == set(subset_ids(workspace))


def test_bad_files_and_rows_stop_nothing(workspace: Workspace) -> None:
    landing = landed(workspace)
    (landing / "empty.jsonl").write_bytes(b"")
    (landing / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "response": "b"}\n' * 99)[:-20])
    (landing / "no.parquet").write_bytes(b"this is no parquet file")
    good = b'{"prompt": "p", "response": "Step 1: one and one is two\\nStep 2: that is all of it\\nAnswer: 2"}\n'
    (landing / "mixed.jsonl").write_bytes(b"not json\n" + good + b'{"prompt": "alone"}\n\xff\xfe\n')
    summary = run(workspace)
    assert summary.measured["tiny"] >= 15
    assert summary.subsets == ["best"]
    rejected = workspace.warehouse.read_table(f"{tables.rejected_rows_dir()}/mixed.jsonl.parquet")
    assert rejected["row"].to_list() == [0, 2, 3]
    for shard in ("empty.jsonl", "cut.jsonl.gz", "no.parquet"):
        facts = workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}.parquet")
        assert facts["file_problem"]
    assert run(workspace).read == 0


def test_traces_without_an_answer_are_counted_apart(workspace: Workspace) -> None:
    unfinished = [{"prompt": "go on", "response": "Step 1: one and two is three\nStep 2: three and three is six"}]
    write_shard(landed(workspace) / "u.jsonl", unfinished)
    run(workspace)
    row = sample_scores(workspace).filter(pl.col("shard") == "u.jsonl").row(0, named=True)
    assert row["grace"] is None
    assert row["flags"] == ["no_answer"]


def test_the_warm_up_waits_for_the_pool_then_is_trained_once(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(8)}
    workspace = make_workspace(tmp_path, tiny_model, shards, warmup="{min_pool: 10, fraction: 0.25}")
    waiting = run(workspace)
    assert waiting.tokens_measured == 0
    assert "its warm-up needs 10" in waiting.waiting[0]
    write_shard(landed(workspace) / "b.jsonl", rows(8, start=50))
    assert run(workspace).measured == {"tiny": 16}
    (path,) = stored(workspace, "checkpoints/tiny/warmup", "trained_on.parquet")
    trained_on = workspace.warehouse.read_table(path)
    assert len(trained_on) == 4
    assert not stored(workspace, "checkpoints", "*.bin")
    # A new shard does not train it again.
    write_shard(landed(workspace) / "c.jsonl", rows(4, start=90))
    assert run(workspace).measured == {"tiny": 4}
    assert workspace.warehouse.read_table(path).equals(trained_on)


def test_a_missing_model_is_an_error_before_any_work(workspace: Workspace, tmp_path: Path) -> None:
    changed = Workspace.load(write_config(workspace.folder, tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        run(changed)
    assert not workspace.warehouse.names(tables.raw_corpus_dir())


def test_a_schema_of_another_version_is_refused(workspace: Workspace) -> None:
    workspace.warehouse.storage.write("warehouse.json", b'{"schema_version": 99}')
    with pytest.raises(Exception, match="schema 99"):
        Workspace.load(workspace.config_file)


def test_settings_are_what_the_file_says(workspace: Workspace) -> None:
    assert isinstance(workspace.settings, Settings)
    assert workspace.settings.score("grace").min_steps == 2


def test_a_file_that_goes_away_before_it_is_read_stops_nothing(workspace: Workspace) -> None:
    instance = instance_of(workspace)
    job = MainJob(workspace, instance)
    instance.add_dynamic_partitions("shards", ["a.jsonl", "b.jsonl"])
    (landed(workspace) / "a.jsonl").unlink()
    arrive(workspace)
    everything = [*CORPUS_KEYS, *(dg.AssetKey(["tiny", name]) for name in TARGET_ASSETS)]
    job._execute("reading", "corpus", everything, shards=["a.jsonl", "b.jsonl"])
    assert workspace.warehouse.names(tables.raw_corpus_dir()) == ["b.jsonl"]
    assert workspace.warehouse.names(tables.sample_scores_dir("tiny")) == ["b.jsonl"]
    (landed(workspace) / "b.jsonl").unlink()
    arrive(workspace)
    job._execute("reading", "corpus", CORPUS_KEYS, shards=["b.jsonl"])
    assert len(workspace.warehouse.read_table("corpus/raw_corpus/b.jsonl.parquet")) == 6


def test_an_emptied_landing_folder_empties_nothing(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "auto", tiny_model, {"a.jsonl": rows(6)}, policy="on_change")
    assert run(workspace).releases == ["best@1"]
    (landed(workspace) / "a.jsonl").unlink()
    with pytest.raises(LandingError, match="gone"):
        run(workspace)
    assert len(subset_ids(workspace)) == 3
    # Even a person who confirms it gets no empty release.
    confirmed = run(workspace, accept_removals=True)
    assert (confirmed.releases, subset_ids(workspace)) == ([], [])


def test_a_few_of_many_files_may_go_at_once(tmp_path: Path, tiny_model: Path) -> None:
    shards = {f"{n}.jsonl": rows(1, start=10 * n) for n in range(10)}
    workspace = make_workspace(tmp_path / "many", tiny_model, shards)
    run(workspace)
    for number in range(4):
        (landed(workspace) / f"{number}.jsonl").unlink()
    assert run(workspace).subsets == ["best"]
    chosen = subset_ids(workspace)
    for number in range(4, 9):
        (landed(workspace) / f"{number}.jsonl").unlink()
    with pytest.raises(LandingError, match=r"5 of 6 files are gone .*4\.jsonl.*--accept-removals.*job accept_removals"):
        run(workspace)
    assert subset_ids(workspace) == chosen
    # What only reads goes on, and what writes the pool's tables does not.
    assert len(pool_rows(workspace)) == 1
    with pytest.raises(LandingError, match="5 of 6 files are gone"):
        refuse_losses(workspace)


def test_removals_are_confirmed_in_the_ui(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(6)})
    run(workspace)
    (landed(workspace) / "a.jsonl").unlink()
    job = build_definitions(workspace).resolve_job_def("accept_removals")
    instance = instance_of(workspace)
    with pytest.raises(dg.Failure, match=r"1 files are missing: a\.jsonl\. .* confirm: true"):
        job.execute_in_process(instance=instance)
    with pytest.raises(LandingError, match="gone"):
        run(workspace)
    config = {"ops": {"accept_missing_files": {"config": {"confirm": True}}}}
    assert job.execute_in_process(config, instance=instance).success
    run(workspace)
    assert subset_ids(workspace) == []


@pytest.mark.folder_only("rights are those of a bucket's policy, which moto does not enforce")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_stops_nothing(workspace: Workspace) -> None:
    (landed(workspace) / "a.jsonl").chmod(0)
    assert run(workspace).measured == {"tiny": 6}


@pytest.mark.folder_only("a listing tells the versions of objects, readable or not")
def test_a_file_that_cannot_be_opened_is_an_empty_partition_with_a_problem(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderLanding.digest
    monkeypatch.setattr(
        FolderLanding, "digest", lambda self, shard: UNREADABLE if shard == "a.jsonl" else real(self, shard)
    )
    assert run(workspace).measured == {"tiny": 6}
    facts = workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/a.jsonl.parquet")
    assert "cannot be opened" in facts["file_problem"]
    monkeypatch.undo()
    assert run(workspace).measured == {"tiny": 8}


def test_rows_that_the_chat_template_refuses_stop_nothing(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "strict"
    shutil.copytree(tiny_model, model)
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    (model / "chat_template.jinja").write_text(template + "{{ messages[0]['content'] }}")
    said = {"role": "assistant", "content": "Step 1: one and two\nStep 2: is the same as three\nAnswer: 3"}
    refused = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "go"}, said]}
    shards = {"a.jsonl": [refused], "b.jsonl": rows(6)}
    workspace = make_workspace(tmp_path / "w", model, shards, warmup="{min_pool: 1, fraction: 1.0}")
    assert run(workspace).measured == {"tiny": 7}
    flags = sample_scores(workspace).filter(pl.col("shard") == "a.jsonl")["flags"].item().to_list()
    assert flags == ["template_refused", "template_refused: no system turns"]


def test_a_release_names_the_file_that_is_there(workspace: Workspace) -> None:
    write_shard(landed(workspace) / "c.jsonl", rows(8))  # the rows of a.jsonl
    run(workspace)
    (landed(workspace) / "a.jsonl").unlink()
    run(workspace, accept_removals=True)
    release_subset(workspace)
    shards = set(pl.read_parquet(release_folder(workspace) / "data" / "train.parquet")["shard"])
    assert shards <= {"b.jsonl", "c.jsonl"}


def test_a_lost_part_is_measured_again(workspace: Workspace, tiny_model: Path) -> None:
    run(workspace)
    lose(workspace, *stored(workspace, "signals/tiny/base/step_gradients", "part-*.parquet"))
    changed = Workspace.load(write_config(workspace.folder, tiny_model, alpha=0.0))
    assert run(changed).measured == {"tiny": 14}


@pytest.mark.parametrize(
    "table",
    [
        "corpus/raw_corpus/a.jsonl.parquet",
        "steps/segmented_steps/a.jsonl.parquet",
        "scores/tiny/sample_scores/a.jsonl.parquet",
        "scores/tiny/score_manifest.parquet",
        "subsets/best.parquet",
    ],
)
def test_a_damaged_table_is_made_again(workspace: Workspace, table: str) -> None:
    run(workspace)
    chosen = subset_ids(workspace)
    storage = workspace.warehouse.storage
    storage.write(table, storage.read(table)[:-20])
    assert run(workspace).tokens_measured == 0
    assert workspace.warehouse.table_metadata(table).get("damaged") is None
    assert subset_ids(workspace) == chosen


def test_what_a_damaged_part_held_is_measured_again(workspace: Workspace) -> None:
    first = run(workspace)
    chosen = subset_ids(workspace)
    part = stored(workspace, "signals/tiny/base/step_gradients", "part-*.parquet")[0]
    held = len(workspace.warehouse.read_table(part))
    workspace.warehouse.storage.write(part, b"torn")
    again = run(Workspace.load(workspace.config_file))
    assert again.measured["tiny"] == held
    assert 0 < again.tokens_measured < first.tokens_measured
    assert workspace.warehouse.storage.read(f"{DAMAGED}/{part}") == b"torn"
    assert subset_ids(workspace) == chosen


def test_rejected_rows_are_told(workspace: Workspace) -> None:
    (landed(workspace) / "c.jsonl").write_text('{"prompt": "p"}\nnot json\n')
    assert run(workspace).rejected == {"not_json": 1, "unknown_format": 1}


@pytest.mark.folder_only("the file is changed in the folder while the run goes on")
def test_a_file_that_changes_during_a_run_does_not_stop_it(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(6), "b.jsonl": rows(6, start=30)}
    made = make_workspace(tmp_path, tiny_model, shards, corpus="filters: {repetition: {paper: true}}")

    def change(line: str) -> None:
        if line.startswith("checking"):
            write_shard(landed(made) / "b.jsonl", rows(7, start=30))

    assert MainJob(made, instance_of(made), change).run().measured == {"tiny": 12}
    second = run(made)
    assert (second.read, second.measured) == (1, {"tiny": 1})
