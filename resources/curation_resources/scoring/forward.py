"""The forward pass over any number of samples: windows, batches, order, running out of memory.

What a batch gives is `scoring.measuring`; which samples share one is `scoring.batching`;
encoding runs ahead in `curation_resources.scoring.prefetch`.
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
from curation_resources.scoring.samples import Encoded, Request, Sample, SampleSignals

Progress = Callable[[int], None]


class OutOfMemoryError(ScoringError):
    """A single sample does not fit into the device's memory."""


class ForwardPass:
    """Measures samples at one checkpoint.

    Results do not depend on batch size, order or what else is measured (to fp32 rounding).

    Args:
        checkpoint: the weights to measure at.
        encoder: how text becomes tokens.
        batch_tokens: token budget of a batch, padding included. It is lowered for good when the device runs
            out of memory.
        head_memory: bytes that the LM head may take for its logits, whatever the vocabulary and length; default:
            `CPU_MEMORY` or `CUDA_MEMORY` of `curation_resources.scoring.head`.
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

    def measure(self, samples: Sequence[Sample], request: Request) -> list[SampleSignals]:
        """Measure samples; results are in the order of the samples."""
        results = [result for batch in self.stream(samples, request) for result in batch]
        return sorted(results, key=lambda result: result.position)

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Progress | None = None
    ) -> Iterator[list[SampleSignals]]:
        """Measure samples; yields results as they are ready, longest samples of a window first.

        A sample that cannot be run comes back all the same, with the reason as a flag. While one window is
        measured, worker threads encode the next.

        Args:
            samples: what to measure.
            request: which signals.
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
        """Measure one window of encoded samples; `start` is the position of its first. See `stream`."""
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
        """Tokens of a batch: fewer where activations of all layers stay until the way back."""
        return self.batch_tokens if request.forward == request else self.backward_tokens

    def _run(self, batch: list[tuple[Encoded, SampleSignals]], request: Request) -> Iterator[list[SampleSignals]]:
        """Measure one batch, in halves if it is larger than the device has proved to have memory for."""
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
        """Results of a batch, or None if there is no memory for it.

        Raises:
            OutOfMemoryError: a single sample does not fit.
        """
        encoded, described = [item[0] for item in batch], [item[1] for item in batch]
        alone = OutOfMemoryError(
            f"sample {described[0].sample_id} of {len(encoded[0])} tokens does not fit into the memory of "
            f"{self.checkpoint.device}: lower the target's max_length, use a smaller dtype or head_memory"
        )
        measure = partial(measure_batch, self.checkpoint, self._head, self._gradients, encoded, described, request)
        return attempted(measure, self.checkpoint.device, alone if len(batch) == 1 else None)


Made = TypeVar("Made")


def attempted(run: Callable[[], Made], device: torch.device, alone: Exception | None) -> Made | None:
    """What a batch gives, or None if there is no memory for it, which is free again then: halves may fit.

    Args:
        run: the batch.
        device: that it runs on.
        alone: what is raised in place of None, where there is nothing to halve.
    """
    try:
        return run()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if alone is not None:
            raise alone from error
    # Outside the except block: the error's traceback holds the tensors that were in the way.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


OUT_OF_MEMORY = (
    "can't allocate memory",  # the CPU's allocator, on Linux
    "not enough memory",  # on Windows
    "out of memory",  # CUDA's runtime, where the allocator did not see it coming
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)
"""What errors say that mean it; torch's own class does not cover all of them."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the machine ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
