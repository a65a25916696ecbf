"""Per-sample gradients as short vectors, and their norms, made of factors while a backward pass goes by.

A matrix' gradient G = L^T R (`scoring.trained_matrices`) is projected from both sides, which its factors are
before they are multiplied: P^T G Q = (L P)^T (R Q), so that G itself is never made. P [rows, p] and Q [columns, p] have
entries of either sign and size 1 / sqrt(p), drawn for each matrix by its name. All these blocks are added into one
vector of k numbers, each from where the last one ended, round and round: signs of different blocks are independent, so
that what falls together cancels on average, and <phi(g), phi(h)> has the mean <g, h>.

Adam's direction is not linear in G: of it every G is made, a matrix and some samples at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curation_resources.scoring.factors import GradientError
from curation_resources.scoring.gradient_spec import FeatureSpec
from curation_resources.scoring.rademacher import Projection
from curation_resources.scoring.trained_matrices import Matrix

FORMED_NUMBERS = 2**26
"""Most numbers of gradients that are made at once, where they have to be."""

LARGEST = 127
"""Of int8, either side of zero."""

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam, as LESS takes its direction (methods.md, 5)."""


@dataclass(frozen=True)
class Block:
    """How one matrix' gradient gets into the vector.

    Attributes:
        matrix: the matrix.
        left: P.
        right: Q.
        offset: where its block begins.
        shares: name under which R Q may be that of another matrix too, which takes the same inputs; None: its own.
    """

    matrix: Matrix
    left: Projection
    right: Projection
    offset: int
    shares: str | None

    @property
    def size(self) -> int:
        """Numbers of the block."""
        return self.left.size * self.right.size


@dataclass(frozen=True)
class Sketch:
    """How gradients of several matrices become one vector.

    Attributes:
        blocks: by linear layer, those of its matrices.
        length: of the vector: k, or all numbers of the blocks if these are fewer.
    """

    blocks: dict[str, list[Block]]
    length: int

    @classmethod
    def of(cls, matrices: Sequence[Matrix], spec: FeatureSpec, device: torch.device) -> Sketch:
        """The sketch of some matrices, in their order."""
        p = spec.projection
        length = min(
            spec.dimension, sum(min(p, rows) * min(p, columns) for rows, columns in (m.shape for m in matrices))
        )
        blocks: dict[str, list[Block]] = {}
        kept: dict[str, Projection] = {}
        offset = 0
        for matrix in matrices:
            rows, columns = matrix.shape
            # q, k and v take the same inputs, gate and up do: one Q for them, one product with it.
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
    """Takes the factors of a batch's backward pass and keeps the vectors of its samples.

    Args:
        sketch: how they are made.
        samples: B.
        device: where.
        moments: AdamW's, by a matrix' name: vectors are of the direction that Adam would take; None: of the gradient.
        epsilon_inside: see `FeatureSpec`.

    Attributes:
        vectors: [B, length] in fp32.
        seen: layers that have come.
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
        """Take a linear layer's factors."""
        inputs, gradients = by_sample(name, inputs, gradients, self.samples, self.seen)
        for block in self.sketch.blocks[name]:
            if self.moments is not None:
                made = self._direction(block, inputs, gradients)
            else:
                left = block.left(block.matrix.left(gradients))
                made = left.transpose(1, 2) @ self._right(block, inputs)
            self.sketch.add(block, self.vectors, made.flatten(1))

    def _right(self, block: Block, inputs: Tensor) -> Tensor:
        """R Q: made once for matrices that share it."""
        if block.shares is None:
            return block.right(block.matrix.right(inputs))
        known = self._shared
        if known is None or known[0] != block.shares or known[1].data_ptr() != inputs.data_ptr():
            # Keeping the inputs keeps others from being put in their place.
            known = self._shared = (block.shares, inputs, block.right(inputs))
        return known[2]

    def _direction(self, block: Block, inputs: Tensor, gradients: Tensor) -> Tensor:
        """P^T U Q [B, ...] of Adam's direction U."""
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
    """Takes the factors of a batch's backward pass and keeps the squared norm of each sample's whole gradient.

    ||G||^2 = sum over s, t of (l_s . l_t)(r_s . r_t), where that is less work than making G.

    Args:
        matrices: by linear layer, those that it is taken over.
        samples: B.
        device: where.

    Attributes:
        squares: [B] in fp64.
        seen: layers that have come.
    """

    matrices: dict[str, list[Matrix]]
    samples: int
    device: torch.device
    squares: Tensor = field(init=False)
    seen: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.squares = torch.zeros(self.samples, dtype=torch.float64, device=self.device)

    def take(self, name: str, inputs: Tensor, gradients: Tensor) -> None:
        """Take a linear layer's factors."""
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
        """Norms [B] in fp64."""
        # Rounding may leave a zero's square below zero.
        return self.squares.clamp_min(0.0).sqrt()


def by_sample(name: str, inputs: Tensor, gradients: Tensor, samples: int, seen: set[str]) -> tuple[Tensor, Tensor]:
    """X [B, T, d_in] and D [B, T, d_out] of a layer in fp32, as it was given them.

    Raises:
        GradientError: it is not gone through once with all tokens in their order, as an expert is not.
    """
    if inputs.dim() == 2 and len(inputs) % samples == 0:
        # A router's, say, which takes all tokens as one list.
        inputs, gradients = inputs.unflatten(0, (samples, -1)), gradients.unflatten(0, (samples, -1))
    if inputs.dim() != 3 or len(inputs) != samples or name in seen:
        raise GradientError(
            f"{name} is given {tuple(inputs.shape)}, or gone through twice: gradients are known of layers that every "
            "token goes through once"
        )
    seen.add(name)
    return inputs.float(), gradients.float()


def formed_gradients(matrix: Matrix, inputs: Tensor, gradients: Tensor) -> Iterator[Tensor]:
    """G [b, rows, columns] of every sample, some samples at a time."""
    most = max(1, FORMED_NUMBERS // (matrix.shape[0] * matrix.shape[1]))
    for left, right in zip(matrix.left(gradients).split(most), matrix.right(inputs).split(most), strict=True):
        yield left.transpose(1, 2) @ right


def quantised(vector: Tensor) -> tuple[Tensor, float]:
    """A finite vector [k] as int8 numbers [k] and what one of them stands for: the largest becomes 127 or -127."""
    scale = float(vector.abs().max()) / LARGEST
    if scale == 0.0:
        return torch.zeros_like(vector, dtype=torch.int8), 0.0
    return (vector / scale).round_().to(torch.int8), scale
