"""The preference heat map against the paper's figure and against a loop over rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.definitions import build_definitions
from curation_assets.defs.reports import PREFERENCE_KEY
from curation_assets.operations.report_preference import UNKNOWN, matrix, normalisations, winners
from curation_assets.operations.stages import Survey, stage_named
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from tests.models import write_tiny_model
from tests.pipeline.workspaces import instance_of, landed, make_workspace, rows, run, write_shard

WRITERS = ("ann", "bob", None)

Row = dict[str, Any]


def outdated(workspace: Workspace) -> bool:
    """True if the stored report was made from something else than is stored now."""
    return bool(Survey(workspace, {}).outdated(stage_named("preference"), None))


def test_the_papers_figure_is_the_normalisation_by_row(real_data: Path) -> None:
    path = real_data / "grape_tables.json"
    if not path.is_file():
        pytest.skip(f"no {path}: set CURATION_TEST_DATA to a folder that holds it")
    figure = json.loads(path.read_text())["figure4_heatmap"]
    found = normalisations(figure["derived_integer_counts"])
    assert [[round(100.0 * share, 2) for share in row] for row in _numbers(found.of_generator)] == figure[
        "as_printed_percent"
    ]
    # Every base model had as many prompts, so that the columns of the other one sum to one.
    assert [sum(column) for column in zip(*_numbers(found.of_target), strict=True)] == pytest.approx([1.0] * 8)


def _numbers(shares: list[list[float | None]]) -> list[list[float]]:
    return [[value for value in row if value is not None] for row in shares]


def test_rows_and_columns_without_wins_have_no_shares() -> None:
    found = normalisations([[1, 3, 0], [0, 0, 0]])
    assert found.of_generator == [[0.25, 0.75, 0.0], [None, None, None]]
    assert found.of_target == [[1.0, 1.0, None], [0.0, 0.0, None]]
    assert normalisations([]) == ([], [])
    with pytest.raises(ValueError, match="zip"):
        normalisations([[1, 2], [3]])


def test_the_likeliest_wins_and_ties_go_to_the_first_id() -> None:
    frame = pl.DataFrame(
        {
            "prompt_id": ["p", "q", "p", "q", "p"],
            "sample_id": ["e", "b", "a", "d", "c"],
            "mean_nll": [1.0, 3.0, 1.0, 2.0, 1.5],
            "generator": ["x", "y", "z", "x", "y"],
        }
    )
    for shuffled in (frame, frame.reverse()):
        assert winners(shuffled)["sample_id"].to_list() == ["a", "d"]


def answers(count: int, start: int = 0) -> list[Row]:
    """Prompts with three, two or one responses, each by another writer."""
    made = []
    for n, row in enumerate(rows(count, start)):
        for k, writer in enumerate(WRITERS[: 3 - n % 3]):
            response = row["response"].replace("Step", "Part") if k == 1 else row["response"] + "0" * k
            made.append(row | {"response": response} | ({"generator": writer} if writer else {}))
    return made


SHARDS = {"a.jsonl": answers(9), "b.jsonl": answers(6, 6)}


def two_targets(folder: Path, shards: dict[str, list[Row]] = SHARDS) -> Workspace:
    """Two base models that differ in their seed; the second does not see long responses."""
    for seed in (1, 2):
        write_tiny_model(folder / f"model{seed}", seed=seed)
    made = make_workspace(folder, folder / "model1", shards, signals=("likelihoods",))
    text = made.config_file.read_text()
    second = "\n  - {name: other, model: ./model2, warmup: none, signals: [segment_likelihoods, likelihoods]}\n"
    made.config_file.write_text(text.replace("[likelihoods]}\n", "[likelihoods]}" + second))
    return Workspace.load(made.config_file)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = two_targets(tmp_path_factory.mktemp("preference"))
    run(made)
    return made


def slow_table(workspace: Workspace) -> dict[tuple[str, str], tuple[int, float | None, float | None, int]]:
    """The table by loops over the rows of corpus and likelihoods."""
    corpus: dict[str, Row] = {}
    for row in read_stored(workspace, "raw_corpus").sort("shard", "row", "candidate").collect().iter_rows(named=True):
        if row["shard"] in {path.name for path in landed(workspace).iterdir()}:
            corpus.setdefault(row["sample_id"], row)
    wins: dict[str, list[str]] = {}
    took_part = set()
    for target in ("tiny", "other"):
        groups: dict[str, list[tuple[float, str, str]]] = {}
        for row in read_stored(workspace, "likelihoods", target=target).collect().iter_rows(named=True):
            sample = corpus.get(row["sample_id"])
            if sample is not None and row["mean_nll"] is not None:
                entry = (row["mean_nll"], row["sample_id"], sample["generator"] or UNKNOWN)
                groups.setdefault(sample["prompt_id"], []).append(entry)
        several = [group for group in groups.values() if len(group) > 1]
        took_part |= {generator for group in several for _, _, generator in group}
        wins[target] = [min(group)[2] for group in several]
    table: dict[tuple[str, str], tuple[int, float | None, float | None, int]] = {}
    for generator in took_part:
        mine = sum(won.count(generator) for won in wins.values())
        for target, won in wins.items():
            count = won.count(generator)
            table[generator, target] = (count, count / mine if mine else None, count / len(won), len(won))
    return table


def stored_table(workspace: Workspace) -> dict[tuple[str, str], tuple[Any, ...]]:
    frame = read_stored(workspace, "preference").collect()
    return {(row[0], row[1]): row[2:] for row in frame.iter_rows()}


def test_the_table_is_that_of_loops(workspace: Workspace) -> None:
    found = stored_table(workspace)
    assert found == slow_table(workspace)
    assert {generator for generator, _ in found} == {"ann", "bob", UNKNOWN}
    # Rows 0, 1, 3, 4, ... have two responses or more; 6 to 8 are in both files.
    assert {values[3] for values in found.values()} == {8}
    assert {values[0] for values in found.values()} != {0}


def test_matrices_are_by_generator_and_target(workspace: Workspace) -> None:
    frame = read_stored(workspace, "preference").collect()
    values, generators, targets = matrix(frame, "wins")
    assert (generators, targets) == (["(unknown)", "ann", "bob"], ["other", "tiny"])
    shares = normalisations([[int(value or 0) for value in row] for row in values])
    assert matrix(frame, "share_of_generator")[0] == shares.of_generator
    assert matrix(frame, "share_of_target")[0] == shares.of_target


def test_a_second_run_counts_nothing_again(workspace: Workspace) -> None:
    path = workspace.warehouse.local("reports/preference.parquet")
    before = path.stat().st_mtime_ns
    run(workspace)
    assert path.stat().st_mtime_ns == before


def test_the_report_has_its_pictures(workspace: Workspace) -> None:
    job = build_definitions(workspace).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(asset_selection=[PREFERENCE_KEY], instance=instance_of(workspace))
    (event,) = result.asset_materializations_for_node(PREFERENCE_KEY.to_python_identifier())
    metadata: dict[str, Any] = {name: value.value for name, value in event.metadata.items()}
    for name in ("share_of_generator", "share_of_target"):
        assert "data:image/png;base64," in metadata[name]
    assert "| ann | other |" in metadata["table"]
    assert metadata["dagster/row_count"] == 6


def test_the_command_writes_it(workspace: Workspace, tmp_path: Path) -> None:
    command = ["table", "preference", "--to", str(tmp_path / "p.csv"), "--config", str(workspace.config_file)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert pl.read_csv(tmp_path / "p.csv").columns[:3] == ["generator", "target", "wins"]


def test_it_follows_the_files(tmp_path: Path) -> None:
    made = two_targets(tmp_path)
    run(made)
    before = stored_table(made)
    # A sample that was there first under another name: the first shard's writer counts.
    write_shard(landed(made) / "0.jsonl", [SHARDS["a.jsonl"][0] | {"generator": "zoe"}])
    run(made)
    assert "zoe" in {generator for generator, _ in stored_table(made)}
    assert stored_table(made) == slow_table(made) != before
    (landed(made) / "0.jsonl").unlink()
    (landed(made) / "b.jsonl").unlink()
    run(made, accept_removals=True)
    found = stored_table(made)
    assert found == slow_table(made)
    assert {values[3] for values in found.values()} == {6}
    assert not outdated(made)


def test_without_likelihoods_there_is_no_such_report(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)}, signals=("embeddings_mean",))
    keys = {node.key for node in build_definitions(made).resolve_asset_graph().asset_nodes}
    assert PREFERENCE_KEY not in keys
    assert not outdated(made)


def test_no_prompt_with_several_responses_gives_an_empty_table(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)}, signals=("likelihoods",))
    run(made)
    assert read_stored(made, "preference").collect().is_empty()


def test_automation_waits_for_manifests_and_follows_likelihoods(tmp_path: Path) -> None:
    definitions = build_definitions(two_targets(tmp_path))
    node = definitions.resolve_asset_graph().get(PREFERENCE_KEY)
    assert {"/".join(key.path) for key in node.parent_keys} == {
        "tiny/score_manifest",
        "other/score_manifest",
        "tiny/likelihoods",
        "other/likelihoods",
    }
    with dg.DagsterInstance.ephemeral() as instance:

        def asked(cursor: Any) -> tuple[int, Any]:
            result = dg.evaluate_automation_conditions(
                definitions, instance, dg.AssetSelection.assets(PREFERENCE_KEY), cursor=cursor
            )
            return result.total_requested, result.cursor

        def report(*path: str, partition: str | None = None) -> None:
            event = dg.AssetMaterialization(dg.AssetKey(path), partition=partition)
            instance.report_runless_asset_event(event)

        instance.add_dynamic_partitions("shards", ["a", "gone"])
        number, cursor = asked(None)
        assert number == 0
        report("tiny", "score_manifest")
        number, cursor = asked(cursor)
        assert number == 0
        report("other", "score_manifest")
        number, cursor = asked(cursor)
        assert number == 1
        report("reports", "preference")
        number, cursor = asked(cursor)
        assert number == 0
        # Measured for one shard only: the other one's file may be gone.
        report("tiny", "likelihoods", partition="a")
        number, cursor = asked(cursor)
        assert number == 1
