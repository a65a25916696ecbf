"""Spectra of per-sample gradients from factors, against autograd's whole weight gradients and their SVD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from curation_resources.scoring.attention_layers import AttentionError
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.factors import Taker, backward, reaches
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.gradient_pass import GradientPass
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.samples import Encoded, Request, Sample
from curation_resources.scoring.spec import PROJECTIONS
from curation_resources.scoring.spectra import Spectra, SpectraOfBatch, effective_rank
from tests.models import byte_tokenizer, write_tiny_gemma3, write_tiny_llava, write_tiny_model, write_tiny_qwen3_vl
from tests.scoring.cases import make_sample, random_samples

TINY: dict[str, Any] = {"vocab_size": 258, "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 0}
LLAMA = TINY | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
EXPERTS = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "num_experts": 4}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_key_value_heads": 4})),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**LLAMA | {"head_dim": 16})),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**LLAMA)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**TINY, n_embd=32, n_layer=3, n_head=4, n_positions=512, initializer_range=0.3)
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**LLAMA | EXPERTS)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**LLAMA | {"num_key_value_heads": 4})),
}


def made(folder: Path, family: str) -> Checkpoint:
    torch.manual_seed(3)
    writers = {"qwen3_vl": write_tiny_qwen3_vl, "llava": write_tiny_llava, "gemma3": write_tiny_gemma3}
    if family in writers:
        return load_checkpoint(writers[family](folder), device="cpu")
    if family == "qwen2":
        return load_checkpoint(write_tiny_model(folder), device="cpu")
    model = FAMILIES[family]()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return load_checkpoint(folder, device="cpu")


def encoded_samples(checkpoint: Checkpoint, count: int = 5, seed: int = 1) -> list[Encoded]:
    encoder = Encoder(
        checkpoint.tokenizer,
        "auto",
        checkpoint.max_length,
        processor=checkpoint.processor,
        vocabulary=checkpoint.vocabulary,
    )
    # A short one is of fewer rows than any projection has columns, the others of more.
    return encoder.encode([make_sample(["yes"], "2", "?"), *random_samples(count - 1, seed)])


def spectra_of(checkpoint: Checkpoint, batch: list[Encoded], flattened: bool = False) -> tuple[list[Spectra], Tensor]:
    projections = checkpoint.attention
    layers = {f"{n}.{name}": one for n, layer in enumerate(projections) for name, one in layer.layers.items()}
    taker = SpectraOfBatch(projections, reaches(batch), flattened)
    losses = backward(checkpoint, StreamedHead(checkpoint.head), batch, [Taker(layers, taker.take)])
    return taker.spectra, losses


def whole_gradients(checkpoint: Checkpoint, encoded: Encoded) -> tuple[list[dict[str, Tensor]], float]:
    """G of every projection by autograd: one sample, full logits, the weights' own gradients."""
    model = checkpoint.model
    model.requires_grad_(True)
    ids = torch.tensor([encoded.input_ids])
    logits = model(input_ids=ids).logits[0]
    places = range(max(1, encoded.prompt_tokens), encoded.prompt_tokens + encoded.response_tokens)
    loss = torch.stack([F.cross_entropy(logits[at - 1], ids[0, at]) for at in places]).mean()
    found = []
    for layer in checkpoint.attention:
        own: dict[str, Tensor] = {}
        for name, module in layer.layers.items():
            weight: Any = module.weight
            (gradient,) = torch.autograd.grad(loss, [weight], retain_graph=True)
            if type(module).__name__ == "Conv1D":
                gradient = gradient.T
            for part, rows in layer.split(name, gradient.T[None]):
                own[part] = rows[0].T
        found.append(own)
    model.requires_grad_(False)
    return found, float(loss.detach())


def gradient_pass(checkpoint: Checkpoint) -> GradientPass:
    return GradientPass(checkpoint, StreamedHead(checkpoint.head))


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


@pytest.mark.parametrize("family", ["qwen2", *FAMILIES, "qwen3_vl", "llava", "gemma3"])
def test_spectra_are_those_of_autograds_gradients(tmp_path: Path, family: str) -> None:
    checkpoint = made(tmp_path / "model", family)
    batch = encoded_samples(checkpoint)
    found, losses = spectra_of(checkpoint, batch)
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    for encoded, spectra, loss in zip(batch, found, losses, strict=True):
        expected, by_autograd = whole_gradients(checkpoint, encoded)
        assert float(loss) == pytest.approx(by_autograd, rel=1e-4)
        for layer, own in enumerate(expected):
            for place, name in enumerate(PROJECTIONS):
                values = torch.linalg.svdvals(own[name].double())
                assert spectra.nuclear_norm[layer, place] == pytest.approx(float(values.sum()), rel=1e-4)
                assert spectra.effective_rank[layer, place] == pytest.approx(float(effective_rank(values)), rel=1e-3)
                rank = spectra.largest_rank[layer, place]
                assert rank == min(int(spectra.rows[layer, place]), *own[name].shape)
                assert spectra.effective_rank[layer, place] <= rank * (1 + 1e-6)
                if layer:
                    below = expected[layer - 1][name]
                    assert spectra.adjacent[layer - 1, place] == pytest.approx(cosine(below, own[name]), abs=1e-4)
            for place, (one, other) in enumerate((("q", "o"), ("k", "v"))):
                if own[one].shape == own[other].shape:
                    assert spectra.same_layer[layer, place] == pytest.approx(cosine(own[one], own[other]), abs=1e-4)
                else:
                    assert spectra.same_layer[layer, place].isnan()


def test_cosines_as_coded_flatten_what_has_as_many_elements(tmp_path: Path) -> None:
    # q is [64, 32] and o [32, 64].
    checkpoint = made(tmp_path / "model", "gemma")
    batch = encoded_samples(checkpoint)
    paper, _ = spectra_of(checkpoint, batch)
    found, _ = spectra_of(checkpoint, batch, flattened=True)
    for encoded, before, spectra in zip(batch, paper, found, strict=True):
        assert torch.equal(spectra.adjacent, before.adjacent)
        for layer, own in enumerate(whole_gradients(checkpoint, encoded)[0]):
            assert own["q"].shape == own["o"].shape[::-1] != own["o"].shape
            assert before.same_layer[layer, 0].isnan()
            assert spectra.same_layer[layer, 0] == pytest.approx(cosine(own["q"], own["o"]), abs=1e-4)


def test_neither_batches_nor_padding_matter(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    batch = encoded_samples(checkpoint, 6)
    together, _ = spectra_of(checkpoint, batch)
    for encoded, spectra in zip(batch, together, strict=True):
        (alone,), _ = spectra_of(checkpoint, [encoded])
        torch.testing.assert_close(spectra.nuclear_norm, alone.nuclear_norm, rtol=1e-4, atol=0)
        torch.testing.assert_close(spectra.effective_rank, alone.effective_rank, rtol=1e-3, atol=0)
        assert torch.equal(spectra.rows, alone.rows)


def test_prompt_rows_count_in_lower_layers_and_not_in_the_last(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "llama")
    (encoded,) = encoded_samples(checkpoint)[1:2]
    ((spectra,), _) = spectra_of(checkpoint, [encoded])
    last, first = spectra.rows[-1], spectra.rows[0]
    # What follows the last layer's o and q looks at labelled positions alone; k and v are looked at by these.
    assert last[0] == last[3] == encoded.response_tokens
    assert last[1] == last[2] == len(encoded) - 2
    # The first position has nothing but itself to look at: how it asks does not matter.
    assert first.tolist() == [len(encoded) - 3, *[len(encoded) - 2] * 3]


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7.0)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3)).isnan()


def test_an_unknown_kind_of_attention_is_refused(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "llama")
    decoder: Any = checkpoint.decoder
    layer = decoder.layers[1].self_attn
    layer.strange, layer.q_proj = layer.q_proj, torch.nn.Identity()
    with pytest.raises(AttentionError, match=r"layer 1 .*has .*strange"):
        _ = checkpoint.attention


def test_the_pass_gives_spectra_beside_anything_else_and_says_what_it_ran(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    encoder = Encoder(
        checkpoint.tokenizer, "auto", checkpoint.max_length, processor=None, vocabulary=checkpoint.vocabulary
    )
    samples = [
        *random_samples(5, 2),
        make_sample(["no answer here"], None, name="open"),
        Sample("void", [{"role": "user", "content": "?"}], ""),
    ]
    alone = {one.sample_id: one for one in ForwardPass(checkpoint, encoder).measure(samples, Request(spectra=True))}
    both = Request(spectra=True, likelihoods=True, unconditional=True)
    for result in ForwardPass(checkpoint, encoder, batch_tokens=64).measure(samples, both):
        other = alone[result.sample_id]
        if result.sample_id == "void":
            assert (result.spectra, other.spectra) == (None, None)
            assert (result.tokens, result.backward_tokens, result.flags) == (0, 0, ["empty_response"])
            continue
        assert result.tokens == result.backward_tokens == other.tokens
        assert other.backward_tokens == 0
        assert result.spectra is not None
        assert other.spectra is not None
        assert result.likelihoods is not None
        assert result.response_loss == pytest.approx(result.likelihoods.mean_nll, rel=1e-4)
        for own, theirs in zip(result.spectra.nuclear_norm, other.spectra.nuclear_norm, strict=True):
            assert own == pytest.approx(theirs, rel=1e-4)
        assert result.spectra.rows == other.spectra.rows


def test_a_sample_that_is_not_finite_spoils_no_other(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    whole = encoded_samples(checkpoint, 4)
    bad = 90  # a token of no other sample
    while any(bad in one.input_ids for one in whole):
        bad += 1
    broken = replace(whole[1], input_ids=[bad, *whole[1].input_ids[1:]])
    with torch.no_grad():
        checkpoint.model.get_input_embeddings().weight[bad] = torch.nan
    batch = [whole[0], broken, *whole[2:]]
    described = [describe(one, place) for place, one in enumerate(batch)]
    found = gradient_pass(checkpoint).add(batch, described, Request(spectra=True))
    assert [one.spectra is None for one in found] == [False, True, False, False]
    assert found[1].flags == ["non_finite"]
    expected = gradient_pass(checkpoint).add(whole[:1], described[:1], Request(spectra=True))
    assert found[0].spectra is not None
    assert expected[0].spectra is not None
    for own, theirs in zip(found[0].spectra.nuclear_norm, expected[0].spectra.nuclear_norm, strict=True):
        assert own == pytest.approx(theirs, rel=1e-4)


def test_no_weights_gradient_is_made_and_no_hook_stays(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    spectra_of(checkpoint, encoded_samples(checkpoint, 2))
    assert all(parameter.grad is None for parameter in checkpoint.model.parameters())
    assert not any(module._forward_hooks for module in checkpoint.model.modules())


def test_layers_of_a_compiled_decoder_are_seen_all_the_same(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    batch = encoded_samples(checkpoint, 2)
    expected, _ = spectra_of(checkpoint, batch)
    compiled: Any = torch.compile(checkpoint.decoder, backend="eager")
    found, _ = spectra_of(replace(checkpoint, decoder=compiled), batch)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own.nuclear_norm, theirs.nuclear_norm)


def test_a_layer_that_is_not_run_is_an_error_and_no_gap(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    batch = encoded_samples(checkpoint, 2)
    spare = made(tmp_path / "spare", "qwen2").attention[1]
    checkpoint.attention[1] = spare
    described = [describe(one, place) for place, one in enumerate(batch)]
    with pytest.raises(AttentionError, match="does not run them all"):
        gradient_pass(checkpoint).add(batch, described, Request(spectra=True))


def test_memory_that_runs_out_on_the_way_back_leaves_forward_batches_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = made(tmp_path / "model", "qwen2")
    encoder = Encoder(
        checkpoint.tokenizer, "auto", checkpoint.max_length, processor=None, vocabulary=checkpoint.vocabulary
    )
    within = ForwardPass(checkpoint, encoder, batch_tokens=8 * 600)
    attempts: list[int] = []

    real = GradientPass.add

    def short(own: GradientPass, batch: Any, *given: Any) -> Any:
        attempts.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(own, batch, *given)

    monkeypatch.setattr(GradientPass, "add", short)
    found = within.measure(random_samples(5, 2), Request(spectra=True))
    assert all(one.spectra is not None for one in found)
    assert max(attempts) > 1
    assert within.backward_tokens < 600
    assert within.batch_tokens == 8 * 600
