"""A target that is a reference run: its trajectory of checkpoints, losses at each, and S2L's choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from curation_assets.config.checkpoint_settings import Warmup
from curation_assets.corpus.ingest import present_shards
from curation_assets.corpus.samples import samples_of
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.s2l import s2l
from curation_assets.operations.plan import make_plan
from curation_assets.signals.measure import read_shard_samples
from curation_assets.signals.scorers import model_scorer
from curation_assets.signals.warmup import warmup_checkpoint
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.scorer import Scorer
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.loading import encoding_parts
from curation_resources.scoring.samples import Request, Sample
from curation_resources.scoring.spec import PassSpec
from curation_resources.training import trajectory
from curation_resources.training.trainer import step_folder
from tests.pipeline.workspaces import make_workspace, rows, run, sample_scores, signal_rows, subset_ids, write_shard

SHARDS = {"a.jsonl": rows(9), "b.jsonl": rows(8, start=40)}
WARMUP = (
    "{{preset: s2l, adapter: {adapter}, fraction: 0.5, min_pool: 4, batch_size: 4, epochs: 2, save_every: 2, "
    "learning_rate: 0.001}}"
)
SIGNALS: tuple[SignalName, ...] = ("loss_trajectories", "likelihoods", "base_likelihoods")
SCORES = """\
scores:
  - {name: clusters, target: tiny, method: s2l}
  - {name: hard, target: tiny, method: perplexity}
  - {name: learnt, target: tiny, method: learnability}
  - {name: share, target: tiny, method: learnability, relative: true}
subsets:
  - {name: best, score: clusters, budget: {samples: 7}, selector: {kind: s2l, clusters: 4, seed: 3}}
engine"""


ALONG: tuple[SignalName, ...] = ("step_gradient_trajectories", "step_gradients")
AVERAGED = """\
scores:
  - {name: grace, target: tiny, method: grace, checkpoints: all, alpha: 0.4}
  - {name: last, target: tiny, method: grace, alpha: 0.4}
subsets:
  - {name: best, score: grace, budget: {samples: 7}}
engine"""


def reference(
    folder: Path, model: Path, adapter: str, signals: tuple[SignalName, ...] = SIGNALS, scores: str = SCORES
) -> Workspace:
    made = make_workspace(folder, model, SHARDS, warmup=WARMUP.format(adapter=adapter), signals=signals)
    text = made.config_file.read_text()
    before, after = text[: text.find("scores:")] if "scores:" in text else "", text[text.index("engine") :]
    made.config_file.write_text((before or text.removesuffix(after)) + scores + after.removeprefix("engine"))
    return Workspace.load(made.config_file)


def plain_loss(model: Any, sample: Sample, encoder: Encoder, with_eos: bool = False) -> float:
    (encoded,) = encoder.encode([sample])
    ids = torch.tensor([encoded.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    places = range(encoded.prompt_tokens, encoded.prompt_tokens + encoded.response_tokens + with_eos)
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
            assert row["losses"][number] == pytest.approx(plain_loss(model, sample, encoder, with_eos=True), rel=1e-4)
    # Three checkpoints and the base model, beside the pass at the last one, which is measured for the likelihoods.
    assert summary.tokens_measured == 5 * int(stored["tokens"].sum())
    last = signal_rows(workspace, "likelihoods").join(stored, on="sample_id")
    # The run's losses count EOS; likelihoods do not.
    for row in corpus.join(last, on="sample_id").head(4).iter_rows(named=True):
        sample = Sample(row["sample_id"], json.loads(row["messages"]), row["response"])
        assert row["mean_nll"] == pytest.approx(plain_loss(model, sample, encoder), rel=1e-4)
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
    (reason,) = method_of(workspace.settings.score("learnt")).unfaithful(
        target.facts(), workspace.settings.score("learnt")
    )
    assert "50% of the pool" in reason
    # The choice is that of the selector over the stored losses.
    ids = stored["sample_id"]
    sources = corpus.join(stored, on="sample_id").sort("sample_id")["source"].rank("dense").cast(int).to_numpy()
    vectors = np.array(stored["losses"].to_list(), dtype=np.float32)
    assert subset_ids(workspace) == ids.gather(s2l(vectors, ids, sources, 7, 4, 3)).to_list()
    clusters = workspace.settings.score("clusters")
    (reason,) = method_of(clusters).unfaithful(target.facts(), clusters)
    assert reason.startswith("the reference run is trained with learning_rate 0.001 (S2L: 2e-05), epochs 2 (S2L: 4)")
    faithful = target.model_copy(update={"warmup": Warmup(preset="s2l", adapter="lora", save_every=1)})
    assert method_of(clusters).unfaithful(faithful.facts(), clusters) == []


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


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_graces_scores_over_several_checkpoints_are_the_mean_of_those_at_each(
    tmp_path: Path, tiny_model: Path, adapter: str
) -> None:
    workspace = reference(tmp_path, tiny_model, adapter, ALONG, AVERAGED)
    unanswered = {"prompt": "What is 2 and 2?", "response": "Let us think it over\n\nand over and over again"}
    write_shard(workspace.folder / "landing" / "c.jsonl", [unanswered])
    summary = run(workspace)
    target = workspace.settings.target("tiny")
    checkpoint = warmup_checkpoint(workspace, target)
    assert checkpoint is not None
    folder = workspace.warehouse.local(checkpoint.folder)
    stored = signal_rows(workspace, "step_gradient_trajectories")
    shard = read_shard_samples(workspace, present_shards(workspace)[0], segmented=True)
    samples = samples_of(workspace, shard.rows, shard.steps)
    at: list[dict[str, float]] = []
    for number, step in enumerate(checkpoint.record["checkpoints"]):
        # A pass over this checkpoint alone, as a target's own would be.
        (spec,) = [one for one in trajectory.specs_of(model_scorer(workspace, target).spec) if one_of(one) == step]
        found: dict[str, list[float]] = {}
        with Scorer(spec, "cpu") as scorer:
            for batch in scorer.measure(samples, Request(step_gradients="bias")):
                found |= {one.sample_id: one.step_gradients.gram for one in batch if one.step_gradients}
        assert step_folder(folder, step) in (spec.adapter, spec.model_folder)
        for row in stored.filter(stored["sample_id"].is_in(list(found))).iter_rows(named=True):
            assert row["grams"][number] == pytest.approx(found[row["sample_id"]], rel=1e-4, abs=1e-9)
        at.append({name: plain_grace(gram, 0.4) for name, gram in found.items()})
    assert len(at) == 3
    assert max(abs(at[0][name] - at[2][name]) for name in at[0]) > 1e-3  # the checkpoints differ
    scores = dict(sample_scores(workspace).select("sample_id", "grace").iter_rows())
    last = dict(sample_scores(workspace).select("sample_id", "last").iter_rows())
    for name in at[0]:
        assert scores[name] == pytest.approx(np.mean([one[name] for one in at]), abs=1e-4)
        assert last[name] == pytest.approx(at[-1][name], abs=1e-4)
    # What has no answer is run at no checkpoint, and says why.
    (without,) = stored.filter(stored["grams"].is_null()).iter_rows(named=True)
    assert (without["flags"], without["tokens"]) == (["no_answer"], 0)
    assert summary.tokens_measured == 4 * int(stored["tokens"].sum())
    steps = read_stored(workspace, "step_scores", target="tiny", score="grace").collect()
    means = steps.group_by("sample_id").agg(value=pl.col("step_score").mean())
    for name, value in means.iter_rows():
        assert scores[name] == pytest.approx(value, abs=1e-9)


def one_of(spec: PassSpec) -> int:
    """The step of a trajectory's checkpoint."""
    return int((spec.adapter or spec.model_folder).name)


def plain_grace(gram: list[float], alpha: float) -> float:
    """V from a packed Gram matrix, cosine by cosine (arXiv 2605.13130, Eq. 6-8, 12, 13)."""
    size = int((np.sqrt(8 * len(gram) + 1) - 1) / 2)
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = gram
    matrix = matrix + matrix.T - np.diag(np.diag(matrix))
    k, scores = size - 1, []
    for step in range(k):
        aligned = matrix[step, k] / np.sqrt(matrix[step, step] * matrix[k, k])
        if step == 0:
            scores.append(aligned)
            continue
        weights = np.zeros(size)
        weights[:step] = 1 / step
        consistent = matrix[step] @ weights / np.sqrt(matrix[step, step] * (weights @ matrix @ weights))
        scores.append(alpha * aligned + (1 - alpha) * consistent)
    return float(np.mean(scores))
