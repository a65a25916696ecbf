"""Noise for weights: against integers and floats one by one, its distribution, and that it hangs on its key alone."""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
import pytest

from curation_resources.scoring.noise import BLOCK, Noise, draw


def slow_draw(seed: int, step: str, name: str, count: int) -> list[float]:
    """The elements of one block in Python's integers and fp64."""
    digest = blake2b(f"{seed}\0{step}\0{name}\0{0}".encode(), digest_size=8).digest()
    before, between = (int.from_bytes(digest[start : start + 4], "little") for start in (0, 4))
    half = (count + 1) // 2

    def bits(place: int) -> int:
        x = (place * 0x9E3779B9) % 2**32 ^ before
        x = ((x ^ (x >> 16)) * 0x7FEB352D + between) % 2**32
        return ((x ^ (x >> 15)) * 0x846CA68B) % 2**32

    radii = [math.sqrt(-2.0 * math.log(bits(place) * 2.0**-32 + 2.0**-33)) for place in range(half)]
    angles = [2.0 * math.pi * bits(half + place) / 2.0**32 for place in range(half)]
    pairs = list(zip(radii, angles, strict=True))
    return [*(r * math.cos(a) for r, a in pairs), *(r * math.sin(a) for r, a in pairs)][:count]


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_draws_equal_the_slow_ones(count: int) -> None:
    found = draw(Noise(3, "step 1", "model.norm.weight"), count)
    assert found == pytest.approx(slow_draw(3, "step 1", "model.norm.weight", count), rel=1e-4, abs=1e-5)


def test_the_noise_is_standard_normal() -> None:
    drawn = draw(Noise(0, "step 1", "w"), 40 * BLOCK).astype(np.float64)
    count = len(drawn)
    # Moments within five of their standard errors.
    for power, mean, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert (drawn**power).mean() == pytest.approx(mean, abs=5 * math.sqrt(spread / count)), power
    for bound in (0.5, 1.0, 2.0, 3.0, 4.0, 4.5):
        share = math.erfc(bound / math.sqrt(2.0))
        assert (np.abs(drawn) > bound).mean() == pytest.approx(share, abs=5 * math.sqrt(share / count)), bound
    for lag in (1, 2, BLOCK // 2, BLOCK, 5 * BLOCK):
        assert abs(drawn[:-lag] @ drawn[lag:]) < 5 * math.sqrt(count), lag


def test_streams_are_independent_of_one_another() -> None:
    streams = [Noise(seed, step, name) for seed in range(4) for step in ("1", "2") for name in ("a", "b", "a.b")]
    drawn = np.array([draw(stream, BLOCK) for stream in streams], dtype=np.float64)
    products = (drawn @ drawn.T) / math.sqrt(BLOCK)
    np.fill_diagonal(products, 0.0)
    assert np.abs(products).max() < 5.0


def test_a_block_depends_on_its_key_and_place_alone() -> None:
    stream = Noise(7, "step 2", "w")
    whole = draw(stream, 2 * BLOCK + 10)
    draw(Noise(8, "step 2", "w"), 100)
    np.testing.assert_array_equal(stream.block(1, BLOCK), whole[BLOCK : 2 * BLOCK])
    np.testing.assert_array_equal(stream.block(2, 10), whole[2 * BLOCK :])
    assert len(draw(stream, 0)) == 0


def test_what_is_drawn_stays_what_it_was() -> None:
    # Measurements are stored by seed: other numbers under the same seed need another version of the signal.
    expected = [1.484686, -0.279975, 0.101107, -0.055022]
    assert draw(Noise(0, "step 1", "lm_head.weight"), BLOCK + 4)[-4:].tolist() == pytest.approx(expected, abs=1e-5)
