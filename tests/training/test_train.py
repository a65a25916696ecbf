"""Training a tiny real model: what it learns from, what it leaves, and when it gives up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig

from curation_resources.scoring.devices import make_pass
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.loading import encoding_parts, load_checkpoint, load_model
from curation_resources.scoring.samples import Encoded, Sample
from curation_resources.scoring.spec import PassSpec
from curation_resources.storage.digests import hash_file
from curation_resources.training.examples import TrainingError, encode_for_training
from curation_resources.training.recipe import Recipe
from curation_resources.training.trainer import TrainingRecord, TrainingSpec
from curation_resources.training.trainer import train as train_model
from tests.models import IMAGES_FIRST_TEMPLATE, write_tiny_gemma3, write_tiny_llava, write_tiny_qwen3_vl
from tests.scoring.cases import random_samples

RECIPE = Recipe(batch_size=4, learning_rate=1e-3)
SAMPLES = random_samples(12, seed=3)


def train(
    model: Path, out: Path, recipe: Recipe = RECIPE, samples: Any = SAMPLES, max_length: int | None = None, **more: Any
) -> TrainingRecord:
    return train_model(TrainingSpec(model, max_length=max_length, device="cpu"), samples, out, recipe, **more)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRecord]:
    """An adapter from three steps on twelve samples."""
    out = tmp_path_factory.mktemp("adapter")
    return out, train(tiny_model, out)


def encode(model: Path, samples: Any, max_length: int = 512) -> list[Encoded]:
    tokenizer = load_checkpoint(model, device="cpu").tokenizer
    return Encoder(tokenizer, "auto", max_length).encode(samples)


def slow_loss(model: Path, encoded: list[Encoded]) -> float:
    """Mean NLL over the response tokens and EOS of all samples, one sample after another, no padding."""
    checkpoint = load_checkpoint(model, device="cpu")
    losses = []
    for item in encoded:
        ids = torch.tensor([item.input_ids])
        with torch.no_grad():
            logits = checkpoint.decoder(input_ids=ids).last_hidden_state[0] @ checkpoint.head.weight.T
        for position in range(item.prompt_tokens, len(item.input_ids)):
            losses.append(float(F.cross_entropy(logits[position - 1], ids[0, position])))
    return sum(losses) / len(losses)


def test_only_the_adapter_is_left(trained: tuple[Path, TrainingRecord]) -> None:
    out, _ = trained
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_all_linear_layers_but_the_head_are_adapted(trained: tuple[Path, TrainingRecord]) -> None:
    from safetensors import safe_open

    out, _ = trained
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 32)
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with safe_open(out / "adapter_model.safetensors", "pt") as weights:
        layers = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[1] for name in weights.keys()}  # noqa: SIM118
        moved = [name for name in weights.keys() if ".lora_B." in name and weights.get_tensor(name).any()]  # noqa: SIM118
    assert layers == set(projections)
    assert len(moved) == 2 * len(projections)


def test_the_record_says_what_was_done(tiny_model: Path, trained: tuple[Path, TrainingRecord]) -> None:
    _, record = trained
    assert record.steps == 3
    assert len(record.losses) == 3
    assert all(map(math.isfinite, record.losses))
    assert record.tokens == sum(len(item) for item in encode(tiny_model, SAMPLES))


def test_the_same_run_gives_the_same_bytes(
    tiny_model: Path, trained: tuple[Path, TrainingRecord], tmp_path: Path
) -> None:
    out, record = trained
    torch.rand(7)  # another state of the random numbers before it
    assert train(tiny_model, tmp_path / "again") == record
    assert hash_file(tmp_path / "again" / "adapter_model.safetensors") == hash_file(out / "adapter_model.safetensors")
    train(tiny_model, tmp_path / "other", replace(RECIPE, seed=1))
    assert hash_file(tmp_path / "other" / "adapter_model.safetensors") != hash_file(out / "adapter_model.safetensors")


@pytest.mark.parametrize("max_length", [None, 60])
def test_the_loss_is_of_the_responses_and_eos_only(tiny_model: Path, tmp_path: Path, max_length: int | None) -> None:
    """A fresh adapter changes nothing, so the first loss of a single batch is the base model's."""
    record = train(tiny_model, tmp_path, replace(RECIPE, batch_size=12), max_length=max_length)
    assert record.steps == 1
    encoded = [item for item in encode(tiny_model, SAMPLES, max_length or 512) if item.response_tokens]
    assert record.losses[0] == pytest.approx(slow_loss(tiny_model, encoded), rel=1e-4)


def test_training_lowers_the_loss(tiny_model: Path, tmp_path: Path) -> None:
    record = train(tiny_model, tmp_path, replace(RECIPE, batch_size=12, epochs=8, learning_rate=1e-2))
    assert record.steps == 8
    assert record.losses[-1] < record.losses[0] - 0.1


def test_progress_is_told_of_every_step(tiny_model: Path, tmp_path: Path) -> None:
    told: list[int] = []
    record = train(tiny_model, tmp_path, replace(RECIPE, batch_size=5, epochs=2), progress=told.append)
    assert told == [1] * record.steps == [1] * 6


@pytest.mark.parametrize("samples", [[], [Sample("s", [{"role": "user", "content": "long " * 40}], "2 + 2 = 4")]])
def test_nothing_to_train_on(tiny_model: Path, tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(TrainingError, match="no sample has a response within the maximum length"):
        train(tiny_model, tmp_path, samples=samples, max_length=100)


def test_samples_without_room_for_a_response_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    long = Sample("long", [{"role": "user", "content": "long " * 60}], "2 + 2 = 4")
    record = train(tiny_model, tmp_path, samples=[*SAMPLES[:2], long], max_length=300)
    assert record.tokens == sum(len(item) for item in encode(tiny_model, SAMPLES[:2], 300))


def old_llava(folder: Path) -> Path:
    """A LLaVA folder as older ones are: the chat template in a file of the processor's own."""
    write_tiny_llava(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": IMAGES_FIRST_TEMPLATE}))
    return folder


@pytest.mark.parametrize("write", [write_tiny_qwen3_vl, write_tiny_llava, old_llava, write_tiny_gemma3])
def test_a_vision_language_model_is_trained_on_the_tokens_that_it_is_measured_on(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    folder = write(tmp_path / "model")
    measuring = make_pass(PassSpec(model_folder=folder), "cpu").encoder
    media = measuring.processor.image_token
    says_media = Sample("says", [{"role": "user", "content": f"What is {media}?"}], "An image")
    picture = replace(SAMPLES[0], sample_id="picture", images=["data:image/png;base64,AAAA"])
    expected = measuring.encode(SAMPLES)
    model = load_model(folder, AutoConfig.from_pretrained(folder), "float32")
    encoder = Encoder(template="auto", **encoding_parts(folder, model))
    found = encode_for_training(encoder, [says_media, *SAMPLES, picture])
    assert [item.input_ids for item in found] == [item.input_ids for item in expected]
    assert [item.prompt_tokens for item in found] == [item.prompt_tokens for item in expected]
    record = train(folder, tmp_path / "adapter", samples=[says_media, *SAMPLES[:2], picture])
    assert record.sample_ids == [sample.sample_id for sample in SAMPLES[:2]]
    assert record.tokens == sum(len(item) for item in expected[:2])


def test_a_run_that_diverges_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, batch_size=12, epochs=3, warmup_ratio=0.0)
    with pytest.raises(TrainingError, match=r"the (loss|gradient's norm) is .* at step 2\. Lower learning_rate"):
        train(tiny_model, tmp_path, recipe)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_merged_gives_the_hidden_states_of_the_unmerged(tiny_model: Path, trained: tuple[Path, TrainingRecord]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out, _ = trained
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    (item,) = encode(tiny_model, SAMPLES[:1])
    ids = torch.tensor([item.input_ids])
    with torch.no_grad():
        without = base(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        unmerged = PeftModel.from_pretrained(base, str(out))(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        merged = load_checkpoint(tiny_model, out, device="cpu").decoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5)
    assert (merged - without).abs().max() > 1e-3
