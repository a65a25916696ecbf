"""The pass there and back over a batch: what is made of per-sample gradients, of one backward for all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from resources.scoring.attention_layers import AttentionError
from resources.scoring.factors import backward, reaches
from resources.scoring.head import StreamedHead
from resources.scoring.loading import Checkpoint
from resources.scoring.samples import NON_FINITE, Encoded, GradientSpectra, SampleSignals
from resources.scoring.spectra import Spectra, SpectraOfBatch

SHARE = 8
"""Of a batch's tokens, the part that goes there and back at once: activations of all layers stay meanwhile."""


def add_spectra(
    checkpoint: Checkpoint, head: StreamedHead, batch: Sequence[Encoded], results: Sequence[SampleSignals]
) -> list[SampleSignals]:
    """Results with the spectra of the same samples.

    Args:
        checkpoint: the weights to measure at.
        head: its LM head, streamed.
        batch: samples with at least one label each.
        results: what is known of them.

    Raises:
        AttentionError: the attention projections are not known to us, or the model does not run them all.
    """
    projections = checkpoint.attention
    layers = {f"{number}.{name}": one for number, own in enumerate(projections) for name, one in own.layers.items()}
    taker = SpectraOfBatch(projections, reaches(batch))
    losses = backward(checkpoint, head, batch, layers, taker.take).tolist()
    if any(spectra.finite and spectra.nuclear_norm.isnan().any() for spectra in taker.spectra):
        raise AttentionError("no gradient came by some layer's attention projections: the model does not run them all")
    added = []
    for encoded, result, loss, spectra in zip(batch, results, losses, taker.spectra, strict=True):
        found = _plain(loss, spectra) if math.isfinite(loss) and spectra.finite else None
        flags = result.flags if found is not None or NON_FINITE in result.flags else [*result.flags, NON_FINITE]
        # Where nothing else is measured of it these are all the tokens that are run.
        ran = {"backward_tokens" if result.tokens else "tokens": len(encoded)}
        added.append(replace(result, spectra=found, flags=flags, **ran))  # type: ignore[arg-type]
    return added


def _plain(loss: float, spectra: Spectra) -> GradientSpectra:
    return GradientSpectra(
        loss=loss,
        nuclear_norm=spectra.nuclear_norm.tolist(),
        effective_rank=_with_none(spectra.effective_rank),
        rows=spectra.rows.long().tolist(),
        largest_rank=spectra.largest_rank.long().tolist(),
        same_layer=_with_none(spectra.same_layer),
        adjacent=_with_none(spectra.adjacent),
    )


def _with_none(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]
