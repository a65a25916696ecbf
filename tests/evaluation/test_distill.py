"""Self-distillation: a checkpoint answers the pool's prompts, and its responses are rows like any others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.config.settings import Filters
from curation_assets.defs.main_job import MainJob
from curation_assets.evaluation import distilled as responses
from curation_assets.evaluation.distilled import (
    DistillationError,
    GenerationRequest,
    distill,
    generator_of,
    record_path,
)
from curation_assets.subsets.eligibility import passes
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.generation import Generator
from curation_resources.scoring.spec import Sampling
from tests.models import write_tiny_model
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run, use_bucket, write_shard

WARMUP = "{fraction: 0.5, min_pool: 4, batch_size: 4}"
REQUEST = GenerationRequest(responses=3, sampling=Sampling(temperature=1.5, seed=2), max_new_tokens=12)


@pytest.fixture(scope="module")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that ends most of its answers soon."""
    folder = write_tiny_model(tmp_path_factory.mktemp("ending"), seed=5)
    GenerationConfig(eos_token_id=[0, *range(2, 258, 12)]).save_pretrained(folder)
    return folder


def measured(folder: Path, model: Path, warmup: str = WARMUP) -> Workspace:
    workspace = make_workspace(folder, model, {"a.jsonl": rows(9)}, warmup=warmup)
    run(workspace)
    return workspace


def written(workspace: Workspace, generator: str) -> list[dict[str, Any]]:
    files = sorted((workspace.folder / "landing").glob(f"distilled-{generator}-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_responses_land_run_through_and_are_asked_for_once(tmp_path: Path, ending_model: Path) -> None:
    workspace = measured(tmp_path, ending_model)
    target = workspace.settings.target("tiny")
    done = distill(workspace, target, REQUEST)
    assert (done.asked, done.before) == (9, 0)
    assert done.written + sum(done.left_out.values()) == 27
    texts = [
        (row["messages"][0]["content"], row["messages"][-1]["content"]) for row in written(workspace, done.generator)
    ]
    assert len(set(texts)) == done.written
    assert 0 < done.left_out["not_finished"] < 27
    assert len(written(workspace, done.generator)) == done.written
    # They are samples of the prompts that were asked, told apart by their generator.
    before = read_stored(workspace, "raw_corpus").collect()
    run(workspace)
    after = read_stored(workspace, "raw_corpus").collect()
    new = after.filter(after["generator"] == done.generator)
    assert len(new) == done.written
    assert set(new["prompt_id"]) <= set(before["prompt_id"])
    assert set(new["source"]) <= set(before["source"])
    record = workspace.warehouse.read_json(record_path(done.generator))
    assert (record["target"], record["temperature"], len(record["files"])) == ("tiny", 1.5, 1)
    # Nothing is asked twice, a new prompt alone is.
    again = distill(workspace, target, REQUEST)
    assert (again.asked, again.files) == (0, [done.place])
    write_shard(workspace.folder / "landing" / "b.jsonl", rows(2, start=70))
    run(workspace)
    more = distill(workspace, target, REQUEST)
    assert (more.asked, more.before, more.generator) == (2, 9, done.generator)
    assert more.place != done.place


def test_answers_are_those_of_the_checkpoint_and_depend_on_nothing_else(
    tmp_path: Path, ending_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = measured(tmp_path, ending_model)
    target = workspace.settings.target("tiny")
    done = distill(workspace, target, REQUEST, str(tmp_path / "once"))
    first = Path(done.place).read_bytes()
    # In other pieces.
    monkeypatch.setattr(responses, "PIECE", 2)
    again = distill(workspace, target, REQUEST, str(tmp_path / "again"), anew=True)
    assert Path(again.place).read_bytes() == first
    # Whose checkpoint, and how it was asked, makes another generator.
    base = Workspace.load(make_workspace(tmp_path / "base", ending_model, {"a.jsonl": rows(9)}).config_file)
    run(base)
    untrained = distill(base, base.settings.target("tiny"), REQUEST)
    assert untrained.generator != done.generator
    assert written(base, untrained.generator) != [json.loads(line) for line in first.splitlines()]
    assert generator_of(workspace, target, replace(REQUEST, max_new_tokens=13)) != done.generator


def test_more_responses_are_those_that_are_missing(tmp_path: Path, ending_model: Path) -> None:
    workspace = measured(tmp_path, ending_model, "none")
    target = workspace.settings.target("tiny")
    whole = distill(workspace, target, replace(REQUEST, responses=5), str(tmp_path / "whole"))
    expected = Path(whole.place).read_text().splitlines()
    two = distill(workspace, target, replace(REQUEST, responses=2), str(tmp_path / "parts"), anew=True)
    five = distill(workspace, target, replace(REQUEST, responses=5), str(tmp_path / "parts"))
    assert two.generator == five.generator == whole.generator
    assert (two.asked, five.asked) == (9, 9)
    lines = [line for one in (two, five) for line in Path(one.place).read_text().splitlines()]
    # Each once: what came twice was left out of the later file, unless the earlier one has not been read yet.
    assert set(lines) == set(expected)


def test_what_the_corpus_holds_is_left_out(tmp_path: Path, ending_model: Path) -> None:
    workspace = measured(tmp_path, ending_model, "none")
    target = workspace.settings.target("tiny")
    first = distill(workspace, target, REQUEST)
    run(workspace)
    again = distill(workspace, target, REQUEST, str(tmp_path / "again"), anew=True)
    assert (again.written, again.place, again.files) == (0, "", [first.place])
    assert not (tmp_path / "again").exists()
    assert again.left_out["already_there"] == first.written + first.left_out.get("already_there", 0)
    pool = read_stored(workspace, "raw_corpus").collect()
    others = pool.filter(passes(Filters(exclude_generators=[first.generator])))
    assert len(others) == 9
    assert len(pool.filter(passes(Filters(generators=[first.generator])))) == len(pool) - 9


def test_a_killed_call_goes_on_after_its_last_piece(
    tmp_path: Path, ending_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = measured(tmp_path, ending_model)
    target = workspace.settings.target("tiny")
    whole = distill(workspace, target, REQUEST, str(tmp_path / "whole"))
    workspace.warehouse.write_json(record_path(whole.generator), {})
    monkeypatch.setattr(responses, "PIECE", 2)
    generate = Generator.generate
    calls: list[int] = []

    def stopping(self: Generator, prompts: Any, *rest: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, prompts, *rest)

    monkeypatch.setattr(Generator, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        distill(workspace, target, REQUEST, str(tmp_path / "cut"))
    assert not list(tmp_path.glob("cut/*"))
    cut = distill(workspace, target, REQUEST, str(tmp_path / "cut"))
    # Two pieces of six answers were kept; nine prompts make five pieces.
    assert calls == [6, 6, 6, 6, 6, 3]
    assert Path(cut.place).read_bytes() == Path(whole.place).read_bytes()
    assert not workspace.work_folder(f"distill-{cut.generator}").exists()


def test_some_prompts_are_a_draw(tmp_path: Path, ending_model: Path) -> None:
    workspace = measured(tmp_path, ending_model, "none")
    target = workspace.settings.target("tiny")
    some = distill(workspace, target, GenerationRequest(sampling=Sampling(seed=2), prompts=4))
    assert some.asked == 4
    # The draw of four is part of the draw of six.
    more = distill(workspace, target, GenerationRequest(sampling=Sampling(seed=2), prompts=6))
    assert (more.asked, more.before) == (2, 4)


def test_what_cannot_be_done_is_said_with_the_mend(tmp_path: Path, ending_model: Path) -> None:
    untrained = make_workspace(tmp_path / "new", ending_model, {"a.jsonl": rows(9)}, warmup=WARMUP)
    with pytest.raises(DistillationError, match="Use `curate run` before `curate distill`"):
        distill(untrained, untrained.settings.target("tiny"), REQUEST)
    workspace = measured(tmp_path / "mapped", ending_model, "none")
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace("landing: ", "columns: {prompt: prompt}, landing: ", 1))
    mapped = Workspace.load(workspace.config_file)
    with pytest.raises(DistillationError, match="write them elsewhere"):
        distill(mapped, mapped.settings.target("tiny"), REQUEST)
    assert distill(mapped, mapped.settings.target("tiny"), REQUEST, str(tmp_path / "elsewhere")).written


def test_the_command(tmp_path: Path, ending_model: Path) -> None:
    workspace = measured(tmp_path, ending_model)
    asking = ["distill", "--responses", "2", "--max-new-tokens", "12", "--config", str(workspace.config_file)]
    first = CliRunner().invoke(app, asking)
    assert first.exit_code == 0, first.output
    assert "9 prompts answered" in first.output
    assert "next: curate run" in first.output
    assert "all 9 prompts were answered before" in CliRunner().invoke(app, asking).output
    for words, said in (
        (["nobody"], "there is no target 'nobody'"),
        (["--temperature", "0"], "Set a positive one"),
        (["--top-p", "2"], "Set one above 0 and at most 1"),
    ):
        refused = CliRunner().invoke(app, [*asking, *words])
        assert refused.exit_code == 1
        assert said in refused.output


def test_responses_land_in_a_bucket_where_the_landing_area_is_one(
    tmp_path: Path, ending_model: Path, bucket: str
) -> None:
    use_bucket(bucket)
    try:
        workspace = make_workspace(tmp_path, ending_model, {"a.jsonl": rows(5)})
    finally:
        use_bucket(None)
    run(workspace)
    done = distill(workspace, workspace.settings.target("tiny"), REQUEST)
    assert done.place.startswith(f"{bucket}/")
    assert done.written
    # Not `run`, which has the bucket hold what the test's folder does.
    MainJob(workspace, instance_of(workspace)).run()
    after = read_stored(workspace, "raw_corpus").collect()
    assert len(after.filter(after["generator"] == done.generator)) == done.written
