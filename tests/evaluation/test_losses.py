"""The loss of right responses: which count, what it is, and that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from curation_assets.cli import command
from curation_assets.cli.app import app
from curation_assets.config.config_file import ConfigError
from curation_assets.config.evaluation_settings import Benchmark, BenchmarkColumns
from curation_assets.evaluation.arms import FULL_POOL, UNTOUCHED_BASE
from curation_assets.evaluation.benchmarks import EvaluationError, Item, Problems, read_benchmark
from curation_assets.evaluation.keys import results_path, run_key
from curation_assets.evaluation.losses import measure_losses
from curation_assets.evaluation.rendering import show_left_out
from curation_assets.evaluation.runs import plan_evaluation
from curation_assets.evaluation.summary import write_evaluation
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.evaluation import answers_dir, losses_dir
from curation_assets.workspace.fingerprints import base_digest
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.model_files import processor_digest, tokenizer_digest
from curation_resources.progress import shown_on
from curation_resources.scoring.devices import make_pass
from curation_resources.scoring.spec import PassSpec
from curation_resources.storage.digests import digest
from curation_resources.training.files import TRAINER_VERSION
from curation_resources.training.recipe import Recipe
from tests.evaluation.test_evaluation import Killer, Rows, due_arms, edited, same_answer, with_evaluation, write_lines
from tests.pipeline.workspaces import make_workspace, run, write_config

EVALUATION = """\
evaluation:
  benchmarks:
    - {name: held, path: ./held.jsonl, metric: loss}
  seeds: [0, 1]
  equal_steps: EQUAL
  training: {adapter: full, learning_rate: 0.003, batch_size: 4, epochs: 3}
"""
HELD: Rows = [
    {"question": "What of 60?", "answer": "a a a a\nb b b b\nAnswer: 7"},
    {"question": "What of 61?", "answer": "c c\n#### 8"},
]


def with_losses(workspace: Workspace, equal: bool = False) -> Workspace:
    """The workspace with an evaluation by loss alone."""
    write_lines(workspace.folder / "held.jsonl", HELD)
    text = workspace.config_file.read_text() + EVALUATION.replace("EQUAL", str(equal).lower())
    workspace.config_file.write_text(text)
    return Workspace.load(workspace.config_file)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    """A workspace without an evaluation."""
    workspace = make_workspace(tmp_path_factory.mktemp("plain"), tiny_model, {"a.jsonl": same_answer(6)})
    run(workspace)
    return workspace


# Which responses count


def read(workspace: Workspace, rows: Rows, **columns: str) -> Problems:
    write_lines(workspace.folder / "bench.jsonl", rows)
    benchmark = Benchmark(
        name="bench", path="./bench.jsonl", metric=["loss"], columns=BenchmarkColumns.model_validate(columns)
    )
    (problems,) = read_benchmark(workspace, benchmark)
    return problems


def responses(problems: Problems) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(item.row, item.turns[-1]["content"], item.responses) for item in problems.items]


SOLUTION = "so it is\n#### 7"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "q", "answer": SOLUTION}, {}),
        ({"problem": "q", "solution": SOLUTION, "answer": "7"}, {}),
        ({"instruction": "q", "output": SOLUTION}, {}),
        ({"prompt": [{"role": "user", "content": "q"}], "response": SOLUTION, "answer": 7}, {}),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": SOLUTION}]}, {}),
        ({"q": "q", "a": SOLUTION}, {"prompt": "q", "answer": "a"}),
        ({"q": "q", "r": {"text": SOLUTION}, "response": "other"}, {"prompt": "q", "response": "r.text"}),
        ({"question": "q", "chosen": SOLUTION, "rejected": "no"}, {}),
        ({"prompt": "q", "responses": ["no", SOLUTION], "correct": [False, True]}, {}),
        ({"prompt": "q", "responses": ["no", SOLUTION], "good": [False, True]}, {"correct": "good"}),
    ],
)
def test_right_responses_are_found_as_in_the_corpus(
    plain: Workspace, row: dict[str, Any], columns: dict[str, str]
) -> None:
    assert responses(read(plain, [row], **columns)) == [(0, "q", (SOLUTION,))]


def test_reasoning_is_joined_as_in_the_corpus(plain: Workspace) -> None:
    (item,) = read(plain, [{"question": "q", "reasoning": "thought", "answer": "7"}]).items
    assert item.responses == ("<think>\nthought\n</think>\n\n7",)


def test_a_short_answer_is_a_response_where_it_is_mapped(plain: Workspace) -> None:
    assert responses(read(plain, [{"question": "q", "answer": "7"}], response="answer")) == [(0, "q", ("7",))]


def test_rows_of_one_prompt_are_one_problem(plain: Workspace) -> None:
    rows = [
        {"prompt": "p", "response": "p 1", "correct": True},
        {"prompt": "q", "response": "q 1", "correct": False},
        {"prompt": "p", "response": "p 2", "correct": False},
        {"prompt": "p", "response": "p 3", "correct": True},
    ]
    found = read(plain, rows)
    assert responses(found) == [(0, "p", ("p 1", "p 3"))]
    assert found.left_out == 1


def test_problems_without_a_right_response_are_counted() -> None:
    console = Console(width=200, record=True)
    item = Item(0, [], "id", responses=("r",))
    show_left_out([Problems("bench", "loss", "", [item], 2), Problems("other", "loss", "", [item])], console)
    assert console.export_text() == "bench: 2 of 3 problems have no right response and no loss\n"


def test_the_key_is_that_of_the_responses(plain: Workspace) -> None:
    first = read(plain, [{"prompt": "p", "response": "r", "note": 1}])
    assert read(plain, [{"prompt": "p", "response": "r", "note": 2}]).digest == first.digest
    assert read(plain, [{"prompt": "p", "response": "s"}]).digest != first.digest
    assert read(plain, [{"prompt": "o", "response": "r"}]).digest != first.digest


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([{"question": "q", "answer": "7"}], {}, "bench.jsonl:1: the row has no right response (looked for response, "),
        ([{"question": "q"}], {}, "or map its field (columns: {response: ...})"),
        (
            [{"prompt": "p", "response": "r"}, {"prompt": "q"}],
            {"response": "response"},
            "bench.jsonl:2: the row has no right response in field 'response'. Correct the row, or map another field",
        ),
        ([{"prompt": "p", "response": "r", "correct": False}], {}, "bench.jsonl has no right response: correct is"),
        ([{"prompt": "p", "response": "r"}], {"correct": "good"}, "no right response: good is false or missing"),
        ([{"prompt": "p", "response": 7}], {}, "bench.jsonl:1: response must be text, not a number"),
        ([{"prompt": "p", "response": "r", "image": "a.png"}], {}, "the prompt has images, which are not supported"),
    ],
)
def test_benchmarks_without_right_responses(plain: Workspace, rows: Rows, columns: dict[str, str], said: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        read(plain, rows, **columns)
    assert str(caught.value).startswith("benchmark bench: ")
    assert said in str(caught.value)


# What is measured


def test_the_loss_is_that_of_transformers(plain: Workspace, tiny_model: Path) -> None:
    rows: Rows = [
        {"prompt": "What of 1?", "responses": ["a b c\nAnswer: 7", "dd\nAnswer: 7"]},
        {"prompt": "And of 2?", "response": "e" * 40},
    ]
    problems = read(plain, rows)
    frame = measure_losses(make_pass(PassSpec(tiny_model), "cpu"), problems, "key")
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = []
    for item in problems.items:
        losses = []
        for response in item.responses:
            prompt = tokenizer.apply_chat_template(item.turns, add_generation_prompt=True, tokenize=False)
            before, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
            ids = torch.tensor([before + said])
            labels = torch.tensor([[-100] * len(before) + said])
            losses.append(float(model(ids, labels=labels).loss.detach()))
        expected.append(sum(losses) / len(losses))
    assert frame["loss"].to_list() == pytest.approx(expected, rel=1e-5)
    assert frame["item"].to_list() == [0, 1]
    assert frame["responses"].to_list() == [2, 1]
    assert frame["tokens"].to_list() == [len("a b c\nAnswer: 7") + len("dd\nAnswer: 7"), 40]
    assert frame["flag"].to_list() == [None, None]


def test_a_response_that_cannot_be_run_has_a_reason_and_no_loss(plain: Workspace, tiny_model: Path) -> None:
    problems = read(plain, [{"prompt": "x" * 600, "response": "r"}, {"prompt": "p", "response": "r" * 600}])
    frame = measure_losses(make_pass(PassSpec(tiny_model), "cpu"), problems, "key")
    assert frame["loss"].is_null().to_list() == [True, False]
    assert frame["flag"].to_list()[0] == "prompt_too_long"
    assert "truncated" in frame["flag"].to_list()[1]


# Keys


def test_results_of_earlier_versions_keep_their_keys(tmp_path: Path, tiny_model: Path) -> None:
    """The keys as version 0.1 made them, field by field."""
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": same_answer(4)})
    run(workspace)
    workspace = with_evaluation(workspace)
    plan = plan_evaluation(workspace)
    target, folder = workspace.settings.target("tiny"), workspace.model_folder(workspace.settings.target("tiny"))
    files = [tokenizer_digest(folder, workspace.cache), processor_digest(folder, workspace.cache)]
    encoding = [target.template, target.max_length, target.dtype]
    for made, key in plan.runs:
        trained = None
        if made.seed is not None:
            recipe = Recipe(adapter="full", learning_rate=0.003, batch_size=4, epochs=25, seed=made.seed)
            facts = {name: value for name, value in vars(recipe).items() if name != "stop_after"}
            trained = [TRAINER_VERSION, facts, list(made.sample_ids)]
        assert key == digest("post_training", base_digest(workspace, target), files, encoding, trained)
    for problems, columns in zip(
        plan.benchmarks, ({"prompt": "q", "answer": "a"}, {"prompt": None, "answer": None}), strict=True
    ):
        file = workspace.cache.file_digest(workspace.folder / f"{problems.name}.jsonl")
        asked = digest("answers", 1, digest("benchmark", file, columns), 30)
        assert results_path("KEY", problems, plan.evaluation) == f"evaluation/answers/KEY-{asked}.parquet"


def test_another_metric_keeps_models_and_answers(plain: Workspace) -> None:
    workspace = with_evaluation(plain)
    before = plan_evaluation(workspace)
    both = edited(workspace, "path: ./other.jsonl}", "path: ./other.jsonl, metric: [exact_match, loss]}")
    write_lines(both.folder / "other.jsonl", [{"question": "What of 60?", "answer": "so\n#### 7"}])
    after = plan_evaluation(both)
    assert [key for _, key in after.runs] == [key for _, key in before.runs]
    assert [(one.name, one.metric) for one in after.benchmarks] == [
        ("counting", "exact_match"),
        ("other", "exact_match"),
        ("other", "loss"),
    ]
    equal = edited(both, "  seeds:", "  equal_steps: true\n  seeds:")
    of_equal = plan_evaluation(equal)
    keys = {made.arm: key for made, key in of_equal.runs}
    assert keys[UNTOUCHED_BASE] == {made.arm: key for made, key in after.runs}[UNTOUCHED_BASE]
    assert not {key for made, key in of_equal.runs if made.seed is not None} & {key for _, key in after.runs}
    assert run_key(equal, of_equal.runs[1][0], of_equal.evaluation) == of_equal.runs[1][1]
    plain.config_file.write_text(plain.config_file.read_text().partition("evaluation:")[0])


# The whole command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Workspace, str]:
    """A workspace that was evaluated by loss with equal steps, and what the command printed."""
    workspace = make_workspace(tmp_path_factory.mktemp("made"), tiny_model, {"a.jsonl": same_answer(10)})
    run(workspace)
    workspace = with_losses(workspace, equal=True)
    with pytest.MonkeyPatch.context() as patch:
        # COLUMNS counts only where the console has not been made yet.
        patch.setattr(command.console, "width", 250)
        words = ["evaluate", "--config", str(workspace.config_file)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return workspace, result.output


def test_a_benchmark_by_loss_generates_nothing(made: tuple[Workspace, str]) -> None:
    workspace, output = made
    assert not workspace.warehouse.files(answers_dir())
    assert "answering" not in output
    assert "measuring losses, responses" in output
    losses = read_stored(workspace, "post_training_losses").collect()
    runs = read_stored(workspace, "post_training_runs").collect()
    assert len(losses) == 2 * runs["run"].n_unique()
    means = losses.group_by("run").agg(mean_loss=pl.col("loss").mean())
    joined = runs.join(means, on="run")
    assert joined["held_out_loss"].to_list() == pytest.approx(joined["mean_loss"].to_list())
    assert runs["exact_match"].null_count() == len(runs)
    assert runs["measured"].to_list() == [2] * len(runs)
    arms = read_stored(workspace, "post_training_eval").collect()
    assert arms["metric"].unique().to_list() == ["loss"]
    found = dict(arms.select("arm", "mean").iter_rows())
    assert found[FULL_POOL] < found[UNTOUCHED_BASE]


def test_every_arm_takes_the_same_steps(made: tuple[Workspace, str]) -> None:
    """The subset has 5 samples: two batches of at most 4, three epochs."""
    runs = read_stored(made[0], "post_training_runs").collect().filter(pl.col("kind") != "base")
    assert runs["samples"].unique().sort().to_list() == [5, 10]
    assert runs["steps"].unique().to_list() == [6]


def test_the_spread_is_printed_first(made: tuple[Workspace, str]) -> None:
    workspace, output = made
    spread = read_stored(workspace, "post_training_spread").collect()
    runs = read_stored(workspace, "post_training_runs").collect()
    draws: list[float] = runs.filter(arm="random (5)")["held_out_loss"].to_list()
    assert spread["arm"].to_list() == ["random (5)"]
    assert spread["draws"].to_list() == [2]
    assert spread["range"].item() == pytest.approx(max(draws) - min(draws))
    assert spread["deviation"].item() == pytest.approx(stdev(draws))
    places = [output.index(text) for text in ("spread of random draws", "is the yardstick", "after fine-tuning")]
    assert places == sorted(places)
    assert output.index("differences between arms") > places[-1]
    assert "lower is better" in output
    differences = read_stored(workspace, "post_training_differences").collect()
    pairs = differences.select("arm", "against").rows()
    assert pairs == [
        (UNTOUCHED_BASE, FULL_POOL),
        ("best", "random (5)"),
        ("best", FULL_POOL),
        ("random (5)", FULL_POOL),
    ]
    assert (differences["within_spread"].sum() > 0) == ("within the spread of random draws" in output)


def test_nothing_is_measured_twice(made: tuple[Workspace, str]) -> None:
    workspace, _ = made
    before = {file.path: file.version for file in workspace.warehouse.files(losses_dir())}
    frame = read_stored(workspace, "post_training_eval").collect()
    assert due_arms(plan_evaluation(workspace)) == []
    assert_frame_equal(write_evaluation(workspace), frame)
    assert {file.path: file.version for file in workspace.warehouse.files(losses_dir())} == before


def killed(workspace: Workspace, bar: int, calls: int) -> None:
    with pytest.raises(KeyboardInterrupt), shown_on(Killer(bar, calls)):
        write_evaluation(workspace)


def test_a_killed_evaluation_measures_only_what_is_missing(plain: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = edited(with_losses(plain), "  seeds: [0, 1]", "  seeds: [0]\n  baselines: []")
    measured: list[str] = []

    def counting(*given: Any) -> pl.DataFrame:
        frame = measure_losses(*given)
        measured.append(given[2])
        return frame

    monkeypatch.setattr("curation_assets.evaluation.runs.measure_losses", counting)
    # The losses of the base are stored; the bar of losses is the second, as nothing is answered.
    killed(workspace, 2, 1)
    assert due_arms(plan_evaluation(workspace)) == [(FULL_POOL, 0), ("best", 0)]
    write_evaluation(workspace)
    keys = [key for _, key in plan_evaluation(workspace).runs]
    assert measured == keys


def test_the_spread_is_unknown_without_random_draws(plain: Workspace) -> None:
    """After the test above, whose results are stored."""
    result = CliRunner().invoke(app, ["evaluate", "--config", str(plain.config_file)], env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    assert "The spread of random draws is unknown" in result.output


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        ("metric: los", "evaluation.benchmarks.0.metric"),
        ("metric: []", "evaluation.benchmarks.0.metric"),
        ("metric: [loss, loss]", "a metric is listed twice. Remove one."),
    ],
)
def test_mistakes_in_the_metric(said: str, mistake: str, refused_config: Callable[[str], str]) -> None:
    assert mistake in refused_config(f"{{benchmarks: [{{name: a, path: b, {said}}}]}}")


@pytest.fixture
def refused_config(tmp_path: Path) -> Callable[[str], str]:
    """What a configuration with this evaluation is refused for."""

    def refuse(evaluation: str) -> str:
        config = write_config(tmp_path, Path("model"))
        config.write_text(f"{config.read_text()}evaluation: {evaluation}\n")
        with pytest.raises(ConfigError) as caught:
            Workspace.load(config)
        return str(caught.value)

    return refuse
