"""The checklist of CONTRIBUTING.md, run over every method; and each score against loops from methods.md."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import polars as pl
import pytest

from curation_assets import tables
from curation_assets.config.settings import Settings, Target
from curation_assets.methods.method import Method, ScoreInputs, ScoreSection
from curation_assets.methods.registry import METHODS
from curation_assets.methods.selectors.candidates import Candidates, Features
from curation_assets.subsets.choose_in_duckdb import POOL_COLUMNS
from curation_assets.tables.signals import OF_KIND, SignalName
from tests.subsets.in_memory import order_by

ROOT = Path(__file__).parent.parent.parent
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
SIZE = 23
HELD_OUT = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def section_of(method: Method, **options: Any) -> ScoreSection:
    """A method's parameters with their defaults, but for these."""
    validation = {"validation": "held_out"} if "validation" in method.section.model_fields else {}
    return method.section.model_validate({"name": "m", "target": "t", "method": method.name, **validation, **options})


def choices_of(method: Method) -> list[dict[str, Any]]:
    """The defaults, every other value of each parameter that is a choice, and all of these together."""
    found: list[dict[str, Any]] = [{}]
    for name, parameter in method.section.model_fields.items():
        choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
        found += [{name: choice} for choice in choices if choice not in (parameter.default, method.name)]
    last = {name: choice for options in found for name, choice in options.items()}
    return found if last in found else [*found, last]


every_choice = pytest.mark.parametrize(
    ("method", "options"),
    [(method, options) for method in METHODS.values() for options in choices_of(method)],
    ids=lambda value: value.name if isinstance(value, Method) else "-".join(map(str, value.values())) or "default",
)


def signal_rows(signal: SignalName, rng: random.Random, ids: list[str]) -> pl.DataFrame:
    """Random rows of a signal; of the last sample nothing could be measured."""
    table = tables.SIGNAL_TABLES[signal]
    rows = []
    for sample_id in ids:
        last = sample_id == ids[-1]
        k = rng.randint(1, 5)
        matrix = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(k + 1)]
        pairs = [(i, j) for i in range(k + 1) for j in range(i, k + 1)]
        made: dict[str, Any] = {
            "sample_id": sample_id,
            "n_steps": 0 if last else k,
            "step_indices": [] if last else list(range(1, k + 1)),
            "gram": [sum(a * b for a, b in zip(matrix[i], matrix[j], strict=True)) for i, j in pairs],
            "grams": [
                [scale * sum(a * b for a, b in zip(matrix[i], matrix[j], strict=True)) for i, j in pairs]
                for scale in (1, 2)
            ],
            "nuclear_norm": [[k + 1.5, 1.0, 2.0, k + 0.5]] * 3,
            "effective_rank": [[k + 0.25, 1.0, 2.0, k + 0.75]] * 3,
            "largest_rank": [[8, 4, 4, 8]] * 3,
            "rows": [[9] * 4] * 3,
            "same_layer": [[0.1, None]] * 3,
            "adjacent": [[0.1] * 4] * 2,
            "norms": [1.0] * (k + 1),
            "segment_tokens": [] if last else [rng.randint(1, 9) for _ in range(k + 1)],
            "segment_nll": [rng.random() for _ in range(k + 1)],
            "losses": [3.0 + rng.random(), 2.0 + rng.random(), 1.0 + rng.random()],
            "random_100": 2.0 + k / 10,
            "directional_100": [2.0 + k / 10 + step / 8 for step in range(8)],
            "directional_1000": [1.0 + k / 10 + step / 4 for step in range(8)],
            "vector": [rng.gauss(0, 1) for _ in range(4)],
            "influence": [k / 10, 0.25],
            "tags": k,
            "difficulty": k + 1,
            "complexity": k,
            "quality": 6 - k,
            "solve_rate": k / 5,
            "answers": 5,
            "answered": 5,
            "right": k,
            "rewards": [] if last else [rng.random() for _ in range(k + 1)],
            "segment_base": [2.0 + n for n in range(k + 1)],
            "segment_masked": [3.0 + n * rng.random() for n in range(k + 1)],
            "heads": "0.1 1.3",
            "stated": ["7"] * 5,
            "refusal": None,
            "names": ["a"] * k,
            "reply": "2",
            "mean_nll": 2.0 + rng.random(),
            "base_nll": 4.0 + k / 10,
            "masked_nll": 4.5 + rng.random(),
            "first_nll": rng.random(),
            "unconditional_nll": 4.0 + rng.random(),
            "direct_nll": 4.5,
            "after_special": False,
            "response_tokens": rng.randint(2, 50),
            "tokens": rng.randint(50, 90),
            "flags": ["no_answer"] if last else [],
        }
        row = {name: made.get(name, rng.random()) for name in table.columns}
        if "scales" in row:
            row |= features(sample_id)
        if last:
            row |= {name: None for name, column in table.columns.items() if column.nullable}
        rows.append(row)
    return table.conform(pl.DataFrame(rows, schema=table.schema, strict=False))


def features(sample_id: str) -> dict[str, Any]:
    """Gradient features at three checkpoints, from the sample's name."""
    drawn = np.random.default_rng(int(sample_id[:8], 16)).integers(-127, 128, (3, 4))
    return {"features": drawn.tolist(), "scales": [0.5, 0.25, 2.0], "weights": [0.5, 0.3, 0.2]}


def facts(rng: random.Random, ids: list[str]) -> pl.DataFrame:
    rows = [
        {
            "sample_id": sample_id,
            "prompt_id": f"p{n % 6}",
            "shard": "s",
            "row": n,
            "candidate": 0,
            "source": "a",
            "n_steps": rng.randint(1, 9),
            "response_tokens": rng.randint(1, 50),
            "flags": [],
        }
        for n, sample_id in enumerate(ids)
    ]
    return tables.SAMPLE_SCORES.conform(
        pl.DataFrame(
            [dict.fromkeys(tables.SAMPLE_SCORES.columns) | r for r in rows], schema=tables.SAMPLE_SCORES.schema
        )
    )


def inputs(method: Method, **options: Any) -> ScoreInputs:
    rng = random.Random(0)
    ids = [f"{rng.getrandbits(128):032x}" for _ in range(SIZE)]
    section = section_of(method, **options)
    signals = {signal: signal_rows(signal, rng, ids) for signal in method.signals(section)}
    held_out = np.tile(HELD_OUT, 3) if method.name == "less" else HELD_OUT
    return ScoreInputs(facts(rng, ids), signals, validation={"held_out": held_out})


def scores(method: Method, given: ScoreInputs, **options: Any) -> dict[str, float | None]:
    section = section_of(method, **options)
    return dict(method.score(given, section).values.select("sample_id", "value").iter_rows())


@every_method
def test_a_method_says_what_it_is(method: Method) -> None:
    assert method.source
    assert method.summary
    assert method.cost
    assert method.section.__doc__
    assert method.section.model_fields["method"].default == method.name
    for name, parameter in method.section.model_fields.items():
        assert not parameter.is_required() or name in {"name", "target", "validation"}, f"{name} has no default"
    section = section_of(method)
    assert set(method.signals(section)) <= set(get_args(SignalName))


@every_method
def test_a_method_is_documented(method: Method) -> None:
    assert f"`{method.name}`" in (ROOT / "docs" / "methods.md").read_text()


@every_choice
def test_a_score_has_one_finite_value_a_sample_and_none_where_nothing_was_measured(
    method: Method, options: dict[str, Any]
) -> None:
    given = inputs(method, **options)
    found = method.score(given, section_of(method, **options)).values
    assert found.schema == {"sample_id": pl.String, "value": pl.Float64}
    assert found["sample_id"].is_unique().all()
    last = given.samples["sample_id"][-1]
    values = dict(found.iter_rows())
    if given.signals:
        assert values.get(last) is None
    others = [values[sample] for sample in given.samples["sample_id"][:-1]]
    assert all(value is not None and math.isfinite(value) for value in others)


@every_choice
def test_a_score_does_not_depend_on_order_or_on_what_else_is_there(method: Method, options: dict[str, Any]) -> None:
    given = inputs(method, **options)
    expected = scores(method, given, **options)
    shuffled = replace(
        given,
        samples=given.samples.sample(fraction=1, shuffle=True, seed=1),
        signals={name: rows.sample(fraction=1, shuffle=True, seed=2) for name, rows in given.signals.items()},
    )
    assert scores(method, shuffled, **options) == expected
    for sample in given.samples["sample_id"][:3]:
        mine = pl.col("sample_id") == sample
        signals = {name: rows.filter(mine) for name, rows in given.signals.items()}
        alone = replace(given, samples=given.samples.filter(mine), signals=signals)
        assert scores(method, alone, **options)[sample] == expected[sample]


@every_method
def test_a_method_reads_the_signals_that_it_asks_for(method: Method) -> None:
    asked = {signal for options in choices_of(method) for signal in method.signals(section_of(method, **options))}
    assert asked == set(method.reads)


@every_choice
def test_the_columns_that_a_method_reads_are_all_that_its_scores_need(method: Method, options: dict[str, Any]) -> None:
    given = inputs(method, **options)
    section = section_of(method, **options)
    few = {name: rows.select("sample_id", *method.reads[name]) for name, rows in given.signals.items()}
    samples = given.samples.select(POOL_COLUMNS)
    found = method.score(replace(given, samples=samples, signals=few, steps=False), section)
    assert found.steps is None
    assert dict(found.values.iter_rows()) == scores(method, given, **options)


@every_choice
def test_nothing_gives_nothing(method: Method, options: dict[str, Any]) -> None:
    given = inputs(method, **options)
    signals = {name: rows.clear() for name, rows in given.signals.items()}
    empty = replace(given, samples=given.samples.clear(), signals=signals)
    assert scores(method, empty, **options) == {}


@every_method
def test_a_methods_selector_orders_what_has_a_score(method: Method) -> None:
    given = inputs(method)
    values = method.score(given, section_of(method)).values
    pool = given.samples.select(POOL_COLUMNS).join(values, on="sample_id", how="left")
    score = pool["value"].fill_null(math.nan).to_numpy()
    # Losses at a random and at eight directional checkpoints, or any embeddings.
    width = 17 if method.vectors == "perturbed_losses" else 4
    vectors = dict(zip(pool["sample_id"], np.random.default_rng(1).normal(size=(len(pool), width)), strict=True))
    features = Features(lambda ids: np.stack([vectors[sample] for sample in ids]), lambda: HELD_OUT)
    candidates = Candidates(pool, score, np.isfinite(score), method.highest_first, features=features)
    order = order_by(method.selector, candidates).order
    assert len(set(order.tolist())) == len(order)
    assert np.isfinite(score[order]).all()


@every_method
def test_a_method_can_be_configured_and_says_which_signal_it_lacks(method: Method) -> None:
    needed = list(method.signals(section_of(method)))
    alone = {signal for signals in OF_KIND.values() for signal in signals}
    # A run that leaves checkpoints, where losses along one are wanted.
    told = {"save_every": 5, "influence": ["held_out"]}
    warmup = told if alone.isdisjoint(needed) else "none"
    asked = {"endpoint": {"url": "http://there/v1"}} if set(OF_KIND["judge"]) & set(needed) else {}
    document = {
        "corpus": {"landing": "x"},
        "targets": [{"name": "t", "model": "m", "signals": needed or ["likelihoods"], "warmup": warmup} | asked],
        "validation": [{"name": "held_out", "path": "held_out.jsonl"}],
        "scores": [{**section_of(method).model_dump(exclude_defaults=True), "name": "mine", "method": method.name}],
        "subsets": [{"name": "s", "score": "mine", "budget": {"samples": 3}}],
    }
    loaded = Settings.model_validate(document)
    assert isinstance(loaded.score("mine"), method.section)
    assert loaded.signals_of_scores(loaded.target("t")) == (needed or ["likelihoods"])
    for signal in needed:
        others = [name for name in get_args(SignalName) if name not in (signal, *alone)]
        document["targets"] = [{"name": "t", "model": "m", "signals": others, "warmup": told}]
        with pytest.raises(ValueError, match=f"Add {signal} to its signals"):
            Settings.model_validate(document)


@every_method
def test_faithfulness_is_a_list_of_reasons(method: Method) -> None:
    section = section_of(method)
    for target in (Target(name="t", model="m"), Target(name="t", model="m", warmup="none")):
        assert all(isinstance(reason, str) for reason in method.unfaithful(target.facts(), section))


def test_scores_of_likelihoods_are_those_of_their_formulas() -> None:
    given = inputs(METHODS["grape"])
    rows = {row["sample_id"]: row for row in given.signals["likelihoods"].iter_rows(named=True)}
    formulas: dict[str, Callable[[dict[str, Any]], float]] = {
        "grape": lambda row: -row["mean_nll"],
        "perplexity": lambda row: math.exp(row["mean_nll"]),
        "mean_entropy": lambda row: row["mean_entropy"],
        "least_confidence": lambda row: row["least_confidence"],
        "mean_margin": lambda row: row["mean_margin"],
    }
    for name, formula in formulas.items():
        found = scores(METHODS[name], given)
        for sample, row in rows.items():
            expected = None if row["mean_nll"] is None else formula(row)
            assert found[sample] == (expected if expected is None else pytest.approx(expected, rel=1e-12))


def test_scores_over_the_whole_sequence_are_those_of_their_formulas() -> None:
    """Perplexity's `span: all`, and uncertainty as the released code has it."""
    formulas: dict[str, tuple[dict[str, str], Callable[[dict[str, Any]], float]]] = {
        "perplexity": ({"span": "all"}, lambda row: math.exp(row["sequence_nll"])),
        "mean_entropy": ({"parity": "as_coded"}, lambda row: row["entropy"]),
        "least_confidence": ({"parity": "as_coded"}, lambda row: 1 - row["largest_logit"]),
        "mean_margin": ({"parity": "as_coded"}, lambda row: row["logit_margin"]),
    }
    for name, (options, formula) in formulas.items():
        given = inputs(METHODS[name], **options)
        found = scores(METHODS[name], given, **options)
        (rows,) = given.signals.values()
        for row in rows.iter_rows(named=True):
            expected = None if row["largest_logit"] is None else pytest.approx(formula(row), rel=1e-12)
            assert found[row["sample_id"]] == expected


@pytest.mark.parametrize("formula", ["ppl_ratio", "loss_ratio"])
@pytest.mark.parametrize("parity", ["paper", "as_coded"])
def test_ifd_is_a_ratio_over_the_same_tokens_and_null_outside_its_range(formula: str, parity: str) -> None:
    with_prompt = [3.0, 2.0, 1.0]  # NLL of each token
    alone = {"harder": [2.5, 2.5], "as hard": [2.0, 1.0], "easier": [0.5, 0.5], "nothing": None}
    ids = list(alone)
    likelihoods = pl.DataFrame({"sample_id": ids, "mean_nll": [2.0] * 4, "first_nll": [3.0] * 4, "response_tokens": 3})
    unconditional = [None if nll is None else sum(nll) / 2 for nll in alone.values()]
    column = "unconditional_nll" if parity == "paper" else "direct_nll"
    second = pl.DataFrame({"sample_id": ids, column: unconditional})
    section = METHODS["ifd"].section.model_validate(
        {"name": "m", "target": "t", "method": "ifd", "formula": formula, "parity": parity}
    )
    first, other = METHODS["ifd"].signals(section)
    headed = formula == "loss_ratio"
    as_coded = "headed_answer_likelihoods" if headed else "direct_answer_likelihoods"
    assert other == ("unconditional_likelihoods" if parity == "paper" else as_coded)
    given = ScoreInputs(facts(random.Random(0), ids), {first: likelihoods, other: second})
    found = dict(METHODS["ifd"].score(given, section).values.iter_rows())
    for name, nll in alone.items():
        if nll is None:
            assert found[name] is None
            continue
        counted = with_prompt[1:] if parity == "paper" else with_prompt
        a, b = sum(counted) / len(counted), sum(nll) / 2
        ratio = math.exp(a) / math.exp(b) if formula == "ppl_ratio" else a / b
        assert found[name] == (pytest.approx(ratio) if 0 < ratio <= 1 else None)


@pytest.mark.parametrize("name", ["rds", "rds_plus", "embedding_similarity"])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_similarity_is_the_cosine_with_validation_samples(name: str, reduce: str) -> None:
    method = METHODS[name]
    given = inputs(method)
    section = section_of(method).model_copy(update={"reduce": reduce})
    found = dict(method.score(given, section).values.iter_rows())
    (rows,) = given.signals.values()
    for sample, vector in rows.filter(pl.col("vector").is_not_null()).select("sample_id", "vector").iter_rows():
        mine = np.array(vector, dtype=np.float64)
        cosines = [mine @ v / np.linalg.norm(mine) / np.linalg.norm(v) for v in HELD_OUT.astype(np.float64)]
        expected = max(cosines) if reduce == "max" else sum(cosines) / len(cosines)
        assert found[sample] == pytest.approx(expected, abs=1e-5)


def test_less_is_the_largest_mean_of_weighted_cosines_and_tagcos_the_length_of_the_mean_direction() -> None:
    rng, ids = random.Random(1), [f"{number:032x}" for number in range(9)]
    held_out = signal_rows("gradient_feature_trajectories", rng, [f"{number:032x}" for number in range(90, 96)])
    method, tagcos = METHODS["less"], METHODS["tagcos"]
    tasks = {"one": held_out.head(2), "two": held_out.slice(2, 3)}
    frame = signal_rows("adam_feature_trajectories", rng, ids)
    given = ScoreInputs(
        facts(rng, ids),
        {"adam_feature_trajectories": frame},
        validation={name: method.to_vectors(rows) for name, rows in tasks.items()},
    )
    aggregates: dict[str, Callable[[list[float]], float]] = {"max": max, "mean": lambda own: sum(own) / len(own)}
    for aggregate, reduce in aggregates.items():
        found = scores(method, given, validation=["one", "two"], aggregate=aggregate)
        for row in frame.drop_nulls("features").iter_rows(named=True):
            means = []
            for rows in tasks.values():
                similarities = []
                for other in rows.iter_rows(named=True):
                    pairs = zip(row["weights"], row["features"], other["features"], strict=True)
                    similarities.append(sum(weight * cosine(np.array(a), np.array(b)) for weight, a, b in pairs))
                means.append(sum(similarities) / len(similarities))
            assert found[row["sample_id"]] == pytest.approx(reduce(means), abs=1e-6)
    lengths = scores(tagcos, given)
    for row in frame.drop_nulls("features").iter_rows(named=True):
        directions = [np.array(vector) / np.linalg.norm(vector) for vector in row["features"]]
        mean = sum(weight * vector for weight, vector in zip(row["weights"], directions, strict=True))
        assert lengths[row["sample_id"]] == pytest.approx(float(np.linalg.norm(mean)), abs=1e-6)


def cosine(one: Any, other: Any) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_the_baselines_are_lengths_steps_and_draws() -> None:
    given = inputs(METHODS["longest"])
    columns = given.samples.select("sample_id", "response_tokens", "n_steps")
    assert scores(METHODS["longest"], given) == {s: float(tokens) for s, tokens, _ in columns.iter_rows()}
    assert scores(METHODS["stepmax"], given) == {s: float(steps) for s, _, steps in columns.iter_rows()}
    drawn = scores(METHODS["random"], given)
    assert len(set(drawn.values())) == SIZE


def test_what_is_not_faithful_is_said() -> None:
    grace, grape = METHODS["grace"], METHODS["grape"]
    warm, base = Target(name="t", model="m"), Target(name="t", model="m", warmup="none", template="question_answer")
    section = grace.section(name="m", target="t", method="grace")
    assert grace.unfaithful(warm.facts(), section) == []
    assert len(grace.unfaithful(base.facts(), section)) == 1
    section = grape.section(name="m", target="t", method="grape")
    assert grape.unfaithful(base.facts(), section) == []
    assert len(grape.unfaithful(warm.facts(), section)) == 2


def test_a_gradient_that_is_zero_spoils_no_mean_of_spectra() -> None:
    row = {
        "sample_id": "a",
        "nuclear_norm": [[4.0, 2.0, 0.0, 6.0]],
        "effective_rank": [[2.0, 4.0, None, 3.0]],
        "largest_rank": [[4, 4, 0, 3]],
    }
    table = tables.SIGNAL_TABLES["gradient_spectra"]
    made = dict.fromkeys(table.columns) | row | {"response_tokens": 3, "tokens": 5, "flags": []}
    frame = table.conform(pl.DataFrame([made], schema=table.schema, strict=False))
    method = METHODS["spectra"]
    for options, expected in (
        ({}, 3.0),
        ({"length_control": "largest_rank"}, (0.5 + 1.0 + 1.0) / 3),
        ({"metric": "nuclear_norm", "length_control": "largest_rank"}, -(1.0 + 0.5 + 0.0 + 2.0) / 4),
        ({"projection": "v"}, None),
    ):
        found = method.score(ScoreInputs(pl.DataFrame(), {"gradient_spectra": frame}), section_of(method, **options))
        assert found.values["value"].to_list() == [expected if expected is None else pytest.approx(expected)]
