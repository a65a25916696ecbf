"""Gaussian noise for weights: counter-based, so that every worker, device and thread draws the same numbers.

An element's number depends on (seed, step, tensor name) and its position in the tensor, never on earlier draws. A
tensor
is drawn in blocks with a key each: a hash of the block's counters gives the bits, and the Box-Muller transform turns
them into pairs of normal numbers. `torch.randn` takes 1.5 times as long here and numpy's generators 3 to 4 times, and
both may change their streams in the next version.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BLOCK = 2**17
"""Elements to draw at a time; they stay in a core's cache. Another size gives other numbers."""

# Multipliers and shifts of the 32-bit hash `lowbias32` (C. Wellons, hash-prospector), with a second key added between
# its
# rounds. Its last step only improves the lowest bits, which are rounded away here, so it is omitted.
FIRST, SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
COUNTERS = np.arange(BLOCK, dtype=np.uint32) * np.uint32(0x9E3779B9)

TO_UNIT = np.float32(2.0**-32)
HALF_UNIT = np.float32(2.0**-33)
TO_ANGLE = np.float32(2.0 * math.pi * 2.0**-32)


class _Buffers(threading.local):
    """Buffers of one thread, kept small so that they stay in the core's cache."""

    def __init__(self) -> None:
        self.one = np.empty(BLOCK, np.uint32)
        self.other = np.empty(BLOCK, np.uint32)


_buffers = _Buffers()


@dataclass(frozen=True)
class Noise:
    """Standard normal noise for one tensor: xi ~ N(0, I) elementwise.

    Attributes:
        seed: seed of the whole path.
        step: draw of the path.
        name: the tensor's name.
    """

    seed: int
    step: str
    name: str

    def block(self, number: int, count: int, scale: float = 1.0) -> Floats:
        """Return the elements [count] of block `number`; `count` is `BLOCK`, or less in the tensor's last block.

        They are multiplied by `scale` > 0 at no extra cost, and lie in a buffer of this thread that the next call
        overwrites.
        """
        half = (count + 1) // 2
        bits = self._bits(number, 2 * half)
        radius, angle = _buffers.other[: 2 * half].view(np.float32).reshape(2, half)
        # u in (0, 1]: r = sqrt(-2 ln u) reaches 6.7 times the scale.
        np.copyto(radius, bits[:half], casting="unsafe")
        np.multiply(radius, TO_UNIT, out=radius)
        np.add(radius, HALF_UNIT, out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, np.float32(-2.0 * scale * scale), out=radius)
        np.sqrt(radius, out=radius)
        np.copyto(angle, bits[half:].view(np.int32), casting="unsafe")
        np.multiply(angle, TO_ANGLE, out=angle)
        # The bits are no longer needed, so their buffer is reused.
        normals = bits.view(np.float32)
        np.multiply(np.cos(angle, out=normals[:half]), radius, out=normals[:half])
        np.multiply(np.sin(angle, out=normals[half:]), radius, out=normals[half:])
        return normals[:count]

    def _bits(self, number: int, count: int) -> npt.NDArray[np.uint32]:
        """Return uniform bits [count] of one block."""
        text = f"{self.seed}\0{self.step}\0{self.name}\0{number}"
        before, between = np.frombuffer(blake2b(text.encode(), digest_size=8).digest(), dtype="<u4")
        bits, shifted = _buffers.one[:count], _buffers.other[:count]
        np.bitwise_xor(COUNTERS[:count], before, out=bits)
        np.right_shift(bits, 16, out=shifted)
        np.bitwise_xor(bits, shifted, out=bits)
        np.multiply(bits, FIRST, out=bits)
        np.add(bits, between, out=bits)
        np.right_shift(bits, 15, out=shifted)
        np.bitwise_xor(bits, shifted, out=bits)
        return np.multiply(bits, SECOND, out=bits)


def spare(count: int) -> Floats:
    """Return a buffer [count] of this thread, up to `BLOCK`, that its next block of noise overwrites."""
    return _buffers.other[:count].view(np.float32)


def draw(noise: Noise, count: int) -> Floats:
    """Return the whole noise of a tensor with `count` elements, flat [count]."""
    blocks = range(0, count, BLOCK)
    drawn = [noise.block(start // BLOCK, min(BLOCK, count - start)).copy() for start in blocks]
    return np.concatenate(drawn) if drawn else np.empty(0, np.float32)
