"""Map the label rows of a batch to the hidden states that predict them and to their owners.

Position t's loss predicts token t from hidden state h_{t-1}; prompt and image tokens carry no loss unless the whole
sequence is requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curation_resources.scoring.prefixes import window_positions
from curation_resources.scoring.samples import ANSWER, Encoded, Request

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SampleLabels:
    """The label rows of one sample.

    Attributes:
        segments: indices of the segments that have tokens: steps ascending, the answer last.
        segment_rows: number of rows of each segment.
        in_segments: label rows of all segments, one segment after another.
        response: label rows of the response's tokens in order, without EOS; empty if not requested.
        eos: label row of EOS, if it exists and was requested.
        sequence: label rows of all tokens but the first, in order; then, for `sequence_uncertainty`, of the position
            after the last token, whose target is arbitrary; empty if not requested.
        window: label rows of the tokens in the longest prefix window, in order; empty if not requested.
    """

    segments: list[int]
    segment_rows: list[int]
    in_segments: Indices
    response: Indices
    eos: Indices
    sequence: Indices
    window: Indices


@dataclass(frozen=True)
class Labels:
    """The label rows of a batch: first those of segments, segment after segment, then all others.

    Attributes:
        batch_rows: sample of the batch that each row belongs to [N].
        positions: position of the hidden state that predicts the row's token [N].
        targets: that token [N].
        segment_rows: number of rows of each segment of the batch.
        samples: the label rows by sample.
    """

    batch_rows: Indices
    positions: Indices
    targets: Indices
    segment_rows: list[int]
    samples: list[SampleLabels]


def segment_order(encoded: Encoded) -> list[int]:
    """Return the indices of the segments that have tokens: steps ascending, the answer last.

    The first token of a sequence does not count, because nothing predicts it.
    """
    present = {segment for segment in encoded.segment_of_token[1:] if segment >= 0}
    steps = sorted(present - {ANSWER})
    return [*steps, ANSWER] if ANSWER in present else steps


@dataclass(frozen=True)
class _Wanted:
    """The token positions of one sample that a request needs; each ascending within its kind."""

    segments: list[int]
    groups: list[Indices]
    response: Indices
    eos: Indices
    sequence: Indices
    window: Indices

    @property
    def covered(self) -> Indices:
        """The positions of all segments, one segment after another."""
        return np.concatenate(self.groups) if self.groups else np.empty(0, dtype=np.int64)

    @property
    def outside(self) -> Indices:
        """The requested positions outside all segments."""
        every = np.unique(np.concatenate([self.response, self.eos, self.sequence, self.window]))
        return np.setdiff1d(every, self.covered, assume_unique=True)


def _wanted(encoded: Encoded, request: Request) -> _Wanted:
    owners = np.asarray(encoded.segment_of_token, dtype=np.int64)
    wants_segments = request.step_gradients is not None or request.segment_likelihoods
    wants_segments = wants_segments or request.attention_influence is not None
    segments = segment_order(encoded) if wants_segments else []
    begin = max(1, encoded.prompt_tokens)
    end = encoded.prompt_tokens + encoded.response_tokens
    # EOS counts in windows, and along a training run.
    eos = request.likelihoods or (request.token_likelihoods and request.with_eos)
    of_response = request.token_likelihoods or request.error_norms or request.attention_influence is not None
    until = len(encoded) if eos else end if of_response else begin
    windows = request.prefix_losses
    after_last = int(request.sequence_uncertainty)
    of_sequence = request.sequence_likelihoods or request.sequence_uncertainty
    return _Wanted(
        segments,
        [np.flatnonzero(owners[1:] == segment) + 1 for segment in segments],
        response=np.arange(begin, min(until, end), dtype=np.int64),
        eos=np.arange(max(begin, end), until, dtype=np.int64),
        sequence=np.arange(1, len(encoded) + after_last if of_sequence else 1, dtype=np.int64),
        window=np.empty(0, dtype=np.int64) if windows is None else window_positions(encoded, windows),
    )


def label_batch(batch: Sequence[Encoded], request: Request) -> Labels:
    """Return the label rows that a request needs for a batch."""
    plans = [_wanted(encoded, request) for encoded in batch]
    groups = [(row, group) for row, plan in enumerate(plans) for group in plan.groups]
    rows = [*groups, *((row, plan.outside) for row, plan in enumerate(plans))]
    batch_rows = np.concatenate([np.full(len(tokens), row) for row, tokens in rows])
    tokens = np.concatenate([tokens for _, tokens in rows])
    longest = max(len(encoded) for encoded in batch)
    # Label row of every (sample, token position).
    place = np.full((len(batch), longest + 1), -1, dtype=np.int64)
    place[batch_rows, tokens] = np.arange(len(tokens))
    samples = [
        SampleLabels(
            plan.segments,
            [len(group) for group in plan.groups],
            in_segments=place[row, plan.covered],
            response=place[row, plan.response],
            eos=place[row, plan.eos],
            sequence=place[row, plan.sequence],
            window=place[row, plan.window],
        )
        for row, plan in enumerate(plans)
    ]
    ids = [np.asarray([*encoded.input_ids, 0], dtype=np.int64) for encoded in batch]
    targets = np.concatenate([ids[row][tokens] for row, tokens in rows])
    counts = [count for sample in samples for count in sample.segment_rows]
    return Labels(batch_rows, tokens - 1, targets, counts, samples)
