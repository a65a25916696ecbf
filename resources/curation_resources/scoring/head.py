"""The streamed LM head: losses, uncertainty and residuals of label rows, a chunk of logits at a time.

With h_t the final hidden state after the final norm, W the LM head [V, d] and y_t the target, the logits are
z = soft_cap(scale * (W h + b)), p = softmax(z), and the residual of a row is J * (p - y) with J = dz/d(W h)
elementwise (methods: GRACE, arXiv 2605.13130, Eq. 9 and 11). The [N, V] logits of all rows are never materialized: two
buffers of a chunk's rows are allocated once, sized from a memory budget, and reused for every chunk. Softmax is
computed
in fp32 whatever the weights' precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_MEMORY = 256 * 2**20
"""Bytes for a chunk's logits and derived values, on the CPU."""

CUDA_MEMORY = 768 * 2**20
"""The same on a CUDA device, where reading W for few rows costs as much as multiplying it with many."""

CPU_ROWS = 256
"""Maximum rows of a chunk on the CPU; more bring no gain."""

CUDA_ROWS = 4096
"""Maximum rows of a chunk on a CUDA device: enough to saturate it."""

SEGMENTS_PER_PRODUCT = 256
"""Summed residuals that are multiplied with W together."""

VOCABULARY_SLICE = 16_384
"""Rows of a half-precision W that are cast to fp32 at once."""

ALL = slice(None)
"""The whole vocabulary."""

LOWEST_LOGIT = -1e30
"""Replaces -inf where a head masks tokens."""

MAXIMUM_GROUPS = 256
"""Groups of the vocabulary whose maxima yield the two largest logits."""


@dataclass(frozen=True)
class Head:
    """The LM head: logits z = soft_cap(scale * (W h + b)).

    Attributes:
        weight: W [V, d].
        bias: b [V] or None.
        scale: factor on the logits (Cohere's logit_scale, the inverse of Granite's logits_scaling).
        soft_cap: c of Gemma's c * tanh(z / c), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    @cached_property
    def masks(self) -> bool:
        """True if the bias masks tokens."""
        return self.bias is not None and not bool(self.bias.isfinite().all())

    def uncapped(self, hidden: Tensor, part: slice = ALL, out: Tensor | None = None) -> Tensor:
        """Return scale * (W h + b), in fp32 [N, part], of hidden states [N, d] for a part of the vocabulary."""
        logits = product(hidden, self.weight[part], out=out)
        if self.bias is not None:
            logits += self.bias[part]
        if self.masks:
            # A bias of -inf masks a token. Its probability is still 0 with a finite bound, which avoids 0 x inf = NaN.
            logits.clamp_(min=LOWEST_LOGIT)
        if self.scale != 1.0:
            logits *= self.scale
        return logits


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty per label row, in fp32 [N].

    Attributes:
        entropy: H(p) = -sum p log p, in nats.
        least_confidence: 1 - max p.
        margin: largest minus second largest probability.
        largest_logit: max z.
        logit_margin: largest minus second largest logit.
    """

    entropy: Tensor
    least_confidence: Tensor
    margin: Tensor
    largest_logit: Tensor
    logit_margin: Tensor


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics per label row: `nll` [N] in fp32, -log p(y) in nats; the others if requested.

    `error_norm` [N] in fp32 is the norm of p - y.
    """

    nll: Tensor
    uncertainty: Uncertainty | None = None
    error_norm: Tensor | None = None


@dataclass(frozen=True)
class Normaliser:
    """Turns a row's logits into probabilities: exp(z - maximum) / total; [n] each.

    Attributes:
        maximum: largest logit.
        others: sum of exp(z - maximum) over all tokens but the target.
        total: sum over all tokens.
    """

    maximum: Tensor
    others: Tensor
    total: Tensor


class StreamedHead:
    """An LM head that is applied in chunks; see the module's docstring.

    Args:
        head: the LM head.
        memory: bytes for the chunk's buffers and the residual sums, `CPU_MEMORY` or `CUDA_MEMORY` by default; a chunk
            has at least one row.
    """

    def __init__(self, head: Head, memory: int | None = None) -> None:
        self.head = head
        weight = head.weight
        memory = memory or (CUDA_MEMORY if weight.is_cuda else CPU_MEMORY)
        row_bytes = 4 * len(weight)
        # Half-precision heads also need their own logits if the product cannot be computed in fp32 directly.
        per_row = 2 * row_bytes + (0 if weight.dtype == torch.float32 or weight.is_cuda else row_bytes // 2)
        sums = max(1, min(SEGMENTS_PER_PRODUCT, memory // 4 // row_bytes))
        most = CUDA_ROWS if weight.is_cuda else CPU_ROWS
        self.rows = max(1, min(most, (memory - sums * row_bytes) // per_row))
        self._sums = sums
        self._buffers: list[Tensor] = []

    def _buffer(self, number: int, rows: int) -> Tensor:
        """Return the first rows of one of the three buffers (logits, exponentials, residual sums) [rows, V]."""
        if not self._buffers:
            weight = self.head.weight
            sizes = (self.rows, self.rows, self._sums)
            self._buffers = [
                torch.empty(size, len(weight), dtype=torch.float32, device=weight.device) for size in sizes
            ]
        return self._buffers[number][:rows]

    def run(
        self,
        hidden: Tensor,
        targets: Tensor,
        segment_rows: Sequence[int],
        *,
        statistics: bool,
        uncertainty: bool,
        error_norms: bool = False,
    ) -> tuple[TokenStatistics, Tensor]:
        """Return statistics of label rows and mean proxy gradients of their segments, from one pass over the rows.

        Args:
            hidden: final hidden states that predict the targets [N, d].
            targets: token ids [N].
            segment_rows: number of rows of each segment: the first rows belong to the first segment, and so on; rows
                outside
                all segments come last.
            statistics: compute losses.
            uncertainty: also compute entropy, least confidence, margins and the largest logit.
            error_norms: also compute the norm of p - y.

        Returns:
            Statistics [N] (of no rows if not requested), and G [S, d] in fp32, g = mean over the segment's rows of
            (J * (p - y)) W; the row of a segment without rows is zero.
        """
        count = len(hidden) if statistics else 0
        found = TokenStatistics(
            hidden.new_empty(count, dtype=torch.float32),
            Uncertainty(*hidden.new_empty(len(fields(Uncertainty)), count, dtype=torch.float32))
            if statistics and uncertainty
            else None,
            hidden.new_empty(count, dtype=torch.float32) if statistics and error_norms else None,
        )
        gradients = torch.zeros(len(segment_rows), hidden.shape[1], dtype=torch.float32, device=hidden.device)
        sums = _SegmentSums(self, gradients)
        pieces = _pieces(segment_rows, self.rows)
        in_segments = sum(segment_rows)
        for start in range(0, len(hidden), self.rows):
            rows = slice(start, start + self.rows)
            chunk = self._chunk(hidden[rows], targets[rows], found.uncertainty, start)
            if statistics:
                found.nll[rows] = chunk.nll()
            if found.error_norm is not None:
                found.error_norm[rows] = chunk.error_norm()
            if start < in_segments:
                weights = chunk.finish_residual()
                for segment, begin, end in pieces[start // self.rows]:
                    share = weights[begin:end] / segment_rows[segment]
                    sums.add(segment, chunk.exponentials[begin:end], share)
        sums.flush()
        return found, gradients

    def token_gradients(self, hidden: Tensor, targets: Tensor, nll: Tensor | None = None) -> Tensor:
        """Return u = (J * (p - y)) W of every label row [N, d] in fp32, with one product with W per row.

        If `nll` [N] is given, the rows' losses are written into it.
        """
        result = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), self.rows):
            rows = slice(start, start + self.rows)
            chunk = self._chunk(hidden[rows], targets[rows], None, start)
            if nll is not None:
                nll[rows] = chunk.nll()
            weights = chunk.finish_residual()
            result[rows] = times_head(chunk.exponentials * weights.unsqueeze(1), self.head.weight)
        return result

    def normalisers(self, hidden: Tensor, targets: Tensor) -> Normaliser:
        """Return the normalisers of every row's logits [N], for passes over slices of the vocabulary."""
        chunks = [
            self._chunk(hidden[start : start + self.rows], targets[start : start + self.rows], None, start).normaliser
            for start in range(0, len(hidden), self.rows)
        ]
        return Normaliser(*(torch.cat([getattr(c, name) for c in chunks]) for name in ("maximum", "others", "total")))

    def _chunk(self, hidden: Tensor, targets: Tensor, found: Uncertainty | None, start: int) -> _Chunk:
        logits = self.head.uncapped(hidden, out=self._buffer(0, len(hidden)))
        exponentials = self._buffer(1, len(hidden))
        cap = self.head.soft_cap
        if cap is not None:
            # The buffer keeps tanh, from which both the capped logits and the Jacobian follow.
            logits.div_(cap).tanh_()
        largest = _two_largest(logits) if found is not None else logits.amax(dim=1, keepdim=True)
        maximum = largest[:, :1]
        column = targets.unsqueeze(1)
        target_shifted = (logits.gather(1, column) - maximum).squeeze(1) * (cap or 1.0)
        if cap is None:
            torch.exp(logits.sub_(maximum), out=exponentials)
        else:
            torch.sub(logits, maximum, out=exponentials).mul_(cap).exp_()
        target_exponential = exponentials.gather(1, column).squeeze(1)
        exponentials.scatter_(1, column, 0.0)
        others = exponentials.sum(dim=1)
        normaliser = Normaliser(maximum.squeeze(1) * (cap or 1.0), others, others + target_exponential)
        chunk = _Chunk(self.head, logits, exponentials, column, target_shifted, target_exponential, normaliser)
        if found is not None:
            chunk.collect_uncertainty(found, slice(start, start + len(hidden)), largest)
        return chunk


@dataclass
class _Chunk:
    """The rows of one chunk, with the buffers that hold their intermediate values.

    `logits` holds z - maximum, or tanh(z / c) of a capped head; `exponentials` holds exp(z - maximum) with 0 at the
    target. Both are the head's buffers, so a chunk must be finished before the next one is made.
    """

    head: Head
    logits: Tensor
    exponentials: Tensor
    column: Tensor
    target_shifted: Tensor
    target_exponential: Tensor
    normaliser: Normaliser

    def nll(self) -> Tensor:
        """Return -log p(y) [n]. If y is likely, log(1 + others / own) keeps the digits that log(p) would round away."""
        others, total = self.normaliser.others, self.normaliser.total
        likely = torch.log1p(others / self.target_exponential)
        return torch.where(self.target_exponential > others, likely, torch.log(total) - self.target_shifted)

    def error_norm(self) -> Tensor:
        """Return the norm of p - y [n]; y's own part is the sum of the other probabilities, as 1 - p_y would cancel."""
        return torch.hypot(torch.linalg.vector_norm(self.exponentials, dim=1), self.normaliser.others) / (
            self.normaliser.total
        )

    def finish_residual(self) -> Tensor:
        """Turn `exponentials` into the residual J * (p - y), up to a factor per row, which is returned [n].

        The residual at the target is minus the sum of the other probabilities. Computing p_y - 1 would cancel in fp32
        if p_y is
        near 1, as it is for a fine-tuned model, and so would expm1(log p_y) once log p_y is below the logits' own
        rounding.
        """
        self.exponentials.scatter_(1, self.column, -self.normaliser.others.unsqueeze(1))
        if self.head.soft_cap is not None:
            self.exponentials.mul_(self.logits.square_().neg_().add_(1.0))
        return self.head.scale / self.normaliser.total

    def collect_uncertainty(self, found: Uncertainty, rows: slice, largest: Tensor) -> None:
        """Compute all of `Uncertainty`; for a head without cap this overwrites the logits."""
        others, total = self.normaliser.others, self.normaliser.total
        cap = self.head.soft_cap
        gap = (largest[:, 1] - largest[:, 0]) * (cap or 1.0)
        if cap is None:
            weighted = self.logits.mul_(self.exponentials).sum(dim=1)
        else:
            weighted = torch.linalg.vecdot(self.logits, self.exponentials)
            weighted = cap * (weighted - largest[:, 0] * others)
        # H = log(total) - sum of e z / total, with the target's own term added.
        weighted = weighted + self.target_exponential * self.target_shifted
        # If the target is the likeliest token, total is 1 + others, and others may be too small to change the sum.
        likeliest = self.target_shifted == 0.0
        found.entropy[rows] = torch.where(likeliest, torch.log1p(others), torch.log(total)) - weighted / total
        found.least_confidence[rows] = torch.where(likeliest, others, total - 1.0) / total
        found.margin[rows] = -torch.expm1(gap) / total
        found.largest_logit[rows] = self.normaliser.maximum
        found.logit_margin[rows] = -gap


class _SegmentSums:
    """Residuals summed by segment, multiplied with W in groups.

    Only segments in the current chunk are touched, and a row touches only its own segment, so a row that is not finite
    cannot spoil another segment.
    """

    def __init__(self, owner: StreamedHead, gradients: Tensor) -> None:
        self._owner = owner
        self._gradients = gradients
        self._segments: list[int] = []

    def add(self, segment: int, residual: Tensor, weights: Tensor) -> None:
        """Add sum_i weights_i residual_i to a segment; segments arrive in ascending order."""
        if self._segments and self._segments[-1] == segment:
            slot = self._slot(len(self._segments) - 1)
            torch.addmv(slot, residual.T, weights, out=slot)
            return
        if len(self._segments) == self._owner._sums:
            self.flush()
        self._segments.append(segment)
        torch.mv(residual.T, weights, out=self._slot(len(self._segments) - 1))

    def _slot(self, number: int) -> Tensor:
        return self._owner._buffer(2, number + 1)[number]

    def flush(self) -> None:
        """Multiply the accumulated sums with W."""
        if not self._segments:
            return
        gradients = times_head(self._owner._buffer(2, len(self._segments)), self._owner.head.weight)
        # A segment may be split over two flushes.
        self._gradients.index_add_(0, torch.tensor(self._segments, device=gradients.device), gradients)
        self._segments = []


def _pieces(segment_rows: Sequence[int], chunk_rows: int) -> list[list[tuple[int, int, int]]]:
    """Return for every chunk its segments as (segment, first row, last row + 1) within the chunk."""
    pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(-(-sum(segment_rows) // chunk_rows))]
    start = 0
    for segment, count in enumerate(segment_rows):
        end = start + count
        while start < end:
            chunk, begin = divmod(start, chunk_rows)
            taken = min(end - start, chunk_rows - begin)
            pieces[chunk].append((segment, begin, begin + taken))
            start += taken
    return pieces


def _two_largest(logits: Tensor) -> Tensor:
    """Return the two largest values of every row [n, 2], descending.

    `topk` over a vocabulary costs several passes; maxima of interleaved groups cost one, and the second largest is
    either
    another group's maximum or in the group of the largest.
    """
    rows, vocabulary = logits.shape
    per_group = vocabulary // MAXIMUM_GROUPS
    if per_group < 2:
        return logits.topk(2, dim=1).values
    grouped = logits[:, : per_group * MAXIMUM_GROUPS].unflatten(1, (per_group, MAXIMUM_GROUPS))
    maxima = grouped.amax(dim=1).topk(2, dim=1)
    best = maxima.indices[:, :1].unsqueeze(1).expand(rows, per_group, 1)
    candidates = [maxima.values[:, 1:], grouped.gather(2, best).squeeze(2).topk(2, dim=1).values]
    tail = logits[:, per_group * MAXIMUM_GROUPS :]
    if tail.shape[1]:
        candidates.append(tail.topk(min(2, tail.shape[1]), dim=1).values)
    return torch.cat(candidates, dim=1).topk(2, dim=1).values


def product(hidden: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Return hidden [N, d] x W^T [d, V] in fp32, as exactly as the device can without casting W."""
    if weight.dtype == torch.float32:
        return torch.mm(hidden.to(torch.float32), weight.T, out=out)
    if weight.is_cuda:
        # Accumulates half-precision products in fp32; the model's own logits are rounded.
        if out is None:
            return torch.mm(hidden, weight.T, out_dtype=torch.float32)
        return torch.mm(hidden, weight.T, out_dtype=torch.float32, out=out)
    rounded = F.linear(hidden, weight)
    return rounded.to(torch.float32) if out is None else out.copy_(rounded)


def vocabulary_slices(weight: Tensor, size: int = VOCABULARY_SLICE) -> Iterator[slice]:
    """Yield slices of the vocabulary, in order."""
    for start in range(0, len(weight), size):
        yield slice(start, min(start + size, len(weight)))


def times_head(residual: Tensor, weight: Tensor) -> Tensor:
    """Return residual [S, V] x W [V, d] in fp32, whatever W's precision."""
    if weight.dtype == torch.float32:
        return residual @ weight
    result = torch.zeros(len(residual), weight.shape[1], dtype=torch.float32, device=residual.device)
    for rows in vocabulary_slices(weight):
        result += residual[:, rows] @ weight[rows].to(torch.float32)
    return result
