"""In-run influence against gradients that autograd makes of one sample after another, at the weights of each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.loading import encoding_parts
from curation_resources.scoring.samples import Encoded, Sample
from curation_resources.training.examples import make_examples
from curation_resources.training.influence import Watched
from curation_resources.training.loop import Loop
from curation_resources.training.recipe import Recipe
from curation_resources.training.trainer import TrainingError
from tests.models import byte_tokenizer
from tests.scoring.cases import random_samples
from tests.training.test_loop import SAMPLES, run

VALIDATION = {"one": random_samples(3, seed=11), "two": random_samples(2, seed=12)}
RECIPE = Recipe(learning_rate=1e-2, batch_size=4, epochs=2, lora_rank=2, lora_alpha=4)


def model_of(folder: Path, kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "gpt2":
        vocabulary = len(byte_tokenizer())
        shape: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
        ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, initializer_range=0.3, **shape, **ends)).train()
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if kind == "lora":
        whole = get_peft_model(whole, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    return whole.train()


def mean_loss_gradient(model: Any, item: Encoded, weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One sample alone."""
    ids = torch.tensor([item.input_ids])
    logits = model(input_ids=ids).logits[0]
    loss = F.cross_entropy(logits[max(0, item.prompt_tokens - 1) : -1], ids[0, max(1, item.prompt_tokens) :])
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("kind", ["lora", "full", "gpt2"])
def test_influence_is_the_sum_over_steps_of_dot_products(tiny_model: Path, kind: str) -> None:
    model = model_of(tiny_model, kind)
    if kind == "gpt2":
        # Without dropout, which the plain loop would draw otherwise.
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    base = model_of(tiny_model, kind) if kind == "gpt2" else AutoModelForCausalLM.from_pretrained(tiny_model)
    encoder = Encoder(template="auto", **encoding_parts(tiny_model, base))
    items = encoder.encode(SAMPLES)
    sets = {name: encoder.encode(samples) for name, samples in VALIDATION.items()}
    watched = Watched(list(sets), [make_examples(own, None) for own in sets.values()])
    recipe = RECIPE if kind == "lora" else replace(RECIPE, adapter="full", learning_rate=1e-3)
    loop = Loop(model, make_examples(items, None), recipe, torch.device("cpu"), piece_tokens=150, watched=watched)
    assert loop.influence is not None
    # The plain loop looks at the same weights: those of linear layers that nothing else uses.
    layers = loop.influence.layers
    weights: dict[str, Any] = {name: module.weight for name, module in layers.items()}
    assert len(weights) >= 8
    expected = torch.zeros(len(items), len(sets), dtype=torch.float64)
    while loop.done < loop.total:
        positions = loop._batch(loop.done)
        model.eval()
        own = {position: mean_loss_gradient(model, items[position], weights) for position in positions}
        for place, samples in enumerate(sets.values()):
            gradients = [mean_loss_gradient(model, item, weights) for item in samples]
            for name in weights:
                aim = torch.stack([gradient[name] for gradient in gradients]).mean(dim=0)
                for position in positions:
                    dot = float((aim.double() * own[position][name].double()).sum())
                    rate = loop.rate(loop.done)
                    expected[position, place] += rate * dot
        model.train()
        loop.step()
    found = loop.influence.values
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4 * float(expected.abs().max()))


def test_weights_of_training_are_none_of_the_aims(tiny_model: Path) -> None:
    aims = []
    for recipe in (RECIPE, replace(RECIPE, likelihood_weights="current")):
        model = model_of(tiny_model, "lora")
        encoder = Encoder(template="auto", **encoding_parts(tiny_model, model))
        watched = Watched(["one"], [make_examples(encoder.encode(VALIDATION["one"]), None)])
        examples = make_examples(encoder.encode(SAMPLES), None)
        loop = Loop(model, examples, recipe, torch.device("cpu"), watched=watched)
        loop.step()
        assert loop.influence is not None
        aims.append(loop.influence._aims[0])
    assert loop.facts[0].loss > 0
    for name, aim in aims[0].items():
        assert torch.equal(aim, aims[1][name])


def test_looking_changes_nothing_of_the_run(tiny_model: Path, tmp_path: Path) -> None:
    plain = run(tiny_model, tmp_path / "plain", RECIPE)
    looked = run(tiny_model, tmp_path / "looked", RECIPE, validation=VALIDATION)
    assert looked.losses == plain.losses
    assert (tmp_path / "plain/adapter_model.safetensors").read_bytes() == (
        tmp_path / "looked/adapter_model.safetensors"
    ).read_bytes()
    assert plain.influence is None
    assert looked.influence is not None
    assert len(looked.influence) == len(looked.sample_ids)


def test_a_run_that_goes_on_has_the_same_influence(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_model, tmp_path / "whole", RECIPE, validation=VALIDATION)
    real = Loop.step
    left = [4]

    def dying(loop: Loop) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(loop)

    monkeypatch.setattr(Loop, "step", dying)
    again: dict[str, Any] = {"validation": VALIDATION, "work": tmp_path / "work", "keep_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "killed", RECIPE, **again)
    left[0] = 100
    found = run(tiny_model, tmp_path / "again", RECIPE, **again)
    assert left[0] == 100 - (whole.steps - 4)
    assert found.influence == whole.influence


def test_a_sample_of_the_validation_set_helps_itself(tiny_model: Path, tmp_path: Path) -> None:
    samples = random_samples(6, seed=20)
    recipe = replace(RECIPE, batch_size=6, epochs=1)
    found = run(tiny_model, tmp_path / "out", recipe, samples=samples, validation={"first": samples[:1]})
    assert found.influence is not None
    assert found.influence[found.sample_ids.index(samples[0].sample_id)][0] > 0


def test_a_validation_set_without_a_loss_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    void = [Sample("void", [{"role": "user", "content": "?"}], "")]
    with pytest.raises(TrainingError, match="validation set none has no sample with a loss under the run's model"):
        run(tiny_model, tmp_path / "out", RECIPE, validation={"none": void})
