"""Evaluations of small workspaces with real training: what is trained, asked, stored, and never done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli import command
from curation_assets.cli.app import app
from curation_assets.config.config_file import ConfigError
from curation_assets.defs.evaluation import EVALUATION_KEY
from curation_assets.defs.main_job import MainJob
from curation_assets.evaluation.arms import FULL_POOL, UNTOUCHED_BASE
from curation_assets.evaluation.benchmarks import EvaluationError
from curation_assets.evaluation.runs import TRAINED, Plan, plan_evaluation, stability
from curation_assets.evaluation.summary import write_evaluation
from curation_assets.operations.sql import run_sql
from curation_assets.subsets.stored_tables import TableRequestError, read_stored
from curation_assets.tables.evaluation import RELATIVE_AVERAGE, answers_dir
from curation_assets.workspace.workspace import Workspace
from curation_resources.progress import shown_on
from curation_resources.training.trainer import TrainingRecord
from tests.models import write_tiny_model
from tests.pipeline.workspaces import instance_of, make_workspace, run, stored, subset_ids, write_config

Rows = list[dict[str, Any]]
TRAINING = "{adapter: full, learning_rate: 0.003, batch_size: 4, epochs: 25}"
EVALUATION = """\
evaluation:
  benchmarks:
    - {{name: counting, path: ./counting.jsonl, columns: {{prompt: q, answer: a}}}}
    - {{name: other, path: ./other.jsonl}}
  seeds: [{seeds}]
  baselines: [{baselines}]
  max_new_tokens: 30
  training: {training}
"""


def same_answer(count: int) -> Rows:
    """Traces that say the same to every prompt: a tiny model learns that in a second."""
    said = "a a a a\nb b b b\nAnswer: 7"
    return [{"prompt": f"What of {n}?", "response": said} for n in range(count)]


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_evaluation(workspace: Workspace, **given: str) -> Workspace:
    """The workspace with benchmarks, and an evaluation in its configuration."""
    write_lines(workspace.folder / "counting.jsonl", [{"q": f"What of {n}?", "a": "7"} for n in (50, 51, 52)])
    write_lines(
        workspace.folder / "other.jsonl",
        [
            {"question": "What of 60?", "answer": "so\n#### 7"},
            {"messages": [{"role": "user", "content": "What of 61?"}], "answer": 8},
        ],
    )
    said = {"seeds": "0, 1", "baselines": "random", "training": TRAINING} | given
    workspace.config_file.write_text(workspace.config_file.read_text() + EVALUATION.format(**said))
    return Workspace.load(workspace.config_file)


def edited(workspace: Workspace, old: str, new: str) -> Workspace:
    """The workspace with another text in its configuration."""
    text = workspace.config_file.read_text()
    assert old in text
    workspace.config_file.write_text(text.replace(old, new))
    return Workspace.load(workspace.config_file)


def due_arms(plan: Plan) -> list[tuple[str, int | None]]:
    return [(made.arm, made.seed) for made, _ in plan.due()]


def written(workspace: Workspace) -> dict[str, str]:
    """The stored answers with the version of each file."""
    return {file.path: file.version for file in workspace.warehouse.files(answers_dir())}


def work_folders(workspace: Workspace) -> list[Path]:
    place = workspace.work_folder("any").parent
    return sorted(path for path in place.glob("evaluation-*") if path.is_dir()) if place.is_dir() else []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    """A workspace whose evaluation has been run by the command."""
    folder = tmp_path_factory.mktemp("evaluated")
    workspace = make_workspace(folder, tiny_model, {"a.jsonl": same_answer(8)})
    run(workspace)
    workspace = with_evaluation(workspace)
    with pytest.MonkeyPatch.context() as patch:
        # COLUMNS counts only where the console has not been made yet.
        patch.setattr(command.console, "width", 200)
        result = CliRunner().invoke(app, ["evaluate", "--config", str(workspace.config_file)])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    (folder / "output.txt").write_text(result.output)
    return workspace


def test_a_run_says_how_evenly_it_went(made: Workspace) -> None:
    frame = read_stored(made, "post_training_runs").collect()
    trained = frame.filter(pl.col("steps") > 1)
    assert len(trained)
    assert (trained["loss_variance"] > 0).all()
    assert (trained["largest_gradient_norm"] >= trained["gradient_norm"]).all()
    assert frame.filter(pl.col("steps") == 0)["gradient_norm"].null_count() == len(frame.filter(pl.col("steps") == 0))
    record = TrainingRecord(3, 10, [3.0, 1.0, 2.0], [1.0, 4.0, 1.0])
    assert list(stability(record).values()) == [pytest.approx(2 / 3), 2.0, 4.0]
    assert set(stability(TrainingRecord(0, 0, [])).values()) == {None}


def test_the_trained_arms_learn_and_the_base_is_asked_as_it_is(made: Workspace) -> None:
    frame = read_stored(made, "post_training_eval").collect()
    assert frame["arm"].unique(maintain_order=True).to_list() == [UNTOUCHED_BASE, FULL_POOL, "best", "random (4)"]
    found = {(arm, name): mean for arm, name, mean in frame.select("arm", "benchmark", "mean").iter_rows()}
    assert found[UNTOUCHED_BASE, "counting"] == 0.0
    assert found[FULL_POOL, "counting"] == 100.0
    assert found[FULL_POOL, "other"] == 50.0
    assert found[FULL_POOL, RELATIVE_AVERAGE] == 100.0
    runs = read_stored(made, "post_training_runs").collect()
    assert runs.filter(kind="base")["seed"].to_list() == [None, None]
    full = runs.filter(kind="full", benchmark="counting")
    assert full["seed"].to_list() == [0, 1]
    assert full["samples"].to_list() == [8, 8]
    assert full["steps"].to_list() == [50, 50]
    assert full["run"].n_unique() == 2
    assert runs.filter(kind="subset")["selected_by"].unique().to_list() == ["tiny"]


def test_answers_are_stored_with_what_was_asked(made: Workspace) -> None:
    answers = read_stored(made, "post_training_answers").collect()
    runs = read_stored(made, "post_training_runs").collect()
    (key,) = runs.filter(kind="full", benchmark="other", seed=0)["run"]
    mine = answers.filter((pl.col("run") == key) & (pl.col("benchmark") == "other")).sort("item")
    assert mine["reference"].to_list() == ["7", "8"]
    assert mine["answer"].to_list() == ["7", "7"]
    assert mine["right"].to_list() == [True, False]
    assert mine["finished"].all()
    assert mine["text"][0] == same_answer(1)[0]["response"]


def test_the_weights_are_gone(made: Workspace) -> None:
    assert work_folders(made) == []
    assert not stored(made, pattern="*.safetensors")


def test_the_command_says_what_came_out_and_exports_it(made: Workspace, tmp_path: Path) -> None:
    output = (made.folder / "output.txt").read_text()
    assert "evaluating subsets" in output
    for words in ("fine-tuning, steps", "answering, problems", "full pool", "100.0 ± 0.0", "relative average"):
        assert words in output
    assert "untouched base: one run: no random draw is involved" in output
    out = tmp_path / "out.csv"
    export = ["table", "post_training_eval", "--to", str(out), "--config", str(made.config_file)]
    assert CliRunner().invoke(app, export).exit_code == 0
    assert len(pl.read_csv(out)) == 4 * 3
    asked = "select count(*) as n from post_training_runs join post_training_answers using (run, benchmark)"
    assert run_sql(made, asked)["n"].item() == 7 * 5
    assert "post_training_eval: results per arm" in CliRunner().invoke(app, ["tables"]).output


def test_nothing_changed_trains_nothing(made: Workspace) -> None:
    before = written(made)
    words = ["evaluate", "--dry-run", "--config", str(made.config_file)]
    shown = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).output
    assert "0 fine-tuning runs to do, of 7 runs" in shown
    frame = read_stored(made, "post_training_eval").collect()
    assert_frame_equal(write_evaluation(made), frame)
    assert written(made) == before


def test_fewer_seeds_and_one_subset_are_read_from_what_is_there(made: Workspace) -> None:
    result = CliRunner().invoke(
        app, ["evaluate", "--seeds", "1", "--subset", "best", "--config", str(made.config_file)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "one run: an interval requires at least two seeds" in result.output
    assert due_arms(plan_evaluation(made, [0, 1, 2])) == [(FULL_POOL, 2), ("best", 2), ("random (4)", 2)]
    write_evaluation(made)


def test_the_asset_says_all_of_it(made: Workspace) -> None:
    MainJob(made, instance_of(made)).evaluate()
    event = instance_of(made).get_latest_materialization_event(EVALUATION_KEY)
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["dagster/row_count"].value == 12
    table = str(metadata["arms"].value)
    assert "100.0 ± 0.0" in table
    assert "tokens trained" in table
    assert next(iter(metadata)) == "spread_of_random_draws"
    assert "random (4)" in str(metadata["spread_of_random_draws"].value)
    assert "is the yardstick" in str(metadata["yardstick"].value)
    assert "best | random (4) | counting, %" in str(metadata["differences"].value)
    for name in ("counting", "other", RELATIVE_AVERAGE):
        assert "data:image/png;base64," in str(metadata[f"plot_{name}"].value)
    assert int(str(metadata["tokens_trained"].value)) > 0
    assert "no random draw is involved" in str(metadata["remarks"].value)


def test_prompts_that_the_corpus_holds_are_told(made: Workspace) -> None:
    asked = (made.folder / "counting.jsonl").read_text()
    write_lines(made.folder / "counting.jsonl", [{"q": "What of 2?", "a": "7"}, {"q": "What of 70?", "a": "7"}])
    words = ["evaluate", "--dry-run", "--config", str(made.config_file)]
    output = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).output
    (made.folder / "counting.jsonl").write_text(asked)
    assert "counting: 1 of its prompts are in the corpus" in output
    assert "are in the corpus" not in CliRunner().invoke(app, words, env={"COLUMNS": "200"}).output


def test_the_main_job_leaves_the_evaluation_alone(made: Workspace) -> None:
    before = written(made)
    other = edited(made, "max_new_tokens: 30", "max_new_tokens: 31")
    run(other)
    assert written(made) == before
    edited(other, "max_new_tokens: 31", "max_new_tokens: 30")


def test_only_what_a_change_is_about_is_made_anew(made: Workspace) -> None:
    """Last of those that share a workspace: it changes it."""
    renamed = edited(made, "name: best", "name: finest")
    run(renamed)
    assert due_arms(plan_evaluation(renamed)) == []
    larger = edited(renamed, "fraction: 0.5", "fraction: 0.7")
    run(larger)
    assert due_arms(plan_evaluation(larger)) == [
        (arm, seed) for seed in (0, 1) for arm in ("finest", f"random ({len(subset_ids(larger, 'finest'))})")
    ]
    write_lines(larger.folder / "other.jsonl", [{"question": "What of 60?", "answer": "7"}])
    back = edited(larger, "fraction: 0.7", "fraction: 0.5")
    run(back)
    found = plan_evaluation(back)
    assert {problems.name for lacking in found.lacking.values() for problems in lacking} == {"other"}
    assert len(found.lacking) == 7
    slower = edited(back, "learning_rate: 0.003", "learning_rate: 0.004")
    # What is trained anew lacks both benchmarks; the base lacks the one that changed.
    assert sorted(map(len, plan_evaluation(slower).lacking.values())) == [1, 2, 2, 2, 2, 2, 2]


class Killer:
    """Bars that end the process, as a kill would, after so many calls of one of them."""

    def __init__(self, bar: int, calls: int) -> None:
        self.bars = 0
        self.at, self.calls = bar, calls

    def start(self, description: str, total: int) -> int:
        self.bars += 1
        return self.bars

    def advance(self, bar: int, count: int) -> None:
        if bar == self.at:
            self.calls -= 1
            if self.calls < 0:
                raise KeyboardInterrupt

    def finish(self, bar: int) -> None:
        pass


TRAINING_BAR, ANSWERING_BAR = 1, 2


def killed(workspace: Workspace, bar: int, calls: int) -> None:
    with pytest.raises(KeyboardInterrupt), shown_on(Killer(bar, calls)):
        write_evaluation(workspace)


def test_a_killed_evaluation_goes_on_and_comes_to_the_same(tmp_path: Path, tiny_model: Path) -> None:
    workspaces = []
    for name in ("killed", "whole"):
        workspace = make_workspace(tmp_path / name, tiny_model, {"a.jsonl": same_answer(6)})
        run(workspace)
        workspaces.append(with_evaluation(workspace, baselines="", seeds="0"))
    first, whole = workspaces
    # The base has answered; the full pool is being trained.
    killed(first, TRAINING_BAR, 5)
    assert due_arms(plan_evaluation(first)) == [(FULL_POOL, 0), ("best", 0)]
    # It is trained, and has answered one of two benchmarks.
    killed(first, ANSWERING_BAR, 3)
    assert due_arms(plan_evaluation(first)) == [(FULL_POOL, 0), ("best", 0)]
    assert list(map(len, plan_evaluation(first).lacking.values())) == [1, 2]
    (work,) = work_folders(first)
    weights = (work / "weights" / "model.safetensors").stat().st_mtime_ns
    assert (work / TRAINED).is_file()
    killed(first, ANSWERING_BAR, 1)
    assert (work / "weights" / "model.safetensors").stat().st_mtime_ns == weights
    finished = write_evaluation(first)
    assert work_folders(first) == []
    assert_frame_equal(finished, write_evaluation(whole))
    columns = ("run", "benchmark", "item", "text")
    answers = [read_stored(one, "post_training_answers").select(columns).collect().sort(columns) for one in workspaces]
    assert_frame_equal(*answers)


def test_one_model_selects_and_another_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=9, hidden=16)
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": same_answer(6)})
    line = f"  - {{name: student, model: {other}, warmup: none, signals: [likelihoods]}}\nscores:"
    run(edited(workspace, "scores:", line))
    recipe = "{learning_rate: 0.001, batch_size: 4}"
    workspace = with_evaluation(workspace, seeds="4", baselines="longest, stepmax", training=recipe)
    workspace = edited(workspace, "  seeds:", "  target: tiny\n  models: [student, tiny]\n  seeds:")
    frame = write_evaluation(workspace)
    runs = read_stored(workspace, "post_training_runs").collect()
    assert frame["model"].unique(maintain_order=True).to_list() == ["student", "tiny"]
    arms = [UNTOUCHED_BASE, FULL_POOL, "best", "longest (3)", "stepmax (3)"]
    assert frame.filter(model="student")["arm"].unique(maintain_order=True).to_list() == arms
    assert runs.filter(arm="best")["selected_by"].unique().to_list() == ["tiny"]
    keys = runs.filter(arm="best").group_by("model").agg(pl.col("run").unique())
    assert keys["run"].explode().n_unique() == 2
    # Neither learns anything in a step or two: no relative average, and the reason.
    assert frame.filter(benchmark=RELATIVE_AVERAGE)["mean"].null_count() == 10
    assert "is undefined" in frame["reason"].drop_nulls()[-1]


# Bad input


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    """A workspace with an evaluation that has not been run."""
    workspace = make_workspace(tmp_path_factory.mktemp("plain"), tiny_model, {"a.jsonl": same_answer(4)})
    run(workspace)
    return with_evaluation(workspace)


def refused(workspace: Workspace, *words: str) -> str:
    """What the command says of an evaluation that it refuses."""
    result = CliRunner().invoke(
        app, ["evaluate", *words, "--config", str(workspace.config_file)], env={"COLUMNS": "500"}
    )
    assert result.exit_code == 1, result.output
    return result.output


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"q": "What?"}',
            "counting.jsonl:1: the row has no answer in field 'a'. Correct the row, or map another field",
        ),
        ('{"q": "1?", "a": "1"}\n\n{"q": "2?", "a": " "}', "counting.jsonl:3: the row has no answer in field 'a'"),
        ('{"a": "1"}', "counting.jsonl:1: the row has no prompt in field 'q'"),
        ('{"q": "What?", "a": "1"}\nnonsense', "counting.jsonl:2: "),
        ('{"q": "What?", "a": ["1"]}', "counting.jsonl:1: a must be text, not a list"),
        ("", "counting.jsonl has no rows. Add prompts with their answers"),
        ("\n".join(['{"q": "What?"}'] * 9), "and 4 more"),
    ],
)
def test_benchmarks_that_cannot_be_used(plain: Workspace, lines: str, said: str) -> None:
    before = (plain.folder / "counting.jsonl").read_text()
    (plain.folder / "counting.jsonl").write_text(lines)
    output = refused(plain)
    (plain.folder / "counting.jsonl").write_text(before)
    assert "benchmark counting: " in output
    assert said in output


def test_a_benchmark_that_is_not_there(plain: Workspace) -> None:
    (plain.folder / "counting.jsonl").rename(plain.folder / "away")
    output = refused(plain)
    (plain.folder / "away").rename(plain.folder / "counting.jsonl")
    assert f"benchmark counting: file {plain.folder / 'counting.jsonl'} not found. Correct its path in" in output


def test_names_and_numbers_that_are_none(plain: Workspace) -> None:
    assert "--seeds 1;2: not a list of whole numbers. Use the form --seeds 0,1,2." in refused(plain, "--seeds", "1;2")
    assert "not distinct whole numbers" in refused(plain, "--seeds", "1,1")
    assert "there is no subset 'bets'; did you mean 'best'?" in refused(plain, "--subset", "bets")


def test_subsets_that_are_empty_old_or_not_there(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": same_answer(4)})
    with pytest.raises(EvaluationError, match=r"has no evaluation\. Add the section"):
        plan_evaluation(workspace)
    workspace = with_evaluation(workspace)
    with pytest.raises(EvaluationError, match=r"the pool has no sample to train on|has not been selected yet"):
        plan_evaluation(workspace)
    run(workspace)
    assert len(plan_evaluation(workspace).runs) == 7
    narrow = edited(workspace, "fraction: 0.5}", "fraction: 0.5}, filters: {min_tokens: 100000}")
    with pytest.raises(EvaluationError, match=r"subset best is outdated: scores or parameters .* Use `curate run`"):
        plan_evaluation(narrow)
    run(narrow)
    with pytest.raises(EvaluationError, match=r"subset best is empty\. Widen its filters or its budget"):
        plan_evaluation(narrow)
    (tmp_path / "landing" / "a.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"the pool has no sample|outdated"):
        plan_evaluation(edited(narrow, ", filters: {min_tokens: 100000}", ""))


def test_no_subsets(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": same_answer(4)}, signals=["likelihoods"])
    run(workspace)
    workspace = with_evaluation(workspace)
    with pytest.raises(EvaluationError, match=r"has no subset\. Add one under subsets"):
        plan_evaluation(workspace)
    assert "has no subset" in refused(workspace)
    with pytest.raises(TableRequestError, match=r"has not been made yet\. Run `curate evaluate`"):
        read_stored(workspace, "post_training_eval")


def test_a_run_that_cannot_be_trained_is_named(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": same_answer(4)})
    run(workspace)
    workspace = with_evaluation(workspace, training="{adapter: full, learning_rate: 1.0e+30, epochs: 5}")
    with pytest.raises(EvaluationError, match=r"evaluation of tiny, full pool, seed 0: .*Lower learning_rate"):
        write_evaluation(workspace)
    assert due_arms(plan_evaluation(workspace))[0] == (FULL_POOL, 0)


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        ("{benchmarks: []}", "evaluation.benchmarks"),
        ("{benchmarks: [{name: a, path: b}, {name: a, path: c}]}", "the name 'a' is used twice"),
        ("{benchmarks: [{name: relative_average, path: b}]}", "is reserved for the summary over all benchmarks"),
        ("{benchmarks: [{name: a, path: b}], seeds: []}", "evaluation.seeds"),
        ("{benchmarks: [{name: a, path: b}], seeds: [0, 0]}", "is listed twice"),
        ("{benchmarks: [{name: a, path: b}], seeds: [-1]}", "is not a valid seed"),
        ("{benchmarks: [{name: a, path: b}], target: tinny}", "did you mean 'tiny'?"),
        ("{benchmarks: [{name: a, path: b}], models: [tinny]}", "did you mean 'tiny'?"),
        (
            "{benchmarks: [{name: a, path: b}], models: [minilm]}",
            "is an embedding model, which cannot generate answers",
        ),
        ("{benchmarks: [{name: a, path: b}], subsets: [bets]}", "did you mean 'best'?"),
        ("{benchmarks: [{name: a, path: b}], subsets: [best], target: minilm}", "or remove evaluation.target."),
        ("{benchmarks: [{name: a, path: b}], baselines: [stepmin]}", "evaluation.baselines"),
        ("{benchmarks: [{name: a, path: b}], training: {preset: sgd}}", "evaluation.training.preset"),
        ("{benchmarks: [{name: a, path: b}]}", "subset close is selected by target minilm, an embedding model"),
    ],
)
def test_mistakes_in_the_configuration(tmp_path: Path, said: str, mistake: str) -> None:
    config = write_config(tmp_path, Path("model"))
    text = config.read_text().replace(
        "scores:\n",
        "  - {name: minilm, model: m, warmup: none, signals: [text_embeddings]}\nscores:\n"
        "  - {name: near, target: minilm, method: random}\n",
    )
    text = text.replace("subsets:\n", "subsets:\n  - {name: close, score: near, budget: {samples: 1}}\n")
    config.write_text(f"{text}evaluation: {said}\n")
    with pytest.raises(ConfigError) as caught:
        Workspace.load(config)
    assert mistake in str(caught.value)
    assert "evaluation" in str(caught.value)


def test_nothing_is_stored_where_nothing_was_evaluated(plain: Workspace) -> None:
    assert stored(plain, answers_dir()) == []
    assert plain.warehouse.scan_table(tables.subset_path("best")) is not None


def test_the_help_teaches() -> None:
    text = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200"}).output
    for words in ("--seeds", "--subset", "--dry-run", "95 % intervals", "full pool", "untouched base", "deleted"):
        assert words in text
    for words in ("metric: loss", "equal_steps: true", "yardstick", "paired bootstrap"):
        assert words in text
