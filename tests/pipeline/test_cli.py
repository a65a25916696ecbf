"""The `curate` command: what it prints, what it refuses, and how it says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from curation_assets.cli.app import app
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables import SIGNAL_TABLES
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import PASS_SIGNALS, landed, make_workspace, rows, run, sample_scores, write_shard


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("cli"), tiny_model, {"a.jsonl": rows(8)}, signals=PASS_SIGNALS)
    run(made)
    return made


def curate(*words: str, workspace: Workspace | None = None, code: int = 0) -> Result:
    """Run a command; with a workspace, on its configuration."""
    config = ["--config", str(workspace.config_file)] if workspace else []
    result = CliRunner().invoke(app, [*words, *config])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def test_help_teaches_every_command() -> None:
    text = curate("--help").output
    for command in (
        "init",
        "plan",
        "run",
        "select",
        "token-weights",
        "release",
        "table",
        "tables",
        "show",
        "doctor",
        "schema",
        "ui",
    ):
        assert command in text
        assert "Usage" in curate(command, "--help").output


def test_run_a_second_time_says_that_nothing_was_measured(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)})
    (landed(workspace) / "notes.txt").write_text("not a shard")
    assert "notes.txt" in curate("run", workspace=workspace).output
    again = curate("run", workspace=workspace).output
    assert "unchanged" in again
    assert (tmp_path / ".dagster" / "dagster.yaml").exists()


def test_two_configurations_in_a_folder_have_instances_of_their_own(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)})
    other = tmp_path / "other.yaml"
    text = workspace.config_file.read_text().replace("./landing", "./elsewhere")
    other.write_text(text.replace("./warehouse", "./other-warehouse"))
    write_shard(tmp_path / "elsewhere" / "b.jsonl", [*rows(3, start=9), {"prompt": 3}])
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    curate("run", workspace=workspace)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    said = curate("run", workspace=Workspace.load(other)).output
    assert (tmp_path / ".dagster-other" / "dagster.yaml").exists()
    assert f"see: curate table rejected_rows --config {other}" in said


def test_release_prints_its_folder_last(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)})
    curate("run", workspace=workspace)
    folder = Path(curate("release", "best", workspace=workspace).output.splitlines()[-1])
    assert (folder / "manifest.json").exists()
    assert "unchanged since best@1" in curate("release", "best", workspace=workspace).output
    assert "there is no subset 'worst'" in curate("release", "worst", workspace=workspace, code=1).output


def test_step_scores_as_a_file(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    curate("table", "step_scores", "--target", "tiny", "--to", str(out), workspace=workspace)
    columns = ["sample_id", "step_index", "tokens", "answer_alignment", "trajectory_consistency", "step_score"]
    frame = pl.read_parquet(out)
    assert frame.columns == columns
    per_sample = frame.group_by("sample_id").agg(pl.col("step_score").mean()).sort("sample_id")
    v = sample_scores(workspace).sort("sample_id")
    assert per_sample["step_score"].to_list() == pytest.approx(v["grace"].to_list())


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    "name",
    [
        "raw_corpus",
        "segmented_steps",
        "step_gradients",
        "likelihoods",
        "segment_likelihoods",
        "embeddings_mean",
        "sample_scores",
        "subset",
    ],
)
def test_any_table_in_any_form(workspace: Workspace, tmp_path: Path, name: str, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    curate("table", name, "--to", str(out), workspace=workspace)
    readers: dict[str, Callable[[Path], pl.DataFrame]]
    readers = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson}
    assert len(readers[suffix](out)) == len(read_stored(workspace, name).collect())


def test_tables_that_are_not_there(workspace: Workspace) -> None:
    assert "tables are raw_corpus" in curate("table", "nonsense", workspace=workspace, code=1).output
    assert (
        "there is no target 'x'"
        in curate("table", "sample_scores", "--target", "x", workspace=workspace, code=1).output
    )


def test_show_finds_a_sample_by_the_beginning_of_its_id(workspace: Workspace) -> None:
    sample_id = sample_scores(workspace)["sample_id"][0]
    text = curate("show", sample_id[:12], workspace=workspace).output
    assert "Count on from" in text
    assert "answer" in text
    assert "no sample has such an id" in curate("show", "zzz", workspace=workspace, code=1).output
    assert ": matches " in curate("show", "", workspace=workspace, code=1).output


def test_a_dry_run_keeps_nothing(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(20), "sub/b.jsonl": rows(20, 50)}, warmup="{}")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    text = curate("run", "--sample", "10", workspace=workspace).output
    assert "tokens measured" in text
    assert "nothing from this dry run was kept" in text
    after = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if "cache" not in p.parts)
    assert [p for p in after if p not in before] == []


def test_errors_are_one_message_and_no_traceback(tmp_path: Path, workspace: Workspace) -> None:
    missing = CliRunner().invoke(app, ["run", "--config", str(tmp_path / "none.yaml")])
    assert missing.exit_code == 1
    assert "curate init" in missing.output
    bad = tmp_path / "bad.yaml"
    bad.write_text(workspace.config_file.read_text().replace("alpha", "alfa"))
    result = CliRunner().invoke(app, ["run", "--config", str(bad)])
    assert result.exit_code == 1
    assert "did you mean 'alpha'?" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: (model / "tokenizer.json").unlink(), "fast tokenizer"),
        (lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"), "pickled weights"),
        (lambda model: (model / "config.json").unlink(), "config.json"),
    ],
)
def test_a_model_that_cannot_be_used_is_said_before_any_work(
    tmp_path: Path, tiny_model: Path, spoil: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    spoil(tmp_path / "model")
    workspace = make_workspace(tmp_path, tmp_path / "model", {"a.jsonl": rows(2)})
    assert message in " ".join(curate("run", workspace=workspace, code=1).output.split())
    assert not list(workspace.warehouse.root.rglob("*.parquet"))


@pytest.mark.parametrize("table", ["sample_scores", "step_scores", "embeddings_mean", "raw_corpus", "segmented_steps"])
def test_tables_fit_80_columns(workspace: Workspace, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation_assets.cli.app.console", Console(width=80))
    lines = curate("table", table, workspace=workspace).output.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    header = "\n".join(lines[2:6])
    assert "sample_" in header
    assert {"sample_scores": "grace", "step_scores": "consist", "raw_corpus": "response"}.get(table, "") in header


def test_columns_can_be_named(workspace: Workspace) -> None:
    text = curate("table", "sample_scores", "--columns", "grace,sample_id", workspace=workspace).output
    header = text.splitlines()[2]
    assert header.index("grace") < header.index("sample_id")
    message = curate("table", "sample_scores", "--columns", "grade", workspace=workspace, code=1).output
    assert "there is no column 'grade'; did you mean 'grace'?" in message


def test_long_lists_are_shown_short(workspace: Workspace) -> None:
    text = curate("table", "embeddings_mean", workspace=workspace).output
    assert "32 values]" in " ".join(text.split())


def test_tables_lists_every_signal() -> None:
    text = curate("tables").output
    assert all(f"{name}: " in text for name in SIGNAL_TABLES)


def test_a_target_without_scores_can_be_shown(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)}, signals=("likelihoods",))
    assert "samples measured: tiny" in curate("run", workspace=workspace).output
    sample_id = read_stored(workspace, "likelihoods").collect()["sample_id"][0]
    assert "Count on from" in curate("show", sample_id, workspace=workspace).output
    assert "has no score of single steps" in curate("table", "step_scores", workspace=workspace, code=1).output
    assert "signals of target tiny: likelihoods" in curate("doctor", workspace=workspace).output


def test_doctor_finds_what_is_wrong(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    assert "WRONG" not in curate("doctor", workspace=workspace).output
    write_shard(landed(workspace) / "b.json", rows(1))
    assert "b.json" in curate("doctor", workspace=workspace, code=1).output
    config = workspace.config_file
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:77"))
    output = " ".join(curate("doctor", workspace=workspace, code=1).output.split())
    assert "device cuda:77 not found" in output
    assert "Correct engine.device in curation.yaml." in output
    nowhere = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "none.yaml")])
    assert nowhere.exit_code == 1
    assert "WRONG configuration" in nowhere.output


def test_the_schema_is_json() -> None:
    assert json.loads(curate("schema").output)["properties"]["corpus"]
