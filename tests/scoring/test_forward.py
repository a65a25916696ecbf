"""The whole pass against naive loops and autograd: checks 1, 2, 4, 5 of methods.md, and its edge cases."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_resources.scoring import measuring
from curation_resources.scoring import prefetch as ahead
from curation_resources.scoring.collating import collate
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass, OutOfMemoryError
from curation_resources.scoring.head import Head, StreamedHead
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.samples import Encoded, PrefixWindows, Request, Sample, SampleSignals, Segment
from tests.models import byte_tokenizer_with
from tests.scoring.cases import (
    ALL_SIGNALS,
    assert_same_signals,
    autograd_gradients,
    make_sample,
    naive_direct_answer,
    naive_gradients,
    naive_statistics,
    packed,
    random_samples,
)

GRACE = Request(step_gradients="bias")


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> Encoder:
    return Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)


def measure_one(checkpoint: Checkpoint, encoder: Encoder, sample: Sample, request: Request = GRACE) -> SampleSignals:
    return ForwardPass(checkpoint, encoder).measure([sample], request)[0]


@pytest.mark.parametrize(("scale", "cap", "bias"), [(1.0, None, False), (0.25, None, False), (0.5, 3.0, True)])
def test_gram_matrices_equal_autograd_and_naive_loops(
    checkpoint: Checkpoint, encoder: Encoder, scale: float, cap: float | None, bias: bool
) -> None:
    weight = checkpoint.head.weight
    offset = torch.linspace(-1, 1, len(weight)) if bias else None
    changed = replace(checkpoint, head=Head(weight, offset, scale, cap))
    samples = random_samples(6)
    results = ForwardPass(changed, encoder, 500).measure(samples, GRACE)
    for item, result in zip(encoder.encode(samples), results, strict=True):
        assert result.step_gradients is not None
        twins = [autograd_gradients(changed, item)]
        if (scale, cap, bias) == (1.0, None, False):
            twins.append(naive_gradients(changed, item))
        for gradients in twins:
            assert result.step_gradients.gram == packed(gradients)
            norms = gradients.double().norm(dim=1).tolist()
            assert result.step_gradients.norms == pytest.approx(norms, rel=1e-5)


def test_every_statistic_equals_the_naive_loop(checkpoint: Checkpoint, encoder: Encoder) -> None:
    long = make_sample(["count " * 30, "and on"], "many")  # more than 100 tokens
    samples = [*random_samples(5), long]
    results = ForwardPass(checkpoint, encoder, 600).measure(samples, ALL_SIGNALS)
    for item, result in zip(encoder.encode(samples), results, strict=True):
        twin = naive_statistics(checkpoint, item)
        assert result.likelihoods is not None
        for name, value in vars(result.likelihoods).items():
            assert value == pytest.approx(twin.likelihoods[name], rel=1e-4, abs=1e-6), name
        assert result.segment_nll == pytest.approx(twin.segment_nll, rel=1e-4)
        assert result.sequence_likelihoods is not None
        assert vars(result.sequence_likelihoods) == pytest.approx(twin.sequence_likelihoods, rel=1e-4, abs=1e-6)
        for pooling, vector in result.embeddings.items():
            np.testing.assert_allclose(vector, twin.embeddings[pooling], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.asarray(result.token_nll), twin.token_nll, rtol=1e-4, atol=1e-6)
        assert result.unconditional_nll == pytest.approx(twin.unconditional_nll, rel=1e-4)
        assert result.sequence_uncertainty is not None
        assert vars(result.sequence_uncertainty) == pytest.approx(twin.sequence_uncertainty, rel=1e-4, abs=1e-6)
        assert result.error_norm == pytest.approx(twin.error_norm, rel=1e-5)
        for prefix, answer in result.direct.items():
            assert answer.nll == pytest.approx(naive_direct_answer(checkpoint, item.sample.response, prefix), rel=1e-4)
            assert answer.tokens == item.response_tokens + len(prefix)
            assert not answer.after_special
        assert result.prefix_nll == pytest.approx(twin.prefix_nll, rel=1e-4)
        assert result.unconditional_tokens == item.response_tokens
        assert result.tokens == len(item)
        assert result.response_tokens == item.response_tokens


def test_error_norms_of_confident_predictions_do_not_cancel(checkpoint: Checkpoint) -> None:
    weight = checkpoint.head.weight
    hidden = 60.0 * weight[[5, 9, 9]] / weight[[5, 9, 9]].norm(dim=1, keepdim=True) ** 2
    for cap in (None, 90.0):
        head = StreamedHead(replace(checkpoint.head, soft_cap=cap))
        targets = torch.tensor([5, 9, 7])
        found, _ = head.run(hidden, targets, (), statistics=True, uncertainty=False, error_norms=True)
        logits = weight.double() @ hidden.double().T
        logits = cap * torch.tanh(logits / cap) if cap else logits
        p = torch.softmax(logits.T, dim=1)
        others = p.clone()
        others[torch.arange(3), targets] = 0.0
        error = torch.sqrt(others.square().sum(dim=1) + others.sum(dim=1) ** 2)
        assert error.min() < 1e-6 < error.max()
        assert found.error_norm is not None
        torch.testing.assert_close(found.error_norm.double(), error, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("bos", [False, True])
def test_a_direct_answer_follows_the_tokenizer(tiny_model: Path, bos: bool) -> None:
    checkpoint = load_checkpoint(tiny_model, device="cpu")
    tokenizer = byte_tokenizer_with([], "", bos=bos)
    checkpoint = replace(checkpoint, tokenizer=tokenizer)
    encoder = Encoder(tokenizer, "alpaca", 200)
    samples = [make_sample(["one two three"], "4", name="a"), make_sample(["more"], "5", "Why? " * 11, name="b")]
    results = ForwardPass(checkpoint, encoder).measure(samples, Request(direct=frozenset({"", "### Response:"})))
    for sample, result, encoded in zip(samples, results, encoder.encode(samples), strict=True):
        for prefix, answer in result.direct.items():
            ids = tokenizer(prefix + sample.response).input_ids
            # As long as beside the prompt; without a prompt, the first token is not counted.
            room = 200 - encoded.prompt_tokens + max(1, len(prefix) + bos)
            kept = str(tokenizer.decode(ids[bos:room]))[len(prefix) :]
            assert answer.after_special == bos
            assert answer.tokens == min(len(ids), room)
            assert answer.nll == pytest.approx(naive_direct_answer(checkpoint, kept, prefix), rel=1e-4)
    assert results[1].direct[""].tokens < len(tokenizer(samples[1].response).input_ids)


def test_eos_counts_in_the_windows_and_nowhere_else(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure_one(checkpoint, encoder, make_sample(["one two three"], "4"), ALL_SIGNALS)
    assert result.likelihoods is not None
    assert result.likelihoods.first_100_nll == result.likelihoods.first_1000_nll
    assert result.likelihoods.first_100_nll != result.likelihoods.mean_nll


SINGLE = [
    GRACE,
    Request(step_gradients="linear"),
    Request(step_gradients="lm_head"),
    Request(likelihoods=True),
    Request(segment_likelihoods=True),
    Request(sequence_likelihoods=True),
    Request(embeddings=frozenset({"mean"})),
    Request(embeddings=frozenset({"last", "position_weighted"})),
    Request(token_likelihoods=True),
    Request(unconditional=True),
    Request(direct=frozenset({""})),
    Request(direct=frozenset({"### Response:"}), likelihoods=True),
    Request(error_norms=True),
    Request(sequence_uncertainty=True),
    Request(prefix_losses=PrefixWindows((4, 100, 1000))),
]


def named(request: Request) -> str:
    """What is asked for; the same in every process, which the order of a set is not."""
    asked = {name: value for name, value in vars(request).items() if value}
    return "-".join(
        [
            *(f"{name}_{value}" if isinstance(value, str) else name for name, value in asked.items()),
            *sorted(request.embeddings),
        ]
    )


@pytest.mark.parametrize("request_", SINGLE, ids=named)
def test_a_signal_alone_is_what_it_is_among_all(checkpoint: Checkpoint, encoder: Encoder, request_: Request) -> None:
    samples = random_samples(5, seed=3)
    every = replace(ALL_SIGNALS, step_gradients=request_.step_gradients or "bias")
    together = ForwardPass(checkpoint, encoder).measure(samples, every)
    for alone, among in zip(ForwardPass(checkpoint, encoder).measure(samples, request_), together, strict=True):
        assert (alone.step_gradients is None) == (request_.step_gradients is None)
        assert (alone.likelihoods is None) == (not request_.likelihoods)
        assert (alone.segment_nll is None) == (not request_.segment_likelihoods)
        assert (alone.sequence_likelihoods is None) == (not request_.sequence_likelihoods)
        assert alone.embeddings.keys() == request_.embeddings
        assert (alone.token_nll is None) == (not request_.token_likelihoods)
        assert (alone.unconditional_nll is None) == (not request_.unconditional)
        assert alone.direct.keys() == request_.direct
        assert (alone.sequence_uncertainty is None) == (not request_.sequence_uncertainty)
        assert (alone.error_norm is None) == (not request_.error_norms)
        assert (alone.prefix_nll is None) == (request_.prefix_losses is None)
        expected = replace(
            among,
            gradient_flags=among.gradient_flags if request_.step_gradients else [],
            step_gradients=among.step_gradients if request_.step_gradients else None,
            likelihoods=among.likelihoods if request_.likelihoods else None,
            segment_nll=among.segment_nll if request_.segment_likelihoods else None,
            sequence_likelihoods=among.sequence_likelihoods if request_.sequence_likelihoods else None,
            embeddings={pooling: among.embeddings[pooling] for pooling in request_.embeddings},
            token_nll=among.token_nll if request_.token_likelihoods else None,
            unconditional_nll=among.unconditional_nll if request_.unconditional else None,
            direct={prefix: among.direct[prefix] for prefix in request_.direct},
            sequence_uncertainty=among.sequence_uncertainty if request_.sequence_uncertainty else None,
            error_norm=among.error_norm if request_.error_norms else None,
            prefix_flags=among.prefix_flags if request_.prefix_losses else [],
            prefix_nll=among.prefix_nll if request_.prefix_losses else None,
        )
        assert_same_signals(alone, expected)


def test_what_is_not_asked_for_costs_nothing(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, bool]] = []
    real = StreamedHead._chunk

    def counted(self: StreamedHead, hidden: Any, targets: Any, found: Any, start: int) -> Any:
        rows.append((len(hidden), found is not None))
        return real(self, hidden, targets, found, start)

    monkeypatch.setattr(StreamedHead, "_chunk", counted)
    sample = make_sample(["one two three"], "42")
    measure_one(checkpoint, encoder, sample, Request(embeddings=frozenset({"mean"})))
    assert rows == []  # no logits at all
    measure_one(checkpoint, encoder, sample, GRACE)
    assert rows == [(len("one two three") + 2, False)]  # segments' rows alone, no uncertainty
    rows.clear()
    measure_one(checkpoint, encoder, sample, Request(likelihoods=True))
    assert rows == [(len(sample.response) + 1, True)]  # the response and EOS, the prompt not


_case: list[tuple[Checkpoint, Encoder, list[Sample], dict[str, SampleSignals]]] = []


@pytest.fixture(scope="module", autouse=True)
def _make_shared_case(checkpoint: Checkpoint, encoder: Encoder) -> None:
    samples = [*random_samples(12, seed=7), make_sample(["no answer here"], None, name="unanswered")]
    alone = {sample.sample_id: measure_one(checkpoint, encoder, sample, ALL_SIGNALS) for sample in samples}
    _case[:] = [(checkpoint, encoder, samples, alone)]


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(13)),
    budget=st.sampled_from([1, 200, 700, 100_000]),
    window=st.sampled_from([1, 5, 4096]),
    memory=st.sampled_from([1, 2**16, 2**28]),
)
def test_results_depend_on_neither_batch_nor_order(order: list[int], budget: int, window: int, memory: int) -> None:
    checkpoint, encoder, samples, alone = _case[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "WINDOW_SAMPLES", window)
        patch.setattr(ahead, "CHUNK_SAMPLES", 2)
        given_order = [samples[i] for i in order]
        together = ForwardPass(checkpoint, encoder, budget, memory).measure(given_order, ALL_SIGNALS)
    assert [result.sample_id for result in together] == [sample.sample_id for sample in given_order]
    for place, found in enumerate(together):
        assert_same_signals(found, replace(alone[found.sample_id], position=place))


def test_a_batch_dependence_would_be_seen(checkpoint: Checkpoint, encoder: Encoder) -> None:
    # The invariance test must be able to fail: here padding on the left, unmasked, shifts every position.
    samples = random_samples(4, seed=2)

    def left_padded(batch: Sequence[Encoded], device: torch.device) -> dict[str, Any]:
        inputs = collate(batch, device)
        return inputs | {"input_ids": inputs["input_ids"].flip(1)}

    sound = ForwardPass(checkpoint, encoder).measure(samples, ALL_SIGNALS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "collate", left_padded)
        broken = ForwardPass(checkpoint, encoder).measure(samples, ALL_SIGNALS)
    with pytest.raises(AssertionError):
        assert_same_signals(broken[0], sound[0])


def test_an_answer_token_changes_the_answer_and_no_step(checkpoint: Checkpoint, encoder: Encoder) -> None:
    steps = ["two and two is four", "four and one is five"]
    before, after = ForwardPass(checkpoint, encoder).measure(
        [make_sample(steps, "51"), make_sample(steps, "52")], GRACE
    )
    assert before.step_gradients is not None
    assert after.step_gradients is not None
    first, second = before.step_gradients.gram, after.step_gradients.gram
    # M's upper triangle by rows: 11 12 1a 22 2a aa.
    assert [first[i] for i in (0, 1, 3)] == pytest.approx([second[i] for i in (0, 1, 3)], rel=1e-6)
    assert first[5] != pytest.approx(second[5], rel=1e-3)


def test_no_answer_is_a_reason_for_step_gradients_alone(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure_one(checkpoint, encoder, make_sample(["one two three", "four five six"], None), ALL_SIGNALS)
    assert result.step_gradients is None
    assert result.gradient_flags == ["no_answer"]
    assert result.flags == []
    assert result.likelihoods is not None
    assert result.segment_nll is not None
    assert len(result.segment_nll) == 2


def test_what_needs_nothing_more_is_not_run(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure_one(checkpoint, encoder, make_sample(["one two three"], None), GRACE)
    assert result.tokens == 0


def test_no_steps_is_a_reason(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure_one(checkpoint, encoder, make_sample([], "42"))
    assert result.step_gradients is None
    assert result.gradient_flags == ["no_steps"]


def test_images_are_a_reason_where_the_model_reads_text(checkpoint: Checkpoint, encoder: Encoder) -> None:
    sample = replace(make_sample(["one two three"], "42"), images=(b"",))
    result = measure_one(checkpoint, encoder, sample, ALL_SIGNALS)
    assert result.step_gradients is None
    assert result.likelihoods is None
    assert result.flags == ["images_not_supported"]


def test_an_empty_response_is_a_reason(checkpoint: Checkpoint, encoder: Encoder) -> None:
    empty, whole = ForwardPass(checkpoint, encoder).measure(
        [Sample("e", [{"role": "user", "content": "How many?"}], ""), make_sample(["one two three"], "42")], ALL_SIGNALS
    )
    assert empty.flags == ["empty_response"]
    assert empty.likelihoods is None
    assert empty.embeddings == {}
    assert whole.flags == []
    assert whole.likelihoods is not None


def test_samples_without_segments_are_not_run_for_them(checkpoint: Checkpoint, encoder: Encoder) -> None:
    # Alone in their batch, cut before the first step's first token, they have no label row at all.
    bare = Sample("s", [{"role": "user", "content": "q"}], "Answer: 42")
    result = measure_one(checkpoint, encoder, bare, Request(step_gradients="bias", segment_likelihoods=True))
    assert result.segment_nll is None
    assert result.tokens == 0
    both = measure_one(checkpoint, encoder, bare, ALL_SIGNALS)
    assert both.likelihoods is not None
    assert both.segment_nll is None


def test_a_token_that_nothing_predicts_is_no_response(checkpoint: Checkpoint, encoder: Encoder) -> None:
    plain = Encoder(checkpoint.tokenizer, "plain", 100)
    result = measure_one(checkpoint, plain, Sample("s", [], "4", [Segment(1, 0, 1)]), ALL_SIGNALS)
    assert result.flags == ["empty_response"]
    assert result.likelihoods is None


def test_one_step_is_measured_and_flagged(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure_one(checkpoint, encoder, make_sample(["just one step"], "42"))
    assert result.step_gradients is not None
    assert len(result.step_gradients.gram) == 3
    assert result.gradient_flags == ["few_steps"]


def _cut_at(checkpoint: Checkpoint, sample: Sample, tokens: int) -> SampleSignals:
    encoder = Encoder(checkpoint.tokenizer, "auto", tokens)
    return measure_one(checkpoint, encoder, sample, ALL_SIGNALS)


def test_truncation_before_inside_and_after_the_answer(checkpoint: Checkpoint, encoder: Encoder) -> None:
    sample = make_sample(["first of all this", "and then that"], "1234")
    full = len(encoder.encode([sample])[0])  # with EOS
    whole = _cut_at(checkpoint, sample, full - 1)
    assert whole.step_gradients is not None
    assert whole.flags == []
    inside = _cut_at(checkpoint, sample, full - 3)
    assert inside.step_gradients is not None
    assert inside.flags == ["answer_truncated"]
    assert inside.segment_tokens[-1] == 2
    before = _cut_at(checkpoint, sample, full - 5)
    assert before.step_gradients is None
    assert before.flags == ["truncated"]
    assert before.likelihoods is not None  # of what is left
    prompt = _cut_at(checkpoint, sample, 5)
    assert prompt.likelihoods is None
    assert prompt.flags == ["prompt_too_long"]
    assert prompt.tokens == 0


class Spoiled(torch.nn.Module):
    """A decoder whose hidden states of sequences that begin with a marked token are not numbers."""

    def __init__(self, decoder: torch.nn.Module, spoiled: set[tuple[int, ...]], value: float) -> None:
        super().__init__()
        self.decoder, self.spoiled, self.value = decoder, spoiled, value

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = self.decoder(input_ids=input_ids, **inputs)
        for row, ids in enumerate(input_ids.tolist()):
            if any(tuple(ids[: len(marked)]) == marked for marked in self.spoiled):
                output.last_hidden_state[row, 20:] = self.value
        return output


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_sample_is_flagged_and_its_neighbours_are_not(
    checkpoint: Checkpoint, encoder: Encoder, value: float
) -> None:
    samples = random_samples(5, seed=4)
    broken = tuple(encoder.encode(samples)[2].input_ids)
    spoiled = replace(checkpoint, decoder=Spoiled(checkpoint.decoder, {broken}, value))
    results = ForwardPass(spoiled, encoder, 10**6).measure(samples, ALL_SIGNALS)
    sound = ForwardPass(checkpoint, encoder, 10**6).measure(samples, ALL_SIGNALS)
    for place, (found, expected) in enumerate(zip(results, sound, strict=True)):
        if place != 2:
            assert_same_signals(found, expected)
            continue
        assert found.flags == ["non_finite"]
        assert found.step_gradients is None
        assert found.likelihoods is None
        assert found.segment_nll is None
        assert found.embeddings == {}


def test_zero_norm_is_flagged(checkpoint: Checkpoint, encoder: Encoder) -> None:
    # A head of zeros gives every token the same probability, and every gradient 0.
    flat = replace(checkpoint, head=Head(torch.zeros_like(checkpoint.head.weight)))
    result = measure_one(flat, encoder, make_sample(["one two three", "four five six"], "7"))
    assert result.gradient_flags == ["zero_norm"]
    assert result.step_gradients is not None


class Limited(torch.nn.Module):
    """A decoder on a device with room for so many sequences."""

    def __init__(self, decoder: torch.nn.Module, most: int, error: Exception) -> None:
        super().__init__()
        self.decoder, self.most, self.error = decoder, most, error
        self.sizes: list[int] = []

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.most:
            raise self.error
        return self.decoder(input_ids=input_ids, **inputs)


def cpu_error() -> RuntimeError:
    """What PyTorch really says here."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    cpu_error(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cuda runtime", "cublas", "cpu"])
def test_out_of_memory_halves_the_batch_and_goes_on(checkpoint: Checkpoint, encoder: Encoder, error: Exception) -> None:
    decoder = Limited(checkpoint.decoder, 2, error)
    samples = random_samples(12, seed=5)
    scoring = ForwardPass(replace(checkpoint, decoder=decoder), encoder, 10**6)
    found = scoring.measure(samples, ALL_SIGNALS)
    for result, expected in zip(found, ForwardPass(checkpoint, encoder).measure(samples, ALL_SIGNALS), strict=True):
        assert_same_signals(result, expected)
    assert decoder.sizes[0] > 2
    # The lesson is learnt once: a second pass does not try as much again.
    decoder.sizes.clear()
    scoring.measure(samples, ALL_SIGNALS)
    assert max(decoder.sizes) <= 3


def test_a_sample_that_does_not_fit_alone_is_an_error_with_its_name(checkpoint: Checkpoint, encoder: Encoder) -> None:
    full = replace(checkpoint, decoder=Limited(checkpoint.decoder, 0, OUT_OF_MEMORY[0]))
    with pytest.raises(OutOfMemoryError, match=r"sample s of .* Lower the target's max_length"):
        measure_one(full, encoder, make_sample(["one two three"], "4"))


def test_other_errors_are_not_taken_for_memory(checkpoint: Checkpoint, encoder: Encoder) -> None:
    broken = replace(checkpoint, decoder=Limited(checkpoint.decoder, 0, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure_one(broken, encoder, make_sample(["one two three"], "4"))


def test_encoding_runs_ahead_of_the_device(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "WINDOW_SAMPLES", 4)
    monkeypatch.setattr(ahead, "CHUNK_SAMPLES", 2)
    encoded_samples: list[str] = []
    real = encoder.encode

    def recorded(samples: Sequence[Sample]) -> list[Encoded]:
        encoded_samples.extend(sample.sample_id for sample in samples)
        return real(samples)

    monkeypatch.setattr(encoder, "encode", recorded)
    results = ForwardPass(checkpoint, encoder, 10**6).stream(random_samples(12), GRACE)
    next(results)
    deadline = time.monotonic() + 30
    while len(encoded_samples) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(encoded_samples) == 8  # the second window is ready, the third waits
    results.close()  # type: ignore[attr-defined]


def test_images_take_more_room_in_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "IMAGE_SHARE", 4)
    shown = [0, 0, 1, 0, 1, 3, 0, 0]
    samples = [replace(make_sample([], "1"), images=(b"",) * count) for count in shown]
    windows = [[len(sample.images) for sample in window] for window in ahead.chunks_of(samples, 10)]
    assert windows == [[0, 0, 1, 0], [1], [3], [0, 0]]


class Pictures:
    """An encoder whose samples hold a megabyte of pixels for every image."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        self.encoded += len(samples)
        pixels = [torch.zeros(len(sample.images), 2**18) for sample in samples]
        return [Encoded(s, [1, 2], 1, 1, [-1, 1], (), {"pixels": p}) for s, p in zip(samples, pixels, strict=True)]


def test_pixels_bound_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "WINDOW_BYTES", 20 * 2**20)
    encoder = Pictures()
    samples = [replace(make_sample([], "1", name=f"s{n}"), images=(b"",)) for n in range(200)]
    seen, largest = 0, 0
    for window in ahead.EncodingAhead(encoder, samples):  # type: ignore[arg-type]
        time.sleep(0.02)  # the threads have time to run ahead as far as they may
        seen += len(window)
        largest = max(largest, encoder.encoded - seen + len(window))
    assert seen == 200
    # A window, one more meanwhile, and a chunk of three for each thread.
    assert largest <= 20 + 20 + 3 * 2 * ahead.THREADS


def test_an_error_while_encoding_arrives(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(samples: Sequence[Sample]) -> list[Encoded]:
        raise ValueError("no tokens today")

    monkeypatch.setattr(encoder, "encode", broken)
    with pytest.raises(ValueError, match="no tokens today"):
        ForwardPass(checkpoint, encoder).measure(random_samples(3), GRACE)


def test_progress_counts_every_sample_once(checkpoint: Checkpoint, encoder: Encoder) -> None:
    done: list[int] = []
    samples = [*random_samples(7), make_sample([], "4")]
    for _ in ForwardPass(checkpoint, encoder, 300).stream(samples, GRACE, done.append):
        pass
    assert sum(done) == 8
    assert ForwardPass(checkpoint, encoder).measure([], GRACE) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_full_precision(tiny_model: Path, encoder: Encoder, dtype: str) -> None:
    samples = random_samples(6)
    exact = ForwardPass(load_checkpoint(tiny_model, device="cpu"), encoder).measure(samples, ALL_SIGNALS)
    half = ForwardPass(load_checkpoint(tiny_model, device="cpu", dtype=dtype), encoder).measure(samples, ALL_SIGNALS)
    for found, expected in zip(half, exact, strict=True):
        assert found.flags == expected.flags
        assert found.step_gradients is not None
        assert expected.step_gradients is not None
        assert expected.likelihoods is not None
        largest = max(expected.step_gradients.gram)
        assert found.step_gradients.gram == pytest.approx(expected.step_gradients.gram, abs=0.02 * largest)
        assert found.likelihoods is not None
        assert vars(found.likelihoods) == pytest.approx(vars(expected.likelihoods), rel=0.02)
        for pooling, vector in found.embeddings.items():
            assert vector.dtype == np.float32
            exact_vector = expected.embeddings[pooling]
            cosine = vector @ exact_vector / np.linalg.norm(vector) / np.linalg.norm(exact_vector)
            assert cosine > 0.99


def test_a_merged_adapter_measures_what_one_beside_the_weights_does(
    tiny_model: Path, encoder: Encoder, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(str(tmp_path))
    merged = load_checkpoint(tiny_model, tmp_path, device="cpu")
    beside: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path))
    beside = replace(merged, decoder=beside.get_base_model().model.eval())
    samples = random_samples(6)
    one = ForwardPass(merged, encoder).measure(samples, ALL_SIGNALS)
    other = ForwardPass(beside, encoder).measure(samples, ALL_SIGNALS)
    plain = ForwardPass(load_checkpoint(tiny_model, device="cpu"), encoder).measure(samples, ALL_SIGNALS)
    for found, expected, without in zip(one, other, plain, strict=True):
        assert_same_signals(found, expected)
        assert found.segment_nll != pytest.approx(without.segment_nll, rel=1e-3)
