"""A target that is a reference run: its trajectory of checkpoints, losses at each, and S2L's choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from curation_assets.checkpoint_settings import Warmup
from curation_assets.checkpoints.warmup import warmup_checkpoint
from curation_assets.cost.plan import make_plan
from curation_assets.scores.registry import method_of
from curation_assets.stored_tables import read_stored
from curation_assets.subsets.s2l import s2l
from curation_assets.workspace import Workspace
from resources import trajectory
from resources.scoring.encoding import Encoder
from resources.scoring.loading import encoding_parts
from resources.scoring.samples import Sample
from resources.trainer import step_folder
from tests.pipeline.workspaces import make_workspace, rows, run, sample_scores, signal_rows, subset_ids, write_shard

SHARDS = {"a.jsonl": rows(9), "b.jsonl": rows(8, start=40)}
WARMUP = (
    "{{preset: s2l, adapter: {adapter}, fraction: 0.5, min_pool: 4, batch_size: 4, epochs: 2, save_every: 2, "
    "learning_rate: 0.001}}"
)
SIGNALS = ("loss_trajectories", "likelihoods", "base_likelihoods")
SCORES = """\
scores:
  - {name: clusters, target: tiny, method: s2l}
  - {name: hard, target: tiny, method: perplexity}
  - {name: learnt, target: tiny, method: learnability}
  - {name: share, target: tiny, method: learnability, relative: true}
subsets:
  - {name: best, score: clusters, budget: {samples: 7}, selector: {kind: s2l, clusters: 4, seed: 3}}
engine"""


def reference(folder: Path, model: Path, adapter: str) -> Workspace:
    made = make_workspace(folder, model, SHARDS, warmup=WARMUP.format(adapter=adapter), signals=SIGNALS)
    made.config_file.write_text(made.config_file.read_text().replace("engine", SCORES, 1))
    return Workspace.load(made.config_file)


def plain_loss(model: Any, sample: Sample, encoder: Encoder) -> float:
    (encoded,) = encoder.encode([sample])
    ids = torch.tensor([encoded.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    places = range(encoded.prompt_tokens, encoded.prompt_tokens + encoded.response_tokens)
    return float(np.mean([float(F.cross_entropy(logits[at - 1], ids[0, at])) for at in places]))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_losses_are_those_of_each_checkpoint_and_s2l_chooses_by_them(
    tmp_path: Path, tiny_model: Path, adapter: str
) -> None:
    workspace = reference(tmp_path, tiny_model, adapter)
    summary = run(workspace)
    target = workspace.settings.target("tiny")
    checkpoint = warmup_checkpoint(workspace, target)
    assert checkpoint is not None
    assert checkpoint.record["checkpoints"] == [2, 4, 6]
    distance = checkpoint.record["distance"]
    assert distance["on_the_way"][-1] == distance["all"] > distance["on_the_way"][0] > 0.0
    stored = signal_rows(workspace, "loss_trajectories")
    corpus = read_stored(workspace, "raw_corpus").collect()
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    encoder = Encoder(template="auto", **encoding_parts(tiny_model, base))
    for number, step in enumerate(checkpoint.record["checkpoints"]):
        folder = step_folder(workspace.warehouse.local(checkpoint.folder), step)
        model = loaded(tiny_model, folder, adapter)
        for row in corpus.join(stored, on="sample_id").head(4).iter_rows(named=True):
            sample = Sample(row["sample_id"], json.loads(row["messages"]), row["response"])
            assert row["losses"][number] == pytest.approx(plain_loss(model, sample, encoder), rel=1e-4)
    # Three checkpoints and the base model, beside the pass at the last one, which is measured for the likelihoods.
    assert summary.tokens_measured == 5 * int(stored["tokens"].sum())
    last = signal_rows(workspace, "likelihoods").join(stored, on="sample_id")
    assert last["mean_nll"].to_list() == pytest.approx([losses[-1] for losses in last["losses"]], rel=1e-4)
    # Learnability is the fall from the base model.
    before = signal_rows(workspace, "base_likelihoods")
    for row in corpus.join(before, on="sample_id").head(4).iter_rows(named=True):
        sample = Sample(row["sample_id"], json.loads(row["messages"]), row["response"])
        assert row["base_nll"] == pytest.approx(plain_loss(base, sample, encoder), rel=1e-4)
    learnt = dict(sample_scores(workspace).select("sample_id", "learnt").iter_rows())
    shares = dict(sample_scores(workspace).select("sample_id", "share").iter_rows())
    base_nll = dict(before.select("sample_id", "base_nll").iter_rows())
    for sample_id, nll in last.select("sample_id", "mean_nll").iter_rows():
        assert learnt[sample_id] == pytest.approx(base_nll[sample_id] - nll)
        assert shares[sample_id] == pytest.approx(1 - nll / base_nll[sample_id])
    assert sum(learnt.values()) > 0.0  # it has learnt something
    (reason,) = method_of(workspace.settings.score("learnt")).unfaithful(target, workspace.settings.score("learnt"))
    assert "50% of the pool" in reason
    # The choice is that of the selector over the stored losses.
    ids = stored["sample_id"]
    sources = corpus.join(stored, on="sample_id").sort("sample_id")["source"].rank("dense").cast(int).to_numpy()
    vectors = np.array(stored["losses"].to_list(), dtype=np.float32)
    assert subset_ids(workspace) == ids.gather(s2l(vectors, ids, sources, 7, 4, 3)).to_list()
    clusters = workspace.settings.score("clusters")
    (reason,) = method_of(clusters).unfaithful(target, clusters)
    assert reason.startswith("the reference run is trained with learning_rate 0.001 (S2L: 2e-05), epochs 2 (S2L: 4)")
    faithful = target.model_copy(update={"warmup": Warmup(preset="s2l", adapter="lora", save_every=1)})
    assert method_of(clusters).unfaithful(faithful, clusters) == []


def loaded(model: Path, folder: Path, adapter: str) -> Any:
    if adapter == "full":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def test_a_new_file_is_measured_at_the_same_checkpoints_and_nothing_is_trained_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = reference(tmp_path, tiny_model, "lora")
    run(workspace)
    before = warmup_checkpoint(workspace, workspace.settings.target("tiny"))
    first = signal_rows(workspace, "loss_trajectories")
    write_shard(workspace.folder / "landing" / "c.jsonl", rows(3, start=90))
    # Checkpoints that do not stay loaded, and samples a few at a time, give the same.
    monkeypatch.setattr(trajectory, "KEPT_BYTES", 0)
    monkeypatch.setattr(trajectory, "CHUNK", 2)
    summary = run(workspace)
    assert summary.measured == {"tiny": 3}
    assert warmup_checkpoint(workspace, workspace.settings.target("tiny")) == before
    again = signal_rows(workspace, "loss_trajectories")
    assert again.join(first, on="sample_id", how="semi").equals(first)
    assert len(again) == len(first) + 3


def test_a_plan_counts_a_pass_for_every_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    workspace = reference(tmp_path, tiny_model, "lora")
    (planned,) = make_plan(workspace, probe=False).targets
    assert planned.tokens == run(workspace).tokens_measured
    assert planned.passes[0].cost == pytest.approx(5 * 17)
