"""`curate init`: what it sees in a folder, and that what it writes loads and means what was said."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.config.checkpoint_settings import Warmup
from curation_assets.config.config_file import load_settings, parse_settings
from curation_assets.config.settings import Settings
from curation_assets.methods.grace import GraceScore
from curation_assets.operations.init_config import FolderSummary, InitError, inspect_folder, render_config, write_config
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.landing import LandingError

GSM8K = {"prompt": "How many?", "response": "Two and two.\nFour.\n#### 4"}
CHAT = {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Four."}]}
NOTHING_SEEN = FolderSummary(0, 0, {}, 0, 0, {})
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def write_rows(file: Path, *rows: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    folder = tmp_path / "landing"
    folder.mkdir()
    return folder


def test_where_responses_are_marked_wrong_a_filter_is_proposed(landing: Path, tmp_path: Path) -> None:
    write_rows(landing / "a.jsonl", GSM8K, *({**GSM8K, "correct": mark} for mark in (True, True, False)))
    look = write_config(landing, "org/model", tmp_path / "curation.yaml")
    assert (look.marked, look.right) == (3, 2)
    text = (tmp_path / "curation.yaml").read_text()
    assert "  # 2 of 3 inspected responses with a mark are marked right. Select only from those:\n" in text
    proposal = "- {name: grace_20, score: grace, budget: {fraction: 0.2}, filters: {correct: true}}"
    # What is proposed loads in place of the subset.
    own = "  - {name: grace_20, score: grace, budget: {fraction: 0.2}}\n"
    used = text.replace(own, "").replace(f"# {proposal}", proposal)
    (subset,) = parse_settings(used.encode(), tmp_path / "curation.yaml").subsets
    assert subset.filters.correct is True


@pytest.mark.parametrize("marks", [[], [True, True]])
def test_where_nothing_is_marked_wrong_no_filter_is_proposed(landing: Path, tmp_path: Path, marks: list[bool]) -> None:
    write_rows(landing / "a.jsonl", GSM8K, *({**GSM8K, "correct": mark} for mark in marks))
    write_config(landing, "org/model", tmp_path / "curation.yaml")
    assert "# - {name: grace_20" not in (tmp_path / "curation.yaml").read_text()


def test_a_folder_of_one_format(landing: Path, tmp_path: Path) -> None:
    write_rows(landing / "a.jsonl", GSM8K, GSM8K)
    write_rows(landing / "deep" / "b.jsonl", GSM8K)
    look = write_config(landing, "org/model", tmp_path / "curation.yaml")
    assert (look.files, look.rows, look.rejected, look.formats) == (2, 3, 0, {"prompt_response": 2})
    assert look.bytes == sum(path.stat().st_size for path in landing.rglob("*.jsonl"))
    loaded = load_settings(tmp_path / "curation.yaml")
    assert loaded.corpus.landing == "./landing"
    # What arrives later may be of another format.
    assert loaded.corpus.format == "auto"
    assert [t.warmup.min_pool for t in loaded.targets if t.warmup != "none"] == [3]
    assert [(target.name, target.model) for target in loaded.targets] == [("base", "org/model")]
    assert loaded.scores == [GraceScore(name="grace", target="base", alpha=0.7, history="uniform")]
    assert [(subset.name, subset.budget.fraction) for subset in loaded.subsets] == [("grace_20", 0.2)]
    schema = json.loads((tmp_path / "curation.schema.json").read_text())
    Draft202012Validator.check_schema(schema)


def test_a_folder_of_several_formats_is_read_as_auto(landing: Path, tmp_path: Path) -> None:
    write_rows(landing / "a.jsonl", GSM8K)
    (landing / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(CHAT).encode()))
    pl.DataFrame([GSM8K]).write_parquet(landing / "c.parquet")
    look = write_config(landing, "org/model", tmp_path / "curation.yaml")
    assert look.formats == {"prompt_response": 2, "messages": 1}
    assert load_settings(tmp_path / "curation.yaml").corpus.format == "auto"
    assert "# Found: 3 files" in (tmp_path / "curation.yaml").read_text()


def test_rows_that_would_be_rejected_are_reported(landing: Path, tmp_path: Path) -> None:
    write_rows(landing / "a.jsonl", GSM8K, {"prompt": "How many?", "response": ""})
    with (landing / "a.jsonl").open("a") as stream:
        stream.write("{not json\n")
    look = write_config(landing, "org/model", tmp_path / "curation.yaml")
    assert (look.rows, look.rejected) == (3, 2)
    assert sum(look.reasons.values()) == 2
    assert "not_json" in look.reasons
    written = (tmp_path / "curation.yaml").read_text()
    assert f"# 2 of 3 inspected rows would be rejected: {look.reasons}" in written


def test_an_empty_folder_is_fine(landing: Path, tmp_path: Path) -> None:
    look = write_config(landing, "org/model", tmp_path / "curation.yaml")
    assert look == NOTHING_SEEN
    assert load_settings(tmp_path / "curation.yaml").corpus.format == "auto"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LandingError, match="does not exist"):
        write_config(tmp_path / "none", "org/model", tmp_path / "curation.yaml")
    assert not list(tmp_path.iterdir())


def test_of_a_large_file_the_first_whole_rows_are_read(landing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = len(json.dumps(GSM8K)) + 1
    monkeypatch.setattr("curation_assets.operations.init_config.INSPECTED_BYTES", 3 * line + 5)
    write_rows(landing / "a.jsonl", *[GSM8K] * 10)
    look = inspect_folder(landing)
    assert (look.rows, look.rejected, look.bytes) == (3, 0, 10 * line)


def test_a_file_is_not_overwritten_unless_forced(landing: Path, tmp_path: Path) -> None:
    out = tmp_path / "curation.yaml"
    out.write_text("mine")
    with pytest.raises(InitError, match=r"exists\. Name another file with --to, or overwrite it with --force"):
        write_config(landing, "org/model", out)
    assert out.read_text() == "mine"
    write_config(landing, "org/model", out, force=True)
    assert load_settings(out).targets[0].model == "org/model"


@pytest.mark.parametrize(
    "name",
    [
        'it\'s "here"',
        "a: b #c",
        "größe 题 😀",
        "$landing ${x} $",
        "back\\slash",
        "tab\tnew\nline",
        "\x85\x7f\u2028",
        "- x",
        "{}",
    ],
)
def test_folders_with_odd_names_are_found_again(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    write_rows(folder / "a.jsonl", GSM8K)
    for out in (tmp_path / "curation.yaml", tmp_path / "elsewhere" / "curation.yaml"):
        write_config(folder, "org/model", out)
        workspace = Workspace.load(out)
        assert workspace.landing.place == str(folder)
        assert [file.name for file in workspace.landing.files()] == ["a.jsonl"]


@settings(deadline=None, max_examples=200)
@given(texts, texts)
@example("\x85", "\u2028\ufeff\x7f")
@example("😀", "'\"\\")
def test_paths_and_models_survive_being_written(landing: str, model: str) -> None:
    text = render_config(NOTHING_SEEN, landing, model)
    loaded = parse_settings(text.encode(), Path("curation.yaml"))
    assert (loaded.corpus.landing, loaded.targets[0].model) == (landing, model)


def test_a_name_that_is_not_text_is_refused_with_the_mend(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    with pytest.raises(InitError, match=r"is not UTF-8\. Rename the folder"):
        write_config(folder, "org/model", tmp_path / "curation.yaml")


@pytest.mark.parametrize("given_as", ["model", "./model", "absolute"])
def test_a_model_folder_is_found_again_wherever_the_file_is_written(
    landing: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_as: str
) -> None:
    (tmp_path / "model").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "model") if given_as == "absolute" else given_as
    for out in (Path("curation.yaml"), Path("elsewhere/curation.yaml")):
        write_config(Path("landing"), model, out)
        workspace = Workspace.load(out)
        assert workspace.model_folder(workspace.settings.targets[0]) == tiny_model.resolve()
        assert workspace.landing.place == str(landing)


def test_a_hub_id_stays_as_it_is(landing: Path, tmp_path: Path) -> None:
    write_config(landing, "org/model", tmp_path / "elsewhere" / "curation.yaml")
    assert load_settings(tmp_path / "elsewhere" / "curation.yaml").targets[0].model == "org/model"


# The template's comments


def uncommented(*keys: str) -> Settings:
    """The template with these commented options switched on."""
    text = render_config(NOTHING_SEEN, "./landing", "org/model")
    for key in keys:
        text, count = re.subn(rf"^( *)# ({key}: [^\n]*)$", r"\1\2", text, flags=re.MULTILINE)
        assert count == 1, key
    return parse_settings(text.encode(), Path("curation.yaml"))


def test_every_commented_option_is_valid() -> None:
    text = render_config(NOTHING_SEEN, "./landing", "org/model")
    options = set(re.findall(r"^ *# ([a-z_]+): [^\n]*$", text, flags=re.MULTILINE))
    prose = {"budget", "manual"}
    assert options - prose == {"columns", "filters", "dtype", "max_length"}
    loaded = uncommented("columns", "filters", "dtype", "max_length")
    assert loaded.corpus.filters.near_duplicates == 0.8
    assert loaded.corpus.columns.prompt == "question"
    assert loaded.corpus.columns.response == ["solution_a.text", "solution_b.text"]
    assert loaded.corpus.columns.correct == [True, "solution_b.is_correct"]
    assert (loaded.targets[0].dtype, loaded.targets[0].max_length) == ("bfloat16", 4096)


def test_budgets_and_warm_up_that_the_comments_name_are_valid() -> None:
    text = render_config(NOTHING_SEEN, "./landing", "org/model")
    (prose,) = re.findall(r"# budget: (.*)", text)
    budgets = re.findall(r"\{[a-z]+: [0-9.]+\}", prose)
    assert len(budgets) == 3
    for budget in budgets:
        chosen = text.replace("budget: {fraction: 0.2}}", f"budget: {budget}}}")
        parse_settings(chosen.encode(), Path("curation.yaml"))
    without = re.sub(r"warmup: \{.*\}", "warmup: none", text)
    assert parse_settings(without.encode(), Path("curation.yaml")).targets[0].warmup == "none"


def test_the_template_says_the_defaults() -> None:
    loaded = uncommented()
    bare = Settings.model_validate(
        {"corpus": {"landing": "./landing"}, "targets": [{"name": "base", "model": "org/model"}]}
    )
    assert loaded.targets == bare.targets
    assert loaded.targets[0].warmup == Warmup()
    assert (loaded.engine, loaded.releases, loaded.corpus) == (bare.engine, bare.releases, bare.corpus)


CANDIDATES = {
    "question": "How many are two and two?",
    "a": {"solution": "Two and two.\nAnswer: 4", "is_correct": True},
    "b": {"solution": "Two and three.\nAnswer: 5", "is_correct": False},
}


def init(landing: Path, to: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["init", str(landing), "--model", "org/model", "--to", str(to)])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        (
            CANDIDATES,
            {
                "prompt": "question",
                "response": ["a.solution", "b.solution"],
                "correct": ["a.is_correct", "b.is_correct"],
            },
        ),
        (
            {"data": {"problem_text": "2 + 2?", "full_solution": "Two and two.\nFour.", "answer": "4"}},
            {"prompt": "data.problem_text", "response": "data.full_solution", "answer": "data.answer"},
        ),
        ({"ask": "2 + 2?", "my_cot": "Two.\nAnswer: 4", "note": "x"}, {"prompt": "ask", "response": "my_cot"}),
    ],
)
def test_columns_are_proposed_for_rows_of_no_format(
    landing: Path, tmp_path: Path, row: dict[str, object], mapping: dict[str, object]
) -> None:
    write_rows(landing / "a.jsonl", row, row)
    code, said = init(landing, tmp_path / "curation.yaml")
    assert code == 0, said
    assert "proposed columns: {prompt:" in said
    loaded = load_settings(tmp_path / "curation.yaml")
    assert loaded.corpus.columns.model_dump(exclude_none=True) == mapping
    assert inspect_folder(landing).accepted >= 2


def test_columns_are_proposed_for_the_rows_that_need_them(landing: Path, tmp_path: Path) -> None:
    write_rows(landing / "a.jsonl", GSM8K)
    write_rows(landing / "b.jsonl", CANDIDATES)
    code, said = init(landing, tmp_path / "curation.yaml")
    assert code == 0
    assert "rows that no format matches have the fields a, b, question; for a configuration of their own: " in said
    assert load_settings(tmp_path / "curation.yaml").corpus.columns.prompt is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "it has no file of .jsonl, .jsonl.gz or .parquet"),
        ("not json\n", "a.jsonl: none of the 1 rows can be used; 1 times not_json"),
        ('{"left": 1, "right": "x"}\n', "their fields are left, right. Map the prompt and the response"),
    ],
)
def test_a_folder_without_a_readable_row_is_an_error(
    landing: Path, tmp_path: Path, content: str | None, why: str
) -> None:
    if content is not None:
        (landing / "a.jsonl").write_text(content)
    code, said = init(landing, tmp_path / "curation.yaml")
    assert code == 1
    assert why in said
    assert "next: curate run" not in said
    # What is written loads, to be corrected.
    load_settings(tmp_path / "curation.yaml")


def test_files_that_cannot_be_read_are_told(landing: Path, tmp_path: Path) -> None:
    write_rows(landing / "UPPER.JSONL", GSM8K)
    (landing / "folder.jsonl").mkdir()
    os.mkfifo(landing / "pipe.jsonl")
    (landing / "b.parquet").write_bytes(b"no parquet")
    code, said = init(landing, tmp_path / "curation.yaml")
    assert code == 0
    assert "2 files" in said
    assert "folder.jsonl (a folder), pipe.jsonl (a pipe, socket or device, not a file)" in said
    assert "b.parquet: the file is not readable Parquet" in said


def test_responses_without_an_answer_are_counted_and_shown(landing: Path, tmp_path: Path) -> None:
    write_rows(landing / "a.jsonl", GSM8K, *({"prompt": "q", "response": f"It ends in {end}."} for end in "wxyz"))
    code, said = init(landing, tmp_path / "curation.yaml")
    assert code == 0
    assert "4 inspected responses state no answer that is recognized" in said
    assert "'It ends in w.'; 'It ends in x.'; 'It ends in y.'" in said


def test_the_warehouse_is_proposed_outside_the_landing_folder(
    landing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(landing / "a.jsonl", GSM8K)
    monkeypatch.chdir(landing)
    write_config(Path(), "org/model", Path("curation.yaml"))
    assert load_settings(landing / "curation.yaml").warehouse == "../landing-warehouse"
    workspace = Workspace.load(landing / "curation.yaml")
    assert [file.name for file in workspace.landing.files()] == ["a.jsonl"]
    config = (landing / "curation.yaml").read_text()
    (landing / "curation.yaml").write_text(config.replace("../landing-warehouse", "./warehouse"))
    with pytest.raises(LandingError, match=r"is inside the landing folder .*warehouse: \.\./landing-warehouse"):
        _ = Workspace.load(landing / "curation.yaml").landing
    # Through a link as well.
    (tmp_path / "elsewhere").symlink_to(landing)
    (landing / "curation.yaml").write_text(config.replace("../landing-warehouse", "../elsewhere/tables"))
    with pytest.raises(LandingError, match="is inside the landing folder"):
        _ = Workspace.load(landing / "curation.yaml").landing
