"""The whole path on real traces: GSM8K's model solutions with a real pretrained model."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curation_assets.methods.registry import METHODS
from tests.benchmarks.gsm8k import GENERATORS, NOT_COMPARED, REFERENCE, make_workspace, measure, methods, preferred


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.data
def test_model_solutions_go_through_and_the_outcome_is_the_documented_one(real_data: Path, tmp_path: Path) -> None:
    outcome, pool = measure(make_workspace(tmp_path, real_data))
    assert (outcome["samples"], outcome["pool"]) == (6595, 6583)
    assert set(pool["generator"]) == {REFERENCE, *GENERATORS}
    assert pool.group_by("prompt_id").len()["len"].max() == 5
    assert pool["prompt_id"].n_unique() == 1319
    # What docs/gsm8k.md says; the warm-up's rounding differs a little between machines.
    page = (Path(__file__).parents[2] / "docs" / "gsm8k.md").read_text()
    assert outcome["tokens_measured"] == outcome["tokens_of_step_gradients"]
    assert f"| {outcome['tokens_measured']:,} |" in page
    assert outcome["without_score"] == 710
    assert outcome["auroc_correct"] == pytest.approx(0.505, abs=0.01)
    assert outcome["correlation_with_tokens"] == pytest.approx(0.04, abs=0.02)
    scored = pool.filter(pl.col("score").is_not_null())
    assert scored["score"].is_between(-1, 1).all()


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.data
def test_every_method_has_its_line_on_a_few_of_the_problems(real_data: Path, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, real_data, every_method=True, rows=30)
    outcome, pool = measure(workspace)
    assert len(pool) == outcome["samples"] == 150
    found = methods(workspace)
    assert set(found["method"]) == set(METHODS) - NOT_COMPARED
    assert found["auroc"].null_count() == 0
    assert found["right"].is_between(0, 1).all()
    shares = preferred(workspace)
    assert set(shares["generator"]) == {REFERENCE, *GENERATORS}
    for target in ("stories", "stories_base"):
        assert shares[target].sum() == pytest.approx(1.0)
