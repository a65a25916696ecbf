"""What a pass gives becomes the rows of each signal's table, whatever else it measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.signals.requests import non_finite, request_for
from curation_assets.signals.store import SignalStore
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_resources.scoring.gradient_spec import FeatureSpec
from curation_resources.scoring.results import GradientFeatures, Likelihoods, StepGradients
from curation_resources.scoring.retrieval_task import RetrievalSpec
from curation_resources.scoring.samples import AnswerPrefix, PerturbedSignals, Pooling, Request, SampleSignals
from curation_resources.storage.warehouse import Warehouse

MEASURED = SampleSignals(
    sample_id="s",
    position=0,
    tokens=9,
    prompt_tokens=3,
    response_tokens=5,
    step_indices=[1, 2],
    segment_tokens=[2, 1, 1],
    step_gradients=StepGradients([1.0, 0.5, 0.2, 1.0, 0.1, 1.0], [1.0, 1.0, 1.0]),
    likelihoods=Likelihoods(1.0, 0.4, 1.5, 1.5, 2.0, 0.5, 0.1),
    segment_nll=[1.0, 2.0, 3.0],
    token_nll=np.array([0.5, 1.5, 1.0, 1.0, 70_000.0], np.float32),
    unconditional_nll=2.5,
    unconditional_tokens=5,
    trajectory=[2.0, 1.5, 1.25],
    base_nll=2.25,
    perturbed=PerturbedSignals(
        "s",
        0,
        tokens=70,
        base={100: 1.5},
        random={100: 3.5},
        directional=[{100: 1.0 + step, 1000: 2.0 + step} for step in range(8)],
    ),
    embeddings={"mean": np.array([1.0, -2.0], np.float32), "last": np.array([1.0, 70_000.0], np.float32)},
)


def row(signal: SignalName, result: SampleSignals) -> dict[str, object]:
    frame = SIGNALS[signal].frame([result])
    assert frame.schema == tables.SIGNAL_TABLES[signal].empty().schema
    return frame.row(0, named=True)


def test_every_table_of_a_signal_has_a_signal() -> None:
    assert set(SIGNALS) == set(tables.SIGNAL_TABLES)
    for signal in SIGNALS.values():
        assert signal.table.columns[signal.value].nullable


@pytest.mark.parametrize("signal", list(SIGNALS))
def test_no_rows_are_an_empty_table(signal: SignalName) -> None:
    assert SIGNALS[signal].frame([]).equals(tables.SIGNAL_TABLES[signal].empty())


def test_a_measured_sample() -> None:
    gradients = row("step_gradients", replace(MEASURED, gradient_flags=["zero_norm"]))
    assert (gradients["n_steps"], gradients["tokens"], gradients["flags"]) == (2, 9, ["zero_norm"])
    likelihoods = row("likelihoods", replace(MEASURED, gradient_flags=["zero_norm"]))
    assert (likelihoods["mean_nll"], likelihoods["mean_margin"], likelihoods["flags"]) == (1.0, 0.1, [])
    segments = row("segment_likelihoods", MEASURED)
    assert (segments["segment_nll"], segments["segment_tokens"]) == ([1.0, 2.0, 3.0], [2, 1, 1])
    assert row("token_likelihoods", MEASURED)["log_likelihoods"] == [-0.5, -1.5, -1.0, -1.0, -65504.0]
    alone = row("unconditional_likelihoods", MEASURED)
    assert (alone["unconditional_nll"], alone["tokens"], alone["flags"]) == (2.5, 5, [])
    assert row("embeddings_mean", MEASURED)["vector"] == [1.0, -2.0]
    assert row("base_likelihoods", MEASURED)["base_nll"] == 2.25
    perturbed = row("perturbed_losses", MEASURED)
    assert (perturbed["base_100"], perturbed["random_100"], perturbed["tokens"]) == (1.5, 3.5, 70)
    assert perturbed["directional_1000"] == [2.0 + step for step in range(8)]
    trajectory = row("loss_trajectories", MEASURED)
    assert (trajectory["losses"], trajectory["tokens"], trajectory["flags"]) == ([2.0, 1.5, 1.25], 9, [])
    assert row("step_gradient_trajectories", MEASURED)["grams"] is None
    gram = MEASURED.step_gradients
    assert gram is not None
    along = row("step_gradient_trajectories", replace(MEASURED, trajectory_gradients=[gram, gram]))
    assert (along["grams"], along["n_steps"]) == ([gradients["gram"]] * 2, 2)


def test_gradients_of_a_sample() -> None:
    vector = GradientFeatures(np.array([127, -3], np.int8), 0.5)
    measured = replace(MEASURED, response_loss=1.5, gradient_norm=2.5, features=vector)
    norms = row("gradient_norms", measured)
    assert (norms["loss"], norms["gradient_norm"], norms["tokens"], norms["flags"]) == (1.5, 2.5, 9, [])
    features = row("gradient_features", measured)
    assert (features["features"], features["scale"]) == ([127, -3], 0.5)
    along = replace(MEASURED, trajectory_adam_features=[vector, vector], trajectory_weights=[0.75, 0.25])
    found = row("adam_feature_trajectories", along)
    assert (found["features"], found["scales"], found["weights"]) == ([[127, -3]] * 2, [0.5] * 2, [0.75, 0.25])
    assert row("gradient_feature_trajectories", along)["features"] is None
    told = row("in_run_influence", replace(MEASURED, influence=[0.5, -1.0]))
    assert (told["influence"], told["tokens"], told["flags"]) == ([0.5, -1.0], 0, [])
    assert row("in_run_influence", MEASURED)["flags"] == ["not_trained_on"]
    # What has no label has no gradient, whatever else was measured of it.
    short = replace(MEASURED, prompt_tokens=0, response_tokens=1)
    assert (row("gradient_norms", short)["flags"], row("gradient_norms", short)["tokens"]) == (
        ["single_token_response"],
        0,
    )
    broken = replace(measured, gradient_norm=None, flags=["non_finite"])
    assert row("gradient_norms", broken)["flags"] == ["non_finite"]
    assert row("gradient_features", broken)["flags"] == []


def test_a_vector_beyond_half_precision_is_null_and_flagged() -> None:
    found = row("embeddings_last", MEASURED)
    assert (found["vector"], found["flags"]) == (None, ["non_finite"])
    assert non_finite(SIGNALS["embeddings_last"].reasons(SIGNALS["embeddings_last"].frame([MEASURED]))) == 1


def test_nan_in_one_signal_is_said_of_no_other() -> None:
    broken = replace(MEASURED, step_gradients=None, flags=["non_finite"])
    assert row("step_gradients", broken)["flags"] == ["non_finite"]
    assert row("step_gradients", broken)["tokens"] == 9
    others: tuple[SignalName, ...] = ("likelihoods", "segment_likelihoods", "embeddings_mean")
    assert [row(signal, broken)["flags"] for signal in others] == [[], [], []]


@pytest.mark.parametrize("reason", ["no_answer", "no_steps", "answer_without_tokens"])
def test_a_sample_without_gradients_has_the_same_row_whatever_else_was_measured(reason: str) -> None:
    asked = replace(MEASURED, step_gradients=None, gradient_flags=[reason])
    alone = replace(MEASURED, step_gradients=None, gradient_flags=[reason], tokens=0, likelihoods=None)
    broken = replace(asked, flags=["non_finite"], likelihoods=None)
    assert row("step_gradients", asked) == row("step_gradients", alone) == row("step_gradients", broken)
    assert row("step_gradients", alone)["tokens"] == 0


@pytest.mark.parametrize("flag", ["truncated", "answer_truncated", "response_truncated"])
def test_how_a_cut_met_the_segments_is_not_said_of_what_does_not_rest_on_them(flag: str) -> None:
    cut = replace(MEASURED, flags=[flag])
    assert row("likelihoods", cut)["flags"] == row("embeddings_mean", cut)["flags"] == ["response_truncated"]
    assert row("segment_likelihoods", cut)["flags"] == [flag]


def test_a_response_of_one_token_is_predicted_by_nothing_without_its_prompt() -> None:
    short = replace(MEASURED, unconditional_nll=None, unconditional_tokens=0, response_tokens=1)
    assert row("unconditional_likelihoods", short)["flags"] == ["single_token_response"]
    unrunnable = replace(short, flags=["empty_response"])
    assert row("unconditional_likelihoods", unrunnable)["flags"] == ["empty_response"]


def test_reasons_are_counted() -> None:
    without = replace(MEASURED, likelihoods=None, flags=["image_missing"], tokens=0)
    signal = SIGNALS["likelihoods"]
    assert signal.reasons(signal.frame([MEASURED, without, without])) == {"image_missing": 2}
    assert non_finite({"image_missing": 2, "response_truncated+non_finite": 3}) == 3


def test_a_request_asks_for_nothing_but_the_signals() -> None:
    target = Target(name="t", model="m", proxy="lm_head")
    assert request_for(target, {"step_gradients"}) == Request(step_gradients="lm_head")
    assert request_for(target, {"likelihoods", "embeddings_last"}) == Request(
        likelihoods=True, embeddings=frozenset({"last"})
    )
    assert request_for(target, list(SIGNALS)) == Request(
        step_gradients="lm_head",
        likelihoods=True,
        segment_likelihoods=True,
        sequence_likelihoods=True,
        embeddings=frozenset(get_args(Pooling)),
        token_likelihoods=True,
        unconditional=True,
        direct=frozenset(get_args(AnswerPrefix)),
        sequence_uncertainty=True,
        error_norms=True,
        trajectory=True,
        trajectory_gradients="lm_head",
        base_likelihoods=True,
        spectra=True,
        gradient_norms="auto",
        in_run=True,
        rewards=True,
        questions=("instruction_tags", "difficulty", "complexity", "quality"),
        solving=True,
        process_rewards=True,
        attention_influence=RetrievalSpec(),
        features=FeatureSpec(),
        trajectory_features=FeatureSpec(),
        trajectory_adam_features=FeatureSpec(),
        perturbed=True,
    )


def test_other_limits_on_images_ask_again_for_what_they_left_out(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    signal = SIGNALS["likelihoods"]
    closed = replace(MEASURED, sample_id="large", likelihoods=None, flags=["image_too_large"], tokens=0)
    strict = SignalStore(warehouse, "signals/f", "strict")
    strict.append(signal.frame([MEASURED, closed]))
    ids = pl.Series(["s", "large"])
    assert strict.missing(ids) == set()
    assert len(strict.parts_of(ids)) == len(strict.parts()) == 2
    generous = SignalStore(warehouse, "signals/f", "generous")
    assert generous.missing(ids) == {"large"}
    generous.append(signal.frame([replace(MEASURED, sample_id="large")]))
    rows = generous.rows(ids)
    assert rows is not None
    assert rows["mean_nll"].null_count() == 0
    # Back to the former limits: what has been measured stays measured.
    again = SignalStore(warehouse, "signals/f", "strict").rows(ids)
    assert again is not None
    assert again.equals(rows)
    assert SignalStore(warehouse, "signals/none", "strict").rows(ids) is None
