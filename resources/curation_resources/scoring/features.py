"""Per-sample gradients as short vectors, and their norms, computed from factors during a backward pass.

A matrix' gradient G = L^T R (`scoring.trained_matrices`) is projected from both sides by projecting its factors before
they are multiplied: P^T G Q = (L P)^T (R Q), so G itself is never materialized. P [rows, p] and Q [columns, p] have
entries of either sign and size 1 / sqrt(p), drawn for each matrix by its name. All blocks are added into one vector of
k numbers, each starting where the last one ended, wrapping around. Signs of different blocks are independent, so
overlapping blocks cancel on average, and <phi(g), phi(h)> has the mean <g, h>.

Adam's direction is not linear in G: for it, every G is materialized, one matrix and some samples at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curation_resources.scoring.factors import GradientError
from curation_resources.scoring.gradient_spec import FeatureSpec
from curation_resources.scoring.trained_matrices import Matrix

FORMED_NUMBERS = 2**26
"""Maximum gradient elements to materialize at once, where that is necessary."""

LARGEST = 127
"""Largest absolute value of the int8 encoding."""

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants for the direction that LESS uses (arXiv 2402.04333)."""


def signs(seed: int, name: str, count: int) -> Tensor:
    """Return the -1 and 1 [count] in fp32 of (seed, name); a larger count only appends further ones.

    They are counter-based, so that every worker and device draws the same ones.
    """
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


@dataclass(frozen=True)
class Block:
    """The projection of one matrix' gradient, and its place in the vector.

    Attributes:
        matrix: the matrix.
        left: P.
        right: Q.
        offset: start of its block.
        shares: key under which R Q is shared with other matrices that have the same inputs; None: not shared.
    """

    matrix: Matrix
    left: Projection
    right: Projection
    offset: int
    shares: str | None

    @property
    def size(self) -> int:
        """The number of elements of the block."""
        return self.left.size * self.right.size


@dataclass(frozen=True)
class Sketch:
    """Maps gradients of several matrices to one vector.

    Attributes:
        blocks: by linear layer, those of its matrices.
        length: length of the vector: k, or the total size of the blocks if that is smaller.
    """

    blocks: dict[str, list[Block]]
    length: int

    @classmethod
    def of(cls, matrices: Sequence[Matrix], spec: FeatureSpec, device: torch.device) -> Sketch:
        """Draw the sketch of some matrices, in their order."""
        p = spec.projection
        length = min(
            spec.dimension, sum(min(p, rows) * min(p, columns) for rows, columns in (m.shape for m in matrices))
        )
        blocks: dict[str, list[Block]] = {}
        kept: dict[str, Projection] = {}
        offset = 0
        for matrix in matrices:
            rows, columns = matrix.shape
            # q, k and v have the same inputs, and so do gate and up: they share one Q and the product with it.
            shares = None if matrix.a is not None else f"{matrix.layer.rpartition('.')[0]}/inputs/{columns}"
            name = shares or f"{matrix.name}/right"
            if name not in kept:
                kept[name] = Projection.drawn(spec.seed, name, columns, p, device)
            left = Projection.drawn(spec.seed, f"{matrix.name}/left", rows, p, device)
            block = Block(matrix, left, kept[name], offset % length, shares)
            blocks.setdefault(matrix.layer, []).append(block)
            offset += block.size
        return cls(blocks, length)

    def add(self, block: Block, vectors: Tensor, made: Tensor) -> None:
        """Add a block's numbers [B, size] to vectors [B, length]."""
        first = min(block.size, self.length - block.offset)
        vectors[:, block.offset : block.offset + first] += made[:, :first]
        vectors[:, : block.size - first] += made[:, first:]


@dataclass
class FeaturesOfBatch:
    """Consumes the factors of a batch's backward pass and accumulates the vectors of its samples.

    Args:
        sketch: maps gradients to vectors.
        samples: B.
        device: device of the vectors.
        moments: AdamW's, by matrix name: vectors are of Adam's direction; None: vectors are of the gradient.
        epsilon_inside: see `FeatureSpec`.

    Attributes:
        vectors: [B, length] in fp32.
        seen: layers that have been processed.
    """

    sketch: Sketch
    samples: int
    device: torch.device
    moments: dict[str, tuple[Tensor, Tensor]] | None = None
    epsilon_inside: bool = False
    vectors: Tensor = field(init=False)
    seen: set[str] = field(init=False, default_factory=set)
    _shared: tuple[str, Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.vectors = torch.zeros(self.samples, self.sketch.length, device=self.device)

    def take(self, name: str, inputs: Tensor, gradients: Tensor) -> None:
        """Process a linear layer's factors."""
        inputs, gradients = by_sample(name, inputs, gradients, self.samples, self.seen)
        for block in self.sketch.blocks[name]:
            if self.moments is not None:
                made = self._direction(block, inputs, gradients)
            else:
                left = block.left(block.matrix.left(gradients))
                made = left.transpose(1, 2) @ self._right(block, inputs)
            self.sketch.add(block, self.vectors, made.flatten(1))

    def _right(self, block: Block, inputs: Tensor) -> Tensor:
        """Return R Q, computed once for matrices that share it."""
        if block.shares is None:
            return block.right(block.matrix.right(inputs))
        known = self._shared
        if known is None or known[0] != block.shares or known[1].data_ptr() != inputs.data_ptr():
            # Keeping a reference to the inputs keeps their memory from being reused for others.
            known = self._shared = (block.shares, inputs, block.right(inputs))
        return known[2]

    def _direction(self, block: Block, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Return P^T U Q [B, ...] of Adam's direction U."""
        assert self.moments is not None
        first, second = self.moments[block.matrix.name]
        made = []
        for formed in formed_gradients(block.matrix, inputs, gradients):
            mean = torch.add(BETA1 * first, formed, alpha=1.0 - BETA1)
            square = torch.addcmul(BETA2 * second, formed, formed, value=1.0 - BETA2)
            root = square.add_(EPSILON).sqrt_() if self.epsilon_inside else square.sqrt_().add_(EPSILON)
            made.append(block.left(block.right(mean / root).transpose(1, 2)).transpose(1, 2))
        return torch.cat(made)


@dataclass
class NormsOfBatch:
    """Consumes the factors of a batch's backward pass and accumulates the squared norm of each sample's whole gradient.

    Uses ||G||^2 = sum over s, t of (l_s . l_t)(r_s . r_t) where that is cheaper than materializing G.

    Args:
        matrices: by linear layer, the matrices to include.
        samples: B.
        device: device of the sums.

    Attributes:
        squares: [B] in fp64.
        seen: layers that have been processed.
    """

    matrices: dict[str, list[Matrix]]
    samples: int
    device: torch.device
    squares: Tensor = field(init=False)
    seen: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.squares = torch.zeros(self.samples, dtype=torch.float64, device=self.device)

    def take(self, name: str, inputs: Tensor, gradients: Tensor) -> None:
        """Process a linear layer's factors."""
        inputs, gradients = by_sample(name, inputs, gradients, self.samples, self.seen)
        tokens = inputs.shape[1]
        for matrix in self.matrices[name]:
            rows, columns = matrix.shape
            if 2 * tokens * tokens <= rows * columns:
                left, right = matrix.left(gradients), matrix.right(inputs)
                products = torch.linalg.vecdot(left @ left.transpose(1, 2), right @ right.transpose(1, 2))
                squares = products.sum(dim=1, dtype=torch.float64)
            else:
                formed = formed_gradients(matrix, inputs, gradients)
                squares = torch.cat([torch.linalg.vector_norm(one, dim=(1, 2)).double().square() for one in formed])
            self.squares += squares

    def norms(self) -> Tensor:
        """Return the norms [B] in fp64."""
        # Rounding may make a zero's square negative.
        return self.squares.clamp_min(0.0).sqrt()


def by_sample(name: str, inputs: Tensor, gradients: Tensor, samples: int, seen: set[str]) -> tuple[Tensor, Tensor]:
    """Return X [B, T, d_in] and D [B, T, d_out] of a layer in fp32.

    Raises:
        GradientError: the layer does not see all tokens exactly once and in order; an expert, for example.
    """
    if inputs.dim() == 2 and len(inputs) % samples == 0:
        # A router, for example, sees all tokens as one list.
        inputs, gradients = inputs.unflatten(0, (samples, -1)), gradients.unflatten(0, (samples, -1))
    if inputs.dim() != 3 or len(inputs) != samples or name in seen:
        raise GradientError(
            f"layer {name} received {tuple(inputs.shape)}, or ran twice. Gradients are supported only for layers that "
            "every token passes exactly once."
        )
    seen.add(name)
    return inputs.float(), gradients.float()


def formed_gradients(matrix: Matrix, inputs: Tensor, gradients: Tensor) -> Iterator[Tensor]:
    """Yield G [b, rows, columns] of all samples, some samples at a time."""
    most = max(1, FORMED_NUMBERS // (matrix.shape[0] * matrix.shape[1]))
    for left, right in zip(matrix.left(gradients).split(most), matrix.right(inputs).split(most), strict=True):
        yield left.transpose(1, 2) @ right


def quantised(vector: Tensor) -> tuple[Tensor, float]:
    """Return a finite vector [k] as int8 [k] with its scale; the largest magnitude becomes 127."""
    scale = float(vector.abs().max()) / LARGEST
    if scale == 0.0:
        return torch.zeros_like(vector, dtype=torch.int8), 0.0
    return (vector / scale).round_().to(torch.int8), scale
