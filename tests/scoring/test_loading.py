"""Taking models apart: real tiny models of several families, an unknown one, and adapters in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from resources.scoring import loading
from resources.scoring.encoding import Encoder
from resources.scoring.forward import batch_gradients
from resources.scoring.loading import LoadingError, load_checkpoint
from tests.models import byte_tokenizer
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
    "phi3": ("Phi3", {}),
}


def write_family(folder: Path, name: str) -> transformers.PreTrainedModel:
    """A tiny random model of a family with the byte tokenizer."""
    prefix, extra = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**(SMALL | extra))
    model: transformers.PreTrainedModel = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_family_equal_autograd_through_the_whole_model(family: str, tmp_path: Path) -> None:
    model = write_family(tmp_path, family)
    checkpoint = load_checkpoint(tmp_path, device="cpu")
    assert checkpoint.max_length == 128
    encoder = Encoder(checkpoint.tokenizer, "plain", checkpoint.max_length)
    (encoded,) = encoder.encode([make_sample(["one and one", "two and two"], "42")])
    found = batch_gradients(checkpoint, [encoded])[0]
    # The model's own logits, with a bias that a hook adds to the final hidden state.
    for row, segment in enumerate([1, 2, 0]):
        bias = torch.zeros(32, requires_grad=True)
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda _m, args, b=bias: (args[0] + b,))
        logits = model(input_ids=torch.tensor([encoded.input_ids])).logits[0]
        handle.remove()
        positions = [p for p, owner in enumerate(encoded.segment_of_token) if owner == segment]
        targets = torch.tensor([encoded.input_ids[p] for p in positions])
        loss = torch.nn.functional.cross_entropy(logits[torch.tensor(positions) - 1], targets)
        (expected,) = torch.autograd.grad(loss, bias)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


def test_a_family_whose_logits_are_made_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_family(tmp_path, "cohere")
    real = loading._head
    monkeypatch.setattr(loading, "_head", lambda model: loading.Head(real(model).weight))
    with pytest.raises(LoadingError, match="in a way that is not known here"):
        load_checkpoint(tmp_path, device="cpu")


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
