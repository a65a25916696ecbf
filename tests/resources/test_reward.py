"""Reward models: logits as transformers gives them one at a time, whatever the batch; flags; the whole path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from curation_assets.operations.plan import make_plan
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.reward import RewardError, RewardPass, conversation_ids
from curation_resources.scoring.complete_weights import LoadingError
from curation_resources.scoring.forward import OutOfMemoryError
from curation_resources.scoring.samples import Request, Sample, SampleSignals
from curation_resources.scoring.spec import PassSpec
from tests.models import CHAT_TEMPLATE, byte_tokenizer, write_tiny_model
from tests.pipeline.workspaces import rows, run, write_shard

REWARDS = Request(rewards=True)
SAMPLES = [
    Sample(f"s{n}", [{"role": "user", "content": "How many?"}], "pears and plums " * (1 + 7 * n % 11)) for n in range(9)
]


def write_reward_model(folder: Path, family: str, labels: int = 1, chat: bool = True) -> Path:
    torch.manual_seed(5)
    tokenizer = byte_tokenizer(chat)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "num_labels": labels,
        "initializer_range": 0.3,
    }
    model: Any
    if family == "qwen2":
        model = Qwen2ForSequenceClassification(Qwen2Config(**shape, num_key_value_heads=2, eos_token_id=0))
    else:
        model = BertForSequenceClassification(BertConfig(**shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rewarded(folder: Path, samples: list[Sample], **spec: Any) -> list[SampleSignals]:
    made = RewardPass(PassSpec(folder, kind="reward", **spec), "cpu")
    return [result for results in made.stream(samples, REWARDS) for result in results]


@pytest.mark.parametrize("family", ["qwen2", "bert"])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_rewards_are_the_logits_of_each_conversation_alone(
    tmp_path: Path, family: str, chat: bool, batch_tokens: int
) -> None:
    folder = write_reward_model(tmp_path / "model", family, chat=chat)
    loader: Any = AutoModelForSequenceClassification
    model = loader.from_pretrained(folder).eval()
    tokenizer = byte_tokenizer(chat)
    # The padding token at the end of a conversation is no padding.
    odd = Sample("odd", SAMPLES[0].messages, f"Some.{tokenizer.pad_token}")
    results = rewarded(folder, [*SAMPLES, odd], batch_tokens=batch_tokens)
    for result, sample in zip(results, [*SAMPLES, odd], strict=True):
        ids = conversation_ids(tokenizer, sample)
        assert ids is not None
        model.config.pad_token_id = None if family == "qwen2" else tokenizer.pad_token_id
        with torch.no_grad():
            expected = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        assert result.reward == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert result.tokens == len(ids) > result.response_tokens == len(tokenizer(sample.response)["input_ids"])


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    expected = r"lacks weights of a reward model, .*: score\.weight\. It is a Qwen2ForCausalLM"
    with pytest.raises(LoadingError, match=expected):
        RewardPass(PassSpec(folder, kind="reward"), "cpu")


def test_turns_that_the_template_refuses_get_no_reward(tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "model", "qwen2")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + CHAT_TEMPLATE)
    turned = Sample("system", [{"role": "system", "content": "Be brief."}, *SAMPLES[0].messages], "Some.")
    results = {one.sample_id: one for one in rewarded(folder, [turned, SAMPLES[0]])}
    assert (results["system"].flags, results["system"].reward) == (["template_refused"], None)
    assert results["s0"].reward is not None


def test_without_memory_for_all_halves_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_reward_model(tmp_path / "model", "qwen2")
    expected = {one.sample_id: one.reward for one in rewarded(folder, SAMPLES)}
    real = RewardPass._together

    def small(self: RewardPass, batch: Any) -> list[float]:
        if len(batch) > most:
            raise RuntimeError("CUDA error: out of memory")
        return real(self, batch)

    monkeypatch.setattr(RewardPass, "_together", small)
    most = 2
    found = {one.sample_id: one.reward for one in rewarded(folder, SAMPLES)}
    assert found == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    most = 0
    with pytest.raises(OutOfMemoryError, match="does not fit into the memory of cpu"):
        rewarded(folder, SAMPLES)


def test_what_gets_no_reward_says_why(tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "model", "qwen2")
    odd = [
        Sample("void", SAMPLES[0].messages, " "),
        Sample("long", SAMPLES[0].messages, "many words " * 60),
        Sample("seen", SAMPLES[0].messages, "yes", images=[b"image"]),
    ]
    results = rewarded(folder, odd)
    assert [result.flags for result in results] == [["empty_response"], ["too_long"], ["images_not_supported"]]
    assert all(result.reward is None and result.tokens == 0 for result in results)
    with pytest.raises(RewardError, match="classifies into 3 labels"):
        rewarded(write_reward_model(tmp_path / "three", "qwen2", labels=3), SAMPLES)


CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - {{name: reward, model: {model}, warmup: none, signals: [rewards]}}
scores:
  - {{name: liked, target: reward, method: reward_model}}
subsets:
  - {{name: best, score: liked, budget: {{samples: 3}}}}
engine: {{device: cpu}}
"""


def test_the_whole_path(tmp_path: Path) -> None:
    model = write_reward_model(tmp_path / "model", "qwen2")
    (tmp_path / "curation.yaml").write_text(CONFIG.format(model=model))
    write_shard(tmp_path / "landing" / "a.jsonl", rows(9))
    workspace = Workspace.load(tmp_path / "curation.yaml")
    (planned,) = make_plan(workspace, probe=True).targets
    summary = run(workspace)
    assert summary.measured == {"reward": 9}
    assert planned.tokens == summary.tokens_measured
    stored = read_stored(workspace, "rewards").collect()
    best = read_stored(workspace, "subset").collect()["sample_id"].to_list()
    assert best == stored.sort("reward", "sample_id", descending=[True, False])["sample_id"].to_list()[:3]
