"""The forward pass: GRACE's per-segment proxy gradients, streamed over the vocabulary head.

Source: GRACE, arXiv 2605.13130, Eq. 9 and 11. With h_t the final hidden state after the final norm, W the
LM head and y_t the target, u_t = dL_t/dh_t = (J_t * (p_t - y_t)) W and g(T) = mean of u_t over t in T. By
linearity g(T) = (mean of J_t * (p_t - y_t)) W, so residuals are summed per segment before the product with
W: no [T, V] tensor outlives a chunk, and no [T, d] x V product is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from resources.scoring.batching import plan_batches
from resources.scoring.encoding import Encoder
from resources.scoring.loading import Checkpoint, Head
from resources.scoring.samples import ANSWER, Encoded, Sample, StepGradients

CHUNK_ROWS = 256
"""Label positions whose logits exist at once."""

VOCABULARY_SLICE = 16_384
"""Rows of a half-precision W that are cast to fp32 at once."""

ZERO_NORM_SQUARED = 1e-24


def segment_gradients(hidden: Tensor, targets: Tensor, segments: Tensor, count: int, head: Head) -> Tensor:
    """Mean proxy gradient of every segment.

    Args:
        hidden: final hidden states that predict the targets [N, d].
        targets: token ids [N].
        segments: which segment (0..count-1) each row belongs to [N]; sorted, so that a chunk touches few.
        count: number of segments.
        head: the LM head.

    Returns:
        G [count, d] in fp32; the row of a segment without tokens is zero.
    """
    result = torch.zeros(count, hidden.shape[1], dtype=torch.float32, device=hidden.device)
    tokens = torch.bincount(segments, minlength=count).to(torch.float32)
    for start in range(0, len(hidden), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        residual = _residual(hidden[rows], targets[rows], head)
        touched, position = torch.unique_consecutive(segments[rows], return_inverse=True)
        # A small product [touched, rows] x [rows, V] sums the residuals of each segment in this chunk.
        weights = F.one_hot(position, len(touched)).to(torch.float32).T / tokens[touched].unsqueeze(1)
        result.index_add_(0, touched, _times_head(weights @ residual, head.weight))
    return result


def _residual(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """J * (p - y) of a chunk in fp32 [rows, V]."""
    logits = F.linear(hidden, head.weight, head.bias).to(torch.float32)
    if head.scale != 1.0:
        logits *= head.scale
    jacobian: Tensor | float = head.scale
    if head.soft_cap is not None:
        saturation = torch.tanh(logits / head.soft_cap)
        logits = head.soft_cap * saturation
        jacobian = head.scale * (1.0 - saturation.square())
    residual = torch.softmax(logits, dim=-1).scatter_(1, targets.unsqueeze(1), 0.0)
    # p_y - 1 cancels in fp32 where p_y is near 1, as it is for a fine-tuned model, and so does
    # expm1(log p_y) once log p_y is below the logits' own rounding: minus the other probabilities does not.
    residual.scatter_(1, targets.unsqueeze(1), -residual.sum(dim=1, keepdim=True))
    return residual * jacobian if head.soft_cap is not None or head.scale != 1.0 else residual


def _times_head(residual: Tensor, weight: Tensor) -> Tensor:
    """residual [S, V] x W [V, d] in fp32, whatever W's precision."""
    if weight.dtype == torch.float32:
        return residual @ weight
    result = torch.zeros(len(residual), weight.shape[1], dtype=torch.float32, device=residual.device)
    for start in range(0, len(weight), VOCABULARY_SLICE):
        rows = slice(start, start + VOCABULARY_SLICE)
        result += residual[:, rows] @ weight[rows].to(torch.float32)
    return result


def batch_gradients(checkpoint: Checkpoint, batch: Sequence[Encoded]) -> list[Tensor]:
    """G [K+1, d] for every sample of a batch: its steps in ascending order, then its answer.

    A sample's segments are those that have at least one token; every sample must have some.
    """
    hidden = _hidden_states(checkpoint, batch)
    labels: list[tuple[int, int, int, int]] = []  # (segment row, batch row, position, target)
    counts: list[int] = []
    offset = 0
    for row, encoded in enumerate(batch):
        order = segment_order(encoded)
        slot = {index: offset + place for place, index in enumerate(order)}
        for position, segment in enumerate(encoded.segment_of_token):
            if segment >= 0 and position > 0:
                labels.append((slot[segment], row, position - 1, encoded.input_ids[position]))
        counts.append(len(order))
        offset += len(order)
    labels.sort(key=lambda label: label[0])
    segments, rows, positions, targets = torch.tensor(labels, device=checkpoint.device).unbind(1)
    gradients = segment_gradients(hidden[rows, positions], targets, segments, offset, checkpoint.head)
    return list(gradients.split(counts))


def segment_order(encoded: Encoded) -> list[int]:
    """Indices of the segments that have tokens: steps ascending, the answer last."""
    present = {segment for segment in encoded.segment_of_token if segment >= 0}
    steps = sorted(present - {ANSWER})
    return [*steps, ANSWER] if ANSWER in present else steps


def _hidden_states(checkpoint: Checkpoint, batch: Sequence[Encoded]) -> Tensor:
    """Final hidden states of a right-padded batch [B, T, d]."""
    longest = max(len(encoded) for encoded in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, encoded in enumerate(batch):
        ids[row, : len(encoded)] = torch.tensor(encoded.input_ids)
        mask[row, : len(encoded)] = 1
    output = checkpoint.decoder(
        input_ids=ids.to(checkpoint.device), attention_mask=mask.to(checkpoint.device), use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def summarize(encoded: Encoded, gradients: Tensor) -> StepGradients:
    """Gram matrix, norms, token counts and flags of one sample from its G [K+1, d]."""
    order = segment_order(encoded)
    result = _unmeasured(encoded, ())
    result.tokens = len(encoded)
    exact = gradients.to(torch.float64).cpu()
    gram = (exact @ exact.T).to(torch.float32)
    if not bool(torch.isfinite(gram).all()):
        result.flags.append("non_finite")
        return result
    upper = torch.triu_indices(len(order), len(order))
    diagonal = gram.diagonal()
    result.gram = gram[upper[0], upper[1]].tolist()
    result.norms = diagonal.sqrt().tolist()
    if bool((diagonal < ZERO_NORM_SQUARED).any()):
        result.flags.append("zero_norm")
    if len(order) == 2:
        result.flags.append("few_steps")
    return result


def _unmeasured(encoded: Encoded, reasons: Sequence[str]) -> StepGradients:
    order = segment_order(encoded)
    return StepGradients(
        sample_id=encoded.sample.sample_id,
        step_indices=[index for index in order if index != ANSWER],
        segment_tokens=[encoded.segment_of_token.count(index) for index in order],
        response_tokens=encoded.response_tokens,
        flags=[*encoded.flags, *reasons],
    )


def reasons_not_to_run(encoded: Encoded) -> list[str]:
    """Why a sample can have no GRACE score; empty if it can."""
    if encoded.sample.images:
        return ["images_not_supported"]
    if "template_refused" in encoded.flags or "prompt_too_long" in encoded.flags or "truncated" in encoded.flags:
        return ["not_measured"]
    order = segment_order(encoded)
    reasons = []
    if ANSWER not in order:
        found = any(segment.index == ANSWER for segment in encoded.sample.segments)
        reasons.append("answer_without_tokens" if found else "no_answer")
    if not any(index != ANSWER for index in order):
        reasons.append("no_steps")
    return reasons


def measure_step_gradients(
    checkpoint: Checkpoint,
    encoder: Encoder,
    samples: Sequence[Sample],
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[list[StepGradients]]:
    """Measure samples; yields the results batch by batch, longest samples first.

    A sample without answer or steps is not run: its result comes first, with the reason as a flag. When
    the device runs out of memory the batch is halved and tried again.

    Args:
        checkpoint: the weights to measure at.
        encoder: how text becomes tokens.
        samples: what to measure.
        batch_tokens: token budget of a batch, padding included.
        progress: called with the number of samples done since the last call.
    """
    encoded = encoder.encode(samples)
    unmeasured = [_unmeasured(item, reasons) for item in encoded if (reasons := reasons_not_to_run(item))]
    runnable = [item for item in encoded if not reasons_not_to_run(item)]
    if unmeasured:
        if progress is not None:
            progress(len(unmeasured))
        yield unmeasured
    for batch in plan_batches([len(item) for item in runnable], batch_tokens):
        for results in _run(checkpoint, [runnable[position] for position in batch]):
            if progress is not None:
                progress(len(results))
            yield results


def _run(checkpoint: Checkpoint, batch: list[Encoded]) -> Iterator[list[StepGradients]]:
    """Measure one batch, in halves if the device has no memory for the whole."""
    try:
        with torch.inference_mode():
            gradients = batch_gradients(checkpoint, batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        gradients = []
    if gradients:
        yield [summarize(item, rows) for item, rows in zip(batch, gradients, strict=True)]
        return
    torch.cuda.empty_cache()
    half = len(batch) // 2
    yield from _run(checkpoint, batch[:half])
    yield from _run(checkpoint, batch[half:])
