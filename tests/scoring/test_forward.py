"""The forward pass against autograd and naive loops: checks 1, 2, 4, 5 of methods.md and its edge cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.scoring import forward
from resources.scoring.encoding import Encoder
from resources.scoring.forward import batch_gradients, measure_step_gradients, segment_gradients, summarize
from resources.scoring.loading import Checkpoint, Head, load_checkpoint
from resources.scoring.samples import Sample, StepGradients
from tests.scoring.cases import autograd_gradients, make_sample, naive_gradients, random_samples


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> Encoder:
    return Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)


def measure(checkpoint: Checkpoint, encoder: Encoder, samples: list[Sample], budget: int) -> dict[str, StepGradients]:
    results = measure_step_gradients(checkpoint, encoder, samples, budget)
    return {result.sample_id: result for batch in results for result in batch}


def test_gradients_equal_autograd(checkpoint: Checkpoint, encoder: Encoder) -> None:
    encoded = encoder.encode(random_samples(6))
    for item, gradients in zip(encoded, batch_gradients(checkpoint, encoded), strict=True):
        torch.testing.assert_close(gradients, autograd_gradients(checkpoint, item), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("scale", "cap", "bias"), [(0.25, None, False), (1.0, 5.0, False), (0.5, 3.0, True)])
def test_scaled_and_capped_heads_equal_autograd(
    checkpoint: Checkpoint, encoder: Encoder, scale: float, cap: float | None, bias: bool
) -> None:
    weight = checkpoint.head.weight
    offset = torch.linspace(-1, 1, len(weight)) if bias else None
    changed = replace(checkpoint, head=Head(weight, offset, scale, cap))
    encoded = encoder.encode(random_samples(3))
    for item, gradients in zip(encoded, batch_gradients(changed, encoded), strict=True):
        torch.testing.assert_close(gradients, autograd_gradients(changed, item), rtol=1e-5, atol=1e-7)


def test_streamed_path_equals_the_naive_one(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seven rows a chunk: most segments are cut by a chunk's end.
    monkeypatch.setattr(forward, "CHUNK_ROWS", 7)
    encoded = encoder.encode(random_samples(4))
    for item, gradients in zip(encoded, batch_gradients(checkpoint, encoded), strict=True):
        torch.testing.assert_close(gradients, naive_gradients(checkpoint, item), rtol=1e-5, atol=1e-7)


def test_confident_targets_do_not_cancel() -> None:
    # p_y = 1 - 4e-9 here: in fp32 both p_y - 1 and expm1(log p_y) are 0, the sum of the others is not.
    head = Head(torch.eye(3))
    hidden = torch.tensor([[20.0, 0.0, 0.0]])
    row = segment_gradients(hidden, torch.tensor([0]), torch.tensor([0]), 1, head)[0].double()
    exact = torch.softmax(hidden.double(), -1)[0] - torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(row, exact, rtol=1e-5, atol=0.0)


def test_half_precision_heads_are_multiplied_in_slices(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "VOCABULARY_SLICE", 50)
    weight = checkpoint.head.weight.to(torch.bfloat16)
    residual = torch.randn(3, len(weight))
    torch.testing.assert_close(forward._times_head(residual, weight), residual @ weight.float())


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)), budget=st.sampled_from([1, 200, 700, 100_000]))
def test_results_depend_on_neither_batch_nor_order(order: list[int], budget: int) -> None:
    checkpoint, encoder, samples, alone = _shared_case()
    together = measure(checkpoint, encoder, [samples[i] for i in order], budget)
    for sample in samples:
        expected, found = alone[sample.sample_id], together[sample.sample_id]
        assert found.segment_tokens == expected.segment_tokens
        assert found.gram is not None
        scale = max(abs(value) for value in expected.gram or [])
        assert found.gram == pytest.approx(expected.gram, rel=1e-5, abs=1e-5 * scale)


_case: list[tuple[Checkpoint, Encoder, list[Sample], dict[str, StepGradients]]] = []


def _shared_case() -> tuple[Checkpoint, Encoder, list[Sample], dict[str, StepGradients]]:
    return _case[0]


@pytest.fixture(scope="module", autouse=True)
def _make_shared_case(checkpoint: Checkpoint, encoder: Encoder) -> None:
    samples = random_samples(12, seed=7)
    alone = {s.sample_id: measure(checkpoint, encoder, [s], 1)[s.sample_id] for s in samples}
    _case[:] = [(checkpoint, encoder, samples, alone)]


def test_an_answer_token_changes_the_answer_and_no_step(checkpoint: Checkpoint, encoder: Encoder) -> None:
    steps = ["two and two is four", "four and one is five"]
    before, after = encoder.encode([make_sample(steps, "51"), make_sample(steps, "52")])
    first, second = batch_gradients(checkpoint, [before, after])
    torch.testing.assert_close(first[:-1], second[:-1], rtol=1e-6, atol=1e-8)
    assert not torch.allclose(first[-1], second[-1], rtol=1e-3)


def test_identical_steps_have_equal_gradients_only_where_their_context_is(
    checkpoint: Checkpoint, encoder: Encoder
) -> None:
    # The gradient of a step depends on what stands before it, so equal texts differ; the history's own
    # identity (A_hist = 1 for equal gradients) is checked on Gram matrices in tests/scores/test_grace.py.
    (encoded,) = encoder.encode([make_sample(["one and one", "one and one"], "2")])
    gradients = batch_gradients(checkpoint, [encoded])[0]
    assert not torch.allclose(gradients[0], gradients[1])


def test_no_answer_is_a_reason_and_is_not_run(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure(checkpoint, encoder, [make_sample(["one two three", "four five six"], None)], 999)["s"]
    assert result.gram is None
    assert result.flags == ["no_answer"]
    assert result.tokens == 0


def test_no_steps_is_a_reason(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure(checkpoint, encoder, [make_sample([], "42")], 999)["s"]
    assert result.gram is None
    assert result.flags == ["no_steps"]


def test_images_are_a_reason_as_long_as_no_model_sees_them(checkpoint: Checkpoint, encoder: Encoder) -> None:
    sample = replace(make_sample(["one two three"], "42"), images=("picture.png",))
    result = measure(checkpoint, encoder, [sample], 999)["s"]
    assert result.gram is None
    assert result.flags == ["images_not_supported"]


def test_one_step_is_scored_and_flagged(checkpoint: Checkpoint, encoder: Encoder) -> None:
    result = measure(checkpoint, encoder, [make_sample(["just one step"], "42")], 999)["s"]
    assert result.gram is not None
    assert len(result.gram) == 3
    assert result.flags == ["few_steps"]


def _cut_at(checkpoint: Checkpoint, sample: Sample, tokens: int) -> StepGradients:
    encoder = Encoder(checkpoint.tokenizer, "auto", tokens)
    return measure(checkpoint, encoder, [sample], 999)[sample.sample_id]


def test_truncation_before_inside_and_after_the_answer(checkpoint: Checkpoint, encoder: Encoder) -> None:
    sample = make_sample(["first of all this", "and then that"], "1234")
    full = len(encoder.encode([sample])[0])  # with EOS
    whole = _cut_at(checkpoint, sample, full - 1)
    assert whole.gram is not None
    assert whole.flags == []
    inside = _cut_at(checkpoint, sample, full - 3)
    assert inside.gram is not None
    assert inside.flags == ["answer_truncated"]
    assert inside.segment_tokens[-1] == 2
    before = _cut_at(checkpoint, sample, full - 5)
    assert before.gram is None
    assert before.flags == ["truncated", "not_measured"]
    prompt = _cut_at(checkpoint, sample, 5)
    assert prompt.gram is None
    assert prompt.flags == ["prompt_too_long", "not_measured"]


def test_a_broken_sample_is_flagged_and_its_neighbours_are_not(checkpoint: Checkpoint, encoder: Encoder) -> None:
    encoded = encoder.encode(random_samples(2))
    gradients = batch_gradients(checkpoint, encoded)
    gradients[0][0, 0] = float("nan")
    broken, sound = (summarize(item, rows) for item, rows in zip(encoded, gradients, strict=True))
    assert broken.gram is None
    assert "non_finite" in broken.flags
    assert sound.gram is not None


def test_zero_norm_is_flagged(checkpoint: Checkpoint, encoder: Encoder) -> None:
    (encoded,) = encoder.encode([make_sample(["one two three", "four five six"], "7")])
    gradients = batch_gradients(checkpoint, [encoded])[0]
    gradients[0] = 1e-13
    assert "zero_norm" in summarize(encoded, gradients).flags


def test_out_of_memory_halves_the_batch(
    checkpoint: Checkpoint, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = forward.batch_gradients
    sizes = []

    def limited(checkpoint: Checkpoint, batch: list[object]) -> object:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too large")
        return real(checkpoint, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(forward, "batch_gradients", limited)
    samples = random_samples(5)
    found = measure(checkpoint, encoder, samples, 10**6)
    assert set(found) == {sample.sample_id for sample in samples}
    assert sizes[0] == 5
    assert 2 in sizes
