"""Run the forward pass over any number of samples: windows, batches, order, lack of memory.

`scoring.measuring` computes a batch's signals, `scoring.batching` groups samples into batches, and `scoring.prefetch`
encodes ahead.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from curation_resources.scoring.batching import plan_batches
from curation_resources.scoring.collating import batch_key
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.gradient_pass import SHARE, GradientPass
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.measuring import describe, measure_batch, narrowed, needed
from curation_resources.scoring.prefetch import EncodingAhead
from curation_resources.scoring.retrieval_heads import RetrievalHeads
from curation_resources.scoring.samples import Encoded, Request, Sample, SampleSignals

Progress = Callable[[int], None]


class OutOfMemoryError(ScoringError):
    """A single sample does not fit into the device's memory."""


class ForwardPass:
    """Measures samples at one checkpoint.

    Results do not depend on batch size, order or the other requested signals (to fp32 rounding).

    Args:
        checkpoint: the weights to measure at.
        encoder: tokenizes samples.
        batch_tokens: token budget of a batch, padding included. It is lowered permanently if the device runs out of
            memory.
        head_memory: bytes for the LM head's logits, whatever the vocabulary and length; default: `CPU_MEMORY` or
            `CUDA_MEMORY` of `curation_resources.scoring.head`.
    """

    def __init__(
        self, checkpoint: Checkpoint, encoder: Encoder, batch_tokens: int = 8192, head_memory: int | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.batch_tokens = batch_tokens
        self.backward_tokens = max(1, batch_tokens // SHARE)
        self._head = StreamedHead(checkpoint.head, head_memory)
        self._gradients = GradientPass(checkpoint, self._head)
        self._retrieval = RetrievalHeads(checkpoint)

    def measure(self, samples: Sequence[Sample], request: Request) -> list[SampleSignals]:
        """Measure samples; return results in the order of the samples."""
        results = [result for batch in self.stream(samples, request) for result in batch]
        return sorted(results, key=lambda result: result.position)

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Progress | None = None
    ) -> Iterator[list[SampleSignals]]:
        """Measure samples; yield results as soon as they are ready, longest samples of a window first.

        A sample that cannot be run is returned as well, with the reason as a flag. While one window is measured, worker
        threads encode the next.

        Args:
            samples: samples to measure.
            request: signals to measure.
            progress: called with the number of samples done since the last call.

        Raises:
            OutOfMemoryError: a single sample does not fit into the device's memory.
        """
        start = 0
        for window in EncodingAhead(self.encoder, samples):
            for results in self.measure_encoded(window, request, start):
                if progress is not None:
                    progress(len(results))
                yield results
            start += len(window)

    def measure_encoded(
        self, window: Sequence[Encoded], request: Request, start: int = 0
    ) -> Iterator[list[SampleSignals]]:
        """Measure one window of encoded samples; `start` is the position of its first sample. See `stream`."""
        if request.attention_influence is not None:
            # Before the first batch, so that a lack of memory is not attributed to its samples.
            self._retrieval.heads(request.attention_influence)
        groups: dict[Request, list[tuple[Encoded, SampleSignals]]] = {}
        for position, encoded in enumerate(window, start):
            described = describe(encoded, position, request.prefix_losses)
            wanted = narrowed(request, described)
            groups.setdefault(wanted, []).append((needed(encoded, wanted), described))
        unmeasured = groups.pop(Request(), [])
        if unmeasured:
            yield [described for _, described in unmeasured]
        for wanted, items in groups.items():
            lengths = [len(encoded) for encoded, _ in items]
            keys = [batch_key(encoded) for encoded, _ in items]
            for batch in plan_batches(lengths, self._budget(wanted), keys):
                yield from self._run([items[position] for position in batch], wanted)

    def _budget(self, request: Request) -> int:
        """Return the token budget of a batch, which is lower if activations must be kept for a backward pass."""
        return self.batch_tokens if request.forward == request else self.backward_tokens

    def _run(self, batch: list[tuple[Encoded, SampleSignals]], request: Request) -> Iterator[list[SampleSignals]]:
        """Measure one batch, split in half if it exceeds the memory that the device has proved to have."""
        tokens = len(batch) * max(len(encoded) for encoded, _ in batch)
        if len(batch) == 1 or tokens <= self._budget(request):
            results = self._try(batch, request)
            if results is not None:
                yield results
                return
            lowered = min(self._budget(request), max(1, tokens // 2))
            if request.forward == request:
                self.batch_tokens = lowered
            else:
                self.backward_tokens = lowered
        half = len(batch) // 2
        yield from self._run(batch[:half], request)
        yield from self._run(batch[half:], request)

    def _try(self, batch: list[tuple[Encoded, SampleSignals]], request: Request) -> list[SampleSignals] | None:
        """Return the results of a batch, or None if it does not fit into memory.

        Raises:
            OutOfMemoryError: a single sample does not fit.
        """
        encoded, described = [item[0] for item in batch], [item[1] for item in batch]
        alone = OutOfMemoryError(
            f"sample {described[0].sample_id} of {len(encoded[0])} tokens does not fit into the memory of "
            f"{self.checkpoint.device}. Lower the target's max_length, or use a smaller dtype or head_memory."
        )
        measure = partial(
            measure_batch,
            *(self.checkpoint, self._head, self._gradients, encoded, described, request, self.encoder, self._retrieval),
        )
        return attempted(measure, self.checkpoint.device, alone if len(batch) == 1 else None)


Made = TypeVar("Made")


def attempted(run: Callable[[], Made], device: torch.device, alone: Exception | None) -> Made | None:
    """Return a batch's result, or None after freeing memory if it does not fit; its halves may fit.

    Args:
        run: runs the batch.
        device: device that it runs on.
        alone: raised instead of returning None, for a batch that cannot be split.
    """
    try:
        return run()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if alone is not None:
            raise alone from error
    # Outside the except block, because the error's traceback references the tensors that fill the memory.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


OUT_OF_MEMORY = (
    "can't allocate memory",  # the CPU's allocator, on Linux
    "not enough memory",  # on Windows
    "out of memory",  # CUDA's runtime, if the failure is outside the allocator
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)
"""Phrases of errors that mean a lack of memory; torch's own class does not cover all of them."""


def out_of_memory(error: RuntimeError) -> bool:
    """Return True if a device or the machine ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
