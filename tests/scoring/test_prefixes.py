"""Early losses: which tokens a window counts, that no more are run, and a slow twin over the full sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from curation_resources.scoring import measuring
from curation_resources.scoring.collating import collate
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.prefixes import cut_to_windows, window_positions
from curation_resources.scoring.samples import (
    Encoded,
    PrefixWindows,
    Request,
    Sample,
    SampleSignals,
    Segment,
    WindowError,
)
from tests.models import write_tiny_gemma3, write_tiny_llava, write_tiny_qwen3_vl
from tests.scoring.cases import ALL_SIGNALS, make_sample, naive_prefix_losses, random_samples
from tests.scoring.test_images import picture

WINDOWS = (3, 20, 1000)


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> Encoder:
    return Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)


def measure(
    checkpoint: Checkpoint, encoder: Encoder, samples: Sequence[Sample], windows: PrefixWindows, **others: Any
) -> list[SampleSignals]:
    return ForwardPass(checkpoint, encoder).measure(samples, Request(prefix_losses=windows, **others))


def slow_losses(model: Any, encoded: Encoded) -> dict[int, float]:
    """The loss of every token of the response and of EOS, from plain transformers over the whole sequence."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded.input_ids])).logits[0].double()
    return {
        position: float(F.cross_entropy(logits[position - 1], torch.tensor(encoded.input_ids[position])))
        for position in range(max(1, encoded.prompt_tokens), len(encoded))
    }


def tagged_sample(name: str = "tagged") -> Sample:
    text = "<think>\nfirst this\nthen that\n</think>\n\nSo Answer: 42"
    return Sample(
        name,
        [{"role": "user", "content": "How many?"}],
        text,
        [Segment(1, 8, 18), Segment(2, 19, 28), Segment(0, len(text) - 2, len(text))],
    )


@pytest.mark.parametrize("reasoning_only", [True, False])
@pytest.mark.parametrize("skip_template_tokens", [True, False])
def test_windows_equal_plain_transformers_over_the_full_sequence(
    tiny_model: Path, checkpoint: Checkpoint, encoder: Encoder, reasoning_only: bool, skip_template_tokens: bool
) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    windows = PrefixWindows(WINDOWS, reasoning_only, skip_template_tokens)
    samples = [*random_samples(6), tagged_sample(), make_sample(["no answer here"], None, name="unanswered")]
    for item, found in zip(encoder.encode(samples), measure(checkpoint, encoder, samples, windows), strict=True):
        twin = naive_prefix_losses(slow_losses(model, item), item, windows)
        assert found.prefix_nll == pytest.approx(twin, rel=1e-5)
        assert found.prefix_flags == []


@pytest.mark.parametrize("length", [1, 7, 25])
def test_no_more_than_prompt_and_window_are_run(checkpoint: Checkpoint, encoder: Encoder, length: int) -> None:
    samples = random_samples(8, seed=2)
    windows = PrefixWindows((1, length), reasoning_only=False)
    ran: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
            ran.append(input_ids.shape[1])
            return checkpoint.decoder(input_ids=input_ids, **inputs)

    counted = replace(checkpoint, decoder=Counting())
    found = measure(counted, encoder, samples, windows)
    whole = measure(checkpoint, encoder, samples, windows, likelihoods=True)
    for item, early, late in zip(encoder.encode(samples), found, whole, strict=True):
        assert early.tokens == min(len(item), item.prompt_tokens + length)
        assert late.tokens == len(item)
        # What is known of a sample does not depend on how much of it was run.
        assert (early.response_tokens, early.segment_tokens) == (item.response_tokens, late.segment_tokens)
        assert early.prefix_nll == pytest.approx(late.prefix_nll, rel=1e-5)
    assert max(ran) == max(result.tokens for result in found)  # the batch is as long as what is run


def test_windows_of_the_whole_response_are_those_of_the_likelihoods(checkpoint: Checkpoint, encoder: Encoder) -> None:
    samples = [*random_samples(4), make_sample(["count " * 30], "many", name="long")]  # more than 100 tokens
    windows = PrefixWindows((100, 1000), reasoning_only=False)
    for found in measure(checkpoint, encoder, samples, windows, likelihoods=True):
        assert found.likelihoods is not None
        assert found.prefix_nll == {100: found.likelihoods.first_100_nll, 1000: found.likelihoods.first_1000_nll}


def test_a_window_masks_the_prompt_and_takes_what_there_is(checkpoint: Checkpoint, encoder: Encoder) -> None:
    (item,) = encoder.encode([make_sample(["one two three"], "42")])
    every = list(range(item.prompt_tokens, len(item)))
    answer = item.segment_of_token.index(0)
    assert window_positions(item, PrefixWindows((3,))).tolist() == every[:3]
    assert window_positions(item, PrefixWindows((1000,), reasoning_only=False)).tolist() == every  # EOS counts
    assert window_positions(item, PrefixWindows((1000,))).tolist() == list(range(item.prompt_tokens, answer))


def test_without_an_answer_reasoning_goes_to_the_end(checkpoint: Checkpoint, encoder: Encoder) -> None:
    (item,) = encoder.encode([make_sample(["one two three"], None)])
    positions = window_positions(item, PrefixWindows((1000,)))
    assert positions.tolist() == list(range(item.prompt_tokens, len(item)))


@pytest.mark.parametrize(
    "sample",
    [
        Sample("answer", [{"role": "user", "content": "q"}], "42", [Segment(0, 0, 2)]),
        Sample("marker", [{"role": "user", "content": "q"}], "Answer: 42", [Segment(0, 8, 10)]),
    ],
    ids=lambda sample: sample.sample_id,
)
def test_empty_reasoning_is_left_out_with_a_reason(checkpoint: Checkpoint, encoder: Encoder, sample: Sample) -> None:
    neighbour = make_sample(["one two three"], "42", name="neighbour")
    left_out, kept = measure(checkpoint, encoder, [sample, neighbour], PrefixWindows((100,)))
    assert (left_out.prefix_nll, left_out.prefix_flags, left_out.flags, left_out.tokens) == (
        None,
        ["empty_reasoning"],
        [],
        0,
    )
    assert kept.prefix_flags == []
    assert kept.prefix_nll is not None
    # Other signals do not mind, and windows that may run into the answer neither.
    (other,) = measure(checkpoint, encoder, [sample], PrefixWindows((100,)), likelihoods=True)
    assert other.prefix_nll is None
    assert other.likelihoods is not None
    (anything,) = measure(checkpoint, encoder, [sample], PrefixWindows((100,), reasoning_only=False))
    assert anything.prefix_flags == []
    assert anything.prefix_nll is not None


def test_think_tags_and_eos_are_what_a_template_writes(checkpoint: Checkpoint, encoder: Encoder) -> None:
    (item,) = encoder.encode([tagged_sample()])
    skipped = [item.input_ids[position] for position in item.tag_tokens]
    assert checkpoint.tokenizer.decode(skipped) == "<think>\n\n</think>\n\n"
    counted = window_positions(item, PrefixWindows((1000,), False, True))
    text = checkpoint.tokenizer.decode([item.input_ids[position] for position in counted])
    assert text == "first this\nthen thatSo Answer: 42"
    windows = PrefixWindows((12,), True, True)
    cut = cut_to_windows(item, windows)
    assert len(cut) == item.prompt_tokens + len("<think>\n") + 12
    assert window_positions(cut, windows).tolist() == window_positions(item, windows).tolist()
    bare = Sample("bare", [{"role": "user", "content": "q"}], "<think>\n</think>")
    (found,) = measure(checkpoint, encoder, [bare], windows)
    assert found.prefix_flags == ["empty_reasoning"]


def test_cutting_twice_is_cutting_once(encoder: Encoder) -> None:
    for windows in (PrefixWindows((5,)), PrefixWindows((1000,)), PrefixWindows((1000,), False)):
        for item in encoder.encode([*random_samples(3), tagged_sample()]):
            once = cut_to_windows(item, windows)
            assert cut_to_windows(once, windows) == once
            assert window_positions(once, windows).tolist() == window_positions(item, windows).tolist()


def test_windows_alone_take_their_own_rows_of_the_head(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, bool]] = []
    real = StreamedHead._chunk

    def counted(self: StreamedHead, hidden: Any, targets: Any, found: Any, start: int) -> Any:
        rows.append((len(hidden), found is not None))
        return real(self, hidden, targets, found, start)

    monkeypatch.setattr(StreamedHead, "_chunk", counted)
    sample = make_sample(["one two three"], "42")
    measure(checkpoint, encoder, [sample], PrefixWindows((5,)))
    measure(checkpoint, encoder, [sample], PrefixWindows((100,), reasoning_only=False), likelihoods=True)
    # Five tokens without uncertainty; the response and EOS once, though two signals read them.
    assert rows == [(5, False), (len(sample.response) + 1, True)]


def test_results_depend_on_neither_batch_nor_order(checkpoint: Checkpoint, encoder: Encoder) -> None:
    samples = [*random_samples(12, seed=7), tagged_sample()]
    request = Request(prefix_losses=PrefixWindows(WINDOWS, skip_template_tokens=True))
    alone = {s.sample_id: ForwardPass(checkpoint, encoder).measure([s], request)[0].prefix_nll for s in samples}
    for budget in (1, 150, 10**6):
        for order in (samples, samples[::-1], samples[5:] + samples[:5]):
            for found in ForwardPass(checkpoint, encoder, budget).measure(order, request):
                assert found.prefix_nll == pytest.approx(alone[found.sample_id], rel=1e-5)


def test_what_is_not_finite_is_flagged(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            output = checkpoint.decoder(**inputs)
            output.last_hidden_state[:, 10:] = float("nan")
            return output

    (found,) = measure(
        replace(checkpoint, decoder=Broken()), encoder, [make_sample(["one two three"], "42")], PrefixWindows((100,))
    )
    assert found.prefix_nll is None
    assert found.flags == ["non_finite"]


def test_windows_that_are_none_are_refused() -> None:
    for lengths in ((), (0,), (100, -1)):
        with pytest.raises(WindowError, match="at least one token"):
            PrefixWindows(lengths)


def test_truncation_leaves_the_windows_before_it(checkpoint: Checkpoint) -> None:
    sample = make_sample(["first of all this", "and then that"], "1234")
    whole, short = (Encoder(checkpoint.tokenizer, "auto", length) for length in (512, 40))
    windows = PrefixWindows((5,))
    (one,), (other,) = (measure(checkpoint, encoder, [sample], windows) for encoder in (whole, short))
    assert one.prefix_nll == pytest.approx(other.prefix_nll, rel=1e-6)
    assert (one.flags, other.flags) == ([], ["truncated"])


@pytest.mark.parametrize("write", [write_tiny_qwen3_vl, write_tiny_llava, write_tiny_gemma3])
def test_images_of_the_prompt_stay(write: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write(tmp_path), device="cpu")
    encoder = Encoder(
        checkpoint.tokenizer, "auto", 512, processor=checkpoint.processor, vocabulary=checkpoint.vocabulary
    )
    samples = [
        replace(make_sample(["one two three " * 4] * count, "42", name=f"s{count}"), images=(picture(40 + 8 * count),))
        for count in (1, 2, 5)
    ]
    windows = PrefixWindows((10,))
    early = measure(checkpoint, encoder, samples, windows)
    whole = measure(checkpoint, encoder, samples, windows, likelihoods=True)
    for found, expected in zip(early, whole, strict=True):
        assert found.flags == []
        assert found.tokens == found.prompt_tokens + 10 < expected.tokens
        assert found.prefix_nll == pytest.approx(expected.prefix_nll, rel=1e-5)


def test_the_cut_is_made_before_batching(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(batch: Sequence[Encoded], device: torch.device) -> dict[str, Any]:
        sizes.append(len(batch))
        return collate(batch, device)

    monkeypatch.setattr(measuring, "collate", counted)
    samples = [make_sample(["word " * 3 * count], "4", name=f"s{count}") for count in range(1, 9)]
    request = Request(prefix_losses=PrefixWindows((5,)))
    budget = 8 * (encoder.encode(samples)[0].prompt_tokens + 5)
    ForwardPass(checkpoint, encoder, budget).measure(samples, request)
    assert sizes == [8]
    sizes.clear()
    ForwardPass(checkpoint, encoder, budget).measure(samples, ALL_SIGNALS)
    assert len(sizes) > 2
