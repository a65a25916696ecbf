"""Exports: what a trainer loads is what the release holds; what a form cannot hold is an error or a count."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from typer.testing import CliRunner

from curation_assets.cli import command
from curation_assets.cli.app import app
from curation_assets.config.corpus_settings import Columns, Corpus
from curation_assets.corpus.ingest import pool_rows
from curation_assets.corpus.reading import read_shard
from curation_assets.releases.export import Exported, ExportError, export_release, token_weights
from curation_assets.releases.file_names import DATA_PARQUET
from curation_assets.releases.formats import FORMATS, NAMES, step_parts
from curation_assets.releases.ground_truth import GIVEN, RIGHT, SIBLING, UNMARKED, with_ground_truth
from curation_assets.releases.step_columns import SPAN
from curation_assets.releases.verify import verify_release
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.samples import without_nulls
from curation_resources.storage.files import FolderStorage
from tests.pipeline.workspaces import make_workspace, release_folder, release_subset, rows, run

BY_ENTROPY = """\
scores:
  - {name: entropy, target: tiny, method: mean_entropy}
subsets:
  - {name: best, score: entropy, budget: {samples: 5}}
engine"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    """A workspace with a release."""
    workspace = make_workspace(tmp_path_factory.mktemp("exported"), tiny_model, {"a.jsonl": rows(12)})
    run(workspace)
    release_subset(workspace)
    return workspace


@pytest.fixture
def release(made: Workspace) -> Path:
    return release_folder(made)


def exported(release: Path, form: str, to: Path, **options: Any) -> Path:
    return made_of(release, form, to, **{"threshold": 0.0} | options).folder


def made_of(release: Path, form: str, to: Path, **options: Any) -> Exported:
    return export_release(FolderStorage(release.parent), release.name, form, to, **options)


def loaded(folder: Path) -> list[dict[str, Any]]:
    """What the library that trainers load with makes of an export."""
    kind = "parquet" if (folder / "train.parquet").exists() else "json"
    files = str(next(folder.glob("train.*")))
    cache = str(folder.parent / f"cache_{folder.name}")
    return list(datasets.load_dataset(kind, data_files=files, split="train", cache_dir=cache))


def stored(release: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(release / DATA_PARQUET).to_dicts()


def sample(**changes: Any) -> dict[str, Any]:
    """A row of a release: two steps and an answer."""
    row = {
        "sample_id": "a1",
        "messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "Add.\nSum.\n5"}],
        "response": "Add.\nSum.\n5",
        "images": [],
        "step_spans": [{"start": 0, "end": 4}, {"start": 5, "end": 9}],
        "step_scores": [0.5, -0.5],
        "answer_span": {"start": 10, "end": 11},
        "answer": None,
        "correct": None,
        "source": "s",
        "domain": None,
        "weight": 1.0,
        "rank": 1,
    }
    return row | changes


def with_truth(*rows: dict[str, Any], siblings: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The rows with their ground truth."""
    frame = pl.DataFrame([row | {"prompt_id": row.get("prompt_id", "p")} for row in rows], infer_schema_length=None)
    others = None if siblings is None else pl.DataFrame([row | {"prompt_id": "p"} for row in siblings])
    typed = frame.with_columns(pl.col("answer_span").cast(SPAN))
    return with_ground_truth(typed, None if others is None else others.select(*SIBLING)).to_dicts()


def test_releases_say_where_steps_stand_and_how_they_scored(made: Workspace, release: Path) -> None:
    scored = read_stored(made, "step_scores", score="grace").collect()
    for row in stored(release):
        assert len(row["step_spans"]) == len(row["step_scores"]) > 0
        assert all(0 <= span["start"] < span["end"] <= len(row["response"]) for span in row["step_spans"])
        assert row["answer_span"] is not None
        own = scored.filter(pl.col("sample_id") == row["sample_id"]).sort("step_index")
        assert row["step_scores"] == own["step_score"].to_list()


@pytest.mark.parametrize("form", [name for name in NAMES if name != "datasets"])
def test_what_is_loaded_are_the_samples_of_the_release(release: Path, tmp_path: Path, form: str) -> None:
    folder = exported(release, form, tmp_path / form)
    expected = stored(release)
    if form == "verl":
        expected = [row for place, row in enumerate(expected) if row["prompt_id"] not in prompts(expected[:place])]
    assert [row["sample_id"] for row in loaded(folder)] == [row["sample_id"] for row in expected]
    said = (folder / "README.md").read_text()
    assert stored_digest(release) in said
    # What a form leaves out is said: no form but `datasets` has all columns.
    assert "join them by sample_id" in said


def prompts(rows: list[dict[str, Any]]) -> set[str]:
    return {row["prompt_id"] for row in rows}


def stored_digest(release: Path) -> str:
    return str(json.loads((release / "manifest.json").read_text())["content_digest"])


def test_responses_come_back_verbatim(release: Path, tmp_path: Path) -> None:
    wanted = [row["response"] for row in stored(release)]
    said = {name: loaded(exported(release, name, tmp_path / name)) for name in FORMATS if name != "stepwise"}
    assert [row["messages"][-1]["content"] for row in said["messages"]] == wanted
    assert [row["conversations"][-1]["value"] for row in said["sharegpt"]] == wanted
    assert [row["output"] for row in said["alpaca"]] == wanted
    assert [row["completion"][0]["content"] for row in said["prompt-completion"]] == wanted
    assert ["".join(part["text"] for part in row["messages"][-1]["content"]) for row in said["axolotl"]] == wanted
    assert {row["extra_info"]["response"] for row in said["verl"]} <= set(wanted)
    assert [row["response"] for row in said["weights"]] == wanted


def test_verl_asks_each_prompt_once(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "copy")
    frame = pl.read_parquet(release / DATA_PARQUET)
    same = pl.Series("prompt_id", [frame["prompt_id"][0]] * 3 + frame["prompt_id"].to_list()[3:])
    frame.with_columns(same).write_parquet(tmp_path / "copy" / DATA_PARQUET)
    folder = exported(resummed(tmp_path / "copy"), "verl", tmp_path / "out")
    assert [row["extra_info"]["index"] for row in loaded(folder)] == [1, *range(4, len(frame) + 1)]
    assert "all responses of a prompt but the best one" in (folder / "README.md").read_text()


WRONG = {"response": "Add.\nSum.\n6", "correct": False}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # What nothing marks is its own truth, and says so.
        ([{}], [("5", UNMARKED)]),
        ([{"answer": "five"}], [("five", GIVEN)]),
        ([{"correct": True}], [("5", RIGHT)]),
        # A reference answer is one, whether the response is right or wrong.
        ([WRONG | {"answer": "5"}], [("5", GIVEN)]),
        ([WRONG], [(None, None)]),
        # A sibling that is marked right gives the truth; one that is not marked does not.
        ([WRONG, {"correct": True}], [("5", RIGHT), ("5", RIGHT)]),
        ([WRONG, {"correct": True, "answer": "5.0"}], [("5.0", RIGHT), ("5.0", GIVEN)]),
        ([WRONG, {}], [(None, None), ("5", UNMARKED)]),
        ([{"response": "Add.\nSum.\n7"}, {"correct": True}], [("5", RIGHT), ("5", RIGHT)]),
        # Answer fields that differ, or that a wrong response gives itself, are claims of the responses.
        ([WRONG | {"answer": "6"}, {"answer": "5", "correct": True}], [("5", RIGHT), ("5", GIVEN)]),
        ([WRONG | {"answer": "6", "response": "Add.\nSum.\n#### 6"}], [(None, None)]),
    ],
)
def test_a_wrong_response_is_never_the_ground_truth(
    rows: list[dict[str, Any]], expected: list[tuple[str | None, str | None]]
) -> None:
    found = with_truth(*(sample(**row) for row in rows))
    assert [(row["ground_truth"], row["ground_truth_from"]) for row in found] == expected
    skipped = [FORMATS["verl"].skips(row) is not None for row in found]
    assert skipped == [text is None for text, _ in expected]


def test_a_right_response_of_the_corpus_gives_the_truth_too() -> None:
    (row,) = with_truth(sample(**WRONG), siblings=[sample(correct=True)])
    assert (row["ground_truth"], row["ground_truth_from"]) == ("5", RIGHT)


def marked(release: Path, to: Path, correct: Sequence[bool | None]) -> Path:
    """A copy of the release whose first rows are marked."""
    shutil.copytree(release, to)
    frame = pl.read_parquet(release / DATA_PARQUET)
    marks = pl.Series("correct", [*correct, *[None] * (len(frame) - len(correct))], dtype=pl.Boolean)
    frame.with_columns(marks).write_parquet(to / DATA_PARQUET)
    return resummed(to)


def test_rows_marked_wrong_are_left_out_of_verl_and_counted(release: Path, tmp_path: Path) -> None:
    copy = marked(release, tmp_path / "copy", [False, True, False])
    made = export_release(FolderStorage(tmp_path), "copy", "verl", tmp_path / "out")
    assert made.left_out == {"the response is marked wrong, and no response to its prompt is marked right": 2}
    rows = stored(copy)
    assert [row["sample_id"] for row in loaded(made.folder)] == [rows[1]["sample_id"], *ids_of(rows[3:])]
    said = (made.folder / "README.md").read_text()
    assert "skipped 2 rows: the response is marked wrong" in said
    others = f"{len(rows) - 3} from the response itself, which nothing marks as right or wrong"
    assert f"ground truth: 1 from a response marked right, {others}" in said


def ids_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["sample_id"] for row in rows]


def test_truth_comes_from_the_whole_corpus_of_a_release_in_its_warehouse(tmp_path: Path, tiny_model: Path) -> None:
    steps = "Step 1: Two is 2.\nStep 2: Three is 3.\nStep 3: Add them.\nAnswer: "
    traces = [{"prompt": "2+3?", "response": f"{steps}{n}", "correct": n == 5} for n in (5, 6)]
    config = make_workspace(tmp_path, tiny_model, {"a.jsonl": [*rows(6), *traces]}).config_file
    config.write_text(config.read_text().replace("{fraction: 0.5}", "{samples: 1}, filters: {correct: false}"))
    made = Workspace.load(config)
    run(made)
    release_subset(made)
    found = CliRunner().invoke(
        app, ["export", "best", "--format", "verl", "--to", str(tmp_path / "out"), "-c", str(config)]
    )
    assert "ground truth: 1 from a response marked right" in found.output
    assert [row["reward_model"]["ground_truth"] for row in loaded(tmp_path / "out")] == ["5"]
    # A copy has only its own rows.
    with pytest.raises(ExportError, match=r"no row of the release .* marked wrong"):
        exported(release_folder(made), "verl", tmp_path / "other")


@pytest.mark.parametrize("form", NAMES)
def test_readmes_begin_with_front_matter_that_loads_the_export(release: Path, tmp_path: Path, form: str) -> None:
    folder = exported(release, form, tmp_path / form)
    _, header, _ = (folder / "README.md").read_text().split("---\n", 2)
    card = YAML(typ="safe").load(header)
    (config,) = card["configs"]
    (files,) = config["data_files"]
    assert files["split"] == "train"
    assert list(folder.glob(files["path"]))
    assert card["pretty_name"] == f"best@1 as {form}"
    if form != "datasets":
        found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
        assert len(found) == len(loaded(folder))


def scored(release: Path, to: Path, shift: float) -> Path:
    """A copy of the release whose step scores are 0, 1, 2, ... plus a shift."""
    shutil.copytree(release, to)
    frame = pl.read_parquet(release / DATA_PARQUET)
    counts = frame["step_scores"].list.len().to_list()
    scores = iter(range(sum(counts)))
    column = pl.Series("step_scores", [[next(scores) + shift for _ in range(count)] for count in counts])
    frame.with_columns(column).write_parquet(to / DATA_PARQUET)
    return resummed(to)


@pytest.mark.parametrize("form", ["stepwise", "axolotl"])
def test_a_default_threshold_that_labels_all_steps_alike_is_refused(release: Path, tmp_path: Path, form: str) -> None:
    copy = scored(release, tmp_path / "copy", 1.0)
    total = int(pl.read_parquet(copy / DATA_PARQUET)["step_scores"].list.len().sum())
    with pytest.raises(ExportError, match=rf"all {total} steps have a score of at least 0, the default") as found:
        made_of(copy, form, tmp_path / "out")
    words = str(found.value).partition("Pass --step-threshold ")[2].split()
    # The threshold that is proposed separates them as the message says.
    proposed = float(words[0].rstrip(","))
    low = sum(score + 1 < proposed for score in range(total))
    assert 0 < low < total
    assert f"which {low / total:.0%} of the scores are below" in str(found.value)
    made = export_release(FolderStorage(tmp_path), "copy", form, tmp_path / "split", threshold=proposed)
    share = f"{total - low} of {total} ({(total - low) / total:.1%}); below: {low} ({low / total:.1%})"
    assert made.notes == [f"steps with a score of at least {proposed:g}: {share}"]
    assert share in (made.folder / "README.md").read_text()
    # What is asked for explicitly is done.
    alike = export_release(FolderStorage(tmp_path), "copy", form, tmp_path / "alike", threshold=0.0)
    assert alike.notes == [f"steps with a score of at least 0: {total} of {total} (100.0%); below: 0 (0.0%)"]


def test_without_step_scores_no_step_can_be_masked(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "copy")
    frame = pl.read_parquet(release / DATA_PARQUET)
    nothing = pl.lit(None, dtype=pl.List(pl.Float64)).alias("step_scores")
    frame.with_columns(nothing).write_parquet(tmp_path / "copy" / DATA_PARQUET)
    resummed(tmp_path / "copy")
    with pytest.raises(ExportError, match="no step of the release has a score, so axolotl would label"):
        made_of(tmp_path / "copy", "axolotl", tmp_path / "out")
    assert loaded(exported(tmp_path / "copy", "axolotl", tmp_path / "out"))
    # Weights of samples are of use without scores of steps.
    assert loaded(exported(tmp_path / "copy", "weights", tmp_path / "weights"))


def test_steps_that_all_score_the_same_have_no_threshold(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "copy")
    frame = pl.read_parquet(release / DATA_PARQUET)
    frame.with_columns(pl.col("step_scores").list.eval(pl.lit(0.5))).write_parquet(tmp_path / "copy" / DATA_PARQUET)
    with pytest.raises(ExportError, match="No threshold separates them"):
        made_of(resummed(tmp_path / "copy"), "stepwise", tmp_path / "out")


def test_a_datasets_folder_holds_every_column(release: Path, tmp_path: Path) -> None:
    folder = exported(release, "datasets", tmp_path / "d")
    # The README names the folder and the split in it.
    assert 'datasets.load_from_disk("FOLDER")["train"]' in (folder / "README.md").read_text()
    found = datasets.load_from_disk(str(folder))["train"]
    assert len(datasets.load_from_disk(str(folder / "train"))) == len(found)
    assert list(found["sample_id"]) == [row["sample_id"] for row in stored(release)]
    assert set(found.column_names) == set(pl.read_parquet_schema(release / DATA_PARQUET))


def test_stepwise_labels_are_scores_against_the_threshold() -> None:
    made = FORMATS["stepwise"].record(sample(), 0.0)
    assert made == {"prompt": "2+3?", "completions": ["Add.", "Sum."], "labels": [True, False], "sample_id": "a1"}
    assert FORMATS["stepwise"].record(sample(), -0.5)["labels"] == [True, True]


def test_low_steps_are_masked_and_answers_are_learned() -> None:
    assert step_parts(sample(), 0.0) == [("Add.", True), ("\nSum.", False), ("\n5", True)]
    assert step_parts(sample(step_scores=None), 9.0) == [("Add.\nSum.\n5", True)]


@given(st.text(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.none() | st.floats(-1, 1)), max_size=8))
def test_parts_join_to_the_response(response: str, marks: list[tuple[int, float | None]]) -> None:
    edges = sorted({min(at, len(response)) for at, _ in marks} | {len(response)})
    spans = [{"start": a, "end": b} for a, b in pairwise(edges)]
    scores = [score for _, score in marks][: len(spans)]
    row = sample(response=response, step_spans=spans, step_scores=scores, answer_span=None)
    parts = step_parts(row, 0.0)
    assert "".join(text for text, _ in parts) == response
    for (text, learned), (_, then) in pairwise(parts):
        assert learned != then
        assert not text[-1:].isspace() or not text.strip()
    for span, score in zip(spans, scores, strict=True):
        position = 0
        for text, learned in parts:
            blank = not response[span["start"] : span["end"]].strip()
            if not blank and position <= span["start"] < position + len(text):
                assert learned == (score is None or score >= 0)
            position += len(text)


def test_tokens_weigh_what_their_sample_and_step_weigh() -> None:
    record = sample(weight=2.0, step_weights=[1.0, 0.0])
    offsets = [(0, 2), (2, 4), (4, 5), (5, 8), (8, 9), (9, 10), (10, 11)]
    assert token_weights(record, offsets) == [2, 2, 2, 0, 0, 2, 2]
    # A token that begins with the space before a step is the step's.
    assert token_weights(record, [(0, 4), (4, 8), (8, 9), (9, 11)]) == [2, 0, 0, 2]
    assert token_weights(record, []) == []


def test_token_weights_are_of_the_tokenizers_tokens(release: Path, tmp_path: Path, tiny_model: Path) -> None:
    for row in loaded(exported(release, "weights", tmp_path / "w", tokenizer=str(tiny_model))):
        assert len(row["token_ids"]) == len(row["token_weights"]) > 0


@pytest.mark.parametrize(
    ("form", "changes", "why"),
    [
        ("alpaca", {"images": ["a.png"]}, "does not support images"),
        ("alpaca", {"messages": [{"role": "user", "content": "a"}] * 4}, "not a conversation"),
        ("stepwise", {"step_scores": None}, "some steps have no score"),
        ("stepwise", {"step_spans": []}, "no steps"),
        ("stepwise", {"images": ["a.png"]}, "does not support images"),
        ("axolotl", {"images": ["a.png"]}, "do not support images"),
        ("sharegpt", {"messages": [{"role": "tool", "content": "a"}] * 2}, "role tool"),
        ("verl", {"answer_span": None}, "no reference answer"),
    ],
)
def test_what_a_form_cannot_hold_has_a_reason(form: str, changes: dict[str, Any], why: str) -> None:
    assert FORMATS[form].cannot(with_truth(sample())[0]) is None
    reason = FORMATS[form].cannot(with_truth(sample(**changes))[0])
    assert reason is not None
    assert why in reason


def with_an_image(release: Path, to: Path) -> Path:
    """A copy of the release whose first row shows an image."""
    (to / "data").mkdir(parents=True)
    (to / "manifest.json").write_bytes((release / "manifest.json").read_bytes())
    frame = pl.read_parquet(release / DATA_PARQUET)
    images = [["images/x"], *[[] for _ in range(len(frame) - 1)]]
    frame.with_columns(pl.Series("images", images, dtype=pl.List(pl.String))).write_parquet(to / DATA_PARQUET)
    (to / "images").mkdir()
    (to / "images" / "x").write_bytes(b"picture")
    return resummed(to)


def resummed(release: Path) -> Path:
    """The same, whose manifest agrees with its data."""
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["files"][DATA_PARQUET]["sha256"] = hashlib.sha256((release / DATA_PARQUET).read_bytes()).hexdigest()
    (release / "manifest.json").write_text(json.dumps(manifest))
    return release


def test_data_that_was_changed_is_written_nowhere(release: Path, tmp_path: Path) -> None:
    copy = with_an_image(release, tmp_path / "copy")
    path = copy / DATA_PARQUET
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"does not match the manifest\. Restore it from a copy"):
        exported(copy, "messages", tmp_path / "out")
    for text in ("{", "[]", '{"files": 3}'):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(ExportError, match=r"cannot be read|Run `curate verify` for all problems"):
            exported(copy, "messages", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_a_form_cannot_hold_are_an_error_or_counted(release: Path, tmp_path: Path) -> None:
    copy = with_an_image(release, tmp_path / "copy")
    with pytest.raises(ExportError, match="1 rows: Alpaca does not support images"):
        exported(copy, "alpaca", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = export_release(FolderStorage(tmp_path), "copy", "alpaca", tmp_path / "out", leave_out=True)
    assert made.left_out == {"Alpaca does not support images": 1}
    assert made.rows == len(loaded(made.folder)) == len(stored(release)) - 1
    assert "skipped 1 rows" in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["images/../secret", "images/../../x", "images//etc/x", "images/..", "images/"])
def test_images_outside_the_release_are_neither_read_nor_written(release: Path, tmp_path: Path, name: str) -> None:
    copy = with_an_image(release, tmp_path / "copy")
    frame = pl.read_parquet(copy / DATA_PARQUET)
    images = [[name], *[[] for _ in range(len(frame) - 1)]]
    frame.with_columns(pl.Series("images", images, dtype=pl.List(pl.String))).write_parquet(copy / DATA_PARQUET)
    resummed(copy)
    (tmp_path / "secret").write_bytes(b"kept")
    (copy / "secret").write_bytes(b"kept")
    with pytest.raises(ExportError, match="tampered"):
        exported(copy, "messages", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_travel_with_the_rows(release: Path, tmp_path: Path) -> None:
    folder = exported(with_an_image(release, tmp_path / "copy"), "messages", tmp_path / "out")
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert (folder / first["images"][0]).read_bytes() == b"picture"


@pytest.mark.parametrize("form", NAMES)
def test_what_is_exported_is_read_back_as_the_same_samples(
    made: Workspace, release: Path, tmp_path: Path, form: str
) -> None:
    folder = exported(release, form, tmp_path / "out")
    if form == "datasets":
        # A folder of Arrow files is no landing file: its users write it as Parquet.
        datasets.load_from_disk(str(folder))["train"].to_parquet(str(tmp_path / "train.parquet"))
        file = tmp_path / "train.parquet"
    else:
        (file,) = (path for path in folder.iterdir() if path.stem == "train")
    rows, columns = stored(release), Columns()
    if form == "verl":
        # One row a prompt, whose response is kept beside what verl reads.
        rows = [row for place, row in enumerate(rows) if row["prompt_id"] not in prompts(rows[:place])]
        columns = Columns(prompt="prompt", response="extra_info.response", answer="reward_model.ground_truth")
    read = read_shard(file, "back", file.name, Corpus(landing="x", columns=columns))
    assert read.rejected.is_empty()
    said = dict(zip(read.accepted["response"], read.accepted["messages"], strict=True))
    assert len(said) == len(rows)
    for row in rows:
        if form == "stepwise":
            # Its completions are the steps, without the text between them and without the answer.
            spans = [row["response"][span["start"] : span["end"]] for span in row["step_spans"]]
            assert "\n".join(spans) in said
        else:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"][:-1]]
            assert json.loads(said[row["response"]]) == turns
    if form == "stepwise":
        assert read.accepted["steps"].list.len().to_list() == [len(row["step_spans"]) for row in rows]


def test_tool_calls_travel_with_the_rows(tmp_path: Path, tiny_model: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
    turns = [
        {"role": "user", "content": "2 + 2?", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    asking = [{"messages": [*turns, {"role": "assistant", "content": row["response"]}]} for row in rows(4)]
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": asking})
    run(workspace)
    release_subset(workspace)
    release = release_folder(workspace)
    assert verify_release(FolderStorage(release.parent), release.name) == []
    prompts = {"messages": "messages", "prompt-completion": "prompt", "weights": "prompt", "verl": "prompt"}
    for form, name in prompts.items():
        held = [without_nulls(row[name]) for row in loaded(exported(release, form, tmp_path / form))]
        assert turns in [prompt[:3] for prompt in held], form
    lines = (release / "data" / "train.jsonl").read_text().splitlines()
    assert turns in [json.loads(line)["messages"][:3] for line in lines]
    # What is read back is the same sample.
    back = make_workspace(tmp_path / "back", tiny_model, {"b.jsonl": [json.loads(line) for line in lines]})
    run(back)
    pooled, before = (set(pool_rows(one)["sample_id"]) for one in (back, workspace))
    assert pooled < before
    with pytest.raises(ExportError, match="ShareGPT has no tool calls"):
        exported(release, "sharegpt", tmp_path / "sharegpt")


def test_other_steps_of_the_same_choice_are_another_release(tmp_path: Path, tiny_model: Path) -> None:
    config = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(12)}, signals=("likelihoods",)).config_file
    config.write_text(config.read_text().replace("engine", BY_ENTROPY, 1))
    made = Workspace.load(config)
    run(made)
    first, new = release_subset(made)
    assert (first.number, new) == (1, True)
    config.write_text(config.read_text().replace("corpus: {", "corpus: {segmentation: words, "))
    again = Workspace.load(config)
    run(again)
    second, new = release_subset(again)
    assert first.manifest["subset_digest"] == second.manifest["subset_digest"]
    assert (second.number, new) == (2, True)
    assert release_subset(again)[1] is False


def test_releases_of_before_have_no_steps(release: Path, tmp_path: Path) -> None:
    copy = with_an_image(release, tmp_path / "copy")
    frame = pl.read_parquet(copy / DATA_PARQUET).drop("step_spans", "step_scores", "answer_span")
    frame.write_parquet(copy / DATA_PARQUET)
    resummed(copy)
    assert len(loaded(exported(copy, "messages", tmp_path / "out"))) == len(frame)
    with pytest.raises(ExportError, match="no steps"):
        exported(copy, "stepwise", tmp_path / "other")


@pytest.mark.parametrize("form", ["sharegpt", "alpaca"])
def test_llama_factory_finds_the_columns(release: Path, tmp_path: Path, form: str) -> None:
    folder = exported(release, form, tmp_path / form)
    entry = json.loads((folder / "dataset_info.json").read_text())["curated"]
    columns = set(loaded(folder)[0])
    assert (folder / entry["file_name"]).exists()
    assert set(entry["columns"].values()) <= columns


def test_the_command_says_what_was_written_and_what_is_wrong(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.console, "width", 200, raising=False)

    def curate(*words: str) -> str:
        return CliRunner().invoke(app, ["export", str(release), *words]).output

    assert "wrote" in curate("--format", "messages", "--to", str(tmp_path / "a"))
    assert "not empty" in curate("--format", "messages", "--to", str(tmp_path / "a"))
    assert "no format" in curate("--format", "mesages", "--to", str(tmp_path / "b"))
    assert "--format weights" in curate("--format", "verl", "--tokenizer", "x", "--to", str(tmp_path / "b"))
    assert "no tokenizer" in curate("--format", "weights", "--tokenizer", str(tmp_path), "--to", str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()
