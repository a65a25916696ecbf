"""Multi-round GRAPE: a target is trained on the release of the round before, measured, and chosen by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from curation_assets.config.settings import Settings
from curation_assets.definitions import build_definitions
from curation_assets.defs.main_job import MainJob
from curation_assets.operations.plan import make_plan
from curation_assets.signals.warmup import warmup_checkpoint
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.samples import Sample
from curation_resources.training.trainer import TrainingSpec, train
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run

CONFIG = """\
corpus: {{landing: ./landing}}
warehouse: ./warehouse
targets:
  - {{name: base, model: {model}, warmup: none, signals: [likelihoods]}}
  - name: round_1
    model: {model}
    signals: [likelihoods]
    warmup: {{preset: grape, release: grape_1@1, batch_size: 4, learning_rate: 0.001}}
  - name: round_2
    model: {model}
    signals: [likelihoods]
    warmup: {{preset: grape, release: grape_2@1, start: round_1, batch_size: 4, learning_rate: 0.001}}
scores:
  - {{name: fits, target: base, method: grape}}
  - {{name: fits_1, target: round_1, method: grape}}
  - {{name: fits_2, target: round_2, method: grape}}
subsets:
  - {{name: grape_1, score: fits, budget: {{fraction: 1.0}}}}
  - {{name: grape_2, score: fits_1, budget: {{fraction: 1.0}}}}
  - {{name: grape_3, score: fits_2, budget: {{fraction: 1.0}}}}
engine: {{device: cpu}}
"""


def responses() -> list[dict[str, Any]]:
    """Two responses to each of eight prompts."""
    made = []
    for first, second in zip(rows(8), rows(8, start=200), strict=True):
        made += [first, {**second, "prompt": first["prompt"]}]
    return made


def workspace_of(folder: Path, model: Path) -> Workspace:
    made = make_workspace(folder, model, {"a.jsonl": responses()}, signals=("likelihoods",))
    made.config_file.write_text(CONFIG.format(model=model))
    return Workspace.load(made.config_file)


@pytest.mark.folder_only("the configuration names folders")
def test_rounds_rest_on_one_another(tmp_path: Path, tiny_model: Path) -> None:
    workspace = workspace_of(tmp_path, tiny_model)
    build_definitions(workspace)
    summary = run(workspace)
    assert summary.subsets == ["grape_1"]
    waits = "\n".join(summary.waiting)
    assert "round_1: its run trains on release 1 of grape_1, which does not exist. Run `curate release" in waits
    assert "round_2: its warm-up starts from the weights of target round_1, which has not been trained yet" in waits
    job = MainJob(workspace, instance_of(workspace))
    first, _ = job.release(workspace.settings.subset("grape_1"))
    assert first.manifest["parent_release"] is None
    planned = {one.target: one for one in make_plan(workspace, probe=False).targets}
    assert planned["round_1"].warmup is not None
    assert (planned["round_1"].waiting, planned["round_1"].warmup.samples) == (None, 8)
    summary = run(workspace)
    assert summary.measured["round_1"] == 16
    assert summary.subsets == ["grape_2"]
    second, _ = job.release(workspace.settings.subset("grape_2"))
    assert second.manifest["parent_release"] == "grape_1@1"
    run(workspace)
    third, _ = job.release(workspace.settings.subset("grape_3"))
    assert third.manifest["parent_release"] == "grape_2@1"
    # Trained by hand on the same rows, one round going on from the other, the weights are the same.
    start = tiny_model
    for number, release in enumerate((first, second), start=1):
        target = workspace.settings.target(f"round_{number}")
        checkpoint = warmup_checkpoint(workspace, target)
        assert checkpoint is not None
        assert target.warmup != "none"
        data = pl.read_parquet(Path(release.folder) / "data/train.parquet").sort("sample_id")
        samples = [
            Sample(row["sample_id"], row["messages"][:-1], row["response"]) for row in data.iter_rows(named=True)
        ]
        own = tmp_path / f"by-hand-{number}"
        train(TrainingSpec(start, device="cpu"), samples, own, target.warmup.recipe())
        kept = AutoModelForCausalLM.from_pretrained(workspace.warehouse.local(checkpoint.folder)).state_dict()
        for name, weight in AutoModelForCausalLM.from_pretrained(own).state_dict().items():
            torch.testing.assert_close(kept[name], weight, rtol=0, atol=0)
        trained_on = pl.read_parquet(workspace.warehouse.local(checkpoint.folder) / "trained_on.parquet")
        assert trained_on["sample_id"].to_list() == data["sample_id"].to_list()
        start = own
    assert run(workspace).tokens_measured == 0


def changed(**warmup: Any) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    document = yaml.safe_load(CONFIG.format(model="m"))
    document["targets"][1]["warmup"] |= warmup
    assert json.dumps(document)
    return dict(document)


def test_a_run_can_be_trained_with_the_loss_of_token_level_grape() -> None:
    warmup = {"likelihood_weights": "current", "normalise": "mean1"}
    settings = Settings.model_validate(changed(**warmup))
    run_of = settings.target("round_1").warmup
    assert run_of != "none"
    assert (run_of.recipe().likelihood_weights, run_of.recipe().normalise) == ("current", "mean1")


def test_a_run_goes_on_from_weights_of_its_own_model_alone() -> None:
    document = changed()
    document["targets"][1]["model"] = "other"
    with pytest.raises(ValidationError, match=r"target round_1 uses another model \(other\)"):
        Settings.model_validate(document)


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        ({"release": "grap_1@1"}, "did you mean 'grape_1'"),
        ({"release": "grape_1"}, "should match pattern"),
        ({"release": "grape_2@1"}, "subset grape_2 is selected by target round_1, which is not listed before round_1"),
        ({"start": "round_2"}, "listed before it"),
        ({"start": "base"}, "target base does not train every weight. Add adapter: full"),
        ({"adapter": "lora"}, "target round_1 does not train every weight"),
    ],
)
def test_rounds_that_cannot_be_are_refused(warmup: dict[str, Any], message: str) -> None:
    Settings.model_validate(changed())
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(changed(**warmup))
