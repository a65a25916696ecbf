"""Perturbed weights: the schedule, the naive formula step by step, realised radii, and the way back to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from curation_resources.scoring import perturbing
from curation_resources.scoring.endpoints import Direction, direction_to
from curation_resources.scoring.noise import BLOCK, Noise, draw
from curation_resources.scoring.perturbing import RANDOM_SIGMAS, RANDOM_STEPS, PerturbationError, Perturber, step_sizes
from curation_resources.scoring.spec import SOURCE_RADII
from curation_resources.scoring.weights import weights_of
from tests.scoring.perturbed_cases import (
    Weights,
    naive_path,
    naive_random,
    parameters,
    read_model,
    tiny,
    write_adapter,
    write_endpoint,
    write_tied_model,
)


def displacement(now: Weights, start: Weights) -> torch.Tensor:
    return torch.cat([(now[name].double() - start[name].double()).flatten() for name in start])


def assert_weights(model: Any, expected: Weights, tolerance: float = 1e-6) -> None:
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.double(), expected[name], rtol=tolerance, atol=tolerance)


def bits_of(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach().clone().view(torch.int32 if weight.dtype == torch.float32 else torch.int16)
        for name, weight in model.named_parameters(remove_duplicate=False)
    }


def test_the_schedule_is_that_of_the_paper() -> None:
    assert pytest.approx([1.0 + 9.0 * j / 7.0 for j in range(8)]) == SOURCE_RADII
    table = [0.7071, 1.1422, 1.2248, 1.2524, 1.2647, 1.2713, 1.2752, 1.2777]
    assert [round(size, 4) for size in step_sizes(SOURCE_RADII)] == table


def test_step_sizes_give_the_radii_in_expectation() -> None:
    radii = (0.3, 0.31, 2.0, 7.5)
    sizes = step_sizes(radii)
    for step, radius in enumerate(radii, 1):
        assert sum(sizes[:step]) ** 2 + sum(size**2 for size in sizes[:step]) == pytest.approx(radius**2)
    assert step_sizes([3.0 * radius for radius in radii]) == pytest.approx([3.0 * size for size in sizes])


@pytest.mark.parametrize("radii", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (math.inf,), (math.nan,)])
def test_radii_that_do_not_ascend_are_refused(radii: tuple[float, ...]) -> None:
    with pytest.raises(PerturbationError, match="ascending order"):
        step_sizes(radii)


def test_the_random_levels_are_those_of_the_paper() -> None:
    table = [0.0020, 0.0035, 0.0046, 0.0055, 0.0062, 0.0068, 0.0074, 0.0080]
    assert [round(sigma, 4) for sigma in RANDOM_SIGMAS] == table


@pytest.mark.parametrize("tied", [False, True])
def test_directional_weights_equal_the_naive_formula(tied: bool, tmp_path: Path) -> None:
    base = (write_tied_model if tied else tiny)(tmp_path / "base")
    endpoint = write_endpoint(base, tmp_path / "endpoint")
    model = read_model(base)
    path = naive_path(model, parameters(read_model(endpoint)), step_sizes(SOURCE_RADII), seed=5)
    perturber = Perturber(model, 5, direction_to(endpoint, base), threads=2)
    assert perturber.steps == 8
    for step, expected in enumerate(path, 1):
        perturber.move_along(step)
        assert_weights(model, expected)
    # Back, and straight to one in the middle.
    for step in (2, 7, 7):
        perturber.move_along(step)
        assert_weights(model, path[step - 1])


def test_an_adapter_moves_what_it_is_made_for(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    adapted = write_adapter(base, tmp_path / "lora", target_modules=["q_proj", "up_proj"])
    model = read_model(base)
    path = naive_path(model, parameters(adapted.merge_and_unload()), step_sizes((1.0, 2.0)), seed=5)
    perturber = Perturber(model, 5, direction_to(tmp_path / "lora", base), (1.0, 2.0))
    perturber.move_along(2)
    assert_weights(model, path[1], 1e-4)


def test_random_weights_equal_the_naive_formula(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    model = read_model(base)
    perturber = Perturber(model, 9)
    # The source's levels: draws that add up.
    for level in (1, 3, 8):
        perturber.move_randomly(RANDOM_SIGMAS[level - 1], level)
        assert_weights(model, naive_random(read_model(base), RANDOM_STEPS[:level], 9))
    # One fixed draw, scaled.
    perturber.move_randomly(0.05)
    assert_weights(model, naive_random(read_model(base), [0.05], 9))


def test_embeddings_are_spared_at_random_and_moved_towards_the_endpoint(tmp_path: Path) -> None:
    base = write_tied_model(tmp_path / "base")
    model = read_model(base)
    start = parameters(model)
    perturber = Perturber(model, 0, direction_to(write_endpoint(base, tmp_path / "endpoint"), base))
    perturber.move_randomly(0.1)
    unmoved = {name for name, weight in model.named_parameters() if torch.equal(weight, start[name])}
    assert unmoved == {"model.embed_tokens.weight"}  # the LM head is tied to it
    perturber.move_along(1)
    assert not any(torch.equal(weight, start[name]) for name, weight in model.named_parameters())


def test_going_from_random_to_directional_leaves_no_noise_behind(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    write_adapter(base, tmp_path / "lora", target_modules=["q_proj"])
    model, fresh = read_model(base), read_model(base)
    direction = direction_to(tmp_path / "lora", base)
    perturber = Perturber(model, 0, direction)
    perturber.move_randomly(0.1)
    perturber.move_along(1)
    Perturber(fresh, 0, direction).move_along(1)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(fresh.named_parameters())[name]), name


def test_realised_radii_are_within_one_percent(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", hidden=128)
    model = read_model(base)
    direction = direction_to(write_endpoint(base, tmp_path / "endpoint"), base)
    assert direction.elements >= 100_000
    start = parameters(model)
    perturber = Perturber(model, 3, direction)
    for step, radius in enumerate(SOURCE_RADII, 1):
        realised = perturber.move_along(step)
        assert realised.aim == pytest.approx(radius)
        assert realised.radius == pytest.approx(radius, rel=0.01)
        moved = float(displacement(parameters(model), start).norm())
        assert realised.cast_radius == pytest.approx(moved, rel=1e-5)
        assert realised.cosine == pytest.approx(1.0, abs=1e-6)
    realised = perturber.move_randomly(0.01)
    assert realised.radius == pytest.approx(realised.aim, rel=0.01)
    assert realised.cast_radius == pytest.approx(float(displacement(parameters(model), start).norm()), rel=1e-5)


def test_radii_as_fractions_of_the_distance(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", hidden=128)
    direction = direction_to(write_endpoint(base, tmp_path / "endpoint"), base)
    perturber = Perturber(read_model(base), 0, direction, (0.1, 0.5), radius_unit="distance")
    assert perturber.radii == pytest.approx([0.1 * direction.distance, 0.5 * direction.distance])
    assert perturber.move_along(2).radius == pytest.approx(0.5 * direction.distance, rel=0.01)


def test_half_precision_is_cast_once_and_says_what_is_left(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", hidden=128)
    direction = direction_to(write_endpoint(base, tmp_path / "endpoint"), base)
    exact, half = read_model(base), read_model(base, torch.bfloat16)
    rounded = {name: weight.float() for name, weight in parameters(half).items()}
    single = Perturber(exact, 1, direction, (0.05, 1.0, 10.0))
    coarse = Perturber(half, 1, direction, (0.05, 1.0, 10.0))
    cosines = []
    for step in (1, 2, 3):
        single.move_along(step)
        realised = coarse.move_along(step)
        # The displacement is that of fp32, and rounding happens once, from the rounded base on.
        moved = displacement(parameters(exact), parameters(read_model(base)))
        weights = dict(half.named_parameters())
        start = 0
        for name, weight in weights.items():
            own = moved[start : start + weight.numel()].view(weight.shape)
            start += weight.numel()
            expected = (rounded[name] + own.float()).to(torch.bfloat16)
            assert (expected != weight).float().mean() < 1e-3, name  # the last bit of `own` may differ
        after = displacement({name: weight.float() for name, weight in weights.items()}, rounded)
        assert realised.cast_radius == pytest.approx(float(after.norm()), rel=1e-4)
        cosine = float(torch.nn.functional.cosine_similarity(moved, after, dim=0))
        assert realised.cosine == pytest.approx(cosine, abs=1e-3)
        assert realised.radius == pytest.approx(realised.aim, rel=0.01)
        cosines.append(realised.cosine)
    # What is recorded shows where half precision will not do.
    assert cosines[0] < 0.8
    assert cosines[2] > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_restoring_is_exact_to_the_bit(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    base = (write_tied_model if tied else tiny)(tmp_path / "base")
    model = read_model(base, dtype)
    with torch.no_grad():
        model.model.norm.weight[:3] = torch.tensor([-0.0, 1e-30, float("inf")])
    before = bits_of(model)
    perturber = Perturber(model, 0, direction_to(write_endpoint(base, tmp_path / "endpoint"), base))

    def assert_restored() -> None:
        perturber.restore()
        for name, bits in bits_of(model).items():
            assert torch.equal(bits, before[name]), name

    for _ in range(2):
        perturber.move_along(1)
        assert not all(torch.equal(bits, before[name]) for name, bits in bits_of(model).items())
        perturber.move_along(2)
        assert_restored()
        perturber.move_randomly(0.1)
        assert_restored()
        assert_restored()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_weights_depend_on_neither_threads_nor_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny(tmp_path / "base", hidden=128)
    direction = direction_to(write_endpoint(base, tmp_path / "endpoint"), base)
    reversed_direction = Direction(dict(list(direction.tensors.items())[::-1]), direction.distance)
    models = [read_model(base) for _ in range(3)]
    perturbers = [
        Perturber(models[0], 2, direction, threads=1),
        Perturber(models[1], 2, direction, threads=4),
        Perturber(models[2], 2, reversed_direction, threads=1),
    ]
    realised = [perturber.move_along(2) for perturber in perturbers[:2]]
    monkeypatch.setattr(perturbing, "ELEMENTS_AHEAD", 1)  # tensor after tensor
    realised.append(perturbers[2].move_along(2))
    assert realised[0] == realised[1] == realised[2]
    for model in models[1:]:
        for name, weight in model.named_parameters():
            assert torch.equal(weight, dict(models[0].named_parameters())[name]), name


class Loose(torch.nn.Module):
    """Parameters as they can be: more than a block, transposed, empty, of whole numbers, sharing memory."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.large = torch.nn.Parameter(torch.randn(2 * BLOCK + 77, generator=generator))
        self.transposed = torch.nn.Parameter(torch.randn(40, 30, generator=generator).T)
        self.empty = torch.nn.Parameter(torch.empty(0))
        self.other_empty = torch.nn.Parameter(torch.empty(0))
        self.counts = torch.nn.Parameter(torch.arange(5), requires_grad=False)
        self.shared = torch.nn.Parameter(self.large.detach())


def test_any_layout_of_parameters() -> None:
    model = Loose().requires_grad_(False)
    weights = weights_of(model)
    assert {weight.names for weight in weights.values()} == {
        ("large", "shared"),
        ("transposed",),
        ("empty",),
        ("other_empty",),
    }
    start = {name: weight.tensor.clone() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(1)
    e = {name: torch.randn(weight.shape, generator=generator) for name, weight in start.items()}
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in e.values()))
    direction = Direction({name: tensor / norm for name, tensor in e.items() if tensor.numel()}, norm)
    perturber = Perturber(model, 0, direction, (1.0,), threads=3)
    before = {name: tensor.clone() for name, tensor in direction.tensors.items()}
    path = naive_steps(start, direction.tensors)
    perturber.move_along(1)
    for name, expected in path.items():
        torch.testing.assert_close(weights[name].tensor, expected, rtol=1e-6, atol=1e-6)
    assert model.shared.data_ptr() == model.large.data_ptr()
    assert not weights["transposed"].tensor.is_contiguous()
    perturber.restore()
    for name, tensor in start.items():
        assert torch.equal(weights[name].tensor, tensor)
    for name, tensor in before.items():
        assert torch.equal(direction.tensors[name], tensor)  # the direction is read only


def naive_steps(start: Weights, e: Any) -> Weights:
    (size,) = step_sizes((1.0,))
    return {
        name: start[name]
        + size * (1.0 + torch.from_numpy(draw(Noise(0, "step 1", name), tensor.numel())).view(tensor.shape)) * tensor
        for name, tensor in e.items()
    }


def test_a_token_that_is_masked_out_stays_so() -> None:
    head = torch.nn.Linear(300, 400).requires_grad_(False)
    head.bias[7] = -math.inf
    perturber = Perturber(head, 0)
    realised = perturber.move_randomly(0.1)
    assert head.bias[7] == -math.inf
    assert realised.radius == pytest.approx(realised.aim, rel=0.01)
    assert realised.cast_radius == pytest.approx(realised.aim, rel=0.01)


def test_what_cannot_be_perturbed_is_refused(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    model = read_model(base)
    perturber = Perturber(model, 0)
    assert perturber.steps == 0
    with pytest.raises(PerturbationError, match="no directional checkpoint 1"):
        perturber.move_along(1)
    for sigma, draws in ((0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (0.1, 0), (0.1, 9)):
        with pytest.raises(PerturbationError, match="set sigma > 0 and 1 to 8"):
            perturber.move_randomly(sigma, draws)
    with pytest.raises(PerturbationError, match="more, which the base model does not have"):
        Perturber(model, 0, Direction({"more": torch.ones(2)}, 1.0))
    with pytest.raises(PerturbationError, match=r"shape \(2,\), but the base model's shape is \(32,\)"):
        Perturber(model, 0, Direction({"model.norm.weight": torch.ones(2)}, 1.0))
    embedding = torch.nn.ModuleDict({"embed": torch.nn.Embedding(3, 2)})
    with pytest.raises(PerturbationError, match="nothing to perturb"):
        Perturber(embedding, 0).move_randomly(0.1)
    tied = read_model(write_tied_model(tmp_path / "tied"))
    shape = tied.lm_head.weight.shape
    twice = {name: torch.ones(shape) for name in ("lm_head.weight", "model.embed_tokens.weight")}
    with pytest.raises(PerturbationError, match="tied to another tensor that it also changes"):
        Perturber(tied, 0, Direction(twice, 1.0))
