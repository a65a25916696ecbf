"""Attention influence through the pipeline: stored losses, scores of samples and steps, plan, resumption, settings."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curation_assets.config.config_file import ConfigError
from curation_assets.methods.attention_influence import METHODS, AttentionInfluenceScore
from curation_assets.methods.method import ScoreInputs
from curation_assets.operations.plan import make_plan
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.signals import SIGNALS
from curation_assets.workspace.fingerprints import signal_fingerprint
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.results import ResponseLosses
from curation_resources.scoring.retrieval_task import RetrievalError
from curation_resources.scoring.samples import SampleSignals
from tests.models import write_tiny_model
from tests.pipeline.workspaces import arrive, landed, make_workspace, rows, run, signal_rows, subset_ids, write_shard

SETTINGS = "attention_influence: {heads: 0.25, prompts: 2, pairs: 5}"
SCORES = """\
scores:
  - {name: copied, target: tiny, method: attention_influence}
subsets:
  - {name: best, score: copied, budget: {samples: 3}, standardise: source}
engine"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), context=700)


def workspace_of(folder: Path, model: Path, settings: str = SETTINGS) -> Workspace:
    made = make_workspace(folder, model, {"a.jsonl": rows(7)}, signals=("attention_influence", "likelihoods"))
    text = made.config_file.read_text().replace("engine", SCORES, 1)
    made.config_file.write_text(text.replace("warmup: none", f"warmup: none, {settings}"))
    return Workspace.load(made.config_file)


def test_losses_are_stored_scored_planned_and_not_measured_twice(tmp_path: Path, model: Path) -> None:
    workspace = workspace_of(tmp_path, model)
    (planned,) = make_plan(workspace, probe=True).targets
    summary = run(workspace)
    assert planned.tokens == summary.tokens_measured > 0
    stored = signal_rows(workspace, "attention_influence")
    likelihoods = signal_rows(workspace, "likelihoods")
    both = stored.join(likelihoods, on="sample_id")
    assert both["base_nll"].to_list() == pytest.approx(both["mean_nll"].to_list(), rel=1e-6)
    assert both["tokens"].to_list() == [2 * tokens for tokens in both["tokens_right"]]
    assert planned.tokens == both["tokens"].sum()
    assert (stored["masked_nll"] != stored["base_nll"]).all()
    # 25 % of 8 heads.
    (heads,) = set(stored["heads"])
    assert len(set(heads.split())) == 2
    score = stored.select("sample_id", score=pl.col("masked_nll") / pl.col("base_nll") - 1)
    order = score.sort("score", "sample_id", descending=[True, False])["sample_id"].to_list()
    # All rows have one source, within which z keeps the order.
    assert subset_ids(workspace) == order[:3]
    scored = read_stored(workspace, "step_scores").collect()
    assert scored["step_score"].is_not_null().all()
    assert scored.height == stored["step_indices"].list.len().sum()
    assert run(workspace).tokens_measured == 0
    # Files that land later are measured with the same heads, and the others stay as they are.
    write_shard(landed(workspace) / "b.jsonl", rows(4, start=50))
    arrive(workspace)
    (planned,) = make_plan(workspace, probe=False).targets
    assert planned.tokens == run(workspace).tokens_measured > 0
    later = signal_rows(workspace, "attention_influence")
    assert later.height == 11
    assert set(later["heads"]) == {heads}
    assert later.join(stored, on="sample_id", how="semi").sort("sample_id").equals(stored.sort("sample_id"))


def test_what_determines_the_heads_is_part_of_the_key(tmp_path: Path, model: Path) -> None:
    workspace = workspace_of(tmp_path, model)
    (target,) = workspace.settings.targets

    def key(signal: str = "attention_influence", **settings: float) -> str | None:
        wanted = target.attention_influence.model_copy(update=settings)
        other = target.model_copy(update={"attention_influence": wanted})
        return signal_fingerprint(workspace, other, signal)

    assert key() == key(seed=0)
    changes: list[dict[str, float]] = [{"heads": 0.5}, {"prompts": 3}, {"pairs": 6}, {"length": 600}, {"seed": 1}]
    assert len({key(), *(key("attention_influence", **change) for change in changes)}) == 6
    assert {key("likelihoods", **change) for change in changes} == {key("likelihoods")}


def test_a_context_that_is_too_short_stops_the_run_with_the_key_to_change(tmp_path: Path, model: Path) -> None:
    workspace = workspace_of(tmp_path, model, "max_length: 256")
    with pytest.raises(RetrievalError, match=r"Raise the target's max_length and attention_influence\.length"):
        run(workspace)
    with pytest.raises(RetrievalError, match="256 are allowed"):
        make_plan(workspace, probe=False)


@pytest.mark.parametrize("settings", ["heads: 0", "heads: 1.5", "pairs: 3", "prompts: 0", "heads: 0.1, layers: 2"])
def test_settings_that_cannot_work_are_refused(tmp_path: Path, model: Path, settings: str) -> None:
    with pytest.raises(ConfigError, match="attention_influence"):
        workspace_of(tmp_path, model, f"attention_influence: {{{settings}}}")


def measured(name: str, base: ResponseLosses | None, masked: ResponseLosses | None, *flags: str) -> SampleSignals:
    return SampleSignals(
        name * 32,
        0,
        step_indices=[1, 3],
        segment_tokens=[2, 4, 1],
        flags=list(flags),
        response_losses=base,
        masked_losses=masked,
        masked_heads=((1, 0), (0, 3)),
    )


def test_scores_are_relative_rises_and_null_where_there_is_no_loss() -> None:
    results = [
        measured("a", ResponseLosses(0.5, [2.0, 0.0, 1.0]), ResponseLosses(0.75, [1.0, 3.0, 1.0])),
        measured("b", ResponseLosses(0.0, [0.0, 0.0, 0.0]), ResponseLosses(0.75, [1.0, 3.0, 1.0])),
        measured("c", ResponseLosses(0.5, [2.0, 0.0, 1.0]), None, "non_finite"),
        SampleSignals("d" * 32, 0, flags=["prompt_too_long"]),
    ]
    frame = SIGNALS["attention_influence"].frame(results)
    assert SIGNALS["attention_influence"].reasons(frame) == {"zero_loss": 1, "non_finite": 1, "prompt_too_long": 1}
    assert frame["heads"].to_list() == ["1.0 0.3", None, None, None]
    (method,) = METHODS
    scored = method.score(
        ScoreInputs(frame, {"attention_influence": frame}), AttentionInfluenceScore(name="s", target="t")
    )
    assert scored.values.rows() == [("a" * 32, 0.5)]
    assert scored.steps is not None
    assert scored.steps.select("step_index", "tokens", "step_score").rows() == [(1, 2, -0.5), (3, 4, None)]
