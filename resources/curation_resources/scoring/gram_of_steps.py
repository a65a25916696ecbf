"""Add a Gram matrix of segment gradients to a sample's results, in single precision with norms and flags."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from curation_resources.scoring.results import StepGradients
from curation_resources.scoring.samples import NON_FINITE, SampleSignals

ZERO_NORM_SQUARED = 1e-24

Floats = npt.NDArray[np.float64]


def flag_non_finite(result: SampleSignals) -> None:
    """Flag a sample once if any of its values is not finite."""
    if NON_FINITE not in result.flags:
        result.flags.append(NON_FINITE)


def add_step_gradients(result: SampleSignals, gram: Floats) -> None:
    """Add the Gram matrix, norms and their flags."""
    single = gram.astype(np.float32)
    if not np.isfinite(single).all():
        flag_non_finite(result)
        return
    diagonal = single.diagonal()
    if (diagonal < ZERO_NORM_SQUARED).any():
        result.gradient_flags.append("zero_norm")
    if len(single) == 2:
        result.gradient_flags.append("few_steps")
    upper = single[np.triu_indices(len(single))]
    # Rounding can make a zero norm's square negative.
    result.step_gradients = StepGradients(upper.tolist(), np.sqrt(np.maximum(diagonal, 0.0)).tolist())
