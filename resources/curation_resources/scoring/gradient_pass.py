"""Compute everything that needs per-sample gradients of a batch in a single backward pass."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curation_resources.scoring.attention_layers import AttentionError
from curation_resources.scoring.factors import (
    GradientError,
    ResponseLabels,
    Taker,
    backward,
    reaches,
    response_labels,
    segment_labels,
)
from curation_resources.scoring.features import Block, FeaturesOfBatch, NormsOfBatch, Sketch, quantised
from curation_resources.scoring.gradient_spec import FeatureSpec, GradientWeights
from curation_resources.scoring.gram_of_steps import add_step_gradients
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.labels import segment_order
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.proxies import gram_of_gradients
from curation_resources.scoring.results import GradientFeatures, GradientSpectra
from curation_resources.scoring.samples import NON_FINITE, Encoded, Request, SampleSignals
from curation_resources.scoring.spectra import Spectra, SpectraOfBatch
from curation_resources.scoring.trained_matrices import Matrix, adam_moments, linear_layers, trained_matrices

SHARE = 8
"""Divisor of a batch's token budget for backward passes, which keep the activations of all layers."""

KEPT_BYTES = 2**30
"""Maximum free memory at the top of the heap, and the minimum size of a block with its own mapping."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's option numbers (mallopt(3))."""

Add = Callable[[SampleSignals, int], bool]
"""Adds a sample's values to its result, given its number in the batch; returns whether they are finite."""


class GradientPass:
    """Runs forward and backward passes at one checkpoint.

    Args:
        checkpoint: the weights to measure at.
        head: its LM head, streamed.
    """

    def __init__(self, checkpoint: Checkpoint, head: StreamedHead) -> None:
        self.checkpoint = checkpoint
        self.head = head
        if checkpoint.device.type == "cpu":
            keep_freed_memory()
        # Computed once, and reused by all batches.
        self._matrices = cache(self._find_matrices)
        self._sketch = cache(self._draw_sketch)
        self._moments = cache(self._read_moments)

    def add(self, batch: Sequence[Encoded], results: Sequence[SampleSignals], request: Request) -> list[SampleSignals]:
        """Return results with the requested gradient signals of the same samples, all from one backward pass.

        Args:
            batch: samples with at least one label each.
            results: previous results of these samples.
            request: requested signals; only those from gradients are considered.

        Raises:
            AttentionError: the attention projections are unknown, or the model does not run them all.
            GradientError: the requested gradients are not available for this model or checkpoint.
        """
        takers = self._takers(batch, request)
        added = [_copy_of(result) for result in results]
        if takers:
            labels = response_labels(batch, self.checkpoint.device, request.with_eos)
            added = self._of_responses(batch, results, takers, labels)
        if request.step_features is not None:
            most = len(batch) * max(len(encoded) for encoded in batch)
            for encoded, result in zip(batch, added, strict=True):
                add_step_gradients(result, self._gram_of_steps(encoded, request.step_features, most))
                _count(result, len(encoded) * len(segment_order(encoded)))
        return added

    def _of_responses(
        self,
        batch: Sequence[Encoded],
        results: Sequence[SampleSignals],
        made: list[tuple[Taker, Add]],
        labels: ResponseLabels,
    ) -> list[SampleSignals]:
        losses = backward(self.checkpoint, self.head, batch, [taker for taker, _ in made], labels).tolist()
        added = []
        for row, (encoded, result, loss) in enumerate(zip(batch, results, losses, strict=True)):
            own = _copy_of(result)
            _count(own, len(encoded))
            if math.isfinite(loss):
                own.response_loss = loss
            # Add all signals, even after one of them was not finite.
            finite = [math.isfinite(loss) and add(own, row) for _, add in made]
            if not all(finite) and NON_FINITE not in own.flags:
                own.flags.append(NON_FINITE)
            added.append(own)
        return added

    def _gram_of_steps(self, encoded: Encoded, spec: FeatureSpec, most_tokens: int) -> npt.NDArray[np.float64]:
        """Return M [K+1, K+1] of the sketched gradients of a sample's segments, the answer last.

        Each segment gets a copy of the sample whose loss covers only that segment's tokens. Copies run together, as
        many as the
        token budget allows.
        """
        sketch, segments = self._sketch(spec), segment_order(encoded)
        vectors = []
        together = max(1, most_tokens // len(encoded))
        for start in range(0, len(segments), together):
            own = segments[start : start + together]
            features = FeaturesOfBatch(sketch, len(own), self.checkpoint.device)
            labels = segment_labels(encoded, own, self.checkpoint.device)
            backward(
                self.checkpoint,
                self.head,
                [encoded] * len(own),
                [Taker(self._of(sketch.blocks), features.take)],
                labels,
            )
            _check_complete(sketch.blocks, features.seen)
            vectors.append(features.vectors)
        gram: npt.NDArray[np.float64] = gram_of_gradients(torch.cat(vectors)).cpu().numpy()
        return gram

    def _takers(self, batch: Sequence[Encoded], request: Request) -> list[tuple[Taker, Add]]:
        """Return the consumers of the backward pass, each with the function that adds its values to results."""
        made = []
        if request.spectra:
            made.append(self._spectra(batch, request.flattened_cosines))
        if request.gradient_norms is not None:
            made.append(self._norms(len(batch), request.gradient_norms))
        if request.features is not None:
            made.append(self._features(len(batch), request.features, adam=False))
        if request.adam_features is not None:
            made.append(self._features(len(batch), request.adam_features, adam=True))
        return made

    def _spectra(self, batch: Sequence[Encoded], flattened: bool) -> tuple[Taker, Add]:
        projections = self.checkpoint.attention
        layers = {f"{number}.{name}": one for number, own in enumerate(projections) for name, one in own.layers.items()}
        spectra = SpectraOfBatch(projections, reaches(batch), flattened)

        def add(result: SampleSignals, row: int) -> bool:
            found = spectra.spectra[row]
            if found.finite and found.nuclear_norm.isnan().any():
                raise AttentionError(
                    "no gradient reached some layer's attention projections: the model does not run them all"
                )
            if found.finite:
                result.spectra = _as_result(found)
            return found.finite

        return Taker(layers, spectra.take), add

    def _norms(self, count: int, weights: GradientWeights) -> tuple[Taker, Add]:
        matrices: dict[str, list[Matrix]] = {}
        for matrix in self._matrices(weights):
            matrices.setdefault(matrix.layer, []).append(matrix)
        norms = NormsOfBatch(matrices, count, self.checkpoint.device)

        def add(result: SampleSignals, row: int) -> bool:
            _check_complete(matrices, norms.seen)
            norm = float(norms.norms()[row])
            if math.isfinite(norm):
                result.gradient_norm = norm
            return math.isfinite(norm)

        return Taker(self._of(matrices), norms.take), add

    def _features(self, count: int, spec: FeatureSpec, *, adam: bool) -> tuple[Taker, Add]:
        sketch = self._sketch(spec)
        moments = self._moments(spec.weights) if adam else None
        features = FeaturesOfBatch(sketch, count, self.checkpoint.device, moments, spec.epsilon_inside)

        def add(result: SampleSignals, row: int) -> bool:
            _check_complete(sketch.blocks, features.seen)
            vector = features.vectors[row]
            if not bool(vector.isfinite().all()):
                return False
            values, scale = quantised(vector)
            found = GradientFeatures(values.cpu().numpy(), scale)
            if adam:
                result.adam_features = found
            else:
                result.features = found
            return True

        return Taker(self._of(sketch.blocks), features.take), add

    @cached_property
    def _layers(self) -> dict[str, nn.Module]:
        return linear_layers(self.checkpoint)

    def _of(self, names: dict[str, list[Matrix]] | dict[str, list[Block]]) -> dict[str, nn.Module]:
        return {name: self._layers[name] for name in names}

    def _find_matrices(self, weights: GradientWeights) -> list[Matrix]:
        return trained_matrices(self.checkpoint, weights)

    def _draw_sketch(self, spec: FeatureSpec) -> Sketch:
        return Sketch.of(self._matrices(spec.weights), spec, self.checkpoint.device)

    def _read_moments(self, weights: GradientWeights) -> dict[str, tuple[Tensor, Tensor]]:
        return adam_moments(self.checkpoint, self._matrices(weights))


def _copy_of(result: SampleSignals) -> SampleSignals:
    """Return a copy of a result that may be modified."""
    return replace(result, flags=list(result.flags), gradient_flags=list(result.gradient_flags))


def _count(result: SampleSignals, tokens: int) -> None:
    """Count the tokens of a backward pass; if nothing else was measured, they are the sample's only tokens."""
    if result.tokens:
        result.backward_tokens += tokens
    else:
        result.tokens = tokens


def _check_complete(wanted: dict[str, list[Matrix]] | dict[str, list[Block]], seen: set[str]) -> None:
    missing = sorted(wanted.keys() - seen)
    if missing:
        raise GradientError(f"no gradient reached {', '.join(missing[:3])}: the model does not run all its layers")


def _as_result(spectra: Spectra) -> GradientSpectra:
    return GradientSpectra(
        nuclear_norm=spectra.nuclear_norm.tolist(),
        effective_rank=_with_none(spectra.effective_rank),
        rows=spectra.rows.long().tolist(),
        largest_rank=spectra.largest_rank.long().tolist(),
        same_layer=_with_none(spectra.same_layer),
        adjacent=_with_none(spectra.adjacent),
    )


def _with_none(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]


@cache
def keep_freed_memory() -> bool:
    """Ask glibc, once per process, to keep freed memory; return whether it agreed.

    A forward and backward pass allocates and frees some megabytes for every operation of every layer. By default each
    such block is mapped again, and the kernel clears each page on first touch.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, KEPT_BYTES) == 1 for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))
