"""Move a model's weights away from the base and back: TEMP's perturbed checkpoints (arXiv 2606.26797).

Random:       theta = theta_0 + sigma * z, z ~ N(0, I), on every parameter whose name does not contain "embed".
Directional:  theta_j = theta_{j-1} + lambda_j (1 + xi_j) * e, xi_j ~ N(0, I) elementwise, e towards an endpoint, so
              that ||theta_j - theta_0|| is r_j: E ||theta_j - theta_0||^2 = m_j^2 + sum of lambda_i^2, i <= j.

Displacements are summed in fp32 and cast once: theta_j = cast(theta_0 + displacement). All arithmetic runs on the CPU,
whatever device the weights are on, so that every device gets the same weights.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curation_resources.scoring.endpoints import Direction
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.noise import BLOCK, Floats, Noise, spare
from curation_resources.scoring.samples import Realised
from curation_resources.scoring.spec import SOURCE_RADII, RadiusUnit
from curation_resources.scoring.weights import Weight, weights_of

RANDOM_STEPS = (0.002, *[0.0029277] * 7)
"""Standard deviations of the source's random draws, each added to the previous ones."""

RANDOM_SIGMAS = tuple(math.sqrt(sum(step**2 for step in RANDOM_STEPS[:level])) for level in range(1, 9))
"""Total standard deviation at each of the source's levels: .0020 .0035 .0046 .0055 .0062 .0068 .0074 .0080."""

ELEMENTS_AHEAD = 2**26
"""Maximum elements whose new weights wait on the CPU for another device."""

STRIPE = 8
"""Blocks per task of a thread.

In fp32, where little is rounded, the cast is checked on the first block of a task only; in half precision on all.
"""

DOT_ROW = 8192
"""Elements per fp32 dot product; for longer ones BLAS would start threads of its own."""


class PerturbationError(ScoringError):
    """A perturbation cannot be made."""


def step_sizes(radii: Sequence[float]) -> list[float]:
    """Return lambda_j for radii r_j, so that the expected squared distance after step j is r_j squared.

    lambda_j = (-m_{j-1} + sqrt(m_{j-1}^2 + 2 (r_j^2 - r_{j-1}^2))) / 2, m_j = lambda_1 + ... + lambda_j, m_0 = r_0 = 0
    (TEMP, arXiv 2606.26797).

    Raises:
        PerturbationError: the radii are not positive and ascending.
    """
    sizes: list[float] = []
    before = 0.0
    for radius in radii:
        if not before < radius < math.inf:
            raise PerturbationError(
                f"radii {tuple(radii)} are not positive and ascending. List them in ascending order."
            )
        total = math.fsum(sizes)
        sizes.append((-total + math.sqrt(total**2 + 2.0 * (radius**2 - before**2))) / 2.0)
        before = radius
    return sizes


@dataclass
class _Place:
    """A tensor with its copy on the CPU, and its displacement."""

    weight: Weight
    original: Tensor
    finite: bool
    step: Floats | None = None
    displacement: Floats | None = None
    target: Tensor | None = None


Products = npt.NDArray[np.float64]
"""Sums over some elements [4].

Squares of the displacement; then over those that were checked after the cast: squares of the displacement, squares of
the move, products of both.
"""

Displace = Callable[[_Place, int, slice], Floats]


class Perturber:
    """Moves the weights of one model, and restores them exactly.

    On the CPU it holds a copy of the weights in their own precision, and, in fp32, e and the displacement of the
    tensors
    that e moves.

    Args:
        model: the model at theta_0, without unmerged adapters among its modules; its parameters are written in place.
        seed: seed of all noise.
        direction: e, for directional checkpoints.
        radii: r_j of the directional checkpoints, ascending.
        radius_unit: `absolute` (source: 1 to 10, tuned to models of 7 to 8 B parameters), or `distance`: the radii are
            fractions of the endpoint's distance ||theta_f - theta_0|| (ours).
        threads: threads that make noise; default: as many as torch uses. The weights do not depend on it.

    Raises:
        PerturbationError: the direction's tensors do not match the model's by name and shape, or the radii do not
            ascend.
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int,
        direction: Direction | None = None,
        radii: Sequence[float] = SOURCE_RADII,
        *,
        radius_unit: RadiusUnit = "absolute",
        threads: int | None = None,
    ) -> None:
        self.seed = seed
        weights = weights_of(model)
        moving = {} if direction is None else _steps(direction, weights)
        unit = direction.distance if direction is not None and radius_unit == "distance" else 1.0
        self.radii = [unit * radius for radius in radii]
        self._sizes = step_sizes(self.radii)
        self._places: dict[str, _Place] = {}
        for name, weight in weights.items():
            original = weight.tensor.to("cpu", copy=True).contiguous()
            self._places[name] = _Place(weight, original, bool(original.isfinite().all()), moving.get(name))
        self._step = 0  # the directional checkpoint of the current displacement
        self._moved: set[str] = set()
        self._threads = max(1, torch.get_num_threads() if threads is None else threads)

    @property
    def steps(self) -> int:
        """The number of directional checkpoints; 0 without a direction."""
        return len(self.radii) if any(place.step is not None for place in self._places.values()) else 0

    def move_randomly(self, sigma: float, draws: int = 1) -> Realised:
        """Set the weights to theta_0 + sigma z.

        z is one draw, or several added up in the source's proportions (`RANDOM_STEPS`) and divided by their total
        deviation:
        `move_randomly(RANDOM_SIGMAS[k - 1], k)` is the source's level k, and levels share draws.

        Args:
            sigma: standard deviation of every perturbed element.
            draws: number of draws in z, up to 8.

        Raises:
            PerturbationError: sigma is not positive, there are too many draws, or no parameter is perturbed.
        """
        if not 0.0 < sigma < math.inf or not 1 <= draws <= len(RANDOM_STEPS):
            raise PerturbationError(
                f"sigma {sigma} with {draws} draws: set sigma > 0 and 1 to {len(RANDOM_STEPS)} draws"
            )
        scales = [sigma * step / RANDOM_SIGMAS[draws - 1] for step in RANDOM_STEPS[:draws]]

        def displace(place: _Place, number: int, part: slice) -> Floats:
            total: Floats | None = None
            for draw, scale in enumerate(scales, 1):
                drawn = Noise(self.seed, f"random {draw}", place.weight.name)
                noise = drawn.block(number, part.stop - part.start, scale)
                # The next draw overwrites the buffer.
                total = noise if draws == 1 else noise.copy() if total is None else total + noise
            assert total is not None
            return total

        chosen = [place for place in self._places.values() if not any("embed" in name for name in place.weight.names)]
        elements = sum(place.original.numel() for place in chosen)
        if not elements:
            raise PerturbationError(
                'all parameters of the model have "embed" in their names, so there is nothing to perturb'
            )
        return self._move(chosen, displace, sigma * math.sqrt(elements))

    def move_along(self, step: int) -> Realised:
        """Set the weights to directional checkpoint `step` (1 to `steps`); moving to the next one is cheapest.

        Raises:
            PerturbationError: there is no such checkpoint.
        """
        if not 1 <= step <= self.steps:
            raise PerturbationError(
                f"no directional checkpoint {step}: there are {self.steps} (without an endpoint, 0)"
            )
        held = self._step if self._step < step else 0
        # Until the move is complete, the displacement belongs to no checkpoint.
        self._step = 0
        for earlier in range(held + 1, step):
            self._extend(earlier)
        chosen = [place for place in self._places.values() if place.step is not None]
        realised = self._move(chosen, self._stepping(step), self.radii[step - 1])
        self._step = step
        return realised

    def restore(self) -> None:
        """Restore the weights to theta_0 exactly."""
        self._restore(set())

    def _restore(self, but: set[str]) -> None:
        for name in sorted(self._moved - but):
            place = self._places[name]
            place.weight.tensor.copy_(place.original)
        self._moved &= but

    def _stepping(self, step: int) -> Displace:
        """Return a function that adds step j to the displacement and returns the sum."""
        size = self._sizes[step - 1]
        for place in self._places.values():
            if place.step is not None and place.displacement is None:
                place.displacement = np.empty(place.step.size, np.float32)

        def displace(place: _Place, number: int, part: slice) -> Floats:
            assert place.step is not None
            assert place.displacement is not None
            drawn = Noise(self.seed, f"step {step}", place.weight.name)
            growth = drawn.block(number, part.stop - part.start, size)
            growth += np.float32(size)
            held = place.displacement[part]
            if step == 1:
                return np.multiply(growth, place.step[part], out=held)
            held += np.multiply(growth, place.step[part], out=growth)
            return held

        return displace

    def _extend(self, step: int) -> None:
        """Add a step to the displacement without setting weights."""
        displace = self._stepping(step)
        with ThreadPoolExecutor(self._threads, "noise") as pool:
            for place in self._places.values():
                if place.step is not None:
                    stripes = _stripes(place.step.size)
                    for done in [pool.submit(_displace, place, displace, stripe) for stripe in stripes]:
                        done.result()

    def _move(self, chosen: list[_Place], displace: Displace, aim: float) -> Realised:
        self._restore({place.weight.name for place in chosen})
        self._moved |= {place.weight.name for place in chosen}
        products: list[Products] = []
        pending: deque[tuple[_Place, list[Future[Products]]]] = deque()
        waiting = 0
        with ThreadPoolExecutor(self._threads, "noise") as pool:
            for place in chosen:
                place.target = _target(place)
                stripes = _stripes(place.original.numel())
                pending.append((place, [pool.submit(_write, place, displace, stripe) for stripe in stripes]))
                waiting += place.original.numel()
                while waiting > ELEMENTS_AHEAD:
                    waiting -= pending[0][0].original.numel()
                    products += _finish(*pending.popleft())
            for item in pending:
                products += _finish(*item)
        whole, displaced, moved, product = map(math.fsum, zip(*products, strict=True))
        both = math.sqrt(displaced * moved)
        cosine = min(1.0, product / both) if both > 0.0 else 0.0
        cast_radius = math.sqrt(whole * moved / displaced) if displaced > 0.0 else 0.0
        return Realised(aim, math.sqrt(whole), cast_radius, cosine)


def _steps(direction: Direction, weights: dict[str, Weight]) -> dict[str, Floats]:
    """Return e of every tensor that it moves, flat, by `Weight.name`.

    Raises:
        PerturbationError: a tensor of e does not match the model's.
    """
    known = {name: weight for weight in weights.values() for name in weight.names}
    found: dict[str, Floats] = {}
    for name, tensor in direction.tensors.items():
        weight = known.get(name)
        if weight is None:
            raise PerturbationError(
                f"the endpoint changes {name}, which the base model does not have. Use an endpoint of this base model."
            )
        if weight.tensor.shape != tensor.shape:
            raise PerturbationError(
                f"the endpoint changes {name} in shape {tuple(tensor.shape)}, but the base model's shape is "
                f"{tuple(weight.tensor.shape)}. Use an endpoint of this base model."
            )
        if weight.name in found:
            raise PerturbationError(
                f"the endpoint changes {name}, which is tied to another tensor that it also changes"
            )
        found[weight.name] = tensor.detach().to(torch.float32).contiguous().flatten().numpy()
    return found


def _stripes(count: int) -> Iterator[list[tuple[int, slice]]]:
    """Yield stripes of blocks of a tensor with `count` elements: the number and slice of each block."""
    blocks = [(start // BLOCK, slice(start, min(count, start + BLOCK))) for start in range(0, count, BLOCK)]
    for start in range(0, len(blocks), STRIPE):
        yield blocks[start : start + STRIPE]


def _target(place: _Place) -> Tensor:
    """Return the tensor to write new weights to: the weight itself, or a CPU tensor that is copied to it later."""
    tensor = place.weight.tensor
    direct = tensor.device.type == "cpu" and tensor.is_contiguous()
    return tensor if direct else torch.empty_like(place.original)


def _displace(place: _Place, displace: Displace, stripe: Sequence[tuple[int, slice]]) -> None:
    """Add a step to the displacement of some blocks."""
    for number, part in stripe:
        displace(place, number, part)


def _write(place: _Place, displace: Displace, stripe: Sequence[tuple[int, slice]]) -> Products:
    """Write some blocks of cast(theta_0 + displacement); return their products of displacement and move."""
    assert place.target is not None
    single = place.original.dtype == torch.float32
    originals, targets = place.original.view(-1), place.target.view(-1)
    products = np.zeros(4)
    for number, part in stripe:
        displacement = displace(place, number, part)
        moved = spare(len(displacement))
        if single:
            original, target = originals.numpy()[part], targets.numpy()[part]
            np.add(original, displacement, out=target)
        else:
            original = originals[part].to(torch.float32).numpy()
            targets[part].copy_(torch.from_numpy(np.add(original, displacement, out=moved)))
            target = targets[part].to(torch.float32).numpy()
        square = _dot(displacement, displacement)
        products[0] += square
        if not single or number % STRIPE == 0:
            # inf - inf, if a weight is not finite: it stays unchanged, e.g. a -inf that masks a token.
            with np.errstate(invalid="ignore"):
                np.subtract(target, original, out=moved)
            if not place.finite:
                np.nan_to_num(moved, copy=False)
            products[1:] += (square, _dot(moved, moved), _dot(displacement, moved))
    return products


def _finish(place: _Place, stripes: list[Future[Products]]) -> list[Products]:
    """Wait for a tensor's blocks, and copy them to its device."""
    products = [stripe.result() for stripe in stripes]
    if place.target is not None and place.target is not place.weight.tensor:
        place.weight.tensor.copy_(place.target)
    place.target = None
    return products


def _dot(one: Floats, other: Floats) -> float:
    """Return the sum of products, in fp32 over `DOT_ROW` elements and in fp64 over these sums."""
    if len(one) % DOT_ROW:
        whole = len(one) // DOT_ROW * DOT_ROW
        return float(np.dot(one[whole:], other[whole:])) + (_dot(one[:whole], other[:whole]) if whole else 0.0)
    return math.fsum(np.vecdot(one.reshape(-1, DOT_ROW), other.reshape(-1, DOT_ROW)).tolist())
