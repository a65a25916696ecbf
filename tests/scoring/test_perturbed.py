"""Early losses at all perturbed checkpoints: against plain transformers at naively perturbed weights, in any batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from curation_resources.scoring import loading, perturbed
from curation_resources.scoring import prefetch as ahead
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.perturbed import PerturbedGroup, PerturbedPass, make_perturbed_pass
from curation_resources.scoring.perturbing import PerturbationError, step_sizes
from curation_resources.scoring.samples import (
    Encoded,
    PerturbedRequest,
    PerturbedSignals,
    PrefixWindows,
    Sample,
    Segment,
)
from curation_resources.scoring.spec import SOURCE_RADII, PassSpec, PerturbedSpec
from tests.models import write_tiny_qwen3_vl
from tests.scoring.cases import make_sample, random_samples
from tests.scoring.perturbed_cases import (
    naive_losses,
    naive_path,
    naive_random,
    parameters,
    read_model,
    write_adapter,
    write_endpoint,
)
from tests.scoring.test_images import picture

RADII = (0.5, 1.0, 4.0)
EVERYTHING = PerturbedRequest(sigma=0.02, filter_windows=(10,), path_windows=(10, 60))


@pytest.fixture(scope="module")
def endpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_endpoint(tiny_model, tmp_path_factory.mktemp("endpoint"))


@pytest.fixture(scope="module")
def spec(tiny_model: Path, endpoint: Path) -> PerturbedSpec:
    return PerturbedSpec(PassSpec(tiny_model), endpoint, seed=4, radii=RADII)


@pytest.fixture(scope="module")
def scoring(spec: PerturbedSpec) -> PerturbedPass:
    return make_perturbed_pass(spec, "cpu")


def unmeasurable() -> list[Sample]:
    return [
        Sample("empty", [{"role": "user", "content": "q"}], ""),
        Sample("no reasoning", [{"role": "user", "content": "q"}], "Answer: 4", [Segment(0, 8, 9)]),
    ]


def assert_same(found: PerturbedSignals, expected: PerturbedSignals) -> None:
    for name in ("sample_id", "tokens", "prompt_tokens", "response_tokens", "flags", "prefix_flags"):
        assert getattr(found, name) == getattr(expected, name), name
    for part in ("base", "random", "directional"):
        one, other = getattr(found, part), getattr(expected, part)
        assert (one is None) == (other is None), part
        if one is not None:
            checkpoints = (one, other) if part == "directional" else ([one], [other])
            for losses, twin in zip(*checkpoints, strict=True):
                assert losses == pytest.approx(twin, rel=1e-5), part


def test_losses_equal_plain_transformers_at_naively_perturbed_weights(
    tiny_model: Path, endpoint: Path, spec: PerturbedSpec, scoring: PerturbedPass
) -> None:
    samples = random_samples(4, seed=1)
    encoded = scoring.scoring.encoder.encode(samples)
    found = scoring.measure(samples, EVERYTHING)
    short, both = PrefixWindows((10,)), PrefixWindows((10, 60))
    model = read_model(tiny_model)
    expected = [
        naive_losses(tiny_model, parameters(model), encoded, short),
        naive_losses(tiny_model, naive_random(model, [0.02], spec.seed), encoded, short),
        *(
            naive_losses(tiny_model, weights, encoded, both)
            for weights in naive_path(model, parameters(read_model(endpoint)), step_sizes(RADII), spec.seed)
        ),
    ]
    for place, result in enumerate(found):
        assert result.directional is not None
        for losses, twin in zip((result.base, result.random, *result.directional), expected, strict=True):
            assert losses == pytest.approx(twin[place], rel=1e-4)
        # The checkpoints differ, and so do the losses.
        assert len({round(losses[10], 4) for losses in result.directional} | {round(twin[place][10], 4)}) >= len(RADII)


def test_the_weights_are_back_afterwards_and_a_second_pass_gives_the_same(
    spec: PerturbedSpec, scoring: PerturbedPass
) -> None:
    model = scoring.scoring.checkpoint.model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    first, second = (scoring.measure(random_samples(5), EVERYTHING) for _ in range(2))
    assert first == second
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_results_depend_on_neither_batch_window_nor_order(scoring: PerturbedPass) -> None:
    samples = [*random_samples(9, seed=7), *unmeasurable()]
    alone = {sample.sample_id: scoring.measure([sample], EVERYTHING)[0] for sample in samples}
    for budget, window, order in ((1, 3, samples), (10**6, 100, samples[::-1]), (300, 1, samples[4:] + samples[:4])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ahead, "CHUNK_SAMPLES", 1)
            other = PerturbedPass(
                ForwardPass(scoring.scoring.checkpoint, scoring.scoring.encoder, budget), scoring.perturber, window
            )
            windows = list(other.stream(order, EVERYTHING))
        assert [len(found) for found in windows][:1] == [min(window, len(order))]
        found = [result for results in windows for result in results]
        assert [result.position for result in found] == list(range(len(order)))
        for result in found:
            assert_same(result, alone[result.sample_id])


def test_what_cannot_be_measured_has_a_reason(scoring: PerturbedPass) -> None:
    empty, unreasoned, whole = scoring.measure([*unmeasurable(), make_sample(["one two"], "3")], EVERYTHING)
    for result, flags in ((empty, (["empty_response"], [])), (unreasoned, ([], ["empty_reasoning"]))):
        assert (result.flags, result.prefix_flags) == flags
        assert (result.base, result.random, result.directional, result.tokens) == (None, None, None, 0)
    assert whole.directional is not None
    assert scoring.measure([], EVERYTHING) == []


@pytest.mark.parametrize(
    ("request_", "parts", "checkpoints"),
    [
        (PerturbedRequest(base=True, directional=False), ("base",), 0),
        (PerturbedRequest(base=False, sigma=0.01, directional=False), ("random",), 1),
        (PerturbedRequest(base=False), ("directional",), len(RADII)),
        (PerturbedRequest(sigma=0.01), ("base", "random", "directional"), 1 + len(RADII)),
    ],
    ids=["base", "random", "directional", "all"],
)
def test_what_is_not_asked_for_is_not_run(
    request_: PerturbedRequest, parts: Sequence[str], checkpoints: int, scoring: PerturbedPass
) -> None:
    samples = [make_sample(["count " * 30], "many")]
    (item,) = scoring.scoring.encoder.encode(samples)
    (found,) = scoring.measure(samples, request_)
    assert [part for part in ("base", "random", "directional") if getattr(found, part) is not None] == list(parts)
    reasoning = item.segment_of_token.index(0) - item.prompt_tokens
    run = {"base": 100, "random": 100, "directional": len(RADII) * min(reasoning, 1000)}
    prompts = {"base": 1, "random": 1, "directional": len(RADII)}
    assert found.tokens == sum(run[part] + prompts[part] * item.prompt_tokens for part in parts)
    assert len(found.realised) == checkpoints
    assert all(realised.radius == pytest.approx(realised.aim, rel=0.2) for realised in found.realised)


def test_a_sample_is_encoded_once_and_the_model_loaded_once(
    scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    real = Encoder.encode

    def counted(self: Encoder, samples: Sequence[Sample]) -> list[Encoded]:
        encoded.extend(sample.sample_id for sample in samples)
        return real(self, samples)

    def no_loading(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded again")

    monkeypatch.setattr(Encoder, "encode", counted)
    monkeypatch.setattr(loading, "load_model", no_loading)
    samples = random_samples(6)
    scoring.measure(samples, EVERYTHING)
    assert sorted(encoded) == sorted(sample.sample_id for sample in samples)


def test_progress_counts_windows(scoring: PerturbedPass) -> None:
    done: list[int] = []
    for window in scoring.stream(random_samples(7), EVERYTHING, done.append):
        assert done[-1] == len(window)
    assert sum(done) == 7


def test_a_failing_window_leaves_the_base_model(scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scoring.measure(random_samples(2), EVERYTHING)
    passes: list[int] = []
    real = scoring.losses

    def failing(window: Any, windows: Any) -> Any:
        passes.append(len(window))
        if len(passes) == 4:
            raise RuntimeError("the device is gone")
        return real(window, windows)

    monkeypatch.setattr(scoring, "losses", failing)
    with pytest.raises(RuntimeError, match="the device is gone"):
        scoring.measure(random_samples(2), EVERYTHING)
    monkeypatch.undo()
    assert scoring.measure(random_samples(2), EVERYTHING) == expected


def test_losses_that_are_not_finite_are_flagged_and_the_others_stay(
    scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = scoring.losses

    def broken_once(window: Any, windows: Any) -> Any:
        found = real(window, windows)
        calls.append(1)
        if len(calls) == 4:  # the second directional checkpoint
            found[1].prefix_nll = None
        return found

    monkeypatch.setattr(scoring, "losses", broken_once)
    samples = random_samples(2)
    sound, broken = scoring.measure(samples, EVERYTHING)
    assert (sound.flags, broken.flags) == ([], ["non_finite"])
    assert broken.directional is None
    assert broken.random is not None
    assert sound.directional is not None


SCRIPT = """
import json, sys
from pathlib import Path
from curation_resources.scoring.perturbed import make_perturbed_pass
from curation_resources.scoring.samples import PerturbedRequest
from curation_resources.scoring.spec import PassSpec, PerturbedSpec
from tests.scoring.cases import random_samples

base, endpoint = Path(sys.argv[1]), Path(sys.argv[2])
request = PerturbedRequest(sigma=0.02, filter_windows=(10,), path_windows=(10, 60))
losses = {}
for dtype in ("float32", "bfloat16"):
    for seed in (4, 5):
        spec = PerturbedSpec(PassSpec(base, dtype=dtype), endpoint, seed, (0.5, 1.0, 4.0))
        found = make_perturbed_pass(spec, "cpu").measure(random_samples(3), request)
        losses[f"{dtype} {seed}"] = [
            [list(r.base.values()), list(r.random.values()), [list(d.values()) for d in r.directional]] for r in found
        ]
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def in_another_process(tiny_model: Path, endpoint: Path) -> dict[str, Any]:
    """Losses by data type and seed, from a process with another hash seed."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tiny_model), str(endpoint)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    losses: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_losses_in_another_process(
    dtype: str, tiny_model: Path, endpoint: Path, in_another_process: dict[str, Any]
) -> None:
    spec = PerturbedSpec(PassSpec(tiny_model, dtype=dtype), endpoint, 4, RADII)
    own = [
        [
            list((r.base or {}).values()),
            list((r.random or {}).values()),
            [list(d.values()) for d in r.directional or []],
        ]
        for r in make_perturbed_pass(spec, "cpu").measure(random_samples(3), EVERYTHING)
    ]
    assert in_another_process[f"{dtype} 4"] == own
    for found, expected in zip(in_another_process[f"{dtype} 5"], own, strict=True):
        assert found[0] == expected[0]  # the base model
        assert found[1] != expected[1]
        assert found[2] != expected[2]


def test_two_processes_give_what_one_gives(
    spec: PerturbedSpec, scoring: PerturbedPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [*random_samples(11), *unmeasurable()]
    expected = scoring.measure(samples, EVERYTHING)
    monkeypatch.setattr(perturbed, "CPU_WINDOW", 4)
    with PerturbedGroup(spec, ["cpu", "cpu"]) as group:
        units = list(group.stream(samples, EVERYTHING))
        assert sorted(map(len, units)) == [1, 4, 4, 4]
        for unit in units:
            for result in unit:
                assert_same(result, expected[result.position])
        assert len(list(group.stream(samples[:2], EVERYTHING))) == 2  # a sample for each


def test_a_lora_endpoint_measures_as_its_merged_model(tiny_model: Path, tmp_path: Path) -> None:
    adapted = write_adapter(tiny_model, tmp_path / "lora")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    results = [
        make_perturbed_pass(PerturbedSpec(PassSpec(tiny_model), tmp_path / name, 0, RADII), "cpu").measure(
            random_samples(3), EVERYTHING
        )
        for name in ("lora", "merged")
    ]
    for one, other in zip(*results, strict=True):
        assert one.directional is not None
        assert other.directional is not None
        for losses, merged in zip(one.directional, other.directional, strict=True):
            assert losses == pytest.approx(merged, rel=1e-4)


def test_images_of_the_prompt_are_seen_at_every_checkpoint(tmp_path: Path) -> None:
    base = write_tiny_qwen3_vl(tmp_path / "base")
    other = write_tiny_qwen3_vl(tmp_path / "other", seed=1)
    scoring = make_perturbed_pass(PerturbedSpec(PassSpec(base), other, radii=(1.0, 2.0)), "cpu")
    text = make_sample(["one two three " * 3], "42")
    shown = [replace(text, sample_id=str(size), images=(picture(size),)) for size in (40, 80)]
    request = PerturbedRequest(filter_windows=(10,), path_windows=(10, 20))
    together = scoring.measure([text, *shown], request)
    for place, sample in enumerate([text, *shown]):
        assert_same(together[place], scoring.measure([sample], request)[0])
        assert together[place].flags == []
    assert len({result.directional[0][10] for result in together if result.directional}) == 3


def test_half_precision_weights_are_the_base_plus_a_displacement_cast_once(
    tiny_model: Path, endpoint: Path, scoring: PerturbedPass
) -> None:
    spec = PerturbedSpec(PassSpec(tiny_model, dtype="bfloat16"), endpoint, 4, RADII)
    half = make_perturbed_pass(spec, "cpu").measure(random_samples(4), EVERYTHING)
    for found, exact in zip(half, scoring.measure(random_samples(4), EVERYTHING), strict=True):
        assert found.directional is not None
        assert exact.directional is not None
        for losses, near in zip(found.directional, exact.directional, strict=True):
            assert losses == pytest.approx(near, rel=0.1)
        assert [realised.radius for realised in found.realised] == pytest.approx(
            [realised.radius for realised in exact.realised]
        )
        assert found.realised[1].cosine < exact.realised[1].cosine


def test_what_cannot_be_asked_for_is_refused(tiny_model: Path, scoring: PerturbedPass) -> None:
    bare = make_perturbed_pass(PerturbedSpec(PassSpec(tiny_model)), "cpu")
    samples = random_samples(1)
    with pytest.raises(PerturbationError, match="need an endpoint"):
        bare.measure(samples, PerturbedRequest())
    assert bare.measure(samples, PerturbedRequest(directional=False))[0].base is not None
    with pytest.raises(PerturbationError, match="nothing is requested"):
        scoring.measure(samples, PerturbedRequest(base=False, directional=False))
    with pytest.raises(PerturbationError, match="start from the base model"):
        make_perturbed_pass(PerturbedSpec(PassSpec(tiny_model, adapter=Path("lora"))), "cpu")


def test_the_default_radii_are_those_of_the_paper(tiny_model: Path, endpoint: Path) -> None:
    scoring = make_perturbed_pass(PerturbedSpec(PassSpec(tiny_model), endpoint), "cpu")
    (found,) = scoring.measure(random_samples(1), PerturbedRequest(base=False))
    assert [realised.aim for realised in found.realised] == pytest.approx(SOURCE_RADII)
    assert found.directional is not None
    assert [losses.keys() for losses in found.directional] == [{100, 1000}] * 8
