"""Directions from endpoints: model folders and LoRA folders against plain differences; what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation_resources.scoring.endpoints import EndpointError, direction_to
from tests.models import write_tiny_gemma3, write_tiny_llava, write_tiny_model
from tests.scoring.perturbed_cases import (
    change_weights,
    parameters,
    read_model,
    write_adapter,
    write_endpoint,
    write_tied_model,
)


def assert_direction(found: Any, differences: dict[str, Tensor], rel: float = 1e-5) -> None:
    norm = math.sqrt(sum(float(each.double().square().sum()) for each in differences.values()))
    assert found.distance == pytest.approx(norm, rel=rel)
    moved = {name for name, each in differences.items() if bool(each.any())}
    assert found.tensors.keys() == moved
    for name in moved:
        torch.testing.assert_close(found.tensors[name], differences[name] / norm, rtol=1e-4, atol=1e-4 / norm * 1e-3)
    total = sum(float(each.double().square().sum()) for each in found.tensors.values())
    assert total == pytest.approx(1.0, rel=1e-6)


def differences_of(base: Any, endpoint: Any) -> dict[str, Tensor]:
    start = parameters(base)
    return {name: weight - start[name] for name, weight in parameters(endpoint).items()}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_model_folder_gives_the_difference_over_all_tensors(tiny_model: Path, tmp_path: Path) -> None:
    endpoint = write_endpoint(tiny_model, tmp_path)
    before = contents(tiny_model), contents(endpoint)
    found = direction_to(endpoint, tiny_model)
    assert_direction(found, differences_of(read_model(tiny_model), read_model(endpoint)))
    assert any("embed" in name for name in found.tensors)
    # The difference is taken in the endpoint's memory, never in its file.
    assert (contents(tiny_model), contents(endpoint)) == before


def test_tensors_that_did_not_move_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    endpoint = change_weights(tiny_model, tmp_path, lambda name, weight: weight + 0.1 * ("mlp" in name))
    found = direction_to(endpoint, tiny_model)
    assert_direction(found, differences_of(read_model(tiny_model), read_model(endpoint)))
    assert found.tensors
    assert all("mlp" in name for name in found.tensors)
    assert found.elements == sum(tensor.numel() for tensor in found.tensors.values())


def test_tied_weights_count_once(tmp_path: Path) -> None:
    base = write_tied_model(tmp_path / "base")
    endpoint = write_endpoint(base, tmp_path / "endpoint")
    found = direction_to(endpoint, base)
    differences = differences_of(read_model(base), read_model(endpoint))
    # The tied tensor stands under the first of its names.
    differences["lm_head.weight"] = differences.pop("model.embed_tokens.weight")
    assert_direction(found, differences)


@pytest.mark.parametrize("write", [write_tiny_llava, write_tiny_gemma3])
def test_files_may_name_tensors_otherwise_than_the_model_does(write: Callable[..., Path], tmp_path: Path) -> None:
    base, other = write(tmp_path / "base"), write(tmp_path / "other", seed=1)
    models = [transformers.AutoModelForImageTextToText.from_pretrained(folder) for folder in (base, other)]
    assert load_file(base / "model.safetensors").keys() != dict(models[0].named_parameters()).keys()
    differences = differences_of(*models)
    if models[0].config.text_config.tie_word_embeddings:
        differences["lm_head.weight"] = differences.pop("model.language_model.embed_tokens.weight")
    assert_direction(direction_to(other, base), differences)


def test_half_precision_folders_differ_by_their_own_numbers(tiny_model: Path, tmp_path: Path) -> None:
    # An endpoint of bfloat16 numbers: the fp32 base is not rounded before the difference is taken.
    model = read_model(write_endpoint(tiny_model, tmp_path / "single"), torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    differences = differences_of(read_model(tiny_model), read_model(tmp_path / "half"))
    assert_direction(direction_to(tmp_path / "half", tiny_model), differences)


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 40}},
    "some layers": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_gives_its_merged_product(settings: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    adapted = write_adapter(tiny_model, tmp_path, **settings)
    merged = adapted.merge_and_unload()
    differences = differences_of(read_model(tiny_model), merged)
    found = direction_to(tmp_path, tiny_model)
    assert found.tensors.keys() == {name for name, each in differences.items() if bool(each.any())}
    for name, tensor in found.tensors.items():
        # Merging rounds to the weights' own precision.
        torch.testing.assert_close(found.distance * tensor, differences[name], rtol=1e-3, atol=1e-6)


def test_an_adapter_of_transposed_layers(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    adapted = write_adapter(tmp_path / "base", tmp_path / "lora", target_modules=["c_attn"], fan_in_fan_out=True)
    differences = differences_of(read_model(tmp_path / "base"), adapted.merge_and_unload())
    found = direction_to(tmp_path / "lora", tmp_path / "base")
    (name,) = found.tensors
    assert name == "transformer.h.0.attn.c_attn.weight"
    torch.testing.assert_close(found.distance * found.tensors[name], differences[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save"),
        ({"bias": "all"}, "bias all"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_A"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_that_is_more_than_products_is_refused(
    settings: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    write_adapter(tiny_model, tmp_path, **settings)
    with pytest.raises(EndpointError, match=f"{said}.*Merge it into the base model"):
        direction_to(tmp_path, tiny_model)


def test_an_adapter_without_safetensors_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    write_adapter(tiny_model, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(EndpointError, match="Save the adapter as safetensors"):
        direction_to(tmp_path, tiny_model)


def test_no_difference_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="does not differ from the base model"):
        direction_to(tiny_model, tiny_model)
    write_adapter(tiny_model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: 0.0 * tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(EndpointError, match="does not differ from the base model"):
        direction_to(tmp_path, tiny_model)


def test_what_is_not_finite_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    endpoint = change_weights(tiny_model, tmp_path, lambda name, weight: weight / (0.0 if "norm" in name else 1.0))
    with pytest.raises(EndpointError, match="not finite"):
        direction_to(endpoint, tiny_model)


def test_other_shapes_and_names_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    wide = write_tiny_model(tmp_path / "wide", hidden=64)
    with pytest.raises(
        EndpointError, match=r"other shapes.*lm_head.weight \(258, 64\) instead of \(258, 32\), .* 22 more"
    ):
        direction_to(wide, tiny_model)
    deep = write_tiny_model(tmp_path / "deep")
    config = json.loads((deep / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "layer_types": config["layer_types"][:1]}
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config)).save_pretrained(tmp_path / "shallow")
    with pytest.raises(EndpointError, match=r"it lacks model\.layers\.1.* and adds nothing"):
        direction_to(tmp_path / "shallow", tiny_model)
    tied = write_tied_model(tmp_path / "tied")
    with pytest.raises(EndpointError, match="tied tensors count as one"):
        direction_to(tied, tiny_model)


def test_a_folder_that_is_not_whole_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    endpoint = write_endpoint(tiny_model, tmp_path)
    path = endpoint / "model.safetensors"
    weights = load_file(path)
    save_file({"more": torch.ones(2), **weights}, path, metadata={"format": "pt"})
    with pytest.raises(EndpointError, match="that its model does not have: more"):
        direction_to(endpoint, tiny_model)
    weights.pop("model.norm.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EndpointError, match=r"lacks weights of a language model, .*: model\.norm\.weight"):
        direction_to(endpoint, tiny_model)
    path.unlink()
    with pytest.raises(EndpointError, match="cannot be loaded"):
        direction_to(endpoint, tiny_model)
