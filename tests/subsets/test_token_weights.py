"""Weights by token against a loop over the whole model's own probabilities, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.signals.store import SignalStore
from curation_assets.subsets.stored_tables import TableRequestError, read_stored
from curation_assets.subsets.token_weights import TokenWeightsError, token_weights
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows, run

HALF = 1 / 2048
"""Relative rounding of a number in half precision."""

SIGNALS = ("step_gradients", "likelihoods", "token_likelihoods")


def with_all(workspace: Workspace) -> Workspace:
    """The same with a subset of all samples, those that cannot be measured too."""
    text = workspace.config_file.read_text()
    more = "  - {name: drawn, target: tiny, method: random}\nsubsets:\n"
    more += "  - {name: all, score: drawn, budget: {fraction: 1.0}}\n"
    workspace.config_file.write_text(text.replace("subsets:\n", more))
    return Workspace.load(workspace.config_file)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    too_long = {"prompt": "long " * 200, "response": "Step 1: a.\nStep 2: b.\nAnswer: 3"}
    cut = {"prompt": "count", "response": "Step 1: " + "one more " * 80 + "\nAnswer: 3"}
    shards = {"a.jsonl": [*rows(6), too_long, cut]}
    made = with_all(make_workspace(tmp_path_factory.mktemp("weights"), tiny_model, shards, signals=SIGNALS))
    run(made)
    return made


def slow_probabilities(workspace: Workspace, model_folder: Path) -> dict[str, list[float]]:
    """p(y_t) of every token of every response, one softmax at a time over the whole model's logits."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    found = {}
    for row in read_stored(workspace, "raw_corpus").collect().iter_rows(named=True):
        turns = json.loads(row["messages"])
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = (prompt + tokenizer(row["response"], add_special_tokens=False)["input_ids"])[:512]
        if len(prompt) >= 512:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        places = range(len(prompt), len(ids))
        found[row["sample_id"]] = [float(torch.softmax(logits[t - 1], -1)[ids[t]]) for t in places]
    return found


def test_weights_are_the_models_probabilities(workspace: Workspace, tiny_model: Path) -> None:
    expected = slow_probabilities(workspace, tiny_model)
    frame = token_weights(workspace, "all")
    assert frame.schema == {"sample_id": pl.String, "weights": pl.List(pl.Float32), "response_tokens": pl.Int32}
    assert len(frame) == 8
    measured = frame.drop_nulls("weights")
    assert set(measured["sample_id"]) == set(expected)
    for sample_id, weights, tokens in measured.iter_rows():
        assert len(weights) == tokens == len(expected[sample_id])
        for weight, p in zip(weights, expected[sample_id], strict=True):
            assert weight == pytest.approx(p, rel=abs(math.log(p)) * HALF + 1e-4)


def test_what_could_not_be_measured_has_no_weights(workspace: Workspace) -> None:
    frame = token_weights(workspace, "all", "mean1")
    (without,) = frame.filter(pl.col("weights").is_null())["sample_id"]
    rows_ = read_stored(workspace, "token_likelihoods").filter(pl.col("sample_id") == without).collect()
    assert rows_["flags"].to_list() == [["prompt_too_long"]]


def test_mean1_divides_by_the_mean(workspace: Workspace) -> None:
    plain = token_weights(workspace, "all").drop_nulls()
    scaled = token_weights(workspace, "all", "mean1").drop_nulls()
    assert plain["sample_id"].equals(scaled["sample_id"])
    for before, after in zip(plain["weights"], scaled["weights"], strict=True):
        mean = sum(before) / len(before)
        assert after.to_list() == pytest.approx([weight / mean for weight in before], rel=1e-5)
        assert sum(after) / len(after) == pytest.approx(1.0)


def test_mean1_of_next_to_impossible_tokens_is_finite(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    subset = read_stored(workspace, "subset", subset="all").select("sample_id").collect()
    logs = pl.lit([-65504.0, -1000.0, -1000.0, -65504.0], dtype=pl.List(pl.Float16))
    stored = read_stored(workspace, "token_likelihoods").collect().with_columns(log_likelihoods=logs)
    monkeypatch.setattr(SignalStore, "rows", lambda self, ids: stored)
    frame = token_weights(workspace, "all", "mean1")
    assert frame["sample_id"].equals(subset["sample_id"])
    assert frame["weights"].to_list() == [[0.0, 2.0, 2.0, 0.0]] * len(subset)
    assert token_weights(workspace, "all")["weights"].to_list() == [[0.0] * 4] * len(subset)


def test_rows_come_in_the_subsets_order(workspace: Workspace) -> None:
    subset = read_stored(workspace, "subset", subset="best").collect()
    assert token_weights(workspace, "best")["sample_id"].equals(subset["sample_id"])


def test_the_command_writes_a_file(workspace: Workspace, tmp_path: Path) -> None:
    def curate(*words: str) -> tuple[int, str]:
        command = ["token-weights", *words, "--config", str(workspace.config_file)]
        result = CliRunner().invoke(app, command)
        return result.exit_code, result.output.replace("\n", "")

    out = tmp_path / "w.parquet"
    assert curate("all", "--to", str(out), "--normalise", "mean1") == (
        0,
        f"wrote 8 rows to {out}, 1 without weights (not measured)",
    )
    assert pl.read_parquet(out).equals(token_weights(workspace, "all", "mean1"))
    assert curate("best", "--to", str(out)) == (0, f"wrote {len(token_weights(workspace, 'best'))} rows to {out}")
    code, text = curate("best", "--to", str(out), "--normalise", "sum")
    assert code == 1
    assert "unknown --normalise sum. Use one of none, mean1" in text
    code, text = curate("worst", "--to", str(out))
    assert code == 1
    assert "there is no subset 'worst'" in text


def test_a_target_without_the_signal_is_refused_with_what_to_add(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)})
    run(made)
    message = r"target tiny of subset best does not measure token_likelihoods\. Add it to the target's signals"
    with pytest.raises(TokenWeightsError, match=message):
        token_weights(made, "best")
    made.config_file.write_text(made.config_file.read_text().replace("_gradients]", "_gradients, token_likelihoods]"))
    changed = Workspace.load(made.config_file)
    with pytest.raises(TokenWeightsError, match="of 2 samples of subset best have no token_likelihoods of target tiny"):
        token_weights(changed, "best")
    run(changed)
    assert token_weights(changed, "best")["weights"].null_count() == 0


def test_a_subset_that_has_not_been_made_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)}, signals=SIGNALS)
    with pytest.raises(TokenWeightsError, match="subset best has not been made yet"):
        token_weights(made, "best")
    with pytest.raises(TableRequestError, match="there is no subset 'other'"):
        token_weights(made, "other")
