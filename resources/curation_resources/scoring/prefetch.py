"""Encode ahead of the device: worker threads prepare the next window of samples while one is measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.samples import Encoded, Sample

WINDOW_SAMPLES = 4096
"""Samples that are sorted by length together; prefetching encodes as many again."""

WINDOW_BYTES = 2**30
"""Bytes of pixels that close a window early; prefetching holds as many again."""

CHUNK_SAMPLES = 128
"""Samples that a thread encodes at a time."""

IMAGE_SHARE = 32
"""Number of samples that an image counts as in a chunk: it takes longer, and its pixels stay in memory."""

THREADS = 2


def chunks_of(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """Yield chunks of consecutive samples, which are smaller if the samples have images."""
    start, filled = 0, 0
    for position, sample in enumerate(samples):
        share = 1 + IMAGE_SHARE * len(sample.images)
        if position > start and filled + share > size:
            yield samples[start:position]
            start, filled = position, 0
        filled += share
    if start < len(samples):
        yield samples[start:]


def pixel_bytes(encoded: Sequence[Encoded]) -> int:
    """Return the memory of the samples' model inputs other than tokens."""
    return sum(tensor.nbytes for item in encoded for tensor in item.model_inputs.values())


class EncodingAhead:
    """Windows of encoded samples, in order, while the next one is being encoded.

    Iterate once. Memory is bounded by a window's samples and bytes (about twice of each). The size of an image's pixels
    is
    known only after processing, so few images are scheduled until some have been seen.

    Args:
        encoder: tokenizes samples.
        samples: samples to encode.
        window_samples: samples of a window; default: `WINDOW_SAMPLES`.
        window_bytes: bytes of pixels of a window; default: `WINDOW_BYTES`.
    """

    def __init__(
        self,
        encoder: Encoder,
        samples: Sequence[Sample],
        window_samples: int | None = None,
        window_bytes: int | None = None,
    ) -> None:
        self._encoder = encoder
        self._window_samples = window_samples or WINDOW_SAMPLES
        self._window_bytes = window_bytes or WINDOW_BYTES
        self._chunks = chunks_of(samples, CHUNK_SAMPLES)
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="encoding")
        self._pending: deque[Future[list[Encoded]]] = deque()
        self._next: Sequence[Sample] = next(self._chunks, ())
        self._per_image = 0

    def __iter__(self) -> Iterator[list[Encoded]]:
        window: list[Encoded] = []
        held = 0
        try:
            self._submit()
            while self._pending:
                encoded = self._pending.popleft().result()
                window += encoded
                held += self._record_size(encoded)
                self._submit()
                if len(window) >= self._window_samples or held >= self._window_bytes:
                    yield window
                    window, held = [], 0
            if window:
                yield window
        finally:
            # Also if the caller stops early: unneeded threads must not delay its exit.
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _record_size(self, encoded: Sequence[Encoded]) -> int:
        """Return a chunk's bytes, and remember the largest image as the expected size of the next ones."""
        size = pixel_bytes(encoded)
        images = sum(len(item.sample.images) for item in encoded if item.model_inputs)
        if images:
            self._per_image = max(self._per_image, size // images)
        return size

    def _submit(self) -> None:
        """Submit as many chunks as there is room for, and at least one per thread."""
        while self._next and (len(self._pending) < THREADS or self._room()):
            self._pending.append(self._executor.submit(self._encoder.encode, self._next))
            self._next = next(self._chunks, ())

    def _room(self) -> bool:
        if len(self._pending) * CHUNK_SAMPLES >= self._window_samples:
            return False
        images = sum(len(sample.images) for sample in self._next)
        if not images:
            return True
        done = sum(pixel_bytes(future.result()) for future in self._pending if future.done() and not future.exception())
        # Each running chunk holds at most one chunk of images.
        under_way = sum(not future.done() for future in self._pending) * (CHUNK_SAMPLES // IMAGE_SHARE)
        expected = self._per_image or self._window_bytes // 16
        return done + (under_way + images) * expected <= self._window_bytes
