"""A run and an audit with a real language model on real traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from curation_assets.config.evaluation_settings import Audit
from curation_assets.evaluation.audit_report import write_audit
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import instance_of, run, write_shard

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.data]

CONFIG = """\
corpus: {{landing: ./landing, columns: {{prompt: question, response: answer}}}}
targets:
  - {{name: smol, model: {model}, warmup: none, signals: [likelihoods, step_gradients]}}
scores:
  - {{name: grape, target: smol, method: grape}}
  - {{name: grace, target: smol, method: grace}}
subsets:
  - {{name: best, score: grace, budget: {{fraction: 0.5}}}}
engine: {{device: cpu}}
"""
PROBLEMS = 24


@pytest.fixture(scope="module")
def workspace(real_model: Path, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Reference solutions of GSM8K, measured with SmolLM2."""
    folder = tmp_path_factory.mktemp("real")
    lines = (real_data / "gsm8k" / "train.jsonl").read_text().splitlines()[:PROBLEMS]
    write_shard(folder / "landing" / "gsm8k.jsonl", [json.loads(line) for line in lines])
    (folder / "curation.yaml").write_text(CONFIG.format(model=real_model))
    made = Workspace.load(folder / "curation.yaml")
    instance_of(made)
    run(made)
    return made


def test_the_model_is_the_real_one(real_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(real_model), AutoModelForCausalLM.from_pretrained(real_model)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    given: Any = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**given, max_new_tokens=12, do_sample=False)[0][given["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(said)


def test_likelihoods_are_those_of_transformers(workspace: Workspace, real_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(real_model), AutoModelForCausalLM.from_pretrained(real_model)
    corpus = read_stored(workspace, "raw_corpus").collect()
    stored = read_stored(workspace, "likelihoods").collect()
    rows = corpus.join(stored, on="sample_id").sort("sample_id").head(4)
    for row in rows.iter_rows(named=True):
        prompt = tokenizer.apply_chat_template(json.loads(row["messages"]), add_generation_prompt=True, tokenize=False)
        before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = tokenizer(prompt + row["response"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, :before] = -100
        with torch.no_grad():
            loss = model(ids, labels=labels).loss
        assert row["mean_nll"] == pytest.approx(float(loss), rel=1e-4)


def test_likelihoods_know_another_problems_solution_and_random_does_not(workspace: Workspace) -> None:
    """It was .88 when this was written; a broken measurement would be near .5."""
    table = write_audit(workspace, Audit(samples=PROBLEMS, kinds=["foreign_response"])).table
    found: dict[str, Any] = {row["score"]: row for row in table.filter(measure="win_rate").iter_rows(named=True)}
    assert found["grape"]["value"] > 0.75
    assert found["grape"]["verdict"] == "separates"
    assert found["random"]["verdict"] == "at_chance"
    assert set(table.filter(pl.col("score") == "grace", measure="win_rate")["samples"]) == {PROBLEMS}
