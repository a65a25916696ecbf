"""TEMP from files to a subset: endpoint, strength of the random perturbation, losses, choice; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from curation_assets.config.settings import Settings
from curation_assets.defs.main_job import MainJob
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.temp import losses_of, temp
from curation_assets.operations.gc import find_unused
from curation_assets.operations.plan import make_plan
from curation_assets.operations.transfer import export_measurements, import_measurements
from curation_assets.signals.warmup import warmup_checkpoint
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.fingerprints import sigma_of, sigma_path, signal_fingerprint
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.perturbed import make_perturbed_pass
from curation_resources.scoring.samples import PerturbedRequest, Sample, Segment
from curation_resources.scoring.spec import PassSpec, PerturbedSpec
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

SHARDS = {"a.jsonl": rows(14), "b.jsonl": rows(12, start=40)}
WARMUP = "{preset: temp, fraction: 0.5, min_pool: 4, batch_size: 4, epochs: 4, learning_rate: 0.01}"
PERTURBATION = "{probe_samples: 12, largest_radius: 2.0}"
SCORES = """\
scores:
  - {name: early, target: tiny, method: temp}
subsets:
  - {name: best, score: early, budget: {samples: 9}}
engine"""


def of_temp(folder: Path, model: Path, perturbation: str = PERTURBATION, warmup: str = WARMUP) -> Workspace:
    made = make_workspace(folder, model, SHARDS, warmup=warmup, signals=("likelihoods",))
    text = made.config_file.read_text().replace("engine", SCORES, 1)
    signals = f"perturbation: {perturbation}, signals: [perturbed_losses, likelihoods]"
    made.config_file.write_text(text.replace("signals: [likelihoods]", signals, 1))
    return Workspace.load(made.config_file)


def samples(workspace: Workspace) -> list[Sample]:
    """All samples with their segments, taken from the tables by hand."""
    spans: dict[str, list[Segment]] = {}
    steps = read_stored(workspace, "segmented_steps").collect()
    for sample_id, index, start, end in steps.select("sample_id", "step_index", "start", "end").iter_rows():
        spans.setdefault(sample_id, []).append(Segment(index, start, end))
    corpus = read_stored(workspace, "raw_corpus").collect()
    return [
        Sample(sample_id, json.loads(messages), response, tuple(spans[sample_id]))
        for sample_id, messages, response in corpus.select("sample_id", "messages", "response").iter_rows()
    ]


def test_losses_are_those_of_the_perturbed_checkpoints_and_temp_chooses_by_them(
    tmp_path: Path, tiny_model: Path
) -> None:
    workspace = of_temp(tmp_path, tiny_model)
    summary = run(workspace)
    target = workspace.settings.target("tiny")
    checkpoint = warmup_checkpoint(workspace, target)
    assert checkpoint is not None
    record = workspace.warehouse.read_json(sigma_path(workspace, target))
    assert record is not None
    assert 2.0 <= record["ratio"] <= 3.0
    sigma = sigma_of(workspace, target)
    assert sigma == record["sigma"]
    # The pass by itself, with endpoint and strength given by hand.
    spec = PerturbedSpec(PassSpec(tiny_model), workspace.warehouse.local(checkpoint.folder), radii=radii(2.0))
    found = {
        result.sample_id: result
        for result in make_perturbed_pass(spec, "cpu").measure(samples(workspace), PerturbedRequest(sigma=sigma))
    }
    stored = signal_rows(workspace, "perturbed_losses")
    assert len(stored) == len(found) == 26
    for row in stored.iter_rows(named=True):
        own = found[row["sample_id"]]
        assert own.base is not None
        assert own.random is not None
        assert own.directional is not None
        assert row["base_100"] == pytest.approx(own.base[100], rel=1e-5)
        assert row["random_100"] == pytest.approx(own.random[100], rel=1e-5)
        for window in (100, 1000):
            wanted = [losses[window] for losses in own.directional]
            assert row[f"directional_{window}"] == pytest.approx(wanted, rel=1e-5)
    assert summary.tokens_measured == sum(result.tokens for result in found.values()) + tokens_of_likelihoods(workspace)
    # Likelihoods are the trained checkpoint's, and the first of the losses the base model's.
    assert signal_rows(workspace, "likelihoods")["first_100_nll"].to_list() != stored["base_100"].to_list()
    corpus = read_stored(workspace, "raw_corpus").collect().join(stored, on="sample_id").sort("sample_id")
    losses = losses_of(
        np.array(
            corpus.select(pl.concat_list("random_100", "directional_100", "directional_1000")).to_series().to_list()
        )
    )
    assert losses.path is not None
    sources = corpus["source"].rank("dense").cast(int).to_numpy()
    chosen = temp(losses.random, losses.path, corpus["sample_id"], np.zeros(26, dtype=np.int64), sources, 9, 0)
    assert subset_ids(workspace) == corpus["sample_id"].gather(chosen.order).to_list()
    brittle = dict(sample_scores(workspace).select("sample_id", "early").iter_rows())
    for sample_id, path in stored.select("sample_id", "directional_1000").iter_rows():
        assert brittle[sample_id] == pytest.approx(path[-1] - path[0], abs=1e-6)
    early = workspace.settings.score("early")
    assert method_of(early).unfaithful(target.facts(), early) == []


def radii(largest: float) -> tuple[float, ...]:
    return tuple(float(radius) for radius in np.linspace(largest / 10, largest, 8))


def tokens_of_likelihoods(workspace: Workspace) -> int:
    return int(signal_rows(workspace, "likelihoods")["tokens"].sum())


def test_a_plan_counts_prefixes_only_and_a_new_file_costs_itself(tmp_path: Path, tiny_model: Path) -> None:
    workspace = of_temp(tmp_path, tiny_model)
    (planned,) = make_plan(workspace).targets
    assert planned.tokens == run(workspace).tokens_measured
    before = workspace.warehouse.read_json(sigma_path(workspace, workspace.settings.target("tiny")))
    write_shard(workspace.folder / "landing" / "c.jsonl", rows(3, start=90))
    assert run(workspace).measured == {"tiny": 3}
    assert workspace.warehouse.read_json(sigma_path(workspace, workspace.settings.target("tiny"))) == before


def test_an_endpoint_of_ones_own_and_a_strength_by_hand(tmp_path: Path, tiny_model: Path) -> None:
    endpoint = tmp_path / "endpoint"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.01)
    model.save_pretrained(endpoint)
    given = f"{{endpoint: {endpoint}, sigma: 0.05, radius_unit: distance, largest_radius: 1.0}}"
    workspace = of_temp(tmp_path / "w", tiny_model, given, warmup="none")
    run(workspace)
    target = workspace.settings.target("tiny")
    assert workspace.warehouse.read_json(sigma_path(workspace, target)) is None
    assert len(signal_rows(workspace, "perturbed_losses").filter(pl.col("directional_1000").list.len() == 8)) == 26
    before = signal_fingerprint(workspace, target, "perturbed_losses")
    with torch.no_grad():
        next(iter(model.parameters()))[0] += 1.0
    model.save_pretrained(endpoint)
    assert signal_fingerprint(workspace, target, "perturbed_losses") != before


def test_without_a_path_the_hardest_are_chosen_and_that_is_said(tmp_path: Path, tiny_model: Path) -> None:
    workspace = of_temp(tmp_path, tiny_model, "{directional: false, probe_samples: 12}", warmup="none")
    run(workspace)
    score, target = workspace.settings.score("early"), workspace.settings.target("tiny")
    (reason,) = method_of(score).unfaithful(target.facts(), score)
    assert "directional: false" in reason
    scores = dict(sample_scores(workspace).select("sample_id", "early").iter_rows())
    losses = signal_rows(workspace, "perturbed_losses")
    assert scores == pytest.approx(dict(losses.select("sample_id", "random_100").iter_rows()))
    chosen = subset_ids(workspace)
    assert [scores[sample_id] for sample_id in chosen] == sorted((scores[s] for s in chosen), reverse=True)


def test_releases_name_the_checkpoints_and_housekeeping_keeps_them(tmp_path: Path, tiny_model: Path) -> None:
    workspace = of_temp(tmp_path, tiny_model)
    run(workspace)
    target, subset = workspace.settings.target("tiny"), workspace.settings.subset("best")
    release, _ = MainJob(workspace, instance_of(workspace)).release(subset)
    facts = release.manifest["checkpoints"]["perturbation"]
    assert facts["sigma"] == sigma_of(workspace, target)
    assert facts["radii"] == pytest.approx(radii(2.0))
    assert not [found for found in find_unused(workspace, older_than_days=0.0) if found.remove]
    # With its measurements the strength moves to another warehouse, where nothing is searched for or measured.
    export_measurements(workspace, str(tmp_path / "export"))
    other = of_temp(tmp_path / "other", tiny_model)
    import_measurements(other, str(tmp_path / "export"))
    assert run(other).tokens_measured == 0
    assert sigma_of(other, target) == sigma_of(workspace, target)
    assert subset_ids(other) == subset_ids(workspace)


def document(**target: Any) -> dict[str, Any]:
    return {
        "corpus": {"landing": "x"},
        "targets": [{"name": "t", "model": "m", "signals": ["perturbed_losses"], **target}],
        "scores": [{"name": "early", "target": "t", "method": "temp"}],
        "subsets": [{"name": "s", "score": "early", "budget": {"samples": 3}}],
    }


def test_no_endpoint_and_no_training_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValidationError, match=r"directional: false.*not faithful"):
        Settings.model_validate(document(warmup="none"))
    Settings.model_validate(document(warmup="none", perturbation={"directional": False}))
    Settings.model_validate(document(warmup="none", perturbation={"endpoint": "somewhere"}))
    Settings.model_validate(document())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"tokens": 500}}, "Set fraction or samples in the budget"),
        ({"stratify": ["source"]}, "Remove stratify"),
        ({"selector": {"kind": "s2l"}}, "Choose a score with method s2l"),
    ],
)
def test_what_the_selector_cannot_is_refused(change: dict[str, Any], message: str) -> None:
    wrong = document()
    wrong["subsets"][0] |= change
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(wrong)
