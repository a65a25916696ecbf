"""Gradients through the pipeline: LESS, TAGCOS, GraNd and EL2N on a run that keeps Adam's moments."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curation_assets.config.config_file import ConfigError
from curation_assets.corpus.ingest import present_shards
from curation_assets.corpus.samples import samples_of
from curation_assets.defs.main_job import MainJob
from curation_assets.methods.less import mean_direction
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.candidates import tie_rank
from curation_assets.methods.selectors.tagcos import tagcos
from curation_assets.methods.selectors.tasks import by_tasks
from curation_assets.operations.gc import find_unused
from curation_assets.operations.plan import make_plan
from curation_assets.signals.measure import read_shard_samples
from curation_assets.signals.warmup import trajectory_weights, warmup_checkpoint
from curation_assets.subsets.select import features_of
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.devices import make_pass
from curation_resources.scoring.gradient_spec import OPTIMIZER
from curation_resources.scoring.samples import Request
from curation_resources.scoring.spec import PassSpec
from curation_resources.training.files import TRAINED_ON
from curation_resources.training.trainer import step_folder
from tests.pipeline.workspaces import (
    instance_of,
    make_workspace,
    rows,
    run,
    sample_scores,
    signal_rows,
    subset_ids,
    write_shard,
)

WARMUP = (
    "{{preset: less, adapter: {adapter}, fraction: 0.5, min_pool: 4, batch_size: 4, epochs: 2, save_every: epoch, "
    "lora_rank: 4, lora_alpha: 8, learning_rate: 0.001}}, gradients: {{projection: 6, dimension: 300}}"
)
SCORES = """\
validation:
  - {name: words, path: held_out.jsonl}
  - {name: others, path: other.jsonl}
scores:
  - {name: less, target: tiny, method: less, validation: [words, others]}
  - {name: cover, target: tiny, method: tagcos}
  - {name: norm, target: tiny, method: grand}
subsets:
  - {name: near, score: less, budget: {samples: 5}}
  - {name: voted, score: less, budget: {samples: 5}, selector: tasks}
  - {name: spread, score: cover, budget: {samples: 6}, selector: {kind: tagcos, clusters: 2}}
  - {name: loud, score: norm, budget: {samples: 4}}
engine"""


def workspace_of(folder: Path, model: Path, adapter: str) -> Workspace:
    signals = ("adam_feature_trajectories", "gradient_norms", "gradient_features")
    made = make_workspace(
        folder,
        model,
        {"a.jsonl": rows(9), "b.jsonl": [*rows(6, start=40), {"prompt": "", "response": "?"}]},
        warmup=WARMUP.format(adapter=adapter),
        signals=signals,
    )
    made.config_file.write_text(made.config_file.read_text().replace("engine", SCORES, 1))
    # One of them is in the pool too.
    write_shard(folder / "held_out.jsonl", rows(4, start=70))
    write_shard(folder / "other.jsonl", [*rows(3, start=80), *rows(1)])
    return Workspace.load(made.config_file)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_less_tagcos_and_grand(tmp_path: Path, tiny_model: Path, adapter: str) -> None:
    workspace = workspace_of(tmp_path, tiny_model, adapter)
    summary = run(workspace)
    target = workspace.settings.target("tiny")
    checkpoint = warmup_checkpoint(workspace, target)
    assert checkpoint is not None
    folder = workspace.warehouse.local(checkpoint.folder)
    steps = checkpoint.record["checkpoints"]
    assert len(steps) == 2
    assert all((step_folder(folder, step) / OPTIMIZER).is_file() for step in steps)
    rates = checkpoint.record["learning_rates"]
    half = len(rates) // 2
    means = np.array([np.mean(rates[:half]), np.mean(rates[half:])])
    assert trajectory_weights(checkpoint.record) == pytest.approx(means / means.sum())
    stored = signal_rows(workspace, "adam_feature_trajectories")
    # What is stored is what a pass at each checkpoint gives.
    features = {row["sample_id"]: row for row in stored.iter_rows(named=True)}
    shard = read_shard_samples(workspace, present_shards(workspace)[0], segmented=False)
    samples = samples_of(workspace, shard.rows.head(3), None)
    spec = target.gradients.spec()
    for number, step in enumerate(steps):
        own = step_folder(folder, step)
        at = PassSpec(tiny_model, own) if adapter == "lora" else PassSpec(own)
        for result in make_pass(at, "cpu").measure(samples, Request(adam_features=spec, with_eos=True)):
            row = features[result.sample_id]
            assert result.adam_features is not None
            off = np.abs(np.array(row["features"][number]) - result.adam_features.values.astype(int))
            assert off.max() <= 1
            assert row["scales"][number] == pytest.approx(result.adam_features.scale, rel=1e-4)
            assert row["weights"] == pytest.approx(trajectory_weights(checkpoint.record))
    scores = sample_scores(workspace)
    assert scores["less"].is_not_null().sum() == scores["norm"].is_not_null().sum() == len(stored)
    norms = dict(signal_rows(workspace, "gradient_norms").select("sample_id", "gradient_norm").iter_rows())
    best = sorted(norms, key=lambda sample_id: (-norms[sample_id], sample_id))[:4]
    assert set(subset_ids(workspace, "loud")) == set(best)
    expected = stored["sample_id"].gather(tagcos(mean_direction(stored), stored["sample_id"], 6, 2, 0))
    assert set(subset_ids(workspace, "spread")) == set(expected)
    influence = features_of(workspace, workspace.settings.score("less"))
    assert influence is not None
    assert influence.influence is not None
    tasks = influence.influence(stored["sample_id"])
    less = dict(scores.select("sample_id", "less").iter_rows())
    assert tasks.max(axis=1) == pytest.approx([less[name] for name in stored["sample_id"]])
    voted = by_tasks(tasks, 5, tie_rank(stored["sample_id"]), "vote")[:5]
    assert subset_ids(workspace, "voted") == stored["sample_id"].gather(voted).to_list()
    # The gradients of the pool at the checkpoints are nobody's: only those of the validation sets are measured.
    held_out = signal_rows(workspace, "gradient_feature_trajectories")
    assert len(held_out) == 8
    assert len(set(held_out["sample_id"]) & set(stored["sample_id"])) == 1
    assert summary.tokens_measured > 0
    assert run(workspace).tokens_measured == 0
    assert [find.what for find in find_unused(workspace, 0.0) if find.remove] == []
    _keeps_what_a_release_rests_on(workspace)


def _keeps_what_a_release_rests_on(workspace: Workspace) -> None:
    """A release by LESS, whose score has left the configuration, keeps its validation sets and their features."""
    MainJob(workspace, instance_of(workspace)).release(workspace.settings.subset("near"))
    text = workspace.config_file.read_text()
    gone = ("validation:", "name: words", "name: others", "name: less", "name: near", "name: voted")
    lines = [line for line in text.splitlines() if not any(word in line for word in gone)]
    workspace.config_file.write_text("\n".join(lines) + "\n")
    removed = [find.what for find in find_unused(Workspace.load(workspace.config_file), 0.0) if find.remove]
    assert [what for what in removed if "trajectories" in what or "validation" in what] == []


def test_a_plan_counts_every_way_back(tmp_path: Path, tiny_model: Path) -> None:
    workspace = workspace_of(tmp_path, tiny_model, "lora")
    (planned,) = make_plan(workspace, probe=False).targets
    (probed,) = make_plan(workspace, probe=True).targets
    summary = run(workspace)
    assert planned.tokens == summary.tokens_measured
    pool, held_out = len(signal_rows(workspace, "gradient_norms")), planned.held_out
    # Two checkpoints for each, and for the pool the norms and features at the last one.
    assert held_out == 8
    assert planned.passes[0].cost == pytest.approx(3 * (2 * (pool + held_out) + pool))
    alone = planned.signals[-1]
    assert (alone.signal, alone.measured, alone.to_measure) == ("gradient_feature_trajectories", 0, 8)
    # Before the run there is no checkpoint to probe at: the base model stands for it.
    assert probed.probe is not None
    assert probed.probe.base
    assert probed.probe.samples > 8
    (after,) = make_plan(workspace, probe=False).targets
    assert (after.signals[-1].measured, after.signals[-1].to_measure) == (8, 0)
    # Of a run with a checkpoint at the end of each epoch all sizes are known.
    costs = {score.score: [score.checkpoint, score.scoring] for score in planned.scores}
    assert costs["less"] == costs["cover"] == [Fraction(3 * 8 * 2), Fraction(3 * 2 * pool)]
    assert costs["norm"] == [None, None]


IN_RUN = """\
validation:
  - {name: words, path: held_out.jsonl}
  - {name: others, path: other.jsonl}
scores:
  - {name: helped, target: tiny, method: in_run}
subsets:
  - {name: best, score: helped, budget: {samples: 4}}
engine"""


def test_in_run_influence_is_what_the_run_told_of_the_whole_pool(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(
        tmp_path,
        tiny_model,
        {"a.jsonl": rows(9), "b.jsonl": [*rows(3, start=40), {"prompt": "How?", "response": " "}]},
        warmup="{fraction: 1.0, min_pool: 4, batch_size: 4, lora_rank: 2}",
        signals=("likelihoods",),
    )
    text = made.config_file.read_text().replace("lora_rank: 2", "lora_rank: 2, influence: [words, others]")
    text = text.replace("signals: [", "signals: [in_run_influence, ").replace("engine", IN_RUN, 1)
    made.config_file.write_text(text)
    write_shard(tmp_path / "held_out.jsonl", rows(4, start=70))
    write_shard(tmp_path / "other.jsonl", rows(3, start=80))
    workspace = Workspace.load(made.config_file)
    (planned,) = make_plan(workspace, probe=True).targets
    assert planned.probe is not None
    assert planned.probe.base
    assert "in_run_influence" not in planned.probe.row_bytes
    summary = run(workspace)
    assert planned.tokens == summary.tokens_measured
    stored = signal_rows(workspace, "in_run_influence")
    checkpoint = warmup_checkpoint(workspace, workspace.settings.target("tiny"))
    assert checkpoint is not None
    told = pl.read_parquet(workspace.warehouse.local(checkpoint.folder) / TRAINED_ON)
    expected = dict(told.select("sample_id", "influence").iter_rows())
    assert len(expected) == 12
    for row in stored.iter_rows(named=True):
        assert row["influence"] == expected.get(row["sample_id"])
        assert (row["response_tokens"] > 0) == (row["influence"] is not None)
    order = sorted(expected, key=lambda sample_id: (-max(expected[sample_id]), sample_id))
    assert set(subset_ids(workspace)) == set(order[:4])
    assert (
        method_of(workspace.settings.score("helped")).unfaithful(
            workspace.settings.target("tiny").facts(), workspace.settings.score("helped")
        )
        == []
    )
    # Another validation set is another run.
    write_shard(tmp_path / "other.jsonl", rows(3, start=90))
    # It comes to the same weights, so that no likelihood is measured again.
    assert run(Workspace.load(made.config_file)).tokens_measured == 0
    again = signal_rows(Workspace.load(made.config_file), "in_run_influence")
    first, second = ([own[0] for own in frame.drop_nulls("influence")["influence"]] for frame in (stored, again))
    assert second == pytest.approx(first, rel=1e-6)
    assert again["influence"].to_list() != stored["influence"].to_list()


def test_graces_ablation_with_gradients_of_what_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(
        tmp_path,
        tiny_model,
        {"a.jsonl": [*rows(6), {"prompt": "?", "response": "no steps and no answer"}]},
        warmup="{fraction: 0.5, min_pool: 4, batch_size: 4, lora_rank: 2}, proxy: projected",
    )
    (planned,) = make_plan(workspace, probe=False).targets
    summary = run(workspace)
    assert planned.tokens == summary.tokens_measured
    stored = signal_rows(workspace, "step_gradients").drop_nulls("gram")
    assert len(stored) == 6
    steps = (stored["n_steps"] + 1).to_numpy()
    assert planned.passes[0].cost == pytest.approx(3 * steps.sum())
    for row in stored.iter_rows(named=True):
        assert len(row["norms"]) == row["n_steps"] + 1
        assert row["gram"][0] == pytest.approx(row["norms"][0] ** 2, rel=1e-4)
    assert sample_scores(workspace)["grace"].is_not_null().sum() == 6
    # Other projections measure anew.
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace("proxy: projected", "proxy: projected, gradients: {projection: 8}"))
    assert run(Workspace.load(workspace.config_file)).tokens_measured == summary.tokens_measured


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ("{projection: 100}", "does not fit into a dimension of 8192. Raise the dimension to 10000"),
        ("{weights: layers}", "directions of the weights that the target's run trains, which is an adapter"),
        ("{weights: adapter}", None),
    ],
)
def test_gradients_that_cannot_be_had_are_refused(
    tmp_path: Path, tiny_model: Path, gradients: str, message: str | None
) -> None:
    made = workspace_of(tmp_path, tiny_model, "lora")
    text = made.config_file.read_text()
    made.config_file.write_text(text.replace("{projection: 6, dimension: 300}", gradients))
    if message is None:
        Workspace.load(made.config_file)
        return
    with pytest.raises(ConfigError, match=message):
        Workspace.load(made.config_file)
