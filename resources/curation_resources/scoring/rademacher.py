"""Signs for random projections: counter-based, so that every worker and device draws the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def signs(seed: int, name: str, count: int) -> Tensor:
    """Return the -1 and 1 [count] in fp32 of (seed, name); a larger count only appends further ones."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    # The raw stream of Philox is fixed, whereas numpy's distributions may change.
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(-(-count // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:count]
    return torch.from_numpy(bits.astype(np.float32)).mul_(2.0).sub_(1.0)


@dataclass(frozen=True)
class Projection:
    """A random linear map of vectors that preserves dot products in expectation.

    Attributes:
        matrix: [d, p] with entries -1 / sqrt(p) and 1 / sqrt(p); or signs [d], which preserve dot products exactly.
    """

    matrix: Tensor

    @classmethod
    def drawn(cls, seed: int, name: str, size: int, most: int, device: torch.device) -> Projection:
        """Draw a projection from `size` to at most `most` dimensions; only signs if `size` is not larger."""
        if size <= most:
            return cls(signs(seed, name, size).to(device))
        return cls((signs(seed, name, size * most) / most**0.5).reshape(size, most).to(device))

    @property
    def size(self) -> int:
        """The number of dimensions after the projection."""
        return self.matrix.shape[-1]

    def __call__(self, vectors: Tensor) -> Tensor:
        """Project vectors [..., d] in fp32."""
        return vectors * self.matrix if self.matrix.dim() == 1 else vectors @ self.matrix
