"""Process reward models: probabilities as transformers gives them one at a time; separators; flags; the whole path."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

from curation_assets.config.config_file import ConfigError
from curation_assets.methods.method import ScoreInputs
from curation_assets.methods.prm import METHODS, PrmScore
from curation_assets.operations.plan import make_plan
from curation_assets.releases.file_names import DATA_PARQUET
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.signals import SIGNALS
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.process_reward import ProcessRewardPass, pieces_of
from curation_resources.models.reward import RewardError
from curation_resources.scoring.complete_weights import LoadingError
from curation_resources.scoring.samples import Request, Sample, SampleSignals, Segment
from curation_resources.scoring.spec import PassSpec, ProcessSpec
from tests.models import CHAT_TEMPLATE, byte_tokenizer_with
from tests.pipeline.workspaces import release_subset, run, write_shard

REWARDS = Request(process_rewards=True)
PLUS_MINUS = ProcessSpec(separator="<step>", step_format="{step} {separator}\n", good="+", bad="-")
ASKED = [{"role": "user", "content": "How many? 🍐"}]

OWN_CODE = """\
from torch import nn
from transformers import Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **options):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return TokenClassifierOutput(logits=self.score(hidden))
"""


def sample(name: str, steps: list[str], rest: str = "\nAnswer: 12") -> Sample:
    """A response of steps with a line between them, and its answer."""
    response, segments = "", []
    for number, step in enumerate(steps, 1):
        segments.append(Segment(number, len(response), len(response) + len(step)))
        response += f"{step}\n"
    response = response[:-1] + rest
    if rest:
        segments.append(Segment(0, len(response) - 2, len(response)))
    return Sample(name, ASKED, response, tuple(segments))


SAMPLES = [
    sample(
        f"s{n}", [f"Step {k}: é" + "x" * (7 * n % 11) for k in range(1 + n % 4)], "" if n % 3 == 0 else "\nAnswer: 12"
    )
    for n in range(9)
]


def write_model(folder: Path, kind: str = "classifier", labels: int = 2) -> Path:
    """A tiny process reward model, whose tokenizer has the separators of both families."""
    torch.manual_seed(5)
    tokenizer = byte_tokenizer_with(["<extra_0>", "<step>"], CHAT_TEMPLATE)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "num_labels": labels,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    config = Qwen2Config(**shape)
    made: Any = (Qwen2ForCausalLM if kind == "language" else Qwen2ForTokenClassification)(config)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rewarded(folder: Path, samples: list[Sample], **spec: Any) -> list[SampleSignals]:
    made = ProcessRewardPass(PassSpec(folder, kind="process_reward", **spec), "cpu")
    return [result for results in made.stream(samples, REWARDS) for result in results]


@pytest.mark.parametrize("kind", ["classifier", "language"])
@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_rewards_are_the_probabilities_of_each_conversation_alone(tmp_path: Path, kind: str, batch_tokens: int) -> None:
    folder = write_model(tmp_path / "model", kind)
    process = PLUS_MINUS if kind == "language" else ProcessSpec()
    loader: Any = AutoModelForCausalLM if kind == "language" else AutoModelForTokenClassification
    model = loader.from_pretrained(folder).eval()
    tokenizer = byte_tokenizer_with(["<extra_0>", "<step>"], CHAT_TEMPLATE)
    results = rewarded(folder, SAMPLES, batch_tokens=batch_tokens, process=process)
    assert [result.sample_id for result in results] == [one.sample_id for one in SAMPLES]
    for result, one in zip(results, SAMPLES, strict=True):
        steps = one.response.replace("\nAnswer: 12", "").split("\n")
        pieces = [*steps, *(["Answer: 12"] if "Answer" in one.response else [])]
        end = " <step>\n" if kind == "language" else "<extra_0>"
        text = "user: How many? 🍐\nassistant: " + "".join(piece + end for piece in pieces) + "\n"
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        expected = []
        for place, token in enumerate(ids):
            if token == tokenizer.convert_tokens_to_ids(end.strip()):
                good, bad = (
                    (logits[place, tokenizer("+")["input_ids"][0]], logits[place, tokenizer("-")["input_ids"][0]])
                    if kind == "language"
                    else (logits[place, 1], logits[place, 0])
                )
                expected.append(1 / (1 + math.exp(float(bad - good))))
        assert len(expected) == len(pieces)
        assert result.step_rewards == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert result.step_indices == list(range(1, len(steps) + 1))
        assert result.segment_tokens == [len(tokenizer(piece)["input_ids"]) for piece in pieces]
        assert (result.tokens, result.flags) == (len(ids), [])
        assert result.response_tokens == len(tokenizer(one.response)["input_ids"])


def test_qwen_s_own_class_of_process_reward_models_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = write_model(tmp_path / "model")
    (folder / "modeling_prm.py").write_text(OWN_CODE)
    scope: dict[str, Any] = {}
    exec(OWN_CODE, scope)
    torch.manual_seed(6)
    model = scope["Qwen2ForProcessRewardModel"](Qwen2Config.from_pretrained(folder)).eval()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_prm.Qwen2ForProcessRewardModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (result,) = rewarded(folder, SAMPLES[1:2], trust_remote_code=True)
    tokenizer = byte_tokenizer_with(["<extra_0>", "<step>"], CHAT_TEMPLATE)
    text = "user: How many? 🍐\nassistant: " + "".join(f"{piece}<extra_0>" for piece in pieces_of(SAMPLES[1])) + "\n"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0][ids[0] == tokenizer.convert_tokens_to_ids("<extra_0>")]
    assert result.step_rewards == pytest.approx(logits.softmax(-1)[:, 1].tolist(), rel=1e-4)


def test_other_label_of_right_steps(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", labels=3)
    chosen = [rewarded(folder, SAMPLES[:1], process=ProcessSpec(label=label))[0].step_rewards for label in range(3)]
    assert [sum(column) for column in zip(*(one or [] for one in chosen), strict=True)] == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("kind", "labels", "process", "message"),
    [
        ("classifier", 2, ProcessSpec("ки"), r"process_reward\.separator 'ки' is 4 tokens .* must be exactly one"),
        ("classifier", 2, ProcessSpec("\n\n"), r"separator '\\n\\n' is 2 tokens of the tokenizer"),
        ("language", 2, replace(PLUS_MINUS, good="good"), r"process_reward\.good 'good' is 4 tokens"),
        ("language", 2, ProcessSpec(), r"is a language model.*process_reward: \{good: \"\+\", bad: \"-\"\}"),
        ("classifier", 2, PLUS_MINUS, r"is a token classifier.*Remove process_reward\.good"),
        ("classifier", 2, ProcessSpec(label=2), r"has 2 labels, numbered from 0, and process_reward\.label is 2"),
        ("classifier", 1, ProcessSpec(label=0), "has a single label"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_key(
    tmp_path: Path, kind: str, labels: int, process: ProcessSpec, message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        rewarded(write_model(tmp_path / "model", kind, labels), SAMPLES, process=process)


def test_other_models_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "language")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForSequenceClassification"]}))
    with pytest.raises(RewardError, match="is a Qwen2ForSequenceClassification, not a process reward model"):
        rewarded(folder, SAMPLES)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForTokenClassification"]}))
    with pytest.raises(LoadingError, match="lacks weights of a process reward model"):
        rewarded(folder, SAMPLES)


def test_what_gets_no_rewards_says_why(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    odd = [
        Sample("void", ASKED, " "),
        sample("long", ["many words " * 60]),
        replace(sample("seen", ["yes"]), images=[b"image"]),
        Sample("answer", ASKED, "Answer: 12", (Segment(0, 8, 10),)),
        sample("within", ["one <extra_0> two"]),
    ]
    results = rewarded(folder, odd)
    flags = ["empty_response", "too_long", "images_not_supported", "no_steps", "separators_differ"]
    assert [result.flags for result in results] == [[flag] for flag in flags]
    assert all(result.step_rewards is None and result.tokens == 0 for result in results)
    # A template that drops thoughts from the turns of the assistant.
    dropping = CHAT_TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
    (folder / "chat_template.jinja").write_text(dropping)
    thinking = sample("thinking", ["one", "two"], "</think>\n12")
    assert [result.flags for result in rewarded(folder, [thinking, SAMPLES[1]])] == [["separators_differ"], []]


def test_without_memory_for_all_halves_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    expected = {one.sample_id: one.step_rewards for one in rewarded(folder, SAMPLES)}
    real = ProcessRewardPass._together

    def small(self: ProcessRewardPass, batch: Any) -> list[list[float]]:
        if len(batch) > 2:
            raise RuntimeError("CUDA error: out of memory")
        return real(self, batch)

    monkeypatch.setattr(ProcessRewardPass, "_together", small)
    found = {one.sample_id: one.step_rewards for one in rewarded(folder, SAMPLES)}
    assert found == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}


@pytest.mark.parametrize(("aggregate", "expected"), [("min", 0.25), ("mean", 0.5), ("last", 0.5), ("product", 0.09375)])
def test_aggregates(aggregate: Any, expected: float) -> None:
    results = [
        SampleSignals("a" * 32, 0, step_indices=[1, 2], segment_tokens=[3, 4, 5], step_rewards=[0.75, 0.25, 0.5]),
        SampleSignals("b" * 32, 1, flags=["no_steps"]),
    ]
    frame = SIGNALS["process_rewards"].frame(results)
    (method,) = METHODS
    section = PrmScore(name="right", target="t", aggregate=aggregate)
    scored = method.score(ScoreInputs(frame, {"process_rewards": frame}), section)
    assert scored.values.rows() == [("a" * 32, expected)]
    assert scored.steps is not None
    assert scored.steps.select("step_index", "tokens", "step_score", "answer_alignment").rows() == [
        (1, 3, 0.75, None),
        (2, 4, 0.25, None),
    ]


CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - name: prm
    model: {model}
    warmup: none
    signals: [process_rewards]
    process_reward: {{separator: "<extra_0>"}}
scores:
  - {{name: right, target: prm, method: prm, aggregate: product}}
subsets:
  - {{name: best, score: right, budget: {{samples: 3}}}}
engine: {{device: cpu}}
"""


def test_the_whole_path(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "curation.yaml").write_text(CONFIG.format(model=model))
    steps = "We add one to the number that we were given in the question.\n\nThen the sum of both of these numbers is"
    lines = [{"prompt": f"What is {n} and 1?", "response": f"{steps} {n + 1}.\n\nAnswer: {n + 1}"} for n in range(8)]
    write_shard(tmp_path / "landing" / "a.jsonl", lines)
    workspace = Workspace.load(tmp_path / "curation.yaml")
    (planned,) = make_plan(workspace, probe=True).targets
    summary = run(workspace)
    assert summary.measured == {"prm": 8}
    assert planned.tokens == summary.tokens_measured > 0
    stored = read_stored(workspace, "process_rewards").collect()
    assert stored["rewards"].list.len().to_list() == [3] * 8
    scores = stored.select("sample_id", score=pl.col("rewards").list.eval(pl.element().product()).list.first())
    best = read_stored(workspace, "subset").collect()["sample_id"].to_list()
    assert best == scores.sort("score", "sample_id", descending=[True, False])["sample_id"].to_list()[:3]
    scored = read_stored(workspace, "step_scores").collect()
    assert scored.height == 16
    assert scored["step_score"].is_between(0, 1).all()
    # Another separator is another measurement.
    config = tmp_path / "curation.yaml"
    config.write_text(config.read_text().replace('"<extra_0>"', '"<step>"'))
    assert run(Workspace.load(config)).tokens_measured > 0
    # Releases show the rewards of steps as they show GRACE's scores.
    run(Workspace.load(config))
    release, _ = release_subset(Workspace.load(config))
    rows = Workspace.load(config).warehouse.read_table(f"releases/best/{release.number}/{DATA_PARQUET}")
    assert rows["step_scores"].list.len().to_list() == [2] * 3
    assert rows["step_scores"].list.eval(pl.element().is_not_null().all()).list.first().all()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('separator: "<extra_0>"', 'good: "+"', "two different label tokens"),
        ('separator: "<extra_0>"', 'step_format: "{{step}}"', "{separator} must occur exactly once"),
        ("[process_rewards]", "[process_rewards, likelihoods]", "requires a process reward model. Measure likelihoods"),
        ("    warmup: none\n", "", "a process reward model is measured without training"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in CONFIG
    (tmp_path / "curation.yaml").write_text(CONFIG.replace(before, after).format(model="m"))
    with pytest.raises(ConfigError) as refused:
        Workspace.load(tmp_path / "curation.yaml")
    assert message in str(refused.value)
