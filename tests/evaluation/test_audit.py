"""Audits of small workspaces: what is drawn, measured and found, and that nothing of it enters the pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli import command
from curation_assets.cli.app import app
from curation_assets.config.evaluation_settings import Audit
from curation_assets.defs.audit import AUDIT_KEY
from curation_assets.defs.main_job import MainJob
from curation_assets.evaluation.audit_report import settings_of, step_labels, verdict, write_audit
from curation_assets.evaluation.audit_samples import ORIGINAL, AuditError, step_at, write_audit_samples
from curation_assets.evaluation.concordance import Estimate
from curation_assets.operations.gc import find_unused
from curation_assets.operations.purge import purge
from curation_assets.releases.audit_section import NOT_AUDITED, audit_section
from curation_assets.releases.trace_page import page_text
from curation_assets.releases.traces import subset_traces
from curation_assets.steps.segmentation import segment
from curation_assets.subsets.audited import audit_of, explained_of, findings_of, overview_of
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.audit import AUDIT, audit_samples_path, method_audit_path
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import (
    instance_of,
    make_workspace,
    release_folder,
    release_subset,
    rows,
    run,
    sample_scores,
    stored,
    write_config,
    write_shard,
)

SIGNALS = ("step_gradients", "likelihoods", "embeddings_mean")
SMALL = Audit(samples=12)


def audited(folder: Path, model: Path, records: list[dict[str, Any]], **config: Any) -> Workspace:
    """A workspace whose corpus is read, without any measurement."""
    workspace = make_workspace(folder, model, {"a.jsonl": records}, **{"signals": SIGNALS, **config})
    MainJob(workspace, instance_of(workspace)).run(until="checkpoints")
    return workspace


def test_twins_are_measured_apart_and_only_once(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(30, steps=4))
    made = write_audit(workspace, SMALL)
    samples = read_stored(workspace, "audit_samples").collect()
    assert samples.filter(kind=ORIGINAL).height == 12
    assert samples["kind"].n_unique() == 9
    assert made.tokens > 0
    assert made.unfinished is None
    # Nothing of it is where the pool is.
    assert not stored(workspace, "signals")
    assert all(path.startswith("audit/signals/tiny/base/") for path in stored(workspace, "audit/signals"))
    twins = samples.filter(pl.col("kind") != ORIGINAL)["sample_id"]
    corpus = workspace.warehouse.read_table(f"{tables.raw_corpus_dir()}/a.jsonl.parquet")
    assert corpus.filter(pl.col("sample_id").is_in(twins.implode())).is_empty()
    # Once more: nothing is measured, also with other scores on the same signals.
    assert write_audit(workspace, SMALL).tokens == 0
    again = Workspace.load(write_config(tmp_path, tiny_model, alpha=0.1, signals=SIGNALS))
    other = write_audit(again, SMALL)
    assert other.tokens == 0
    values = pl.col("score") == "grace", pl.col("measure") == "auroc", pl.col("kind") == "shuffled_steps"
    assert made.table.filter(*values)["value"].item() != other.table.filter(*values)["value"].item()
    # A run measures the pool as if there had been no audit.
    run(again)
    scores = sample_scores(again)
    assert len(scores) == 30
    assert scores.filter(pl.col("sample_id").is_in(twins.implode())).is_empty()


def test_what_a_run_has_measured_is_not_measured_again(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(30, steps=4)}, signals=SIGNALS)
    run(workspace)
    samples = write_audit_samples(workspace, SMALL)
    twins = samples.filter(pl.col("kind") != ORIGINAL).unique("sample_id")
    made = write_audit(workspace, SMALL)
    measured = workspace.warehouse.scan(stored_dir(workspace, "likelihoods"))
    assert measured is not None
    tokens = measured.collect().join(twins, on="sample_id", how="semi")["tokens"].sum()
    assert made.tokens == tokens


def stored_dir(workspace: Workspace, signal: str) -> str:
    """The folder of an audit's signal."""
    folders = {path.rsplit("/", 1)[0] for path in stored(workspace, f"audit/signals/tiny/base/{signal}", "*.parquet")}
    (folder,) = folders
    return folder


def test_values_are_those_of_a_slow_audit(tmp_path: Path, tiny_model: Path) -> None:
    """Every pair of response and twin as a corpus of its own, scored by a run, and compared by loops."""
    workspace = audited(tmp_path / "own", tiny_model, rows(16, steps=4))
    table = write_audit(workspace, Audit(samples=6)).table
    samples = read_stored(workspace, "audit_samples").collect()
    records = [
        {"prompt": json.loads(row["messages"])[-1]["content"], "response": row["response"], "source": row["sample_id"]}
        for row in samples.unique("sample_id").iter_rows(named=True)
    ]
    slow = make_workspace(tmp_path / "slow", tiny_model, {"a.jsonl": records}, signals=SIGNALS)
    run(slow)
    scored = sample_scores(slow)
    score = {row["source"]: row["grace"] for row in scored.iter_rows(named=True) if row["grace"] is not None}
    for kind in samples["kind"].unique().sort():
        if kind in (ORIGINAL, "truncated"):
            continue
        pairs = [
            (score[original], score[twin])
            for original, twin in samples.filter(kind=kind).select("original", "sample_id").iter_rows()
            if original in score and twin in score
        ]
        if not pairs:
            continue
        wins = [1.0 if sound > twin else 0.5 if sound == twin else 0.0 for sound, twin in pairs]
        every = [1.0 if sound > twin else 0.5 if sound == twin else 0.0 for sound, _ in pairs for _, twin in pairs]
        own = table.filter(pl.col("score") == "grace", pl.col("kind") == kind)
        assert own.filter(measure="win_rate")["samples"].item() == len(pairs)
        assert own.filter(measure="win_rate")["value"].item() == pytest.approx(sum(wins) / len(wins), abs=1e-9)
        assert own.filter(measure="auroc")["value"].item() == pytest.approx(sum(every) / len(every), abs=1e-9)


def test_the_draw_prefers_what_is_right_and_takes_each_source(tmp_path: Path, tiny_model: Path) -> None:
    records = [
        {**row, "source": "large" if n % 4 else "small", "correct": [True, None, False][n % 3]}
        for n, row in enumerate(rows(60, steps=4))
    ]
    # More responses to the same prompts.
    records += [{**record, "response": f"Well.\n{record['response']}"} for record in records]
    workspace = audited(tmp_path, tiny_model, records)
    samples = write_audit_samples(workspace, Audit(samples=20)).filter(kind=ORIGINAL)
    assert samples["correct"].to_list() == [True] * 20
    assert samples["prompt_id"].n_unique() == 20
    assert dict(samples.group_by("source").len().iter_rows()) == {"large": 15, "small": 5}
    assert write_audit_samples(workspace, Audit(samples=20)).filter(kind=ORIGINAL).equals(samples)
    others = write_audit_samples(workspace, Audit(samples=20, seed=1)).filter(kind=ORIGINAL)
    assert set(others["sample_id"]) != set(samples["sample_id"])
    # More than are right: those of which nothing is known follow, never those that are wrong.
    many = write_audit_samples(workspace, Audit(samples=1000)).filter(kind=ORIGINAL)
    assert len(many) == 80
    assert not many["correct"].eq_missing(False).any()


def test_changed_steps_are_counted_as_the_twin_is_cut(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(20, steps=4))
    samples = write_audit_samples(workspace, SMALL)
    settings = workspace.settings.corpus.segmentation
    of = {row["sample_id"]: row["response"] for row in samples.filter(kind=ORIGINAL).iter_rows(named=True)}
    for row in samples.filter(kind="wrong_number").iter_rows(named=True):
        before, after = of[row["original"]], row["response"]
        place = next(n for n, (left, right) in enumerate(zip(before, after, strict=True)) if left != right)
        steps = segment(after, settings, row["steps"], row["answer"]).steps
        (index,) = [n for n, (start, end) in enumerate(steps, 1) if start <= place < end]
        assert row["changed_steps"] == [index]
    assert step_at([(1, 0, 10), (2, 10, 30)], (8, 20)) == 2
    assert step_at([(1, 0, 10)], (12, 20)) is None


def test_a_budget_leaves_a_part_that_the_next_audit_completes(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(60, steps=4), part_seconds=0.0)
    settings = Audit(samples=50)
    first = write_audit(workspace, settings, budget_minutes=1e-6)
    assert first.unfinished is not None
    assert "budget" in first.unfinished
    second = write_audit(workspace, settings)
    assert second.unfinished is None
    assert second.tokens > 0
    whole = audited(tmp_path / "other", tiny_model, rows(60, steps=4))
    assert write_audit(whole, settings).tokens == first.tokens + second.tokens


def test_labels_of_samples_and_steps_are_compared(tmp_path: Path, tiny_model: Path) -> None:
    records: list[dict[str, Any]] = []
    for n, row in enumerate(rows(24, steps=4)):
        steps = row["response"].split("\n")
        labels = [k != 1 + n % 3 for k in range(len(steps))]
        records.append({"prompt": row["prompt"], "completions": steps, "labels": labels, "source": "ab"[n % 2]})
        records.append({**row, "correct": n % 2 == 0, "reward": n / 24, "source": "ab"[n % 2]})
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": records}, signals=SIGNALS)
    run(workspace)
    table = write_audit(workspace, SMALL).table
    found = table.filter(pl.col("score") == "grace").select("kind", "measure", "within")
    cells = set(found.iter_rows())
    assert {("correct", "auroc", "all"), ("reward", "auroc", "all")} <= cells
    assert {("reward", "auroc", "source")} <= cells
    assert {("steps", "step_auroc", within) for within in ("all", "source", "position", "trace")} <= cells
    scores = sample_scores(workspace).filter(pl.col("correct").is_not_null(), pl.col("grace").is_not_null())
    right, wrong = (scores.filter(correct=one)["grace"].to_list() for one in (True, False))
    every = [1.0 if a > b else 0.5 if a == b else 0.0 for a in right for b in wrong]
    value = table.filter(pl.col("score") == "grace", kind="correct", within="all")["value"].item()
    assert value == pytest.approx(sum(every) / len(every))


def test_a_label_is_that_of_the_step_which_holds_the_listed_one(tmp_path: Path, tiny_model: Path) -> None:
    steps = ["First we add one and two.", "", "So.", "Then we double it all to six.", "Answer: 6"]
    record = {"prompt": "How many?", "completions": steps, "labels": [1, -1, -1, 1, 1]}
    workspace = audited(tmp_path, tiny_model, [record])
    corpus = workspace.warehouse.read_table(f"{tables.raw_corpus_dir()}/a.jsonl.parquet")
    found = step_labels(corpus, workspace.settings.corpus.segmentation)
    # `So.` is too short to be a step: it was joined to the first, which has the lower label then.
    assert found.select("step_index", "label").rows() == [(1, -1.0), (2, 1.0)]


def test_selectors_that_compare_samples_are_judged_by_what_they_take(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(40, steps=4))
    table = write_audit(workspace, Audit(samples=20)).table
    k_center = table.filter(pl.col("score") == "k_center")
    taken = k_center.filter(measure="flawed_share")
    assert taken["within"].unique().to_list() == ["k_center"]
    assert len(taken) == 8
    assert taken["value"].is_between(0.0, 1.0).all()
    assert taken["samples"].to_list() == [20] * 8
    # It gives samples no score of their own.
    assert k_center.filter(pl.col("measure").is_in(["auroc", "win_rate"])).is_empty()


def test_random_is_at_chance_and_what_gets_no_score_is_excluded(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(60, steps=4))
    table = write_audit(workspace, Audit(samples=40)).table
    drawn = table.filter(pl.col("score") == "random", pl.col("verdict").is_not_null())
    assert set(drawn["verdict"]) == {"at_chance"}
    assert not drawn["configured"].any()
    longest = table.filter(pl.col("score") == "longest", measure="win_rate")
    assert longest.filter(kind="truncated")["verdict"].item() == "separates"
    assert longest.filter(kind="repeated_step")["verdict"].item() == "inverted"
    truncated = table.filter(pl.col("score") == "grace", kind="truncated", measure="auroc")
    assert truncated["verdict"].item() == "excluded"
    assert truncated["without_score"].item() == 40
    assert truncated["value"].item() is None
    headers, lines = overview_of(table)
    assert headers[0] == "score"
    cells = {str(line[0]): dict(zip(headers, line, strict=True)) for line in lines}
    assert cells["(longest)"]["repeated_step"] == ".00 ▼"
    assert cells["(longest)"]["truncated"] == "1.00 ▲"
    assert cells["grace"]["truncated"] == "no score"
    headers, lines = findings_of(table)
    assert headers[:2] == ["score", "kind"]
    assert ("(random)", "wrong_number") in [line[:2] for line in lines]


@pytest.mark.parametrize(
    ("value", "samples", "flawed_is_high", "said"),
    [
        (0.9, 100, False, "separates"),
        (0.1, 100, False, "inverted"),
        (0.1, 100, True, "separates"),
        (0.52, 100, False, "at_chance"),
        (1.0, 7, False, "too_few"),
    ],
)
def test_a_verdict_goes_by_the_corrected_interval(value: float, samples: int, flawed_is_high: bool, said: str) -> None:
    estimate = Estimate(value, (value * (1 - value) / samples) ** 0.5, samples, samples)
    assert verdict(estimate, 0.999, samples, flawed_is_high) == said


def test_an_effect_of_one_comparison_is_none_of_many() -> None:
    estimate = Estimate(0.62, (0.62 * 0.38 / 100) ** 0.5, 100, 100)
    assert verdict(estimate, 0.95, 100) == "separates"
    assert verdict(estimate, 1 - 0.05 / 200, 100) == "at_chance"


def test_a_release_says_what_was_found_or_that_there_was_no_audit(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(20, steps=4)}, signals=SIGNALS)
    run(workspace)
    release_subset(workspace)
    assert "Not audited" in (release_folder(workspace, 1) / "README.md").read_text()
    assert json.loads((release_folder(workspace, 1) / "manifest.json").read_text())["audit"] is None
    write_audit(workspace, SMALL)
    score = workspace.settings.score("grace")
    assert audit_of(workspace, score) is not None
    # An audit alone makes no new release.
    assert release_subset(workspace)[1] is False
    changed = Workspace.load(write_config(tmp_path, tiny_model, alpha=0.2, signals=SIGNALS))
    assert audit_of(changed, changed.settings.score("grace")) is None
    run(changed)
    write_audit(changed, SMALL)
    release_subset(changed)
    card = (release_folder(changed, 2) / "README.md").read_text()
    assert "| shuffled" in card
    assert "Not audited" not in card
    manifest = json.loads((release_folder(changed, 2) / "manifest.json").read_text())
    assert {row["kind"] for row in manifest["audit"]} >= {"wrong_number", "truncated", ""}
    # The pages of the subset and of the release show the same, with the agreement that is stored under another score.
    rows_ = audit_of(changed, changed.settings.score("grace"))
    assert rows_ is not None
    explained = dict(zip(*explained_of(rows_)[:1], explained_of(rows_)[1][0], strict=True))
    table = read_stored(changed, "method_audit").collect().filter(measure="agreement").drop_nulls("value")
    mates = table.filter((pl.col("score") == "grace") | (pl.col("within") == "grace"))["value"].abs()
    assert f"{max(mates.to_list()):.2f}" in str(explained["agrees most with"])
    section = audit_section(rows_, "grace")
    assert section in page_text(subset_traces(changed, changed.settings.subset("best")))
    assert section in (release_folder(changed, 2) / "traces.html").read_text()
    assert NOT_AUDITED in (release_folder(changed, 1) / "traces.html").read_text()


def test_a_purged_sample_is_in_no_twin(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(20, steps=4)}, signals=SIGNALS)
    run(workspace)
    write_audit(workspace, SMALL)
    samples = workspace.warehouse.read_table(audit_samples_path())
    apart = set(sample_scores(workspace)["sample_id"]) - set(samples["original"]) - set(samples["donor"].drop_nulls())
    purge(workspace, apart.pop())
    assert stored(workspace, "audit")
    done = purge(workspace, samples["donor"].drop_nulls()[0])
    assert done.tables[AUDIT] > 0
    assert not stored(workspace, "audit")
    # The findings name no sample, and stay.
    assert workspace.warehouse.storage.exists(method_audit_path())
    run(workspace)
    write_audit(workspace, SMALL)
    assert samples["donor"].drop_nulls()[0] not in workspace.warehouse.read_table(audit_samples_path())["original"]


def test_gc_keeps_what_an_audit_of_this_configuration_would_use(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(20, steps=4))
    write_audit(workspace, SMALL)
    later = 10e9
    found = {find.what: find.remove for find in find_unused(workspace, 0.0, later) if find.what.startswith(AUDIT)}
    assert found
    assert not any(found.values())
    fewer = Workspace.load(write_config(tmp_path, tiny_model, signals=("step_gradients",)))
    found = {find.what: find.remove for find in find_unused(fewer, 0.0, later) if find.what.startswith(AUDIT)}
    assert {what.split("/")[4]: remove for what, remove in found.items()} == {
        "step_gradients": False,
        "likelihoods": True,
        "embeddings_mean": True,
    }


def test_what_cannot_be_audited_is_said(tmp_path: Path, tiny_model: Path) -> None:
    wrong = [{**row, "correct": False} for row in rows(5)]
    workspace = audited(tmp_path, tiny_model, wrong)
    with pytest.raises(AuditError, match=r"none of the 5 samples .* not marked wrong"):
        write_audit(workspace, SMALL)
    with pytest.raises(AuditError, match=r"kind of flaw 'wrong_numbers'.*wrong_number"):
        settings_of(workspace, kinds=["wrong_numbers"])
    with pytest.raises(AuditError, match="samples: Input should be greater than or equal to 1"):
        settings_of(workspace, samples=0)
    with pytest.raises(AuditError, match="the pool is empty"):
        write_audit(make_workspace(tmp_path / "none", tiny_model, {}, signals=SIGNALS), SMALL)
    # One prompt: there is no other trace to take anything from, and one prompt shows nothing.
    one = audited(tmp_path / "one", tiny_model, rows(1))
    made = write_audit(one, SMALL)
    assert "foreign_response" not in made.table["kind"]
    assert "wrong_number" in made.table["kind"]
    assert set(made.table["verdict"].drop_nulls()) == {"too_few"}


def test_a_target_that_cannot_measure_is_left_out(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(20)}, signals=SIGNALS, warmup="{min_pool: 100}")
    instance = instance_of(workspace)
    MainJob(workspace, instance).run(until="checkpoints")
    with pytest.raises(AuditError, match=r"no target can be audited .tiny: the warm-up of target tiny"):
        write_audit(workspace, SMALL)
    text = (tmp_path / "curation.yaml").read_text()
    base = f"  - {{name: base, model: {tiny_model}, warmup: none, signals: [likelihoods]}}\n"
    (tmp_path / "curation.yaml").write_text(text.replace("scores:\n", f"{base}scores:\n"))
    both = Workspace.load(tmp_path / "curation.yaml")
    lines = MainJob(both, instance).audit(samples=5)
    assert any(line.startswith("tiny is not audited: the warm-up") for line in lines)
    assert set(read_stored(both, "method_audit").collect()["target"]) == {"base"}


def test_the_command_and_the_asset(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(30, steps=4)}, signals=SIGNALS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(command.console, "_width", 160)
    runner = CliRunner()
    done = runner.invoke(app, ["audit", "--samples", "10", "--kind", "wrong_number", "--kind", "truncated"])
    assert done.exit_code == 0, done.output
    assert "wrong_number" in done.output
    assert "foreign_response" not in done.output
    assert "tokens measured" in done.output
    again = runner.invoke(app, ["audit", "--samples", "10", "--kind", "wrong_number", "--kind", "truncated"])
    assert "0 tokens measured" in again.output
    wrong = runner.invoke(app, ["audit", "--kind", "nonsense"])
    assert wrong.exit_code == 1
    planned = runner.invoke(app, ["plan", "--no-probe"])
    assert "an audit (`curate audit`) would measure at most 270 samples" in planned.output.replace("\n", " ")
    MainJob(workspace, instance_of(workspace)).audit(samples=5)
    event = instance_of(workspace).get_latest_materialization_event(AUDIT_KEY)
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert "wrong" in str(metadata["findings"].value)
    assert "![" in str(metadata["plot_tiny"].value)


def test_methods_that_compare_with_examples_have_both(tmp_path: Path, tiny_model: Path) -> None:
    """RDS+ gives each sample a score, and its selector takes turns among the examples."""
    workspace = make_workspace(
        tmp_path, tiny_model, {"a.jsonl": rows(20, steps=4)}, signals=(*SIGNALS, "embeddings_last")
    )
    (tmp_path / "goal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3, start=70)))
    text = workspace.config_file.read_text()
    rds = "scores:\n  - {name: near, target: tiny, method: rds, validation: goal}\n"
    rds += "  - {name: turns, target: tiny, method: rds, validation: goal}\n"
    text = text.replace("scores:\n", f"validation: [{{name: goal, path: ./goal.jsonl}}]\n{rds}", 1)
    subset = "  - {name: some, score: turns, selector: round_robin, budget: {fraction: 0.5}}\n"
    workspace.config_file.write_text(text.replace("subsets:\n", f"subsets:\n{subset}", 1))
    workspace = Workspace.load(workspace.config_file)
    MainJob(workspace, instance_of(workspace)).run(until="checkpoints")
    table = write_audit(workspace, SMALL).table
    assert len(table.filter(pl.col("score") == "near", measure="win_rate")) == 8
    taken = table.filter(pl.col("score") == "turns", measure="flawed_share")
    assert taken["within"].unique().to_list() == ["round_robin"]
    assert len(taken) == 8


def test_few_prompts_or_few_wrong_samples_show_nothing(tmp_path: Path, tiny_model: Path) -> None:
    """However many responses there are: what is drawn at random are prompts."""
    few = [{**row, "prompt": f"P{n // 20}", "correct": n != 3} for n, row in enumerate(rows(60, steps=4))]
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": few}, signals=SIGNALS)
    run(workspace)
    table = write_audit(workspace, Audit(samples=60)).table
    assert set(table.filter(pl.col("measure") != "flawed_share")["verdict"].drop_nulls()) == {"too_few", "excluded"}
    many = [{**row, "correct": n != 3} for n, row in enumerate(rows(60, start=100, steps=4))]
    other = make_workspace(tmp_path / "many", tiny_model, {"a.jsonl": many}, signals=SIGNALS)
    run(other)
    table = write_audit(other, Audit(samples=20)).table
    assert set(table.filter(kind="correct")["verdict"]) == {"too_few"}


def test_twins_follow_the_segmentation_and_the_labels(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(20, steps=4))
    before = write_audit_samples(workspace, SMALL)
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace("landing}", "landing, segmentation: {max_steps: 2}}"))
    cut = Workspace.load(workspace.config_file)
    assert cut.settings.corpus.segmentation.max_steps == 2
    MainJob(cut, instance_of(cut)).run(until="checkpoints")
    after = write_audit_samples(cut, SMALL)
    assert after["changed_steps"].explode().drop_nulls().max() == 2
    assert before.filter(kind="wrong_number")["changed_steps"].explode().drop_nulls().max() != 2
    workspace.config_file.write_text(text)
    write_shard(tmp_path / "landing" / "a.jsonl", [{**row, "correct": False} for row in rows(20, steps=4)])
    wrong = Workspace.load(workspace.config_file)
    MainJob(wrong, instance_of(wrong)).run(until="checkpoints")
    with pytest.raises(AuditError, match="not marked wrong"):
        write_audit_samples(wrong, SMALL)


def test_an_audit_of_something_else_is_none(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(20, steps=4)}, signals=SIGNALS)
    run(workspace)
    write_audit(workspace, SMALL)
    text = workspace.config_file.read_text()
    assert audit_of(workspace, workspace.settings.score("grace")) is not None
    for old, new in (
        ("signals: [", "template: plain, signals: ["),
        ("landing}", "landing, segmentation: {max_steps: 2}}"),
        ("alpha: 0.7", "alpha: 0.2"),
    ):
        assert old in text
        workspace.config_file.write_text(text.replace(old, new))
        changed = Workspace.load(workspace.config_file)
        assert audit_of(changed, changed.settings.score("grace")) is None
    workspace.config_file.write_text(text)
    # Another pool altogether.
    write_shard(tmp_path / "landing" / "a.jsonl", rows(20, start=500, steps=4))
    other = Workspace.load(workspace.config_file)
    MainJob(other, instance_of(other)).run(until="corpus")
    assert audit_of(other, other.settings.score("grace")) is None


def test_a_budget_comes_on_top_of_the_limits(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(20, steps=4))
    workspace.config_file.write_text(workspace.config_file.read_text() + "limits: {tokens: 1}\n")
    limited = Workspace.load(workspace.config_file)
    first = write_audit(limited, SMALL, budget_minutes=5)
    assert first.unfinished is not None
    assert "limits.tokens" in first.unfinished
    # The day's tokens are spent.
    assert write_audit(limited, SMALL, budget_minutes=5).tokens == 0
    with pytest.raises(AuditError, match="nan minutes are no budget"):
        write_audit(workspace, SMALL, budget_minutes=float("nan"))


def test_an_audit_that_measured_nothing_replaces_none(tmp_path: Path, tiny_model: Path) -> None:
    workspace = audited(tmp_path, tiny_model, rows(20, steps=4))
    with pytest.raises(AuditError, match="nothing was measured before the limit"):
        write_audit(workspace, SMALL, budget_minutes=0.0)
    assert not workspace.warehouse.storage.exists(method_audit_path())
