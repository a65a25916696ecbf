"""Taking models apart: real tiny models of several families, adapters, processors, attention, compiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from curation_resources.scoring import loading
from curation_resources.scoring.complete_weights import LoadingError
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.head import Head
from curation_resources.scoring.labels import segment_order
from curation_resources.scoring.loading import load_checkpoint, pick_attention
from curation_resources.scoring.samples import Encoded, Request
from tests.models import byte_tokenizer, write_tiny_gemma3, write_tiny_llava, write_tiny_qwen3_vl
from tests.scoring.cases import make_sample

SMALL: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    "eos_token_id": 0,
    "bos_token_id": None,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {}),
    "gemma2": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "final_logit_softcapping": 5.0, "sliding_window": 4}),
    "phi": ("Phi", {}),  # its head has a bias
    "phi3": ("Phi3", {}),
}


def write_family(folder: Path, name: str) -> transformers.PreTrainedModel:
    """A tiny random model of a family with the byte tokenizer."""
    prefix, extra = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**(SMALL | extra))
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def gram_by_autograd(model: Any, encoded: Encoded) -> list[float]:
    """The Gram matrix (upper triangle) by the definition: the whole model alone, a bias on its final hidden state.

    The gradient of every segment's mean loss comes from autograd through the model's own logits.
    """
    bias = torch.zeros(model.get_output_embeddings().weight.shape[1], requires_grad=True)
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: (args[0] + bias,))
    logits = model(input_ids=torch.tensor([encoded.input_ids]), **encoded.model_inputs).logits[0]
    handle.remove()
    gradients: list[torch.Tensor] = []
    for segment in segment_order(encoded):
        positions = [p for p, owner in enumerate(encoded.segment_of_token) if owner == segment]
        targets = torch.tensor([encoded.input_ids[p] for p in positions])
        loss = torch.nn.functional.cross_entropy(logits[torch.tensor(positions) - 1], targets)
        gradients += torch.autograd.grad(loss, bias, retain_graph=True)
    rows = torch.stack(gradients)
    gram = rows @ rows.T
    upper: list[float] = gram[tuple(torch.triu_indices(len(rows), len(rows)))].tolist()
    return upper


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_family_equal_autograd_through_the_whole_model(family: str, tmp_path: Path) -> None:
    model = write_family(tmp_path, family)
    checkpoint = load_checkpoint(tmp_path, device="cpu")
    assert (checkpoint.max_length, checkpoint.vocabulary, checkpoint.processor) == (128, 258, None)
    encoder = Encoder(checkpoint.tokenizer, "plain", checkpoint.max_length)
    sample = make_sample(["one and one", "two and two"], "42")
    (encoded,) = encoder.encode([sample])
    (found,) = ForwardPass(checkpoint, encoder).measure([sample], Request(step_gradients="bias"))
    assert found.step_gradients is not None
    assert found.step_gradients.gram == pytest.approx(gram_by_autograd(model, encoded), rel=1e-4, abs=1e-6)


def test_a_family_whose_logits_are_made_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_family(tmp_path, "cohere")
    real = loading._head
    monkeypatch.setattr(loading, "_head", lambda model: Head(real(model).weight))
    with pytest.raises(LoadingError, match="computes its logits in an unknown way"):
        load_checkpoint(tmp_path, device="cpu")


def test_a_family_that_looks_ahead_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen2 import modeling_qwen2

    def see_everything(*_: Any, **arguments: Any) -> torch.Tensor:
        length = arguments["inputs_embeds"].shape[1]
        return torch.zeros(1, 1, length, length)

    monkeypatch.setattr(modeling_qwen2, "create_causal_mask", see_everything)
    with pytest.raises(LoadingError, match="attend to later ones"):
        load_checkpoint(tiny_model, device="cpu")


def test_half_precision_keeps_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    import peft

    # A small adapter: merged into bfloat16 weights most of it would be rounded away.
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    adapted.save_pretrained(str(tmp_path))
    expected = {name: weight.detach().clone() for name, weight in adapted.named_parameters() if "lora_" in name}
    half: Any = load_checkpoint(tiny_model, tmp_path, device="cpu", dtype="bfloat16").decoder
    kept: dict[str, torch.Tensor]
    kept = {name: weight for name, weight in half.named_parameters() if "lora_" in name}
    assert len(kept) == len(expected)
    for name, original in expected.items():
        torch.testing.assert_close(kept[name.removeprefix("base_model.model.model.")], original)
    merged: Any = load_checkpoint(tiny_model, tmp_path, device="cpu").decoder
    with torch.no_grad():
        states = [decoder(input_ids=torch.arange(2, 40).unsqueeze(0)).last_hidden_state for decoder in (half, merged)]
    assert torch.nn.functional.cosine_similarity(states[0].float().flatten(), states[1].flatten(), dim=0) > 0.99


VISION = {"qwen3_vl": write_tiny_qwen3_vl, "llava": write_tiny_llava, "gemma3": write_tiny_gemma3}


@pytest.mark.parametrize("family", VISION)
def test_a_vision_model_comes_with_its_processor(family: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(VISION[family](tmp_path), device="cpu")
    assert type(checkpoint.processor.image_processor).__name__.endswith("Pil")
    assert checkpoint.max_length == 2048
    assert checkpoint.vocabulary == len(checkpoint.tokenizer) == len(checkpoint.head.weight)
    assert checkpoint.decoder.get_submodule("language_model") is not None


@pytest.mark.parametrize("family", VISION)
def test_a_vision_model_without_processor_files_measures_text(family: str, tmp_path: Path) -> None:
    folder = VISION[family](tmp_path)
    for name in loading.PROCESSOR_FILES:
        (folder / name).unlink()
    checkpoint = load_checkpoint(folder, device="cpu")
    assert checkpoint.processor is None
    encoder = Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)
    (encoded,) = encoder.encode([make_sample(["two"], "2")])
    # LLaVA's template reads contents in parts only: given text it would leave the prompt out.
    assert "How many?" in checkpoint.tokenizer.decode(encoded.input_ids)
    (found,) = ForwardPass(checkpoint, encoder).measure(
        [encoded.sample], Request(step_gradients="bias", likelihoods=True)
    )
    assert found.step_gradients is not None
    assert found.likelihoods is not None


def test_a_processor_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    folder = write_tiny_llava(tmp_path)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchImageProcessor"}')
    with pytest.raises(LoadingError, match=r"processor in .* cannot be loaded"):
        load_checkpoint(folder, device="cpu")


def test_attention_is_picked_by_device_and_precision(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = transformers.AutoConfig.from_pretrained(tiny_model)
    gemma = transformers.AutoConfig.from_pretrained(write_tiny_gemma3(tmp_path / "gemma3"))
    qwen = transformers.AutoConfig.from_pretrained(write_tiny_qwen3_vl(tmp_path / "qwen"))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    with pytest.raises(LoadingError, match="there is no attention 'flash'"):
        pick_attention("flash", text, cpu, "float32")
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: False)
    assert pick_attention("auto", text, cuda, "bfloat16") is None
    with pytest.raises(LoadingError, match="flash-attn"):
        pick_attention("flash_attention_2", text, cuda, "bfloat16")
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: True)
    assert pick_attention("auto", text, cuda, "bfloat16") == "flash_attention_2"
    assert pick_attention("auto", qwen, cuda, "float16") == "flash_attention_2"
    assert pick_attention("auto", text, cuda, "float32") is None
    assert pick_attention("auto", text, cpu, "bfloat16") is None
    assert pick_attention("eager", text, cuda, "bfloat16") == "eager"
    # Gemma 3's image tokens look ahead within their image.
    assert pick_attention("auto", gemma, cuda, "bfloat16") is None
    with pytest.raises(LoadingError, match="look ahead"):
        pick_attention("flash_attention_2", gemma, cuda, "bfloat16")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention: str, tiny_model: Path) -> None:
    ids = torch.arange(2, 40).unsqueeze(0)
    states = []
    for name in ("auto", attention):
        decoder: Any = load_checkpoint(tiny_model, device="cpu", attention=name).decoder
        assert decoder.config._attn_implementation == ("sdpa" if name == "auto" else name)
        with torch.no_grad():
            states.append(decoder(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(*states)


@pytest.mark.slow
def test_a_compiled_model_measures_the_same(tiny_model: Path) -> None:
    samples = [make_sample(["two and two"] * count, "42", name=f"s{count}") for count in (1, 2, 4)]
    found = []
    for compiled in (False, True):
        checkpoint = load_checkpoint(tiny_model, device="cpu", compile_model=compiled)
        encoder = Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)
        # One sample a batch: the shape changes from batch to batch.
        results = ForwardPass(checkpoint, encoder, batch_tokens=1).measure(samples, Request(step_gradients="bias"))
        found.append([value for r in results if r.step_gradients for value in r.step_gradients.gram])
    assert hasattr(checkpoint.decoder, "_orig_mod")
    assert len(found[0]) == 3 + 6 + 15
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-6)
