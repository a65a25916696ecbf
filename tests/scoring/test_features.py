"""Gradient features and norms from factors, against gradients that autograd makes and projections written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.factors import GradientError
from curation_resources.scoring.features import BETA1, BETA2, EPSILON, Projection, Sketch, quantised, signs
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.gradient_pass import GradientPass
from curation_resources.scoring.gradient_spec import OPTIMIZER, FeatureError, FeatureSpec, GradientWeights
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.labels import segment_order
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.results import GradientFeatures
from curation_resources.scoring.samples import Encoded, Request
from curation_resources.scoring.trained_matrices import linear_layers, trained_matrices
from tests.models import write_tiny_model
from tests.scoring.cases import make_sample, packed, random_samples
from tests.scoring.test_spectra import FAMILIES, encoded_samples, made

SPEC = FeatureSpec(projection=6, dimension=200)


def with_adapter(folder: Path, moments: bool = False, model: Path | None = None, **changes: Any) -> Checkpoint:
    """A tiny model with an adapter that is not zero, and AdamW's moments beside it if they are asked for."""
    base = model or write_tiny_model(folder / "base")
    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **changes)
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    state = {}
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            with torch.no_grad():
                weight.normal_(std=0.1)
            state[f"exp_avg.{name}"] = torch.randn_like(weight) * 1e-3
            state[f"exp_avg_sq.{name}"] = torch.rand_like(weight) * 1e-6
    adapted.save_pretrained(str(folder / "adapter"))
    if moments:
        save_file(state, folder / "adapter" / OPTIMIZER)
    return load_checkpoint(base, folder / "adapter", device="cpu")


def measured(checkpoint: Checkpoint, batch: list[Encoded], request: Request) -> list[Any]:
    described = [describe(one, place) for place, one in enumerate(batch)]
    return GradientPass(checkpoint, StreamedHead(checkpoint.head)).add(batch, described, request)


def by_autograd(
    model: Any, weights: dict[str, Tensor], encoded: Encoded, places: list[int] | None = None
) -> dict[str, Tensor]:
    """The gradient of each weight: one sample alone, full logits; mean loss of these tokens, or of the response."""
    for weight in weights.values():
        weight.requires_grad_(True)
    ids = torch.tensor([encoded.input_ids])
    logits = model(input_ids=ids).logits[0]
    if places is None:
        places = [*range(max(1, encoded.prompt_tokens), encoded.prompt_tokens + encoded.response_tokens)]
    loss = torch.stack([F.cross_entropy(logits[at - 1], ids[0, at]) for at in places]).mean()
    found = torch.autograd.grad(loss, list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


def gradients_of_layers(checkpoint: Checkpoint, encoded: Encoded) -> dict[str, Tensor]:
    """By a matrix' name, the gradient of the layer's weight, as [d_out, d_in]."""
    layers = linear_layers(checkpoint)
    weights: dict[str, Any] = {f"{name}.weight": module.weight for name, module in layers.items()}
    found = by_autograd(checkpoint.model, weights, encoded)
    turned = {f"{name}.weight" for name, module in layers.items() if type(module).__name__ == "Conv1D"}
    return {name: one.T if name in turned else one for name, one in found.items()}


def gradients_of_adapter(
    checkpoint: Checkpoint, encoded: Encoded, places: list[int] | None = None
) -> dict[str, Tensor]:
    """By a matrix' name, the gradient of A or B: peft's own model, the adapter beside the weights."""
    from peft import PeftModel

    assert checkpoint.folder is not None
    assert checkpoint.adapter is not None
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(checkpoint.folder), str(checkpoint.adapter)
    ).eval()
    weights = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    return by_autograd(model, weights, encoded, places)


def projection_matrix(projection: Projection) -> Tensor:
    return torch.diag(projection.matrix) if projection.matrix.dim() == 1 else projection.matrix


def sketched(checkpoint: Checkpoint, gradients: dict[str, Tensor], spec: FeatureSpec) -> Tensor:
    """The vector by its definition: each G, P^T G Q, one number after another into its place."""
    sketch = Sketch.of(trained_matrices(checkpoint, spec.weights), spec, torch.device("cpu"))
    vector = torch.zeros(sketch.length, dtype=torch.float64)
    for block in (block for blocks in sketch.blocks.values() for block in blocks):
        left, right = projection_matrix(block.left).double(), projection_matrix(block.right).double()
        made = left.T @ gradients[block.matrix.name].double() @ right
        for place, number in enumerate(made.flatten()):
            vector[(block.offset + place) % sketch.length] += number
    return vector


def assert_is(found: GradientFeatures | None, expected: Tensor) -> None:
    """Equal but for a unit of int8."""
    assert found is not None
    assert len(found.values) == len(expected)
    assert np.abs(found.values).max() == 127
    assert found.scale == pytest.approx(float(expected.abs().max()) / 127, rel=1e-4)
    off = np.abs(found.values * found.scale - expected.numpy())
    assert off.max() <= 0.501 * found.scale


@pytest.mark.parametrize("family", ["qwen2", *sorted(FAMILIES.keys() - {"qwen2_moe"}), "qwen3_vl", "gemma3"])
def test_features_and_norms_of_layers_are_those_of_autograds_gradients(tmp_path: Path, family: str) -> None:
    checkpoint = made(tmp_path / "model", family)
    batch = encoded_samples(checkpoint, 4)
    found = measured(checkpoint, batch, Request(gradient_norms="layers", features=replace(SPEC, weights="layers")))
    for encoded, result in zip(batch, found, strict=True):
        gradients = gradients_of_layers(checkpoint, encoded)
        assert_is(result.features, sketched(checkpoint, gradients, replace(SPEC, weights="layers")))
        norm = sum(float(one.double().square().sum()) for one in gradients.values()) ** 0.5
        assert result.gradient_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
def test_those_of_an_adapter_are_those_of_its_own_two_matrices(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = with_adapter(tmp_path, **changes)
    batch = encoded_samples(checkpoint, 4)
    found = measured(checkpoint, batch, Request(gradient_norms="auto", features=SPEC))
    for encoded, result in zip(batch, found, strict=True):
        gradients = gradients_of_adapter(checkpoint, encoded)
        assert_is(result.features, sketched(checkpoint, gradients, SPEC))
        norm = sum(float(one.double().square().sum()) for one in gradients.values()) ** 0.5
        assert result.gradient_norm == pytest.approx(norm, rel=1e-4)


def test_eos_counts_in_the_loss_where_it_is_requested(tmp_path: Path) -> None:
    checkpoint = with_adapter(tmp_path)
    batch = encoded_samples(checkpoint, 4)
    # One of them was cut before its EOS.
    batch[1] = replace(batch[1], input_ids=batch[1].input_ids[:-1], segment_of_token=batch[1].segment_of_token[:-1])
    found = measured(checkpoint, batch, Request(features=SPEC, with_eos=True))
    for number, (encoded, result) in enumerate(zip(batch, found, strict=True)):
        last = encoded.prompt_tokens + encoded.response_tokens
        assert len(encoded) == last + (number != 1)
        places = [*range(max(1, encoded.prompt_tokens), len(encoded))]
        assert_is(result.features, sketched(checkpoint, gradients_of_adapter(checkpoint, encoded, places), SPEC))


def test_of_experts_only_an_adapters_gradients_are_known(tmp_path: Path) -> None:
    plain = made(tmp_path / "moe", "qwen2_moe")
    with pytest.raises(GradientError, match=r"gradients of .*experts\..* are not supported, .* not of linear layers"):
        measured(plain, encoded_samples(plain, 2), Request(gradient_norms="layers"))
    checkpoint = with_adapter(tmp_path, model=plain.folder)
    batch = encoded_samples(checkpoint, 4)
    names = {matrix.layer for matrix in trained_matrices(checkpoint, "adapter")}
    # The shared expert sees the samples end to end.
    assert any("shared_expert" in name for name in names)
    found = measured(checkpoint, batch, Request(gradient_norms="auto", features=SPEC))
    for encoded, result in zip(batch, found, strict=True):
        gradients = gradients_of_adapter(checkpoint, encoded)
        assert_is(result.features, sketched(checkpoint, gradients, SPEC))


def test_a_layer_that_sees_some_tokens_is_refused(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    mlp: Any = checkpoint.decoder.layers[0].mlp  # type: ignore[union-attr,index]

    class Routed(nn.Module):
        """An expert that every second token goes to."""

        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            flat = hidden.flatten(0, 1)
            out = torch.zeros(len(flat), self.inner.out_features)
            found: Tensor = out.index_add(0, torch.arange(0, len(flat), 2), self.inner(flat[::2]))
            return found.view(*hidden.shape[:2], -1)

    mlp.up_proj = Routed(mlp.up_proj)
    with pytest.raises(GradientError, match=r"layer .*up_proj\.inner sees .* not the tokens of every sample"):
        measured(checkpoint, encoded_samples(checkpoint, 3), Request(gradient_norms="layers"))


@pytest.mark.parametrize("inside", [False, True])
def test_adams_direction_is_what_it_would_be_with_this_gradient(tmp_path: Path, inside: bool) -> None:
    checkpoint = with_adapter(tmp_path, moments=True)
    batch = encoded_samples(checkpoint, 3)
    spec = replace(SPEC, epsilon_inside=inside)
    found = measured(checkpoint, batch, Request(adam_features=spec))
    assert checkpoint.adapter is not None
    from safetensors.torch import load_file

    state = load_file(checkpoint.adapter / OPTIMIZER)
    for encoded, result in zip(batch, found, strict=True):
        directions = {}
        for name, gradient in gradients_of_adapter(checkpoint, encoded).items():
            mean = BETA1 * state[f"exp_avg.{name}"] + (1 - BETA1) * gradient
            square = BETA2 * state[f"exp_avg_sq.{name}"] + (1 - BETA2) * gradient**2
            root = (square + EPSILON).sqrt() if inside else square.sqrt() + EPSILON
            directions[name] = mean / root
        assert_is(result.adam_features, sketched(checkpoint, directions, spec))


def test_gradients_of_steps_are_those_of_their_own_losses(tmp_path: Path) -> None:
    checkpoint = with_adapter(tmp_path)
    batch = encoded_samples(checkpoint, 3)
    # Nothing is projected and nothing falls together: signs alone keep dot products as they are.
    exact = FeatureSpec("adapter", projection=4096, dimension=2**24)
    request = Request(step_gradients="projected", step_features=exact)
    found = measured(checkpoint, batch, request)
    beside = measured(checkpoint, batch, replace(request, features=SPEC))
    for encoded, result, other in zip(batch, found, beside, strict=True):
        order = segment_order(encoded)
        rows = []
        for segment in order:
            places = [at for at, owner in enumerate(encoded.segment_of_token) if owner == segment]
            gradients = gradients_of_adapter(checkpoint, encoded, places)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients.values()]))
        assert result.step_gradients is not None
        assert result.step_gradients.gram == packed(torch.stack(rows))
        assert other.step_gradients is not None
        assert other.step_gradients.gram == pytest.approx(result.step_gradients.gram, rel=1e-4)
        assert result.tokens == len(encoded) * len(order)
        assert other.tokens + other.backward_tokens == len(encoded) * (len(order) + 1)


def test_without_what_is_needed_it_says_so(tmp_path: Path) -> None:
    checkpoint = with_adapter(tmp_path)
    batch = encoded_samples(checkpoint, 2)
    with pytest.raises(GradientError, match=r"has no optimizer\.safetensors"):
        measured(checkpoint, batch, Request(adam_features=SPEC))
    base = made(tmp_path / "model", "qwen2")
    with pytest.raises(GradientError, match="this checkpoint has none"):
        measured(base, batch, Request(features=replace(SPEC, weights="adapter")))
    with pytest.raises(FeatureError, match=r"does not fit .* Raise the dimension to 100"):
        FeatureSpec(projection=10, dimension=99)


def test_a_layer_that_no_token_goes_through_is_an_error_and_no_gap(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    passing = GradientPass(checkpoint, StreamedHead(checkpoint.head))
    name = next(iter(passing._layers))
    passing._layers[name] = torch.nn.Linear(3, 3)
    batch = encoded_samples(checkpoint, 2)
    with pytest.raises(GradientError, match=f"no gradient reached {name}"):
        passing.add(batch, [describe(one, place) for place, one in enumerate(batch)], Request(gradient_norms="layers"))


@pytest.mark.parametrize("weights", ["layers", "adapter"])
def test_no_batch_no_order_and_no_other_signal_changes_them(tmp_path: Path, weights: GradientWeights) -> None:
    checkpoint = with_adapter(tmp_path)
    encoder = Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length, vocabulary=checkpoint.vocabulary)
    samples = [*random_samples(7, 3), make_sample(["yes"], "2", "?", "short")]
    request = Request(features=replace(SPEC, weights=weights), gradient_norms=weights)
    one_by_one = {
        one.sample_id: one for s in samples for one in ForwardPass(checkpoint, encoder, 8).measure([s], request)
    }
    wider = replace(request, spectra=True, likelihoods=True)
    for result in ForwardPass(checkpoint, encoder).measure(samples[::-1], wider):
        alone = one_by_one[result.sample_id]
        assert alone.features is not None
        assert alone.gradient_norm is not None
        assert result.gradient_norm == pytest.approx(alone.gradient_norm, rel=1e-5)
        assert_is(result.features, torch.from_numpy(alone.features.values * alone.features.scale).double())
        assert result.spectra is not None
        assert result.backward_tokens == result.tokens == alone.tokens


def test_a_sample_that_is_not_finite_spoils_no_other(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    batch = encoded_samples(checkpoint, 4)
    bad = next(token for token in range(90, 250) if not any(token in one.input_ids for one in batch))
    batch[1] = replace(batch[1], input_ids=[bad, *batch[1].input_ids[1:]])
    with torch.no_grad():
        checkpoint.model.get_input_embeddings().weight[bad] = torch.nan
    found = measured(checkpoint, batch, Request(gradient_norms="layers", features=SPEC))
    assert [one.gradient_norm is None for one in found] == [False, True, False, False]
    assert [one.features is None for one in found] == [False, True, False, False]
    assert [one.flags for one in found] == [[], ["non_finite"], [], []]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.text(max_size=20), st.integers(1, 500), st.integers(0, 200))
def test_signs_are_those_of_their_name_however_many_are_drawn(seed: int, name: str, count: int, more: int) -> None:
    drawn = signs(seed, name, count)
    assert torch.equal(drawn.abs(), torch.ones(count))
    assert torch.equal(signs(seed, name, count + more)[:count], drawn)
    assert count < 64 or not torch.equal(signs(seed + 1, name, count), drawn)


def test_signs_are_fixed_for_all_time() -> None:
    first = signs(0, "model.layers.0.mlp.up_proj.weight/left", 12)
    assert first.tolist() == [1, 1, 1, 1, 1, 1, 1, 1, -1, 1, 1, -1]


def test_dot_products_are_kept_on_average() -> None:
    """Over many seeds the sketch's dot product comes to the exact one, also where blocks fall on one another."""
    torch.manual_seed(0)
    shapes = [(12, 9), (7, 12), (10, 4)]
    from curation_resources.scoring.trained_matrices import Matrix

    matrices = [Matrix(f"m{number}.weight", f"m{number}", shape) for number, shape in enumerate(shapes)]
    one = {matrix.name: torch.randn(matrix.shape, dtype=torch.float64) for matrix in matrices}
    other = {name: gradient + 0.5 * torch.randn_like(gradient) for name, gradient in one.items()}
    exact = sum(float((one[name] * other[name]).sum()) for name in one)
    found = []
    for seed in range(600):
        spec = FeatureSpec(projection=5, dimension=30, seed=seed)
        sketch = Sketch.of(matrices, spec, torch.device("cpu"))
        assert sketch.length == 30
        vectors = torch.zeros(2, 30, dtype=torch.float64)
        for (block,) in sketch.blocks.values():
            left, right = projection_matrix(block.left).double(), projection_matrix(block.right).double()
            pair = torch.stack([(left.T @ g[block.matrix.name] @ right).flatten() for g in (one, other)])
            sketch.add(block, vectors, pair)
        found.append(float(vectors[0] @ vectors[1]))
    mean, error = float(np.mean(found)), float(np.std(found)) / len(found) ** 0.5
    assert abs(mean - exact) < 4 * error
    assert error < 0.05 * exact


def test_a_gradient_of_zero_has_a_vector_of_zero() -> None:
    values, scale = quantised(torch.zeros(5))
    assert values.tolist() == [0] * 5
    assert scale == 0.0
