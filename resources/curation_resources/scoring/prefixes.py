"""Prefix windows: which tokens an early loss counts, and how far a sample has to be run for them.

Source: TEMP, arXiv 2606.26797: l_N(z; theta) = mean NLL of the first min(N, len) tokens of the response. That no
more than prompt + N tokens are run is the method's point: a sample is cut before it is batched, so that batches
are made of what is left.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from curation_resources.scoring.samples import ANSWER, UNRUNNABLE, Encoded, PrefixWindows
from curation_resources.scoring.vision import fitted

Indices = npt.NDArray[np.int64]


def window_positions(encoded: Encoded, windows: PrefixWindows) -> Indices:
    """Positions [at most N] of the tokens that the longest window counts, ascending; a shorter one counts its first.

    The first token of a sequence does not count: nothing predicts it.
    """
    positions = np.arange(max(1, encoded.prompt_tokens), _end(encoded, windows), dtype=np.int64)
    if windows.skip_template_tokens:
        positions = np.setdiff1d(positions, encoded.tag_tokens, assume_unique=True)
    return positions[: windows.longest]


def reasons_without_windows(encoded: Encoded, windows: PrefixWindows) -> list[str]:
    """Why a sample has no early loss; empty if it has one, or if no signal can be measured of it.

    Reasoning is empty as well where nothing but the answer's marker stands before the answer: no step does.
    """
    if set(encoded.flags) & UNRUNNABLE.keys():
        return []
    before = encoded.segment_of_token[: _end(encoded, windows)]
    cut_short = windows.reasoning_only and ANSWER in encoded.segment_of_token
    without_steps = cut_short and all(owner < 0 for owner in before)
    return ["empty_reasoning"] if without_steps or not len(window_positions(encoded, windows)) else []


def cut_to_windows(encoded: Encoded, windows: PrefixWindows) -> Encoded:
    """A sample up to the last token that a window counts, its prompt's images with it.

    Its windows are those of the whole sample.
    """
    positions = window_positions(encoded, windows)
    kept = int(positions[-1]) + 1 if len(positions) else encoded.prompt_tokens
    return replace(
        encoded,
        input_ids=encoded.input_ids[:kept],
        response_tokens=max(0, min(encoded.response_tokens, kept - encoded.prompt_tokens)),
        segment_of_token=encoded.segment_of_token[:kept],
        model_inputs=fitted(encoded.model_inputs, len(encoded), kept),
    )


def _end(encoded: Encoded, windows: PrefixWindows) -> int:
    """The position behind the last that a window of any length could count."""
    ends = [len(encoded)]
    if windows.skip_template_tokens:
        ends.append(encoded.prompt_tokens + encoded.response_tokens)
    if windows.reasoning_only and ANSWER in encoded.segment_of_token:
        ends.append(encoded.segment_of_token.index(ANSWER))
    return min(ends)
