"""Several signals of one target: one pass for all that is missing, and nothing that is stored again."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curation_assets import tables
from curation_assets.definitions import build_definitions
from curation_assets.defs.main_job import MainJob
from curation_assets.defs.partitions import SHARDS
from curation_assets.defs.sensors import scoring_requests
from curation_assets.signals.measure import groups_by_missing
from curation_assets.signals.scorers import model_scorer
from curation_assets.signals.store import SignalStore, signal_dir
from curation_assets.subsets.stored_tables import TableRequestError, find_trace, read_stored
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring import device_names, forward, measuring, units
from curation_resources.scoring.images import ImageLimits
from curation_resources.scoring.samples import Request, Sample, SampleSignals
from tests.pipeline.test_interruptions import stored_ids
from tests.pipeline.workspaces import (
    PASS_SIGNALS,
    instance_of,
    landed,
    lose,
    make_workspace,
    rows,
    run,
    sample_scores,
    signal_rows,
    stored,
    subset_ids,
    write_config,
    write_shard,
)

ALL = PASS_SIGNALS
SHARD_ROWS = {"a.jsonl": rows(8), "b.jsonl": rows(6, start=100)}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every batch that runs through a model from here on."""
    seen: list[int] = []
    real = measuring.measure_batch

    def counted(*arguments: Any) -> list[SampleSignals]:
        results = real(*arguments)
        seen.append(sum(result.tokens for result in results))
        return results

    monkeypatch.setattr(forward, "measure_batch", counted)
    return seen


def of_signal(workspace: Workspace, signal: SignalName) -> dict[str, bytes]:
    """The parts of a signal, by name."""
    paths = stored(workspace, f"signals/tiny/base/{signal}", "part-*.parquet")
    return {path: workspace.warehouse.storage.read(path) for path in paths}


def reload(workspace: Workspace, model: Path, *signals: SignalName) -> Workspace:
    return Workspace.load(write_config(workspace.folder, model, signals=signals))


def same(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """Equal to fp32 rounding: batches may have been others."""
    assert one.schema == other.schema
    for name, dtype in one.schema.items():
        left, right = (frame[name] for frame in (one, other))
        if isinstance(dtype, pl.List) and dtype.inner.is_float():
            left, right = left.explode(), right.explode()
        if left.dtype.is_float():
            # A mean near zero has only absolute precision; fp16 has three digits.
            pairs = zip(left.cast(pl.Float64), right.cast(pl.Float64), strict=True)
            tolerance = 1e-3 if left.dtype == pl.Float16 else 1e-5
            assert all(a == b or a == pytest.approx(b, rel=tolerance, abs=tolerance) for a, b in pairs), name
        else:
            assert left.equals(right), name


@pytest.mark.local_only("compares with a pass in this process")
def test_all_signals_cost_one_pass(tmp_path: Path, tiny_model: Path, passes: list[int]) -> None:
    alone = make_workspace(tmp_path / "alone", tiny_model, SHARD_ROWS)
    one = run(alone)
    cost = sum(passes)
    passes.clear()
    together = make_workspace(tmp_path / "together", tiny_model, SHARD_ROWS, signals=ALL)
    six = run(together)
    assert sum(passes) == cost == one.tokens_measured == six.tokens_measured
    assert six.measured == {"tiny": 14}
    same(signal_rows(together, "step_gradients"), signal_rows(alone, "step_gradients"))
    assert subset_ids(together) == subset_ids(alone)
    for signal in ALL:
        frame = signal_rows(together, signal)
        assert (len(frame), frame[SIGNALS[signal].value].null_count()) == (14, 0)
        assert frame.schema == tables.SIGNAL_TABLES[signal].empty().schema
    assert run(together).tokens_measured == 0


@pytest.mark.local_only("looks at the pass in this process")
def test_a_signal_asked_for_later_is_the_only_one_measured(
    tmp_path: Path, tiny_model: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path / "w", tiny_model, SHARD_ROWS)
    first = run(workspace)
    before = of_signal(workspace, "step_gradients")
    passes.clear()
    asked: list[Request] = []
    real = forward.ForwardPass.stream

    def stream(
        self: forward.ForwardPass,
        samples: Sequence[Sample],
        request: Request,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[list[SampleSignals]]:
        asked.append(request)
        return real(self, samples, request, progress)

    monkeypatch.setattr(forward.ForwardPass, "stream", stream)
    summary = run(reload(workspace, tiny_model, "step_gradients", "likelihoods"))
    assert (summary.measured, summary.tokens_measured) == ({"tiny": 14}, first.tokens_measured)
    assert asked == [Request(likelihoods=True)] * 2
    assert of_signal(workspace, "step_gradients") == before
    # Nothing that rests on the step gradients is made again.
    assert (summary.scored, summary.subsets) == ({"tiny": 0}, [])


def test_what_is_missing_differs_from_sample_to_sample(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "w", tiny_model, {"a.jsonl": rows(4)})
    run(workspace)
    write_shard(landed(workspace) / "a.jsonl", rows(8))
    write_shard(landed(workspace) / "b.jsonl", rows(2, start=50))
    both = reload(workspace, tiny_model, "likelihoods", "step_gradients")
    assert run(both).measured == {"tiny": 10}
    records = {}
    for signal in both.settings.targets[0].signals:
        folder = signal_dir(both, both.settings.targets[0], signal)
        records[signal] = workspace.warehouse.read_json(f"{folder}/shards/a.jsonl.json")
    counts = {signal: (record["measured"], record["skipped"]) for signal, record in records.items()}
    assert counts == {"step_gradients": (4, 4), "likelihoods": (8, 0)}
    assert len({record["tokens_run"] for record in records.values()}) == 1
    fresh = make_workspace(
        tmp_path / "fresh", tiny_model, {"a.jsonl": rows(8), "b.jsonl": rows(2, start=50)}, signals=ALL[:2]
    )
    run(fresh)
    for signal in ALL[:2]:
        same(signal_rows(both, signal), signal_rows(fresh, signal))


def test_samples_are_grouped_by_what_they_lack() -> None:
    ids = pl.Series(["a", "b", "c", "d"])
    groups = groups_by_missing(ids, {"likelihoods": {"a", "c"}, "step_gradients": {"c", "b", "x"}})
    assert groups == {
        frozenset({"likelihoods"}): ["a"],
        frozenset({"step_gradients"}): ["b"],
        frozenset({"likelihoods", "step_gradients"}): ["c"],
    }


@pytest.mark.local_only("stops the writing in this process")
@pytest.mark.parametrize("kept", [0, 1, 4, 7])
def test_killed_between_the_parts_of_two_signals(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    workspace = make_workspace(
        tmp_path / "w", tiny_model, SHARD_ROWS, signals=ALL[:3], part_seconds=0, batch_tokens=300
    )
    real = SignalStore.append
    appended: list[SignalName] = []

    def append(self: SignalStore, frame: pl.DataFrame) -> list[str]:
        if len(appended) >= kept:
            raise SystemExit(9)
        appended.append("likelihoods")
        return real(self, frame)

    with monkeypatch.context() as patched:
        patched.setattr(SignalStore, "append", append)
        with pytest.raises(SystemExit):
            run(workspace)
    stored = {signal: len(set(stored_ids(workspace, signal))) for signal in ALL[:3]}
    before = {signal: of_signal(workspace, signal) for signal in ALL[:3]}
    assert sum(map(len, before.values())) == kept
    run(workspace)
    for signal in ALL[:3]:
        # No sample twice, and the very rows: what was there before the kill has not been measured again.
        after = pl.concat([pl.read_parquet(data) for data in of_signal(workspace, signal).values()])
        assert len(after) == after["sample_id"].n_unique() == 14 >= stored[signal]
        for data in before[signal].values():
            kept_rows = pl.read_parquet(data).sort("sample_id")
            ids = kept_rows["sample_id"].implode()
            assert after.filter(pl.col("sample_id").is_in(ids)).sort("sample_id").equals(kept_rows)
    whole = make_workspace(tmp_path / "whole", tiny_model, SHARD_ROWS, signals=ALL[:3])
    run(whole)
    for signal in ALL[:3]:
        same(signal_rows(workspace, signal), signal_rows(whole, signal))


def test_a_lost_part_of_one_signal_costs_that_signal_alone(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "w", tiny_model, SHARD_ROWS, signals=ALL[:2])
    run(workspace)
    gradients = of_signal(workspace, "step_gradients")
    lose(workspace, *stored(workspace, "signals/tiny/base/likelihoods", "part-*.parquet"))
    assert run(workspace).measured == {"tiny": 14}
    assert of_signal(workspace, "step_gradients") == gradients
    assert len(signal_rows(workspace, "likelihoods")) == 14


def test_a_target_without_step_gradients_ends_with_its_signals(tmp_path: Path, tiny_model: Path) -> None:
    signals = ("likelihoods", "embeddings_last")
    workspace = make_workspace(tmp_path / "w", tiny_model, SHARD_ROWS, signals=signals)
    summary = run(workspace)
    assert (summary.measured, summary.scored, summary.subsets) == ({"tiny": 14}, {"tiny": 2}, [])
    assert run(workspace).tokens_measured == 0
    keys = {node.key.to_user_string() for node in build_definitions(workspace).resolve_asset_graph().asset_nodes}
    assert {key for key in keys if key.startswith("tiny/")} == {
        "tiny/base_model",
        "tiny/likelihoods",
        "tiny/embeddings_last",
        "tiny/sample_scores",
        "tiny/score_manifest",
    }
    assert len(read_stored(workspace, "sample_scores").collect()) == 14
    with pytest.raises(TableRequestError, match=r"does not measure segment_likelihoods. Add it to targets.signals"):
        read_stored(workspace, "segment_likelihoods")
    sample_id = signal_rows(workspace, "likelihoods")["sample_id"][0]
    assert find_trace(workspace, sample_id).scores.is_empty()
    # Another segmentation changes nothing that these signals rest on.
    cut = Workspace.load(write_config(workspace.folder, tiny_model, signals=signals, corpus="segmentation: words"))
    again = run(cut)
    assert (again.read, again.tokens_measured) == (2, 0)


def test_selecting_one_asset_measures_that_signal_alone(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "w", tiny_model, SHARD_ROWS, signals=ALL)
    job = MainJob(workspace, instance_of(workspace))
    instance_of(workspace).add_dynamic_partitions(str(SHARDS.name), list(SHARD_ROWS))
    corpus = [dg.AssetKey(name) for name in ("raw_corpus", "rejected_rows", "segmented_steps")]
    job._execute("reading", "corpus", corpus, shards=list(SHARD_ROWS))
    job._execute("measuring", "signals", [dg.AssetKey(["tiny", "likelihoods"])], shards=list(SHARD_ROWS))
    assert workspace.warehouse.storage.folders("signals/tiny/base") == ["likelihoods"]
    assert instance_of(workspace).get_materialized_partitions(dg.AssetKey(["tiny", "likelihoods"])) == set(SHARD_ROWS)
    assert not instance_of(workspace).get_materialized_partitions(dg.AssetKey(["tiny", "step_gradients"]))
    # The sensor asks for all of the target's other signals together.
    requests, reasons = scoring_requests(workspace, instance_of(workspace), 0.0)
    assert not reasons
    (request,) = requests
    others = {f"tiny/{signal}" for signal in ALL if signal != "likelihoods"}
    assert {key.to_user_string() for key in request.asset_selection or []} == others
    before = of_signal(workspace, "likelihoods")
    run(workspace)
    assert of_signal(workspace, "likelihoods") == before
    assert sample_scores(workspace)["grace"].is_finite().all()


def test_metadata_and_checks_are_each_signals_own(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "w", tiny_model, SHARD_ROWS, signals=ALL)
    run(workspace)
    instance = instance_of(workspace)
    for signal in ALL:
        key = dg.AssetKey(["tiny", signal])
        event = instance.get_latest_materialization_event(key)
        assert event is not None
        assert event.asset_materialization is not None
        shown = {name: value.value for name, value in event.asset_materialization.metadata.items()}
        assert shown["dagster/partition_row_count"] in (6, 8)
        folder = signal_dir(workspace, workspace.settings.targets[0], signal)
        assert folder is not None
        assert folder.endswith(str(shown["fingerprint"]))
        history = instance.event_log_storage.get_asset_check_execution_history(dg.AssetCheckKey(key, "finite"), limit=1)
        assert history[0].status.value == "SUCCEEDED"


def test_the_scorer_gets_what_is_configured(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(
        tmp_path, tiny_model, {}, corpus="images: {max_pixels: 7, max_bytes: 8, fetch_remote: true}"
    )
    engine = "engine: {device: 'cuda:0,cuda:1', attention: eager, compile: true, head_memory_mib: 3, batch_tokens: 5}"
    text = re.sub(r"engine: .*", engine, workspace.config_file.read_text())
    workspace.config_file.write_text(text)
    changed = Workspace.load(workspace.config_file)
    scorer = model_scorer(changed, changed.settings.targets[0])
    spec = scorer.spec
    assert (scorer.device, spec.attention, spec.compile_model) == ("cuda:0,cuda:1", "eager", True)
    assert (spec.head_memory, spec.batch_tokens) == (3 * 2**20, 5)
    assert spec.images == ImageLimits(7, 8, True)


@pytest.mark.slow
def test_several_devices_make_the_tables_of_one(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MOST_CHARACTERS", 400)
    one = make_workspace(tmp_path / "one", tiny_model, SHARD_ROWS, signals=ALL)
    run(one)
    # Two processes on the CPU stand for two CUDA devices.
    monkeypatch.setattr(device_names, "devices_of", lambda name: ["cpu", "cpu"])
    two = make_workspace(tmp_path / "two", tiny_model, SHARD_ROWS, signals=ALL)
    run(two)
    for signal in ALL:
        assert_frame_equal(signal_rows(two, signal), signal_rows(one, signal), rel_tol=1e-4, abs_tol=1e-6)
    assert multiprocessing.active_children() == []


def test_proxies_are_other_step_gradients(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "w", tiny_model, {"a.jsonl": rows(3)}, signals=ALL[:2])
    run(workspace)
    bias = signal_rows(workspace, "step_gradients")
    text = workspace.config_file.read_text().replace("name: tiny,", "name: tiny, proxy: linear,")
    workspace.config_file.write_text(text)
    linear = Workspace.load(workspace.config_file)
    run(linear)
    assert not signal_rows(linear, "step_gradients")["gram"].equals(bias["gram"])
    assert len(workspace.warehouse.storage.folders("signals/tiny/base/step_gradients")) == 2
    assert len(workspace.warehouse.storage.folders("signals/tiny/base/likelihoods")) == 1
