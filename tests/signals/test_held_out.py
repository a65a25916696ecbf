"""Validation sets: read, measured at the target, compared with, reported where they overlap, followed when changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation_assets.config.config_file import ConfigError
from curation_assets.config.settings import Target
from curation_assets.corpus.held_out import overlap_with_pool
from curation_assets.defs.dry_run import dry_run
from curation_assets.defs.main_job import MainJob
from curation_assets.defs.sensors import scoring_requests
from curation_assets.defs.validation import validation_set_key, validation_signals_key
from curation_assets.methods.vectors import matrix
from curation_assets.operations.share import Share, measure_share
from curation_assets.signals.held_out import sets_due, validation_vectors
from curation_assets.signals.store import MeasuringError, signal_dir
from curation_assets.subsets.select import SelectionError
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.subsets.what_if import changed, what_if
from curation_assets.workspace.held_out_files import ValidationSetError
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run

CONFIG = """\
validation:
  - {name: held_out, path: ./held_out.jsonl}
scores:
  - {name: near, target: tiny, method: rds, validation: held_out}
  - {name: near_plus, target: tiny, method: rds_plus, validation: held_out}
  - {name: covering, target: tiny, method: k_center}
subsets:
  - {name: nearest, score: near, budget: {samples: 4}}
  - {name: robin, score: near_plus, budget: {samples: 4}}
  - {name: cover, score: covering, budget: {samples: 4}}
"""
SIGNALS = ("embeddings_last", "embeddings_position_weighted", "embeddings_mean")


def write_rows(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def configured(folder: Path, tiny_model: Path) -> Workspace:
    made = make_workspace(folder, tiny_model, {"a.jsonl": rows(9), "b.jsonl": rows(5, 9)}, signals=SIGNALS)
    made.config_file.write_text(made.config_file.read_text().replace("engine:", CONFIG + "engine:"))
    write_rows(folder / "held_out.jsonl", rows(3, start=100))
    return Workspace.load(made.config_file)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    made = configured(tmp_path_factory.mktemp("validation"), tiny_model)
    run(made)
    return made


def vectors_of(workspace: Workspace, signal: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids and embeddings of the pool, and embeddings of the set, all as they are stored."""
    stored = read_stored(workspace, signal).collect()
    held = workspace.warehouse.read_table("validation/held_out.parquet")["sample_id"].to_list()
    by_id = dict(zip(stored["sample_id"], matrix(stored["vector"]).astype(np.float64), strict=True))
    ids = sorted(set(by_id) - set(held))
    return ids, np.stack([by_id[i] for i in ids]), np.stack([by_id[i] for i in held if i in by_id] or [np.zeros(0)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def chosen(workspace: Workspace, subset: str) -> list[str]:
    return read_stored(workspace, "subset", subset=subset).collect()["sample_id"].to_list()


def test_rds_takes_the_most_similar(workspace: Workspace) -> None:
    ids, pool, held = vectors_of(workspace, "embeddings_last")
    best = {i: max(cosine(mine, other) for other in held) for i, mine in zip(ids, pool, strict=True)}
    scores = dict(read_stored(workspace, "sample_scores").select("sample_id", "near").collect().iter_rows())
    assert scores == {i: pytest.approx(value, abs=1e-5) for i, value in best.items()}
    assert chosen(workspace, "nearest") == sorted(ids, key=lambda i: (-scores[i], i))[:4]


def test_rds_plus_goes_round_the_validation_samples(workspace: Workspace) -> None:
    ids, pool, held = vectors_of(workspace, "embeddings_position_weighted")
    left = dict(zip(ids, pool, strict=True))
    order: list[str] = []
    while len(order) < 4:
        for other in held:
            if len(order) < 4:
                order.append(min(left, key=lambda i: (-cosine(left[i], other), i)))
                del left[order[-1]]
    assert chosen(workspace, "robin") == order


def test_k_center_takes_the_farthest(workspace: Workspace) -> None:
    ids, pool, _ = vectors_of(workspace, "embeddings_mean")
    order = [ids.index(chosen(workspace, "cover")[0])]
    while len(order) < 4:
        distances = [min(np.linalg.norm(pool[i] - pool[j]) for j in order) for i in range(len(ids))]
        order.append(int(np.argmax(distances)))
    assert chosen(workspace, "cover") == [ids[i] for i in order]


def test_a_what_if_compares_with_the_same_set(workspace: Workspace) -> None:
    assert what_if(workspace, "robin").difference()["overlap_jaccard"] == 1.0
    assert what_if(workspace, "nearest", ["reduce=mean"]).rows["score"].is_sorted(descending=True)
    assert len(what_if(workspace, "cover", [], "100%").rows) == 14


def test_a_set_that_is_not_measured_is_refused_with_the_mend(workspace: Workspace) -> None:
    with pytest.raises(SelectionError, match="validation: there is no validation set 'dev'; sets are held_out"):
        what_if(workspace, "nearest", ["validation=dev"])
    only = workspace.settings.model_copy(
        update={"scores": workspace.settings.scores[:1], "subsets": workspace.settings.subsets[:1]}
    )
    with pytest.raises(SelectionError, match=r"^no score of target 'tiny' measures .* method: rds_plus"):
        changed(only, "nearest", ["method=rds_plus", "validation=held_out"], None)
    with pytest.raises(SelectionError, match="selector: round_robin needs validation samples, which method k_cen"):
        what_if(workspace, "cover", ["selector.kind=round_robin"])


def test_a_mended_set_and_one_that_went_back_and_forth_are_asked_for(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    instance, path = instance_of(made), tmp_path / "held_out.jsonl"
    first, other = path.read_text(), json.dumps(rows(1, start=300)[0]) + "\n"
    keys = []
    for text in ("{}\n", other, first, other):
        path.write_text(text)
        ((request,), _) = scoring_requests(made, instance, 0.0)
        assert request.tags["curation/stage"] == "validation"
        keys.append(request.run_key)
        if text != "{}\n":
            run(made)
    assert len(set(keys)) == 4


def test_a_part_that_is_lost_is_measured_again(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    target = made.settings.target("tiny")
    before = validation_vectors(made, target, made.settings.score("near"))["held_out"]
    record = made.warehouse.read_json(f"{signal_dir(made, target, 'embeddings_last')}/validation/held_out.json")
    (part,) = record["parts"]
    made.warehouse.local(f"{signal_dir(made, target, 'embeddings_last')}/{part}.parquet").unlink()
    with pytest.raises(MeasuringError, match=r"embeddings_last .* for only 0 of 3 samples of validation set held_out"):
        validation_vectors(made, target, made.settings.score("near"))
    assert sets_due(made, target) == ["held_out"]
    assert run(made).tokens_measured > 0
    np.testing.assert_allclose(validation_vectors(made, target, made.settings.score("near"))["held_out"], before)


def test_another_set_leaves_the_first_ones_record(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    path = made.warehouse.local(
        f"{signal_dir(made, made.settings.target('tiny'), 'embeddings_last')}/validation/held_out.json"
    )
    record = path.read_bytes()
    write_rows(tmp_path / "more.jsonl", rows(2, start=400))
    text = made.config_file.read_text().replace(
        "./held_out.jsonl}", "./held_out.jsonl}\n  - {name: more, path: ./more.jsonl}"
    )
    made.config_file.write_text(text.replace("method: rds, validation: held_out", "method: rds, validation: more"))
    run(Workspace.load(made.config_file))
    made.config_file.write_text(text)
    run(Workspace.load(made.config_file))
    assert path.read_bytes() == record


def test_prompts_of_the_set_in_the_pool_are_counted_with_every_subset(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    assert run(made)
    assert what_if(made, "nearest").selection.facts()["prompts_in_validation_sets"] == 0
    write_rows(tmp_path / "landing" / "c.jsonl", rows(2, start=101))
    run(made)
    assert what_if(made, "nearest").selection.facts()["prompts_in_validation_sets"] == 2
    assert "prompts_in_validation_sets" not in what_if(made, "cover").selection.facts()


def test_strata_are_covered_each_by_itself(workspace: Workspace) -> None:
    ids, pool, _ = vectors_of(workspace, "embeddings_mean")
    facts = read_stored(workspace, "sample_scores").select("sample_id", "source").collect()
    source = dict(facts.iter_rows())
    rows_ = what_if(workspace, "cover", ["stratify=[source]"], "50%").rows
    chosen_ = rows_["sample_id"].to_list()
    assert sorted(source[i] for i in chosen_) == sorted(source[i] for i in ids)[::2]
    for name in set(source.values()):
        own = [i for i in ids if source[i] == name]
        picked = [i for i in chosen_ if source[i] == name]
        order = [own.index(picked[0])]
        vectors = {i: pool[ids.index(i)] for i in own}
        while len(order) < len(picked):
            distances = [min(np.linalg.norm(vectors[i] - vectors[own[j]]) for j in order) for i in own]
            order.append(int(np.argmax(distances)))
        assert picked == [own[i] for i in order]


def test_a_second_run_does_nothing(workspace: Workspace) -> None:
    summary = run(workspace)
    assert (summary.tokens_measured, summary.scored, summary.subsets) == (0, {"tiny": 0}, [])


def test_sets_are_measured_before_shares_and_the_last_run_needs_no_device(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    summary = MainJob(made, instance_of(made)).run("checkpoints")
    assert summary.tokens_measured > 0
    assert sets_due(made, made.settings.targets[0]) == []
    assert [done.measured for number in (1, 2) for done in measure_share(made, Share(number, 2))] != [0, 0]
    summary = run(made)
    assert (summary.tokens_measured, sorted(summary.subsets)) == (0, ["cover", "nearest", "robin"])


def test_a_changed_set_is_read_measured_and_followed(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    before = read_stored(made, "sample_scores").collect()["near"].to_list()
    write_rows(tmp_path / "held_out.jsonl", rows(2, start=200))
    assert sets_due(made, made.settings.target("tiny")) == ["held_out"]
    summary = run(made)
    assert summary.scored == {"tiny": 2}
    assert read_stored(made, "sample_scores").collect()["near"].to_list() != before


def test_an_overlap_with_the_pool_is_reported(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    same_prompt = [{"prompt": rows(1)[0]["prompt"], "response": "Step 1: guess.\nAnswer: 7"}]
    write_rows(tmp_path / "held_out.jsonl", rows(2, start=3) + same_prompt)
    run(made)
    assert overlap_with_pool(made, "held_out") == {"samples_in_pool": 2, "prompts_in_pool": 3}
    event = instance_of(made).get_latest_materialization_event(validation_set_key("held_out"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["prompts_in_pool"].value == 3


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (None, "not found. Correct its path in"),
        ([], r"has no usable sample \(empty_file\)"),
        ([{"colour": "red"}], r"has no usable sample \(unknown_format\)"),
    ],
)
def test_a_set_that_cannot_be_used_is_an_error_that_names_it(
    tmp_path: Path, tiny_model: Path, records: list[dict[str, Any]] | None, message: str
) -> None:
    made = configured(tmp_path, tiny_model)
    path = tmp_path / "held_out.jsonl"
    path.unlink() if records is None else write_rows(path, records)
    with pytest.raises(ValidationSetError, match=message):
        run(made)


def test_a_dry_run_finds_the_sets_and_benchmarks(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": "What has never been asked of anyone before?"}))
    filters = "landing: ./landing, filters: {contamination: [./bench.jsonl]}"
    text = made.config_file.read_text().replace("landing: ./landing", filters)
    made.config_file.write_text(text)
    with dry_run(Workspace.load(made.config_file), 6) as look:
        assert len(read_stored(look.workspace, "subset", subset="nearest").collect()) == 4


def test_a_set_that_is_gone_stops_no_sensor(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    run(made)
    (tmp_path / "held_out.jsonl").unlink()
    requests, reasons = scoring_requests(made, instance_of(made), 0.0)
    assert requests == []
    assert "not found. Correct its path in" in reasons[0]


def test_an_unknown_set_is_refused_with_those_there_are(tmp_path: Path, tiny_model: Path) -> None:
    made = configured(tmp_path, tiny_model)
    text = made.config_file.read_text().replace("method: rds, validation: held_out", "method: rds, validation: none")
    made.config_file.write_text(text)
    with pytest.raises(ConfigError, match=r"scores.0.validation: there is no validation set 'none'; sets are held_out"):
        Workspace.load(made.config_file)


def test_only_targets_that_look_at_sets_measure_them(workspace: Workspace) -> None:
    other = Target(name="other", model="m")
    assert validation_signals_key(other).path == ["other", "validation_signals"]
    assert sets_due(workspace, other) == []
