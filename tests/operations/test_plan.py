"""Plans: what they say is what the next run does; they load no model without need and change nothing."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.cli.show_cost import print_plan
from curation_assets.operations import plan as plan_module
from curation_assets.operations import plan_seconds as seconds_module
from curation_assets.operations import plan_tokens as tokens_module
from curation_assets.operations.plan import Plan, TargetPlan, make_plan
from curation_assets.operations.plan_tokens import make_encoder
from curation_assets.signals import measure as measure_module
from curation_assets.signals.parts import tokens_run
from curation_assets.signals.scorers import model_scorer
from curation_assets.signals.store import signal_dir
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.scorer import Scorer
from curation_resources.scoring.devices import make_pass
from curation_resources.scoring.samples import SampleSignals
from curation_resources.storage.landing import LandingError
from tests.models import write_tiny_model, write_tiny_qwen3_vl
from tests.pipeline.test_images import png, trace
from tests.pipeline.workspaces import make_workspace, rows, run, write_config, write_shard

SIGNALS: tuple[SignalName, ...] = ("step_gradients", "likelihoods", "unconditional_likelihoods")
NO_ANSWER = {"prompt": "Say something.", "response": "Words.\nMore words."}
SHARDS = {"a.jsonl": [*rows(12), NO_ANSWER], "b.jsonl": rows(9, start=11)}
DISTINCT = 12 + 1 + 8


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path) -> Workspace:
    """Two shards with one sample in both, and one sample without an answer; nothing has been run."""
    return make_workspace(tmp_path, tiny_model, SHARDS, signals=SIGNALS)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a scorer fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model would have been loaded")

    monkeypatch.setattr(Scorer, "__init__", refuse)


def only(plan: Plan) -> TargetPlan:
    (target,) = plan.targets
    return target


def files(workspace: Workspace) -> dict[str, tuple[bytes, int]]:
    """Every file of the warehouse with its content and time."""
    found = [path for path in workspace.warehouse.root.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def written(workspace: Workspace, signal: SignalName) -> int:
    folder = signal_dir(workspace, workspace.settings.targets[0], signal)
    assert folder is not None
    return sum(path.stat().st_size for path in workspace.warehouse.local(folder).glob("*.parquet"))


def again(workspace: Workspace) -> Workspace:
    """The workspace as another process sees it."""
    return Workspace.load(workspace.config_file)


def test_a_plan_before_the_first_run_says_what_it_will_run(workspace: Workspace) -> None:
    plan = make_plan(workspace)
    target = only(plan)
    assert (plan.shards, plan.unread, plan.samples, plan.estimated) == (2, 2, DISTINCT, False)
    assert [(signal.measured, signal.to_measure) for signal in target.signals] == [(0, DISTINCT)] * 3
    assert (target.exact, target.encoded, target.of) == (True, DISTINCT, DISTINCT)
    assert target.measured == ()
    with_prompt, alone = target.passes
    assert with_prompt.cost == with_prompt.samples == DISTINCT
    assert alone.samples == DISTINCT
    assert 0 < alone.cost < DISTINCT
    summary = run(workspace)
    assert target.tokens == with_prompt.tokens + alone.tokens == summary.tokens_measured > 0
    for signal in target.signals:
        assert signal.bytes_to_write is not None
        assert 0.67 < signal.bytes_to_write / written(workspace, signal.signal) < 1.5, signal.signal


def test_the_tokens_of_step_gradients_alone_leave_out_what_cannot_be_run(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, SHARDS)
    target = only(make_plan(made, probe=False))
    assert [one.samples for one in target.passes] == [DISTINCT - 1]
    assert target.tokens == run(made).tokens_measured


def test_a_probe_measures_time_and_one_without_does_not(workspace: Workspace) -> None:
    target = only(make_plan(workspace))
    probed = target.probe
    assert probed is not None
    assert probed.seconds > 0
    assert (probed.samples, probed.batches) == (DISTINCT, probed.of_batches)
    assert probed.load_seconds > 0
    assert probed.spent >= probed.seconds
    assert target.speed is not None
    assert target.seconds == pytest.approx(target.tokens / target.speed.tokens_per_second)
    assert target.speed.tokens_per_second == pytest.approx(probed.tokens / probed.seconds)
    assert "CPU" in target.speed.device


def test_a_probe_without_time_measures_one_sample(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PROBE_SECONDS", 0.0)
    target = only(make_plan(workspace))
    assert target.probe is not None
    assert (target.probe.samples, target.probe.batches) == (1, 0)
    assert target.seconds is not None
    assert target.seconds > 0
    console = Console(record=True, width=200)
    print_plan(make_plan(workspace), console)
    assert "time and bytes: estimated from one sample" in console.export_text()


class Clock:
    """A clock that only measuring advances: 3 s to load a model, and so many tokens a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens_per_second: float) -> None:
        self.now, self.taken = 0.0, list[int]()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        load, measure = Scorer.load, seconds_module._measure

        def slow_load(scorer: Scorer) -> None:
            load(scorer)
            self.now += 3.0

        def slow_measure(*arguments: Any) -> tuple[float, list[SampleSignals]]:
            results = measure(*arguments)[1]
            self.taken.append(len(results))
            took = sum(map(tokens_run, results)) / tokens_per_second
            self.now += took
            return took, results

        monkeypatch.setattr(Scorer, "load", slow_load)
        monkeypatch.setattr(seconds_module, "_measure", slow_measure)


@pytest.mark.parametrize("tokens_per_second", [1e6, 200.0, 40.0, 8.0])
def test_a_probe_ends_in_time_however_slow_the_model(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tokens_per_second: float
) -> None:
    clock = Clock(monkeypatch, tokens_per_second)
    target = only(make_plan(workspace))
    assert target.probe is not None
    assert target.probe.load_seconds == pytest.approx(3.0)
    assert target.probe.spent == clock.now <= 20.0
    assert target.speed is not None
    assert target.speed.tokens_per_second == pytest.approx(tokens_per_second)
    # What does not fit as a whole is measured in part.
    whole = tokens_per_second == 1e6
    assert (target.probe.samples == DISTINCT) == whole
    assert target.probe.batches == (0 if tokens_per_second == 8.0 else target.probe.of_batches)


def test_measured_figures_include_visits_that_were_interrupted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        # The rows of the first shard are stored; its records are not.
        patch.setattr(measure_module, "records_of", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(workspace)
    target = only(make_plan(again(workspace), probe=False))
    stored = target.signals[0].measured
    assert stored > 0
    assert target.measured == ()
    assert target.unrecorded[0] == stored
    assert target.unrecorded[1] > 0
    console = Console(record=True, width=200)
    print_plan(make_plan(again(workspace), probe=False), console)
    shown = console.export_text()
    assert f"{stored:,} samples are of visits that were interrupted" in shown
    run(again(workspace))
    after = only(make_plan(again(workspace), probe=False))
    assert sum(one.samples for one in after.measured) + after.unrecorded[0] == DISTINCT


def test_stored_runs_of_the_same_signals_replace_the_probe(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace)
    write_shard(workspace.folder / "landing" / "c.jsonl", rows(7, start=30))
    with monkeypatch.context() as patch:
        patch.setattr(seconds_module, "run_probe", lambda *_: pytest.fail("a model would have been loaded"))
        target = only(make_plan(again(workspace)))
    (done,) = target.measured
    assert target.probe is None
    assert done.tokens_per_second is not None
    assert target.seconds == pytest.approx(target.tokens / done.tokens_per_second)
    for signal in target.signals:
        assert signal.bytes_to_write == round(7 * signal.bytes_stored / DISTINCT)
    # A run on another device shows nothing about this one.
    monkeypatch.setattr(Scorer, "device_name", lambda _: "another device")
    assert only(make_plan(again(workspace), probe=False)).seconds is None


@pytest.mark.usefixtures("no_model")
def test_without_a_probe_no_model_is_loaded(workspace: Workspace) -> None:
    target = only(make_plan(workspace, probe=False))
    assert target.tokens > 0
    assert (target.speed, target.seconds, target.bytes_to_write) == (None, None, None)


def test_after_a_run_there_is_nothing_left_and_the_measured_figures_are_there(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = only(make_plan(workspace))
    summary = run(workspace)
    monkeypatch.setattr(Scorer, "__init__", lambda *_: pytest.fail("a model would have been loaded"))
    monkeypatch.setattr(tokens_module, "make_encoder", lambda *_: pytest.fail("a tokenizer would have been loaded"))
    target = only(make_plan(again(workspace)))
    assert (target.samples, target.tokens, target.cost, target.seconds) == (0, 0, 0, 0.0)
    assert [(signal.measured, signal.to_measure) for signal in target.signals] == [(DISTINCT, 0)] * 3
    # Three records a shard tell of one visit: its tokens and seconds are counted once.
    (done,) = target.measured
    assert set(done.signals) == set(SIGNALS)
    assert (done.shards, done.samples, done.tokens) == (2, DISTINCT, summary.tokens_measured)
    assert done.seconds > 0
    assert done.cost == pytest.approx(sum(one.cost for one in planned.passes), rel=1e-9)
    assert [signal.bytes_stored for signal in target.signals] == [written(workspace, name) for name in SIGNALS]


def test_signals_that_were_measured_apart_are_apart(workspace: Workspace, tiny_model: Path) -> None:
    write_config(workspace.folder, tiny_model, signals=["likelihoods"])
    first = run(again(workspace)).tokens_measured
    write_config(workspace.folder, tiny_model, signals=SIGNALS)
    second = again(workspace)
    planned = only(make_plan(second, probe=False))
    assert [signal.to_measure for signal in planned.signals] == [DISTINCT, 0, DISTINCT]
    assert planned.passes[0].signals == ("step_gradients",)
    tokens = run(second).tokens_measured
    assert tokens == planned.tokens
    found = {done.signals: done.tokens for done in only(make_plan(again(workspace))).measured}
    assert found == {("likelihoods",): first, ("step_gradients", "unconditional_likelihoods"): tokens}


def test_of_another_shard_only_its_own_samples(workspace: Workspace) -> None:
    run(workspace)
    # Two of its samples are in the other shards.
    write_shard(workspace.folder / "landing" / "c.jsonl", rows(7, start=18))
    later = again(workspace)
    plan = make_plan(later, probe=False)
    assert (plan.unread, plan.samples, only(plan).samples) == (1, DISTINCT + 5, 5)
    assert only(plan).tokens == run(later).tokens_measured


def test_of_a_shard_with_other_rows_only_the_new_ones(workspace: Workspace) -> None:
    run(workspace)
    write_shard(workspace.folder / "landing" / "b.jsonl", rows(9, start=13))
    later = again(workspace)
    plan = make_plan(later, probe=False)
    assert (plan.unread, only(plan).samples) == (1, 2)
    assert only(plan).tokens == run(later).tokens_measured


def test_another_segmentation_measures_what_rests_on_it(workspace: Workspace, tiny_model: Path) -> None:
    run(workspace)
    write_config(workspace.folder, tiny_model, signals=SIGNALS, corpus="segmentation: words")
    later = again(workspace)
    target = only(make_plan(later, probe=False))
    assert [signal.to_measure for signal in target.signals] == [DISTINCT, 0, 0]
    assert target.tokens == run(later).tokens_measured


def test_another_model_measures_everything_again(workspace: Workspace, tmp_path: Path) -> None:
    run(workspace)
    other = write_tiny_model(tmp_path / "other", seed=1, context=96)
    write_config(workspace.folder, other, signals=SIGNALS)
    later = again(workspace)
    target = only(make_plan(later, probe=False))
    assert [(signal.measured, signal.to_measure) for signal in target.signals] == [(0, DISTINCT)] * 3
    assert target.measured == ()
    # Some samples are longer than this model's context.
    assert target.tokens == run(later).tokens_measured


def test_a_warm_up_is_planned_at_its_price_and_probed_with_the_base_model(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, SHARDS, warmup="{fraction: 0.25, min_pool: 10, epochs: 2}")
    target = only(make_plan(made))
    assert target.warmup is not None
    drawn = -(-DISTINCT // 4)
    assert (target.warmup.samples, target.warmup.cost) == (drawn, 3 * drawn * 2)
    assert target.cost == target.warmup.cost + DISTINCT - 1
    assert target.waiting is None
    assert target.probe is not None
    assert target.probe.base
    assert target.scores[0].checkpoint == 3 * drawn
    assert target.scores[0].scoring == DISTINCT
    assert target.tokens == run(made).tokens_measured
    after = only(make_plan(again(made)))
    assert after.warmup is None
    assert after.measured_warmup is not None
    assert (after.measured_warmup.samples, after.measured_warmup.epochs) == (drawn, 2)
    # Its time is planned, and measured.
    assert target.warmup.seconds is not None
    assert after.measured_warmup.seconds is not None
    assert after.measured_warmup.seconds > 0
    console = Console(record=True, width=200)
    print_plan(make_plan(again(made)), console)
    assert "time to warm up" in console.export_text()


def test_a_warm_up_that_waits_says_for_what(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, SHARDS, warmup="{min_pool: 50}")
    waiting = only(make_plan(made, probe=False)).waiting
    assert waiting is not None
    assert f"the pool holds {DISTINCT} samples; its warm-up needs 50" in waiting
    (said,) = run(made).waiting
    assert "its warm-up needs 50" in said


HELD_OUT = """
validation:
  - {name: held_out, path: ./held_out.jsonl}
  - {name: other, path: ./other.jsonl}
scores:
  - {name: near, target: tiny, method: rds, validation: held_out}
  - {name: near_plus, target: tiny, method: rds_plus, validation: other}
  - {name: also, target: tiny, method: rds, validation: other}
"""


@pytest.fixture
def with_sets(tmp_path: Path, tiny_model: Path) -> Workspace:
    """Of six held-out samples in two sets one is in both, and one is in the pool."""
    made = make_workspace(tmp_path, tiny_model, SHARDS, signals=["embeddings_last", "embeddings_position_weighted"])
    made.config_file.write_text(made.config_file.read_text() + HELD_OUT)
    write_shard(tmp_path / "held_out.jsonl", [*rows(3, start=100), *rows(1)])
    write_shard(tmp_path / "other.jsonl", rows(3, start=102))
    return again(made)


def test_validation_sets_are_planned_as_they_are_run(with_sets: Workspace) -> None:
    target = only(make_plan(with_sets))
    assert (target.samples, target.held_out) == (DISTINCT + 5, 5)
    assert [signal.to_measure for signal in target.signals] == [DISTINCT, DISTINCT]
    # The sample in both sets is run for one signal with the first and for the other with the second.
    twice = only(make_plan(with_sets, probe=False)).tokens
    summary = run(with_sets)
    assert target.tokens == twice <= summary.tokens_measured
    found = only(make_plan(again(with_sets)))
    assert (found.samples, found.held_out, found.tokens) == (0, 0, 0)
    assert sum(one.tokens for one in found.measured) == summary.tokens_measured


def test_samples_of_a_validation_set_are_counted_to_the_token(with_sets: Workspace, tmp_path: Path) -> None:
    write_shard(tmp_path / "other.jsonl", rows(3, start=200))
    target = only(make_plan(with_sets, probe=False))
    assert target.held_out == 6
    assert target.tokens == run(with_sets).tokens_measured


def test_a_validation_set_that_is_gone_is_named_and_the_rest_is_planned(with_sets: Workspace, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").unlink()
    plan = make_plan(with_sets, probe=False)
    (problem,) = plan.problems
    assert "validation set other" in problem
    assert only(plan).held_out == 3


def test_what_filters_leave_out_trains_no_warm_up(tmp_path: Path, tiny_model: Path) -> None:
    warmup = "{min_pool: 100, fraction: 0.5}"
    copies = [{**row, "response": row["response"] + " "} for row in rows(6)]
    shards = {"a.jsonl": rows(12), "b.jsonl": copies}
    made = make_workspace(tmp_path, tiny_model, shards, warmup=warmup, corpus="filters: {near_duplicates: 0.9}")
    before = only(make_plan(made, probe=False))
    assert before.waiting is not None
    assert "holds 18 samples" in before.waiting
    run(made)
    after = only(make_plan(made, probe=False))
    assert after.waiting is not None
    assert "holds 12 samples" in after.waiting
    assert "holds 12 samples" in run(made).waiting[0]


def test_a_plan_changes_no_file(workspace: Workspace) -> None:
    before = files(workspace)
    make_plan(workspace)
    assert files(workspace) == before
    run(workspace)
    write_shard(workspace.folder / "landing" / "c.jsonl", rows(5, start=30))
    before = files(workspace)
    make_plan(again(workspace))
    assert files(workspace) == before


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_large_files_are_counted_by_their_first_rows(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    import gzip

    import polars as pl

    records = rows(3000)
    made = make_workspace(tmp_path, tiny_model, {})
    path = tmp_path / "landing" / f"large{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(records).write_parquet(path)
    else:
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        # Several members, as tools that compress in parallel write them.
        members = [gzip.compress(data[start : start + 9000]) for start in range(0, len(data), 9000)]
        path.write_bytes(b"".join(members) if suffix.endswith("gz") else data)
    monkeypatch.setattr(tokens_module, "HEAD_BYTES", 2**14)
    monkeypatch.setattr(tokens_module, "SMALLEST_HEAD", 2**14)
    plan = make_plan(made, probe=False)
    assert plan.estimated
    assert not only(plan).exact
    assert plan.samples == pytest.approx(3000, rel=0.25)
    # One token a byte, and EOS.
    whole = sum(len(f"user: {row['prompt']}\nassistant: {row['response']}") + 1 for row in records)
    assert only(plan).tokens == pytest.approx(whole, rel=0.3)


def test_many_samples_are_extrapolated_from_some_with_a_margin(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(workspace.folder / "landing" / "c.jsonl", rows(400, start=100))
    exact = only(make_plan(workspace, probe=False)).tokens
    monkeypatch.setattr(tokens_module, "EXACT_BYTES", 100)
    monkeypatch.setattr(tokens_module, "SAMPLED_ROWS", 60)
    monkeypatch.setattr(tokens_module, "LEAST_OF_KIND", 60)
    target = only(make_plan(workspace))
    assert (target.exact, target.encoded, target.of) == (False, 60, DISTINCT + 400)
    assert target.tokens_margin > 0
    assert abs(target.tokens - exact) < 2 * target.tokens_margin
    assert target.passes[0].samples == pytest.approx(DISTINCT + 400, rel=0.05)
    assert only(make_plan(workspace)).tokens == target.tokens


def test_the_encoder_of_a_plan_is_that_of_a_run(workspace: Workspace) -> None:
    target = workspace.settings.targets[0]
    planned = make_encoder(workspace, target)
    real = make_pass(model_scorer(workspace, target).spec, "cpu").encoder
    for name in ("max_length", "vocabulary", "chat", "question_answer", "alpaca", "limits"):
        assert getattr(planned, name) == getattr(real, name), name


def test_what_cannot_be_read_is_named_and_stops_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = workspace.folder / "landing"
    (landing / "broken.parquet").write_bytes(b"no parquet")
    (landing / "large.jsonl.gz").write_bytes(b"no gzip" * 50_000)
    (landing / "large.parquet").write_bytes(b"no parquet" * 50_000)
    monkeypatch.setattr(tokens_module, "HEAD_BYTES", 0)
    plan = make_plan(workspace, probe=False)
    assert plan.samples == DISTINCT
    assert [problem.split(":")[0] for problem in plan.problems] == ["broken.parquet", "large.jsonl.gz", "large.parquet"]
    assert "not gzip" in plan.problems[1]


def test_images_count_with_their_tokens_wherever_they_lie(tmp_path: Path) -> None:
    model = write_tiny_qwen3_vl(tmp_path / "model")
    inside = f"data:image/png;base64,{base64.b64encode(png((0, 0, 200))).decode()}"
    records = [trace("red.png"), trace(inside), trace("absent.png"), *rows(3)]
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "red.png").write_bytes(png((200, 0, 0)))
    made = make_workspace(tmp_path, model, {"a.jsonl": records}, signals=SIGNALS)
    target = only(make_plan(made))
    assert target.exact
    assert [one.samples for one in target.passes] == [5, 5]
    assert target.tokens == run(made).tokens_measured
    assert only(make_plan(again(made))).samples == 0


def test_no_landing_folder_is_an_error_with_the_mend(workspace: Workspace) -> None:
    (workspace.folder / "landing").rename(workspace.folder / "elsewhere")
    with pytest.raises(LandingError, match="Create it, or set"):
        make_plan(workspace)


ALL: tuple[str, ...] = (
    *SIGNALS,
    "segment_likelihoods",
    "token_likelihoods",
    "embeddings_mean",
    "embeddings_last",
    "embeddings_position_weighted",
)


def test_the_command_at_80_columns(workspace: Workspace, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write_config(workspace.folder, tiny_model, signals=ALL)
    command = ["plan", "--config", str(workspace.config_file)]
    fresh = CliRunner().invoke(app, command)
    assert fresh.exit_code == 0, fresh.output
    assert max(map(len, fresh.stdout.splitlines())) <= 80
    for name in ALL:
        assert name in fresh.stdout
    assert f"total: {DISTINCT} samples" in fresh.stdout
    assert "(exact)" in fresh.stdout
    bare = CliRunner().invoke(app, [*command, "--no-probe"])
    assert "about" not in bare.stdout
    run(again(workspace))
    done = CliRunner().invoke(app, command)
    assert "total: nothing to measure" in done.stdout
    assert "CPU cores" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "nowhere")
    (tmp_path / "landing").mkdir()
    wrong = CliRunner().invoke(app, ["plan", "--config", str(config)])
    assert wrong.exit_code == 1
    assert "Correct targets.model" in wrong.output
    assert "Nothing is stored" in " ".join(CliRunner().invoke(app, ["plan", "--help"]).output.split())
