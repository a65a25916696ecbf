"""Attention influence against plain loops: scores of heads, losses with heads masked by hand; refusals."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from curation_resources.scoring import measuring
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.labels import segment_order
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.retrieval_heads import (
    HeadIndex,
    RetrievalHeads,
    head_scores,
    masked_heads,
    observed_attention,
    strongest,
)
from curation_resources.scoring.retrieval_task import (
    LEAST_PAIRS,
    SOLVED,
    RetrievalError,
    RetrievalSpec,
    retrieval_prompts,
    retrieval_text,
)
from curation_resources.scoring.samples import Encoded, Request, Sample, SampleSignals
from tests.models import byte_tokenizer
from tests.scoring.cases import ALL_SIGNALS, assert_same_signals, random_samples

SPEC = RetrievalSpec(heads=0.4, prompts=3, pairs=7)
INFLUENCE = Request(attention_influence=SPEC)
WINDOW = 40
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "bos_token_id": None,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 2}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 1, "sliding_window": WINDOW}),
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        # Every other layer has a window.
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0},
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def write_model(folder: Path, family: str, context: int = 1024) -> Path:
    config, model, more = FAMILIES[family]
    torch.manual_seed(3)
    tokenizer = byte_tokenizer()
    made = model(config(vocab_size=len(tokenizer), **{**SHAPE, **more, "max_position_embeddings": context}))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {family: load_checkpoint(folder, device="cpu") for family, folder in folders.items()}


def pass_of(checkpoint: Checkpoint, batch_tokens: int = 8192) -> ForwardPass:
    return ForwardPass(checkpoint, encoder_of(checkpoint), batch_tokens)


def encoder_of(checkpoint: Checkpoint) -> Encoder:
    return Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)


def eager(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@every_family
def test_scores_of_heads_equal_a_loop_over_the_model_s_own_attentions(
    folders: dict[str, Path], loaded: dict[str, Checkpoint], family: str
) -> None:
    checkpoint = loaded[family]
    prompts = retrieval_prompts(checkpoint.tokenizer, SPEC, checkpoint.max_length, checkpoint.vocabulary)
    found = head_scores(checkpoint, prompts)
    model = eager(folders[family])
    totals: dict[HeadIndex, list[float]] = {}
    for number, prompt in enumerate(prompts):
        made = retrieval_text(SPEC.seed, number, SPEC.pairs)
        with torch.no_grad():
            attentions = model(torch.tensor([prompt.input_ids]), output_attentions=True).attentions
        # One token a byte: the places follow from the text alone.
        source = made.text.index(f'"{made.value}"') + 1
        answer = made.text.rindex(f'"{made.value}"') + 1
        for layer, weights in enumerate(attentions):
            for head in range(4):
                each = [float(weights[0, head, answer + n - 1, source + n]) for n in range(len(made.value))]
                totals.setdefault((layer, head), []).append(sum(each) / len(each))
    assert found.keys() == totals.keys()
    for index, each in totals.items():
        assert found[index] == pytest.approx(sum(each) / len(each), rel=1e-4, abs=1e-9), index
    assert RetrievalHeads(checkpoint).heads(SPEC) == strongest(found, 0.4)
    best = sorted(found, key=lambda index: -found[index])[:3]
    assert list(strongest(found, 0.4)) == best, "0.4 of 8 heads"


def by_hand(folder: Path, family: str, heads: Sequence[HeadIndex], encoded: Encoded) -> list[float]:
    """The loss of every token but the first, with the weights of these heads replaced row by row in an eager model."""
    model = eager(folder)
    window = int(FAMILIES[family][2].get("sliding_window", 0))

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        group = query.shape[1] // key.shape[1]
        has_window = window > 0 and (family != "gemma2" or module.layer_idx % 2 == 0)
        rows = []
        for head in range(query.shape[1]):
            logits = query[0, head] @ key[0, head // group].T * options["scaling"]
            if options.get("softcap") is not None:
                logits = options["softcap"] * torch.tanh(logits / options["softcap"])
            weights = torch.zeros_like(logits)
            for place in range(len(logits)):
                first = max(0, place - window + 1) if has_window else 0
                seen = slice(first, place + 1)
                if (module.layer_idx, head) in heads:
                    weights[place, seen] = 1 / (place + 1 - first)
                else:
                    weights[place, seen] = logits[place, seen].softmax(dim=0)
            rows.append(weights @ value[0, head // group])
        return torch.stack(rows, dim=1)[None], weights

    module = sys.modules[type(model).__module__]
    plain = module.eager_attention_forward
    module.eager_attention_forward = attention  # type: ignore[attr-defined]
    try:
        with torch.no_grad():
            logits = model(torch.tensor([encoded.input_ids])).logits[0].double()
    finally:
        module.eager_attention_forward = plain  # type: ignore[attr-defined]
    return [-float(logits[place - 1].log_softmax(dim=0)[encoded.input_ids[place]]) for place in range(1, len(encoded))]


def assert_losses(
    result: SampleSignals, encoded: Encoded, heads: Sequence[HeadIndex], folder: Path, family: str
) -> None:
    for found, masked in ((result.response_losses, ()), (result.masked_losses, heads)):
        assert found is not None
        losses = by_hand(folder, family, masked, encoded)
        response = losses[encoded.prompt_tokens - 1 : encoded.prompt_tokens + encoded.response_tokens - 1]
        assert found.mean_nll == pytest.approx(sum(response) / len(response), rel=1e-5)
        sums = [
            sum(losses[place - 1] for place, owner in enumerate(encoded.segment_of_token) if owner == segment)
            for segment in segment_order(encoded)
        ]
        assert found.segment_sums == pytest.approx(sums, rel=1e-5)


@every_family
def test_losses_equal_those_with_weights_replaced_by_hand(
    folders: dict[str, Path], loaded: dict[str, Checkpoint], family: str
) -> None:
    checkpoint = loaded[family]
    samples = random_samples(5)
    results = pass_of(checkpoint, 600).measure(samples, INFLUENCE)
    heads = RetrievalHeads(checkpoint).heads(SPEC)
    assert len(heads) == 3
    for encoded, result in zip(encoder_of(checkpoint).encode(samples), results, strict=True):
        assert tuple(result.masked_heads) == heads
        assert (result.tokens, result.masked_tokens, result.flags) == (len(encoded), len(encoded), [])
        assert_losses(result, encoded, heads, folders[family], family)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_implementation_is_masked_alike(
    folders: dict[str, Path], loaded: dict[str, Checkpoint], attention: str
) -> None:
    samples = random_samples(4)
    for family in ("qwen2", "mistral"):
        other = load_checkpoint(folders[family], device="cpu", attention=attention)
        results = pass_of(other).measure(samples, INFLUENCE)
        for found, expected in zip(results, pass_of(loaded[family]).measure(samples, INFLUENCE), strict=True):
            assert found.masked_heads == expected.masked_heads
            assert numbers(found) == pytest.approx(numbers(expected), rel=1e-5)


def numbers(result: SampleSignals) -> list[float]:
    assert result.response_losses is not None
    assert result.masked_losses is not None
    both = (result.response_losses, result.masked_losses)
    return [number for losses in both for number in (losses.mean_nll, *losses.segment_sums)]


@every_family
def test_batches_padding_and_other_signals_change_nothing(loaded: dict[str, Checkpoint], family: str) -> None:
    samples = random_samples(9)
    alone = pass_of(loaded[family], 1).measure(samples, INFLUENCE)
    together = pass_of(loaded[family], 100_000).measure(samples, INFLUENCE)
    request = Request(**{**vars(ALL_SIGNALS), "attention_influence": SPEC})
    among_others = pass_of(loaded[family], 2000).measure(samples, request)
    without = pass_of(loaded[family], 2000).measure(samples, ALL_SIGNALS)
    for one, other, third, plain in zip(alone, together, among_others, without, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-5)
        assert numbers(one) == pytest.approx(numbers(third), rel=1e-5)
        assert_same_signals(third, plain)
        assert third.likelihoods is not None
        assert third.response_losses is not None
        assert third.response_losses.mean_nll == third.likelihoods.mean_nll
    assert all(result.masked_losses is None and result.masked_tokens == 0 for result in without)


def test_no_masked_head_gives_exactly_the_same_loss(
    loaded: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RetrievalHeads, "heads", lambda _self, _spec: ())
    for checkpoint in loaded.values():
        for result in pass_of(checkpoint).measure(random_samples(5), INFLUENCE):
            assert result.masked_losses == result.response_losses is not None


def test_the_model_is_as_before_after_an_error(loaded: dict[str, Checkpoint]) -> None:
    plain = AttentionInterface.get_interface
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    one, other = loaded["qwen2"], loaded["llama"]
    with torch.inference_mode():
        before = other.decoder(input_ids=ids).last_hidden_state
        with masked_heads(one, [(0, 0), (1, 2)]):
            assert torch.equal(other.decoder(input_ids=ids).last_hidden_state, before), "another model is left alone"

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with torch.inference_mode(), pytest.raises(ZeroDivisionError), observed_attention(one, fail):
        one.decoder(input_ids=ids)
    assert AttentionInterface.get_interface is plain


def test_prompts_are_seeded_fit_and_ask_for_one_value_of_the_object() -> None:
    tokenizer = byte_tokenizer()
    prompts = retrieval_prompts(tokenizer, RetrievalSpec(prompts=20, pairs=30), 900, len(tokenizer))
    assert prompts == retrieval_prompts(tokenizer, RetrievalSpec(prompts=20, pairs=30), 900, len(tokenizer))
    assert prompts != retrieval_prompts(tokenizer, RetrievalSpec(prompts=20, pairs=30, seed=1), 900, len(tokenizer))
    places = set()
    for prompt in prompts:
        text = str(tokenizer.decode(prompt.input_ids))
        first, *queries = text.split("\n")
        members = json.loads(first)
        assert LEAST_PAIRS < len(members) < 30
        assert 800 < len(prompt.input_ids) <= 900
        solved = [json.loads("{" + query + "}") for query in queries]
        assert len(solved) == SOLVED + 1
        assert all(members[key] == value for query in solved for key, value in query.items())
        assert len({key for query in solved for key in query}) == SOLVED + 1
        (value,) = solved[-1].values()
        assert tokenizer.decode([prompt.input_ids[place] for place in prompt.answer]) == value
        assert tokenizer.decode([prompt.input_ids[place] for place in prompt.source]) == value
        assert text.count(value) == 2
        assert max(prompt.source) < len(first) < min(prompt.answer)
        places.add(list(members.values()).index(value))
    assert len(places) > 5
    longest = retrieval_prompts(tokenizer, RetrievalSpec(prompts=2, pairs=5, length=4096), 10_000, len(tokenizer))
    objects = [json.loads(str(tokenizer.decode(one.input_ids)).split("\n")[0]) for one in longest]
    assert [len(members) for members in objects] == [5, 5]


def test_prompts_do_not_change_between_versions() -> None:
    # The heads, which are part of the signal's key by the settings alone, follow from these prompts.
    made = retrieval_text(0, 0, LEAST_PAIRS)
    assert made.value == "window rabbit orange pencil"
    assert hashlib.sha256(made.text.encode()).hexdigest()[:16] == "5b56531b8a3d5d8b"


def test_a_context_that_is_too_short_is_refused(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_model(tmp_path, "qwen2", context=256), device="cpu")
    with pytest.raises(RetrievalError, match=r"shortest prompt has \d+ tokens .* and 256 are allowed\. Raise"):
        pass_of(checkpoint).measure(random_samples(1), INFLUENCE)


def test_tokenizers_that_cannot_do_the_task_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(RetrievalError, match="fast tokenizer"):
        retrieval_prompts(Slow(), SPEC, 1024, 300)
    # One token a line: the value in the object and the one in the answer are parts of different tokens.
    core = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    with pytest.raises(RetrievalError, match="splits a value differently"):
        retrieval_prompts(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"), SPEC, 1024, 300)
    with pytest.raises(RetrievalError, match="the model has 20"):
        retrieval_prompts(byte_tokenizer(), SPEC, 1024, 20)


def test_a_model_with_an_attention_of_its_own_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, device="cpu")
    with pytest.raises(RetrievalError, match="does not support BloomForCausalLM"):
        pass_of(checkpoint).measure(random_samples(1), INFLUENCE)


def test_attention_that_is_not_finite_is_refused(folders: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(folders["llama"], device="cpu")
    layer: Any = checkpoint.attention[1].layers["q"]
    layer.weight.fill_(math.nan)
    with pytest.raises(RetrievalError, match="not finite"):
        RetrievalHeads(checkpoint).heads(SPEC)


def test_a_share_of_heads_is_at_least_one_and_ties_are_broken_in_order() -> None:
    scores = {(layer, head): 0.5 for layer in (1, 0) for head in (1, 0)}
    assert strongest(scores, 0.01) == ((0, 0),)
    assert strongest({**scores, (1, 1): 0.6}, 0.5) == ((1, 1), (0, 0))
    assert len(strongest(scores, 1.0)) == 4


def test_what_cannot_be_run_has_no_losses(loaded: dict[str, Checkpoint]) -> None:
    empty = Sample("empty", [{"role": "user", "content": "How many?"}], "")
    (result,) = pass_of(loaded["llama"]).measure([empty], INFLUENCE)
    assert (result.response_losses, result.masked_losses, result.masked_tokens) == (None, None, 0)
    assert result.flags == ["empty_response"]


def test_losses_that_are_not_finite_are_flagged(loaded: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    real = measuring._measure

    def broken(*given: Any) -> list[SampleSignals]:
        results = real(*given)
        if (
            given[-1] == INFLUENCE
            and AttentionInterface.get_interface.__qualname__ != "AttentionInterface.get_interface"
        ):
            for result in results:
                result.response_losses = None
        return results

    monkeypatch.setattr(measuring, "_measure", broken)
    (result,) = pass_of(loaded["llama"]).measure(random_samples(1), INFLUENCE)
    assert result.response_losses is not None
    assert result.masked_losses is None
    assert result.flags == ["non_finite"]
    assert np.isfinite(result.response_losses.mean_nll)
