"""Distances against a plain loop over the weights of loaded models, an adapter merged by peft among them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from curation_resources.scoring.distances import ELSEWHERE, by_layer, distances, total
from curation_resources.scoring.endpoints import EndpointError, direction_to
from curation_resources.training.recipe import Recipe
from curation_resources.training.trainer import TrainingSpec, train
from tests.scoring.cases import random_samples


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


def plain(arrived: dict[str, Tensor], started: dict[str, Tensor]) -> float:
    """The root of all squared differences, one number after another."""
    squares = 0.0
    for name, weight in started.items():
        for one, other in zip(weight.flatten().tolist(), arrived[name].flatten().tolist(), strict=True):
            squares += (other - one) ** 2
    return math.sqrt(squares)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_distances_are_those_of_the_plain_loop(tiny_model: Path, tmp_path: Path, adapter: str) -> None:
    recipe = Recipe(adapter=adapter, learning_rate=1e-2, batch_size=4, epochs=2)  # type: ignore[arg-type]
    train(TrainingSpec(tiny_model, device="cpu"), random_samples(8, seed=1), tmp_path, recipe)
    norms = distances(tmp_path, tiny_model)
    if adapter == "lora":
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        merged = dict(PeftModel.from_pretrained(base, tmp_path).merge_and_unload().named_parameters())
    else:
        merged = weights(tmp_path)
    expected = plain(merged, weights(tiny_model))
    assert expected > 0.0
    assert total(norms) == pytest.approx(expected, rel=1e-5)
    assert total(norms) == pytest.approx(direction_to(tmp_path, tiny_model).distance, rel=1e-5)
    layers = by_layer(norms)
    assert total(layers) == pytest.approx(expected, rel=1e-5)
    assert [layer for layer in layers if layer != ELSEWHERE] == sorted(layers.keys() - {ELSEWHERE}, key=int)


def test_a_model_has_no_distance_from_itself(tiny_model: Path) -> None:
    assert distances(tiny_model, tiny_model) == {}
    assert total({}) == 0.0


def test_files_that_name_tensors_otherwise_are_loaded(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        next(iter(model.parameters()))[0] += 3.0
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    # As an older file has it: with the head beside the embedding, or without the prefix.
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    assert total(distances(tmp_path, tiny_model)) == pytest.approx(plain(weights(tmp_path), weights(tiny_model)))


def test_other_shapes_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name][:1].contiguous()}, path, {"format": "pt"})
    with pytest.raises(EndpointError, match="has shape"):
        distances(tmp_path, tiny_model)
