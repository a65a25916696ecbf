"""The streamed LM head against full logits in fp64 and autograd, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from curation_resources.scoring import head as head_module
from curation_resources.scoring.head import Head, StreamedHead, TokenStatistics, _pieces, _two_largest, times_head

HEADS = {
    "plain": (1.0, None, False),
    "scaled": (0.25, None, False),
    "capped": (1.0, 5.0, False),
    "scaled, capped, with bias": (0.5, 3.0, True),
}


def make_head(kind: str, vocabulary: int = 1100, hidden: int = 16) -> Head:
    scale, cap, biased = HEADS[kind]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    bias = torch.linspace(-1, 1, vocabulary) if biased else None
    return Head(weight, bias, scale, cap)


def rows_of(head: Head, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, head.weight.shape[1], generator=generator)
    return hidden, torch.randint(0, len(head.weight), (count,), generator=generator)


def exact_logits(head: Head, hidden: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.double()
    logits = head.scale * F.linear(hidden.double(), head.weight.double(), bias)
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def small_budget(head: Head, rows: int) -> StreamedHead:
    """A head whose chunks hold so many rows and whose products take two segments."""
    streamed = StreamedHead(head)
    streamed.rows, streamed._sums = rows, 2
    return streamed


def statistics_of(streamed: StreamedHead, hidden: Tensor, targets: Tensor) -> TokenStatistics:
    return streamed.run(hidden, targets, (), statistics=True, uncertainty=True)[0]


def gradients_of(streamed: StreamedHead, hidden: Tensor, targets: Tensor, segment_rows: list[int]) -> Tensor:
    return streamed.run(hidden, targets, segment_rows, statistics=False, uncertainty=False)[1]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk_rows", [1, 7, 256])
def test_statistics_equal_full_softmax(kind: str, chunk_rows: int) -> None:
    head = make_head(kind)
    hidden, targets = rows_of(head, 40)
    found = statistics_of(small_budget(head, chunk_rows), hidden, targets)
    log_p = torch.log_softmax(exact_logits(head, hidden), dim=-1)
    p = log_p.exp()
    largest = p.topk(2).values
    expected = {
        "nll": -log_p.gather(1, targets.unsqueeze(1)).squeeze(1),
        "entropy": -(p * log_p).sum(dim=1),
        "least_confidence": 1.0 - largest[:, 0],
        "margin": largest[:, 0] - largest[:, 1],
    }
    assert found.uncertainty is not None
    given = {"nll": found.nll} | vars(found.uncertainty)
    for name, values in expected.items():
        torch.testing.assert_close(given[name].double(), values, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk_rows", [1, 7, 256])
def test_segment_and_token_gradients_equal_autograd(kind: str, chunk_rows: int) -> None:
    head = make_head(kind)
    hidden, targets = rows_of(head, 30)
    counts = [11, 1, 0, 9]  # nine rows are of no segment
    streamed = small_budget(head, chunk_rows)
    found = gradients_of(streamed, hidden, targets, counts)
    states = hidden.double().requires_grad_()
    losses = F.cross_entropy(exact_logits(head, states), targets, reduction="none")
    (per_token,) = torch.autograd.grad(losses.sum(), states)
    start = 0
    for row, count in zip(found, counts, strict=True):
        expected = per_token[start : start + count].mean(dim=0) if count else torch.zeros_like(per_token[0])
        torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-6)
        start += count
    torch.testing.assert_close(streamed.token_gradients(hidden, targets).double(), per_token, rtol=1e-5, atol=1e-6)


def test_confident_targets_do_not_cancel() -> None:
    # p_y = 1 - 4e-9 here: in fp32 both p_y - 1 and expm1(log p_y) are 0, the sum of the others is not.
    streamed = StreamedHead(Head(torch.eye(3)))
    hidden, targets = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([0])
    exact = torch.softmax(hidden.double(), -1)[0] - torch.tensor([1.0, 0.0, 0.0])
    row = gradients_of(streamed, hidden, targets, [1])[0].double()
    torch.testing.assert_close(row, exact, rtol=1e-5, atol=0.0)
    nll = statistics_of(streamed, hidden, targets).nll.double()
    torch.testing.assert_close(nll, -torch.log_softmax(hidden.double(), -1)[:, 0], rtol=1e-5, atol=0.0)


def test_confident_targets_keep_their_uncertainty() -> None:
    found = statistics_of(StreamedHead(Head(torch.eye(3))), torch.tensor([[18.0, 0.0, 0.0]]), torch.tensor([0]))
    p = torch.softmax(torch.tensor([18.0, 0.0, 0.0], dtype=torch.float64), -1)
    assert found.uncertainty is not None
    assert float(found.uncertainty.least_confidence) == pytest.approx(float(p[1:].sum()), rel=1e-5)
    assert float(found.uncertainty.entropy) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)


def test_tokens_that_a_bias_masks_out_have_no_part() -> None:
    masked = Head(torch.eye(3), torch.tensor([0.0, 0.0, -torch.inf]))
    hidden, targets = torch.tensor([[1.0, 0.5, 9.0]]), torch.tensor([1])
    found, gradients = StreamedHead(masked).run(hidden, targets, [1], statistics=True, uncertainty=True)
    p = torch.softmax(torch.tensor([1.0, 0.5], dtype=torch.float64), -1)
    assert found.uncertainty is not None
    assert float(found.uncertainty.entropy) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)
    assert float(found.nll) == pytest.approx(-float(p[1].log()), rel=1e-5)
    torch.testing.assert_close(gradients[0], torch.tensor([float(p[0]), float(p[1]) - 1, 0.0]))


def test_impossible_targets_have_a_finite_loss() -> None:
    # exp(-200) is 0 in fp32; the loss is 200 all the same.
    streamed = StreamedHead(Head(torch.eye(3)))
    found = statistics_of(streamed, torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([1]))
    assert float(found.nll) == pytest.approx(200.0)


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_only_its_own_segment(spoiled: float) -> None:
    head = make_head("plain")
    hidden, targets = rows_of(head, 12)
    sound = gradients_of(StreamedHead(head), hidden, targets, [4, 4, 4])
    hidden[5, 0] = spoiled
    statistics, found = StreamedHead(head).run(hidden, targets, [4, 4, 4], statistics=True, uncertainty=True)
    assert not found[1].isfinite().any()
    torch.testing.assert_close(found[[0, 2]], sound[[0, 2]])
    assert statistics.nll.isfinite().logical_not().nonzero().flatten().tolist() == [5]


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(2, 1500),
    peaks=st.lists(st.integers(0, 10**6), max_size=4),
    seed=st.integers(0, 100),
)
def test_two_largest_equal_topk(vocabulary: int, peaks: list[int], seed: int) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed))
    for height, place in enumerate(peaks):
        logits[:, place % vocabulary] = 5.0 + height % 2  # ties, neighbours, and both in one group
    assert torch.equal(_two_largest(logits), logits.topk(2, dim=1).values)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 9), max_size=8), chunk_rows=st.integers(1, 12))
def test_pieces_cover_every_row_once(counts: list[int], chunk_rows: int) -> None:
    owners = [segment for segment, count in enumerate(counts) for _ in range(count)]
    found = [-1] * len(owners)
    for chunk, pieces in enumerate(_pieces(counts, chunk_rows)):
        for segment, begin, end in pieces:
            assert 0 <= begin < end <= chunk_rows
            found[chunk * chunk_rows + begin : chunk * chunk_rows + end] = [segment] * (end - begin)
    assert found == owners


def test_memory_budget_sets_the_rows_of_a_chunk() -> None:
    wide = Head(torch.empty(152_000, 8))
    streamed = StreamedHead(wide, 256 * 2**20)
    used = 4 * 152_000 * (2 * streamed.rows + streamed._sums)
    assert 0.9 * 256 * 2**20 < used <= 256 * 2**20
    assert StreamedHead(wide, 1).rows == 1  # never less than a row


def test_half_precision_heads_are_multiplied_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = make_head("plain").weight.to(torch.bfloat16)
    residual = torch.randn(3, len(weight))
    whole = residual @ weight.float()
    monkeypatch.setattr(head_module, "VOCABULARY_SLICE", 50)
    torch.testing.assert_close(times_head(residual, weight), whole, rtol=1e-5, atol=1e-4)


def test_half_precision_statistics_are_those_of_the_rounded_logits() -> None:
    head = make_head("plain")
    half = Head(head.weight.to(torch.bfloat16))
    hidden, targets = rows_of(head, 20)
    states = hidden.to(torch.bfloat16)
    found = statistics_of(StreamedHead(half), states, targets)
    expected = F.cross_entropy((states @ half.weight.T).float(), targets, reduction="none")
    torch.testing.assert_close(found.nll, expected, rtol=1e-5, atol=1e-5)
