"""SQL over the stored tables: what it answers, and what is out of its reach."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.definitions import build_definitions
from curation_assets.operations.sql import DuckDBTables, SqlError, run_sql, view_names
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows, run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("sql"), tiny_model, {"a.jsonl": rows(9), "b's.jsonl": rows(4, 9)})
    run(made)
    return made


def test_every_table_is_a_view(workspace: Workspace) -> None:
    for name in ("raw_corpus", "segmented_steps", "sample_scores", "step_scores", "step_gradients", "score_manifest"):
        expected = len(read_stored(workspace, name).collect())
        for view in (name, f"tiny.{name}") if name not in ("raw_corpus", "segmented_steps") else (name,):
            assert view in view_names(workspace)
            assert run_sql(workspace, f"select count(*) as n from {view}")["n"].to_list() == [expected]


def test_assets_of_ones_own_ask_by_a_resource(workspace: Workspace) -> None:
    @dg.asset
    def samples(duckdb: dg.ResourceParam[DuckDBTables]) -> int:
        assert "sample_scores" in duckdb.views()
        return int(duckdb.query("select count(*) as n from sample_scores")["n"].item())

    resources = build_definitions(workspace).resources or {}
    assert dg.materialize([samples], resources={"duckdb": resources["duckdb"]}).output_for_node("samples") == 13


def test_tables_can_be_joined(workspace: Workspace) -> None:
    found = run_sql(
        workspace,
        "select sample_id, grace, rank from sample_scores join subsets.best using (sample_id) order by rank",
    )
    subset = read_stored(workspace, "subset").collect()
    assert found["sample_id"].to_list() == subset["sample_id"].to_list()
    assert found["grace"].to_list() == subset["score"].to_list()


def test_values_are_those_of_the_table(workspace: Workspace) -> None:
    found = run_sql(workspace, "select sample_id, gram, flags from STEP_GRADIENTS order by sample_id")
    stored = read_stored(workspace, "step_gradients").select("sample_id", "gram", "flags").collect()
    assert found.rows() == stored.rows()


def test_several_targets_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "landing").mkdir()
    targets = "".join(f"  - {{name: t{n}, model: ./m, warmup: none}}\n" for n in range(2))
    (tmp_path / "curation.yaml").write_text(f"corpus: {{landing: ./landing}}\ntargets:\n{targets}")
    names = view_names(Workspace.load(tmp_path / "curation.yaml"))
    assert {"t0.sample_scores", "t1.sample_scores", "raw_corpus"} < set(names)
    assert "sample_scores" not in names


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select * from nothing", "nothing does not exist"),
        ("selec 1", "syntax error"),
        ("", "give one SELECT"),
        ("select 1; select 2", "give one SELECT"),
        ("create table a as select 1", "give one SELECT"),
        ("copy raw_corpus to 'out.csv'", "give one SELECT"),
        ("set enable_external_access = true", "give one SELECT"),
        ("install httpfs", "give one SELECT"),
        ("select * from read_csv('/etc/passwd')", "Permission"),
        ("select * from '/etc/passwd'", "does not exist"),
        ("select * from glob('/etc/*')", "Permission"),
        ("select * from raw_corpus where no_such_column", "no_such_column"),
    ],
)
def test_what_it_refuses(
    workspace: Workspace, query: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SqlError, match=message):
        run_sql(workspace, query)
    assert not list(tmp_path.glob("out*"))


def test_the_command_shows_and_writes(workspace: Workspace, tmp_path: Path) -> None:
    arguments = ["sql", "select source, count(*) as samples from sample_scores group by 1", "--config"]
    shown = CliRunner().invoke(app, [*arguments, str(workspace.config_file)])
    assert shown.exit_code == 0, shown.output
    assert "samples" in shown.output
    out = tmp_path / "out.parquet"
    CliRunner().invoke(app, [*arguments, str(workspace.config_file), "--to", str(out)])
    assert pl.read_parquet(out)["samples"].sum() == 13
    wrong = CliRunner().invoke(app, ["sql", "select * from sample_score", "--config", str(workspace.config_file)])
    assert wrong.exit_code == 1
    assert "Available views: raw_corpus" in " ".join(wrong.output.split())


def test_a_warehouse_in_s3_is_asked_likewise(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)})
    made.config_file.write_text(made.config_file.read_text().replace("./warehouse", f"{bucket}/w"))
    there = Workspace.load(made.config_file)
    run(there)
    assert run_sql(there, "select count(*) as n from sample_scores where grace is not null")["n"].to_list() == [3]
