"""The loop against a plain one: gradients of whole batches, AdamW written out, no pieces; and runs that are killed."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.loading import encoding_parts
from curation_resources.scoring.samples import Encoded
from curation_resources.storage.digests import hash_file
from curation_resources.training.examples import (
    LossWeights,
    TrainingError,
    make_examples,
    order_of_epoch,
    scheduled_steps,
    steps_of,
)
from curation_resources.training.loop import Loop
from curation_resources.training.recipe import PRESETS, Recipe, recipe_of
from curation_resources.training.saving import save_checkpoint
from curation_resources.training.trainer import TrainingRecord, TrainingSpec, Trajectory, step_folder, train
from tests.models import write_tiny_qwen3_vl
from tests.scoring.cases import random_samples

SAMPLES = random_samples(11, seed=3)
VOCABULARY = 258
"""Rows of the tiny model's LM head: no other layer has as many."""

FULL = Recipe(adapter="full", learning_rate=1e-3, batch_size=4, epochs=2, weight_decay=0.1, max_grad_norm=0.5)


def encoded(model: Path, samples: Any = SAMPLES) -> list[Encoded]:
    whole = AutoModelForCausalLM.from_pretrained(model)
    return Encoder(template="auto", **encoding_parts(model, whole)).encode(samples)


def run(model: Path, out: Path, recipe: Recipe = FULL, **more: Any) -> TrainingRecord:
    keep = more.pop("keep_seconds", 60.0)
    pieces = more.pop("piece_tokens", 4096)
    spec = TrainingSpec(model, device="cpu", keep_seconds=keep, piece_tokens=pieces, **more.pop("spec", {}))
    return train(spec, more.pop("samples", SAMPLES), out, recipe, **more)


def plain_losses(
    model: Path, recipe: Recipe, weights: dict[str, list[float]] | None = None
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """One sample after another, gradients of each step added up, and AdamW as the paper writes it."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    items = encoded(model)
    parameters = [p for p in whole.parameters() if p.requires_grad]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    total = steps_of(len(items), recipe)
    warm = math.ceil(recipe.warmup_ratio * total)
    losses = []
    for step in range(total):
        per_epoch = -(-len(items) // recipe.batch_size)
        order = order_of_epoch([len(item) for item in items], recipe, step // per_epoch)
        start = step % per_epoch * recipe.batch_size
        batch = [items[position] for position in order[start : start + recipe.batch_size]]
        labels = sum(len(item) - item.prompt_tokens for item in batch)
        loss = torch.zeros(())
        for item in batch:
            ids = torch.tensor([item.input_ids])
            logits = whole(input_ids=ids).logits[0]
            own = (weights or {}).get(item.sample.sample_id, [1.0] * len(item))
            nll = [F.cross_entropy(logits[at - 1], ids[0, at]) for at in range(item.prompt_tokens, len(item))]
            if recipe.likelihood_weights == "current":
                own = [math.exp(-float(one)) for one in nll]
                if recipe.normalise == "mean1":
                    own = [weight * len(own) / sum(own) for weight in own]
            for one, weight in zip(nll, [*own, 1.0], strict=False):
                loss = loss + weight * one / labels
        losses.append(float(loss))
        whole.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None))
        scale = min(1.0, recipe.max_grad_norm / (norm + 1e-6)) if recipe.max_grad_norm else 1.0
        share = (step or 0.5) / max(1, warm) if step < warm else _cosine(step, warm, total)
        rate = recipe.learning_rate * share
        with torch.no_grad():
            for p, m, v in zip(parameters, first, second, strict=True):
                assert p.grad is not None
                gradient = p.grad * scale
                if p.dim() > 1:
                    p.sub_(rate * recipe.weight_decay * p)
                m.mul_(recipe.beta1).add_(gradient, alpha=1 - recipe.beta1)
                v.mul_(recipe.beta2).add_(gradient**2, alpha=1 - recipe.beta2)
                unbiased = v / (1 - recipe.beta2 ** (step + 1))
                p.sub_(rate * (m / (1 - recipe.beta1 ** (step + 1))) / (unbiased.sqrt() + recipe.epsilon))
    return losses, dict(whole.state_dict())


def _cosine(step: int, warm: int, total: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def test_losses_and_weights_are_those_of_the_plain_loop(tiny_model: Path, tmp_path: Path) -> None:
    record = run(tiny_model, tmp_path)
    losses, weights = plain_losses(tiny_model, FULL)
    assert record.losses == pytest.approx(losses, rel=1e-4)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("pieces", [1, 100, 300])
def test_pieces_change_nothing_but_memory(tiny_model: Path, tmp_path: Path, pieces: int) -> None:
    whole, cut = run(tiny_model, tmp_path / "whole"), run(tiny_model, tmp_path / "cut", piece_tokens=pieces)
    assert cut.losses == pytest.approx(whole.losses, rel=1e-5)
    assert cut.gradient_norms == pytest.approx(whole.gradient_norms, rel=1e-4)


def test_weights_of_tokens_and_steps_multiply_their_losses(tiny_model: Path, tmp_path: Path) -> None:
    items = encoded(tiny_model)
    tokens = {i.sample.sample_id: [0.1 * (n % 7) for n in range(i.response_tokens)] for i in items[:5]}
    steps = {i.sample.sample_id: {1: 0.0, 0: 2.0} for i in items[3:8]}
    combined = {}
    for item in items:
        name = item.sample.sample_id
        own = tokens.get(name, [1.0] * item.response_tokens)
        segments = item.segment_of_token[item.prompt_tokens :]
        combined[name] = [w * steps.get(name, {}).get(s, 1.0) for w, s in zip([*own, 1.0], segments, strict=True)]
    recipe = replace(FULL, epochs=1)
    record = run(tiny_model, tmp_path, recipe, weights=LossWeights(tokens, steps))
    assert record.losses == pytest.approx(plain_losses(tiny_model, recipe, combined)[0], rel=1e-4)


@pytest.mark.parametrize("normalise", ["none", "mean1"])
def test_token_level_grape_weights_by_the_models_own_probability(
    tiny_model: Path, tmp_path: Path, normalise: Any
) -> None:
    recipe = replace(FULL, likelihood_weights="current", normalise=normalise, learning_rate=1e-2)
    record = run(tiny_model, tmp_path / "weighted", recipe)
    assert record.losses == pytest.approx(plain_losses(tiny_model, recipe)[0], rel=1e-3)
    assert record.losses != pytest.approx(run(tiny_model, tmp_path / "even").losses, rel=0.1)


def test_weights_made_with_another_tokenizer_are_refused(tiny_model: Path) -> None:
    (item, *_) = encoded(tiny_model)
    for wrong, message in (([1.0], "1 weights for"), ([-1.0] * item.response_tokens, "negative or not finite")):
        with pytest.raises(TrainingError, match=message):
            make_examples([item], LossWeights({item.sample.sample_id: wrong}))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_is_transformers_own(tiny_model: Path, tmp_path: Path, schedule: Any) -> None:
    recipe = replace(FULL, schedule=schedule, warmup_ratio=0.3)
    record = run(tiny_model, tmp_path, recipe)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.learning_rate)
    warm = math.ceil(0.3 * record.steps)
    theirs: Any = {
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warm, record.steps),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warm, record.steps),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warm),
    }[schedule]()
    expected = []
    for _ in range(record.steps):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    # But for the first step, which would train nothing.
    assert expected[0] == 0.0
    assert record.learning_rates == pytest.approx([expected[1] / 2, *expected[1:]])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_may_stop_inside_its_schedule(tiny_model: Path, tmp_path: Path, schedule: Any) -> None:
    recipe = replace(FULL, schedule=schedule, warmup_ratio=0.3)
    whole = run(tiny_model, tmp_path / "whole", recipe)
    part = run(tiny_model, tmp_path / "part", replace(recipe, stop_after=3))
    assert part.steps == 3 < whole.steps
    assert part.learning_rates == whole.learning_rates[:3]
    assert part.losses == whole.losses[:3]
    # `max_steps` ends the schedule too.
    assert run(tiny_model, tmp_path / "short", replace(recipe, max_steps=3)).learning_rates != part.learning_rates
    rates = [recipe.learning_rate * recipe.share_of_rate(step, whole.steps) for step in range(whole.steps)]
    assert whole.learning_rates == pytest.approx([rates[1] / 2, *rates[1:]])


def test_tagcos_stops_while_the_rate_rises() -> None:
    # 5 % of a million samples: 391 steps an epoch.
    steps = scheduled_steps(50_000, PRESETS["tagcos"])
    assert (steps_of(50_000, PRESETS["tagcos"]), steps) == (30, 1564)
    rising = [PRESETS["tagcos"].share_of_rate(step, steps) for step in range(31)]
    assert rising == sorted(rising)
    assert 1.0e-5 < PRESETS["tagcos"].learning_rate * rising[30] < 1.3e-5
    assert "stop_after" not in Recipe().facts()
    assert PRESETS["tagcos"].facts() == {**PRESETS["less"].facts(), "stop_after": 30}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_of_one_step_trains(tiny_model: Path, tmp_path: Path, schedule: Any) -> None:
    recipe = replace(FULL, schedule=schedule, warmup_ratio=0.05, batch_size=len(SAMPLES), epochs=1)
    record = run(tiny_model, tmp_path, recipe)
    assert record.learning_rates == [recipe.learning_rate]
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path))
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(grouped: bool) -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(200)]
    recipe = Recipe(batch_size=8, length_grouped=grouped)
    first, second = (order_of_epoch(lengths, recipe, epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second
    assert first == order_of_epoch(lengths, recipe, 0)
    spread = [max(own) - min(own) for at in range(0, 200, 8) for own in [[lengths[p] for p in first[at : at + 8]]]]
    assert (sum(spread) / len(spread) < 5) is grouped


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_what_is_written_is_loaded_by_the_libraries(tiny_model: Path, tmp_path: Path, adapter: Any) -> None:
    recipe = replace(FULL, adapter=adapter, epochs=1)
    record = run(tiny_model, tmp_path, recipe, trajectory=Trajectory(every=2, optimizer=True))
    assert record.checkpoints == [2, 3]
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert {f"steps/{step:07d}/optimizer.safetensors" for step in (2, 3)} <= names
    moments = load_file(tmp_path / "steps/0000003/optimizer.safetensors")
    assert {name.split(".")[0] for name in moments} == {"exp_avg", "exp_avg_sq"}
    if adapter == "full":
        last, final = (AutoModelForCausalLM.from_pretrained(p) for p in (tmp_path / "steps/0000003", tmp_path))
        assert all(torch.equal(a, b) for a, b in zip(last.parameters(), final.parameters(), strict=True))
        assert hash_file(tmp_path / "tokenizer.json") == hash_file(tiny_model / "tokenizer.json")
    else:
        assert hash_file(tmp_path / "steps/0000003/adapter_model.safetensors") == hash_file(
            tmp_path / "adapter_model.safetensors"
        )


def test_weights_that_are_not_finite_are_not_written(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    loop = Loop(model, make_examples(encoded(tiny_model), None), FULL, torch.device("cpu"))
    with torch.no_grad():
        next(iter(loop.trained.values()))[0] = math.inf
    with pytest.raises(TrainingError, match=r"not finite after step 0\. Lower learning_rate"):
        save_checkpoint(loop, tmp_path / "out", tiny_model, torch.float32)
    assert not (tmp_path / "out").exists()


def test_half_precision_trains_in_fp32_and_keeps_the_targets_type(tiny_model: Path, tmp_path: Path) -> None:
    half, whole = (run(tiny_model, tmp_path / t, spec={"dtype": t}) for t in ("bfloat16", "float32"))
    assert half.losses == pytest.approx(whole.losses, rel=0.02)
    kept = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


def test_checkpointed_activations_give_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    for adapter in ("lora", "full"):
        recipe = replace(FULL, adapter=adapter, epochs=1)
        plain = run(tiny_model, tmp_path / f"{adapter}-a", recipe)
        saved = run(tiny_model, tmp_path / f"{adapter}-b", recipe, spec={"gradient_checkpointing": True})
        assert saved.losses == pytest.approx(plain.losses, rel=1e-5)


# A run that is killed -------------------------------------------------------------------------------------------------

LORA = Recipe(learning_rate=1e-3, batch_size=3, epochs=3, lora_dropout=0.2)


class Interrupt:
    """Ctrl-C after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, steps: int) -> None:
        self.left -= steps
        if self.left <= 0:
            raise KeyboardInterrupt


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.test_loop import LORA, run
from curation_resources.training.trainer import Trajectory

taken = 0
def progress(steps):
    global taken
    taken += steps
    if taken == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[1]), Path(sys.argv[2]), LORA, work=Path(sys.argv[3]), keep_seconds=0.0,
    trajectory=Trajectory(every=4), progress=progress)
"""


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    undisturbed = run(tiny_model, tmp_path / "twin", LORA, trajectory=Trajectory(every=4))
    work = tmp_path / "work"
    for kill_at in (3, 8):
        command = [sys.executable, "-c", KILLED, str(tiny_model), str(tmp_path / "out"), str(work), str(kill_at)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        died = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=False)
        assert died.returncode == -signal.SIGKILL
    told: list[int] = []
    options: dict[str, Any] = {"work": work, "trajectory": Trajectory(every=4), "progress": told.append}
    record = run(tiny_model, tmp_path / "out", LORA, keep_seconds=0.0, **options)
    assert record == undisturbed
    assert told[0] > 1  # what had been done before
    for name in ("adapter_model.safetensors", "steps/0000004/adapter_model.safetensors"):
        assert hash_file(tmp_path / "out" / name) == hash_file(tmp_path / "twin" / name)


def test_weights_without_a_gradient_are_gone_on_from_too(tmp_path: Path) -> None:
    model = write_tiny_qwen3_vl(tmp_path / "model")  # on text alone, nothing comes to its vision tower
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "a", FULL, work=tmp_path / "work", keep_seconds=0.0, progress=Interrupt(3))
    record = run(model, tmp_path / "b", FULL, work=tmp_path / "work")
    assert record == run(model, tmp_path / "twin", FULL)
    assert hash_file(tmp_path / "b" / "model.safetensors") == hash_file(tmp_path / "twin" / "model.safetensors")


def test_every_weight_goes_on_from_its_own_number_of_steps(tiny_model: Path, tmp_path: Path) -> None:
    made = []
    for number in range(2):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        loop = Loop(model, make_examples(encoded(tiny_model), None), FULL, torch.device("cpu"))
        if number:
            assert loop.go_on(tmp_path / "state", "run", lambda _done: True)
        else:
            resting = next(iter(loop.trained.values()))
            # As an expert that no token of the first step goes to.
            resting.requires_grad_(False)
            loop.step()
            resting.requires_grad_(True)
            loop.step()
            loop.keep(tmp_path / "state", "run")
        loop.step()
        made.append(loop)
    for one, other in zip(made[0].trained.values(), made[1].trained.values(), strict=True):
        assert torch.equal(one, other)
        assert made[0].optimizer.state[one]["step"] == made[1].optimizer.state[other]["step"]


def test_a_run_whose_checkpoints_on_the_way_are_gone_begins_anew(tiny_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"work": tmp_path / "work", "trajectory": Trajectory(every=2)}
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "a", LORA, keep_seconds=0.0, progress=Interrupt(5), **options)
    shutil.rmtree(step_folder(tmp_path / "work", 2))
    told: list[int] = []
    record = run(tiny_model, tmp_path / "b", LORA, progress=told.append, **options)
    assert told[0] == 1
    assert all(step_folder(tmp_path / "b", step).is_dir() for step in record.checkpoints)


def test_a_state_of_another_run_is_not_gone_on_from(tiny_model: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "a", LORA, work=work, keep_seconds=0.0, progress=Interrupt(2))
    assert (work / "state.safetensors").exists()
    other = replace(LORA, seed=1)
    record = run(tiny_model, tmp_path / "b", other, work=work)
    assert record == run(tiny_model, tmp_path / "twin", other)


def test_a_run_that_diverges_keeps_what_it_had_and_says_where(tiny_model: Path, tmp_path: Path) -> None:
    recipe = replace(FULL, learning_rate=1e30, warmup_ratio=0.2)
    with pytest.raises(TrainingError, match=r"at step 2\. Lower learning_rate\. The last saved state is in .*work"):
        run(tiny_model, tmp_path / "out", recipe, work=tmp_path / "work", keep_seconds=0.0)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "work" / "state.safetensors").values())


# Presets --------------------------------------------------------------------------------------------------------------


def test_presets_are_those_of_the_sources() -> None:
    assert PRESETS["grace"] == PRESETS["temp"] == Recipe()
    grace, grape, s2l, less = (PRESETS[name] for name in ("grace", "grape", "s2l", "less"))
    assert (grace.lora_rank, grace.lora_alpha, grace.learning_rate, grace.epochs) == (8, 32, 1e-4, 1)
    assert (grace.warmup_ratio, grace.schedule, grace.lora_modules) == (0.05, "cosine", ())
    assert (grape.epochs, grape.learning_rate, grape.batch_size, grape.adapter) == (1, 1e-5, 256, "full")
    assert (s2l.epochs, s2l.batch_size, s2l.warmup_ratio, s2l.schedule) == (4, 128, 0.03, "cosine")
    assert s2l.learning_rate == less.learning_rate == 2e-5
    assert (less.lora_rank, less.lora_alpha, less.lora_dropout, less.epochs) == (128, 512, 0.1, 4)
    assert less.lora_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (less.batch_size, less.schedule, less.warmup_ratio) == (128, "linear", 0.03)
    assert (less.beta1, less.beta2, less.epsilon) == (0.9, 0.999, 1e-8)


def test_a_preset_is_changed_where_something_is_said() -> None:
    assert recipe_of("less", seed=3, epochs=None) == replace(PRESETS["less"], seed=3)
    with pytest.raises(KeyError):
        recipe_of("no such preset")


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_logits_are_computed_for_response_tokens_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Any
) -> None:
    """The logits of prompts and padding took most of the memory of a run."""
    rows: list[int] = []
    linear = F.linear

    def counted(states: torch.Tensor, weight: torch.Tensor, *more: Any) -> torch.Tensor:
        if len(weight) == VOCABULARY:
            rows.append(math.prod(states.shape[:-1]))
        return linear(states, weight, *more)

    monkeypatch.setattr(F, "linear", counted)
    items = encoded(tiny_model)
    run(tiny_model, tmp_path, replace(FULL, adapter=adapter, epochs=1))
    assert sum(rows) == sum(example.labels for example in make_examples(items, None))
    assert sum(rows) < sum(map(len, items))
