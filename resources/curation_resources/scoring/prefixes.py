"""Prefix windows: the tokens that an early loss counts, and the part of a sample to run for them.

Source: TEMP, arXiv 2606.26797: l_N(z; theta) = mean NLL of the first min(N, len) tokens of the response. The method's
point is that no more than prompt + N tokens are run, so samples are truncated before they are batched.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from curation_resources.scoring.samples import ANSWER, UNRUNNABLE, Encoded, PrefixWindows
from curation_resources.scoring.vision import fitted

Indices = npt.NDArray[np.int64]


def window_positions(encoded: Encoded, windows: PrefixWindows) -> Indices:
    """Return the positions [at most N] of the tokens in the longest window, ascending; shorter windows use a part.

    The first token of a sequence does not count, because nothing predicts it.
    """
    positions = np.arange(max(1, encoded.prompt_tokens), _end(encoded, windows), dtype=np.int64)
    if windows.skip_template_tokens:
        positions = np.setdiff1d(positions, encoded.tag_tokens, assume_unique=True)
    return positions[: windows.longest]


def reasons_without_windows(encoded: Encoded, windows: PrefixWindows) -> list[str]:
    """Return why a sample has no early loss; empty if it has one, or if no signal can be measured.

    Reasoning is also empty if only the answer's marker comes before the answer, without any step.
    """
    if set(encoded.flags) & UNRUNNABLE.keys():
        return []
    before = encoded.segment_of_token[: _end(encoded, windows)]
    cut_short = windows.reasoning_only and ANSWER in encoded.segment_of_token
    without_steps = cut_short and all(owner < 0 for owner in before)
    return ["empty_reasoning"] if without_steps or not len(window_positions(encoded, windows)) else []


def cut_to_windows(encoded: Encoded, windows: PrefixWindows) -> Encoded:
    """Truncate a sample after the last token of its windows, keeping its prompt's images.

    Its windows are the same as those of the whole sample.
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
    """Return the end position of the tokens that a window of any length could count."""
    ends = [len(encoded)]
    if windows.skip_template_tokens:
        ends.append(encoded.prompt_tokens + encoded.response_tokens)
    if windows.reasoning_only and ANSWER in encoded.segment_of_token:
        ends.append(encoded.segment_of_token.index(ANSWER))
    return min(ends)
