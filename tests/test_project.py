"""The Python API: each method does what the command of its name does, and its results display in a notebook."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

import curation_assets as ca
from curation_assets.subsets.select import SelectionError
from curation_resources.errors import UserError
from tests.pipeline.workspaces import make_workspace, rows, subset_ids

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ca.Project:
    folder = tmp_path_factory.mktemp("project")
    shards = {"a.jsonl": rows(12), "b.jsonl": rows(9, start=11)}
    made = make_workspace(folder, tiny_model, shards, signals=("step_gradients", "likelihoods"))
    opened = ca.open(made.config_file)
    opened.run()
    return opened


def test_a_run_makes_the_tables(project: ca.Project) -> None:
    scores = project.table("sample_scores").collect()
    assert project.sql("select count(*) as n from sample_scores")["n"].to_list() == [len(scores)]
    assert project.subset("best")["sample_id"].to_list() == subset_ids(project.workspace)
    assert project.plan(probe=False) is not None
    assert repr(project) == f"Project({str(project.workspace.config_file)!r})"


def test_a_preview_is_that_of_the_command(project: ca.Project) -> None:
    found = project.select("best", ["alpha=0.1"], budget="3", where=["grace >= -1"])
    assert len(found.rows) == 3
    assert found.funnel["name"].to_list()[-1] == "selected"
    assert "grace &gt;= -1" in found._repr_html_()
    with pytest.raises(SelectionError, match="there is no parameter 'alfa'"):
        project.select("best", ["alfa=1"])
    with pytest.raises(UserError, match="there is no subset 'bst'; did you mean 'best'"):
        project.select("bst")


def test_a_score_of_ones_own_ranks_like_the_same_configured_one(project: ca.Project) -> None:
    own = project.select_by(pl.col("grace"), "50%", filters={"min_steps": 2})
    best = project.select("best", ["selector={kind: top}", "stratify=[]"], budget="50%")
    assert own.rows["sample_id"].to_list() == best.rows["sample_id"].to_list()
    assert own.rows["score"].to_list() == best.rows["score"].to_list()


def test_a_score_of_ones_own_reads_signals_and_compares_samples(project: ca.Project) -> None:
    likelihoods = project.table("likelihoods").unique("sample_id").select("sample_id", "mean_nll").collect()
    found = project.select_by(-pl.col("mean_nll").rank(), "5")
    expected = likelihoods.sort("mean_nll", "sample_id").head(5)["sample_id"].to_list()
    assert found.rows["sample_id"].to_list() == expected


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (pl.col("nope"), "unable to find column"),
        (pl.col("grace").mean(), "has 1 values for"),
        (pl.col("source"), "cannot be evaluated"),
    ],
)
def test_an_expression_that_is_no_score_is_refused(project: ca.Project, score: pl.Expr, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        project.select_by(score, "5")


def test_wrong_filters_of_an_own_score_are_named(project: ca.Project) -> None:
    with pytest.raises(SelectionError, match=r"filters\.min_stps: Extra inputs are not permitted"):
        project.select_by(pl.col("grace"), "5", filters={"min_stps": 2})


def test_a_trace_a_release_and_an_export(project: ca.Project, tmp_path: Path) -> None:
    shown = project.trace(subset_ids(project.workspace)[0])
    page = shown._repr_html_()
    assert "step 1, score" in page
    assert re.sub(r"<[^>]+>", "", page.partition("</pre>")[0]).replace("&gt;", ">") == shown.trace.row["response"]
    release = project.release("best")
    assert (release.number, release.new) == (1, True)
    assert project.release("best").new is False
    assert "<h2>Funnel</h2>" in release._repr_html_()
    assert project.export(release, "messages", tmp_path / "out").rows == release.manifest["rows"]


def test_markup_in_a_response_is_text(project: ca.Project) -> None:
    found = project.trace(subset_ids(project.workspace)[0])
    found.trace.row["response"] = "<script>x</script>" + found.trace.row["response"]
    assert "<script>" not in found._repr_html_()


def test_the_examples_of_the_page_run(project: ca.Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.workspace.folder)
    sample, export = subset_ids(project.workspace)[0], str(tmp_path / "export")
    values: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block.replace("SAMPLE", sample).replace("./export", export), values)
    assert isinstance(values["project"], ca.Project)


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", ca.__version__)
