"""Spectra of per-sample gradients, layer by layer (arXiv 2504.10766).

For the gradient G [d_out, d_in] of a projection, with s its singular values and p_i = s_i / sum s:

    nuclear norm     N = sum_i s_i
    effective rank   R = exp(-sum_i p_i ln p_i)
    cosines          <G, G'> / (|G| |G'|), Frobenius, of projections of one layer and of neighbouring layers

G is not materialized if its factors are smaller: with X^T = Q_X R_X and D^T = Q_D R_D, G = D^T X has the singular
values
of the core R_D R_X^T [T, T]. QR keeps digits that squaring in Gram matrices would lose; q, k and v share R_X.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curation_resources.scoring.attention_layers import Projections
from curation_resources.scoring.spec import PROJECTIONS

SAME_LAYER = (("q", "o"), ("k", "v"))
"""Projections of one layer whose gradients are compared if their shapes agree."""

ROUNDING = 2.0**-23
"""Relative to the largest row: anything smaller may be the rounding error of a zero."""


@dataclass
class Spectra:
    """Spectra of one sample, arrays in fp64; NaN if shapes differ or a gradient is zero.

    Attributes:
        nuclear_norm: N [L, 4] of q, k, v, o.
        effective_rank: R [L, 4].
        rows: T [L, 4], positions with a gradient.
        largest_rank: min(T, d_out, d_in) [L, 4], the upper bound of R.
        same_layer: cosines of q with o, and of k with v [L, 2].
        adjacent: cosine of each projection with that of the layer above [L-1, 4].
        finite: all gradients were finite; if False, ignore the other fields.
    """

    nuclear_norm: Tensor
    effective_rank: Tensor
    rows: Tensor
    largest_rank: Tensor
    same_layer: Tensor
    adjacent: Tensor
    finite: bool = True

    @classmethod
    def blank(cls, depth: int) -> Spectra:
        """Return empty spectra for `depth` layers."""

        def nan(rows: int, columns: int) -> Tensor:
            return torch.full((rows, columns), torch.nan, dtype=torch.float64)

        four = [nan(depth, 4) for _ in range(4)]
        return cls(four[0], four[1], four[2], four[3], nan(depth, 2), nan(max(0, depth - 1), 4))


def effective_rank(values: Tensor) -> Tensor:
    """Return R of singular values [..., n]; NaN if all are zero."""
    shares = values / values.sum(dim=-1, keepdim=True)
    rank: Tensor = torch.special.entr(shares).sum(dim=-1).exp()
    return rank


@dataclass(frozen=True)
class Factor:
    """One sample's gradient of one projection, as factors in fp32: G = D^T X.

    Attributes:
        inputs: X [T, d_in].
        gradients: D [T, d_out].
        core_of_inputs: R_X [T, T], or None if QR does not pay off.
    """

    inputs: Tensor
    gradients: Tensor
    core_of_inputs: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of G."""
        return self.gradients.shape[1], self.inputs.shape[1]

    @property
    def finite(self) -> bool:
        """True if neither X nor D contains NaN or Inf."""
        return bool(self.inputs.isfinite().all() and self.gradients.isfinite().all())

    def rows(self) -> int:
        """Return T: the rows of D that are not zero, apart from rounding errors."""
        norms = self.gradients.norm(dim=1)
        return int((norms > ROUNDING * norms.max()).sum())

    def singular_values(self) -> Tensor:
        """Return the singular values of G, without trailing zeros if T is smaller than G."""
        if self.core_of_inputs is None:
            small = self.gradients.T @ self.inputs
        else:
            small = torch.linalg.qr(self.gradients.T, mode="r").R @ self.core_of_inputs.T
        values: Tensor = torch.linalg.svdvals(small)
        return values

    def dot(self, other: Factor, inputs: Tensor) -> Tensor:
        """Return <G, G'>: the elementwise product of (D D'^T) and the given X X'^T, summed."""
        products: Tensor = torch.linalg.vecdot(self.gradients @ other.gradients.T, inputs)
        return products.sum(dtype=torch.float64)


@dataclass
class SpectraOfBatch:
    """Consumes the factors of a batch's backward pass (`scoring.factors.backward`) and computes their spectra.

    A layer's factors are freed once those of the layer below have arrived, so two layers are held at a time, whatever
    the
    depth.

    Args:
        projections: of every layer.
        reach: positions of every sample that a gradient reaches.
        flattened: also compute cosines of gradients with different shapes but equal size, flattened row by row, as the
            paper's released code does.
    """

    projections: Sequence[Projections]
    reach: Sequence[int]
    flattened: bool = False
    spectra: list[Spectra] = field(init=False)
    _arrived: dict[str, list[Factor]] = field(init=False, default_factory=dict)
    _above: dict[str, list[Factor]] = field(init=False, default_factory=dict)
    _norms_above: Tensor | None = field(init=False, default=None)
    _shared: tuple[Tensor, list[tuple[Tensor, Tensor | None]]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.spectra = [Spectra.blank(len(self.projections)) for _ in self.reach]

    def take(self, name: str, inputs: Tensor, gradients: Tensor) -> None:
        """Process a layer's factors; its name is `NUMBER.PROJECTION`."""
        number, _, projection = name.partition(".")
        layer = int(number)
        for own, part in self.projections[layer].split(projection, gradients):
            pairs = zip(self._inputs(inputs), part, self.reach, strict=True)
            self._arrived[own] = [Factor(x, d[:n].float(), core) for (x, core), d, n in pairs]
        if len(self._arrived) == len(PROJECTIONS):
            self._finish(layer)

    def _inputs(self, inputs: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return X and R_X of every sample, computed once for q, k and v, which share their inputs."""
        if self._shared is None or self._shared[0].data_ptr() != inputs.data_ptr():
            made = []
            for x, n in zip(inputs, self.reach, strict=True):
                own = x[:n].float()
                pays = n < own.shape[1] and bool(own.isfinite().all())
                made.append((own, torch.linalg.qr(own.T, mode="r").R if pays else None))
            self._shared = (inputs, made)
        return self._shared[1]

    def _finish(self, layer: int) -> None:
        """Compute a layer's spectra after all four of its projections have arrived."""
        norms = torch.zeros(len(self.reach), len(PROJECTIONS), dtype=torch.float64)
        for sample, spectra in enumerate(self.spectra):
            for place, projection in enumerate(PROJECTIONS):
                factor = self._arrived[projection][sample]
                if not factor.finite:
                    # A factor that is not finite has no decomposition; mark the sample instead.
                    spectra.finite = False
                    continue
                values = factor.singular_values().double().cpu()
                spectra.nuclear_norm[layer, place] = values.sum()
                spectra.effective_rank[layer, place] = effective_rank(values)
                spectra.rows[layer, place] = rows = factor.rows()
                spectra.largest_rank[layer, place] = min(rows, *factor.shape)
                norms[sample, place] = values.square().sum().sqrt()
            self._cosines(layer, sample, norms[sample])
        self._above, self._arrived = self._arrived, {}
        self._norms_above, self._shared = norms, None

    def _cosines(self, layer: int, sample: int, norms: Tensor) -> None:
        """Compute the cosines of a layer's projections with one another and with those of the layer above."""
        spectra, own = self.spectra[sample], {name: factors[sample] for name, factors in self._arrived.items()}
        for place, (one, other) in enumerate(SAME_LAYER):
            scale = norms[PROJECTIONS.index(one)] * norms[PROJECTIONS.index(other)]
            spectra.same_layer[layer, place] = _cosine(own[one], own[other], scale, {}, self.flattened)
        if self._norms_above is None:
            return
        products: dict[tuple[int, int], Tensor] = {}
        for place, name in enumerate(PROJECTIONS):
            scale = norms[place] * self._norms_above[sample, place]
            above = self._above[name][sample]
            spectra.adjacent[layer, place] = _cosine(own[name], above, scale, products, self.flattened)


def _cosine(
    one: Factor, other: Factor, scale: Tensor, products: dict[tuple[int, int], Tensor], flattened: bool
) -> Tensor:
    """Return the cosine of two gradients, given the product of their norms; NaN if their shapes differ.

    Products X X'^T are cached in `products`, since q, k and v share them. With `flattened`, gradients of equal size are
    materialized, which nothing else needs, and flattened row by row.
    """
    if one.shape != other.shape:
        if not flattened or math.prod(one.shape) != math.prod(other.shape):
            return torch.tensor(torch.nan)
        rows = [(factor.gradients.T @ factor.inputs).flatten() for factor in (one, other)]
        return torch.dot(rows[0], rows[1]).double().cpu() / scale
    key = (one.inputs.data_ptr(), other.inputs.data_ptr())
    if key not in products:
        products[key] = one.inputs @ other.inputs.T
    return one.dot(other, products[key]).cpu() / scale
