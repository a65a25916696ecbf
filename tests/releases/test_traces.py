"""What a page holds: every trace with its steps and reasons; thresholds counted by plain loops; nothing is markup."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.methods.selectors.top import Top
from curation_assets.releases.export import release_frame
from curation_assets.releases.trace_images import release_pictures
from curation_assets.releases.trace_page import _finite, page_text, utf16_places
from curation_assets.releases.traces import (
    POSITIONS,
    compared,
    draw_prompts,
    release_traces,
    shown_score,
    subset_traces,
    survivors_of,
    takes_highest,
    traces_of,
)
from curation_assets.subsets.step_positions import pooled
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.files import FolderStorage
from tests.pipeline.workspaces import make_workspace, release_folder, release_subset, rows, run

HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran=2'>\u2028🦊"
SUBSETS = """
subsets:
  - {name: best, score: grace, budget: {fraction: 0.5}}
  - {name: within, score: grace, budget: {samples: 4}, standardise: source}
  - {name: picky, score: grace, budget: {samples: 3}, filters: {min_steps: 4}}
"""


def traces_with_odd_ones() -> list[dict[str, Any]]:
    odd = {"prompt": f"What is {HOSTILE}?", "response": f"🦊 first\nStep 2: {HOSTILE}\nStep 3: so\nAnswer: {HOSTILE}"}
    again = [{"prompt": "Count on from 1.", "response": f"Step 1: {n}\nStep 2: {n}\nAnswer: {n}"} for n in range(3)]
    return [*rows(24), odd, *again, {"prompt": "Short.", "response": "No steps"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("viewed"), tiny_model, {"a.jsonl": traces_with_odd_ones()})
    config = workspace.config_file
    config.write_text(re.sub(r"\nsubsets:\n(  - .*\n)+", SUBSETS, config.read_text()))
    workspace = Workspace.load(config)
    run(workspace)
    release_subset(workspace)
    return workspace


def opened(page: str, name: str) -> Any:
    """A document that is packed into a page."""
    packed = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_a_page_holds_the_pool_with_steps_as_they_were_scored(made: Workspace) -> None:
    traces = subset_traces(made, made.settings.subset("best"))
    page = page_text(traces)
    assert page == page_text(subset_traces(made, made.settings.subset("best")))
    meta, texts = opened(page, "meta"), opened(page, "block-0")
    pool = read_stored(made, "sample_scores").collect()
    assert sorted(meta["id"]) == sorted(pool["sample_id"].unique())
    stored = read_stored(made, "step_scores", score="grace").collect()
    chosen = read_stored(made, "subset", subset="best").collect()
    ranks = dict(chosen.select("sample_id", "rank").iter_rows())
    for place, (sample_id, text) in enumerate(zip(meta["id"], texts, strict=True)):
        own = stored.filter(pl.col("sample_id") == sample_id).sort("step_index")
        if len(own):
            expected = own.select("step_score", "answer_alignment", "trajectory_consistency").rows()
            for step, values in zip(text["steps"], expected, strict=True):
                assert step[2:5] == [None if v is None else pytest.approx(v, abs=1e-6) for v in values]
        assert meta["rank"][place] == ranks.get(sample_id)
        assert text["why"]
    assert meta["unit"] == "tokens"


def test_steps_are_adjusted_for_their_position(made: Workspace) -> None:
    stored = read_stored(made, "step_scores", score="grace").collect()
    counts = stored.group_by("step_index").len().sort("step_index")
    first = pooled(counts.rows())
    assert len(first) > 1
    own: dict[tuple[str, int], float] = {}
    for start, end in pairwise([*first, 10**9]):
        rows = stored.filter(pl.col("step_index").is_between(start, end, closed="left"))
        scores = rows["step_score"].to_numpy()
        z = (scores - scores.mean()) / scores.std(ddof=1)
        keys = rows.select("sample_id", "step_index").iter_rows()
        own |= {(sample, step): value for (sample, step), value in zip(keys, z, strict=True)}
    page = page_text(subset_traces(made, made.settings.subset("best")))
    meta, texts = opened(page, "meta"), opened(page, "block-0")
    assert meta["colour"] == "z"
    shown = 0
    for sample_id, text in zip(meta["id"], texts, strict=True):
        for index, step in enumerate(text["steps"], 1):
            z = own.get((sample_id, index))
            assert step[5] == (None if z is None else pytest.approx(z, abs=1e-4))
            shown += z is not None
    assert shown == len(own)
    # The release of the subset has the same pool, and keeps what its page adjusts for.
    manifest = json.loads((release_folder(made) / "manifest.json").read_text())
    assert [one["step_index"] for one in manifest["step_positions"]] == first
    assert sum(one["steps"] for one in manifest["step_positions"]) == len(own)
    released = (release_folder(made) / "traces.html").read_text()
    assert opened(released, "meta")["colour"] == "z"
    of_pool = {i: t["steps"] for i, t in zip(meta["id"], texts, strict=True)}
    of_release = zip(opened(released, "meta")["id"], opened(released, "block-0"), strict=True)
    assert all(text["steps"] == of_pool[sample_id] for sample_id, text in of_release)


def test_a_release_without_positions_is_coloured_by_scores(made: Workspace) -> None:
    frame, manifest = release_frame(made.warehouse.storage, "releases/best/1")
    del manifest["step_positions"]
    old = traces_of(frame, manifest, None)
    assert opened(page_text(old), "meta")["colour"] == "score"
    assert opened(page_text(old), "meta")["scales"]["z"] is None
    assert {step[5] for text in opened(page_text(old), "block-0") for step in text["steps"]} == {None}
    # Compared with the same score of the pool, its steps are adjusted as those are.
    pool = subset_traces(made, made.settings.subset("best"), chosen_only=True)
    assert compared(old, pool).positions == pool.positions
    assert compared(old, replace(pool, scored_by="another")).positions is None


def test_why_a_trace_was_not_chosen(made: Workspace) -> None:
    best = subset_traces(made, made.settings.subset("best")).rows
    said = dict(best.select("response", "why").iter_rows())
    assert said["No steps"].startswith("not eligible: ")
    assert any(why.startswith("rank 1 by grace") for why in said.values())
    assert any(why.startswith("not selected: the last selected sample has grace = ") for why in said.values())
    within = subset_traces(made, made.settings.subset("within"))
    assert "not selected: others rank higher by z of grace within their source" in within.rows["why"].to_list()
    assert any(re.match(r"rank 1 by grace = .* \(z = .* within its source\)", why) for why in within.rows["why"])
    assert dict(within.facts)["ranked by"].startswith("z of grace among the eligible samples of the same source")
    picky = subset_traces(made, made.settings.subset("picky")).rows
    assert "not eligible: excluded by the filters of picky" in picky["why"].to_list()


def test_a_release_says_that_its_score_was_standardised(made: Workspace) -> None:
    release_subset(made, "within")
    folder = made.warehouse.root / "releases" / "within" / "1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parameters"]["subset"]["standardise"] == "source"
    assert manifest["selection"]["standardised_sources"] == 1
    assert "z of grace among the eligible samples of the same source (standardise: source)" in (
        (folder / "README.md").read_text()
    )
    assert "ranked by" in dict(release_traces(made.warehouse.storage, "releases/within/1").facts)
    assert "ranked by" not in dict(release_traces(made.warehouse.storage, "releases/best/1").facts)
    done = CliRunner().invoke(app, ["reproduce", "within@1", "--config", str(made.config_file)])
    assert done.exit_code == 0, done.output


def test_places_are_counted_as_browsers_count(made: Workspace) -> None:
    traces = subset_traces(made, made.settings.subset("best"))
    (row,) = traces.rows.filter(pl.col("response").str.contains("🦊 first")).iter_rows(named=True)
    (text,) = [one for one in opened(page_text(traces), "block-0") if "🦊 first" in one["response"]]
    wide = text["response"].encode("utf-16-le")
    shown = [wide[2 * step[0] : 2 * step[1]].decode("utf-16-le") for step in text["steps"]]
    assert shown == [row["response"][span["start"] : span["end"]] for span in row["step_spans"]]
    assert shown
    start, end = text["answer"]
    assert wide[2 * start : 2 * end].decode("utf-16-le").endswith("🦊")


@given(st.text(), st.data())
def test_a_character_is_where_utf16_has_it(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    clean = text.encode("utf-16-le", "surrogatepass")
    assert utf16_places(text)(at) == len(text[:at].encode("utf-16-le", "surrogatepass")) // 2 <= len(clean) // 2


def test_nothing_of_a_trace_is_markup(made: Workspace) -> None:
    page = page_text(subset_traces(made, made.settings.subset("best")))
    assert "window.ran" not in page
    assert "onerror" not in page


scores = st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=20)


@given(scores, st.booleans())
def test_survivors_are_those_of_a_plain_loop(rows: list[tuple[float, int, int]], highest_first: bool) -> None:
    frame = pl.DataFrame(
        rows, schema={"score": pl.Float64, "n_steps": pl.Int32, "response_tokens": pl.Int32}, orient="row"
    )
    found = survivors_of(frame, highest_first)
    assert len(found.thresholds) == POSITIONS
    for place in range(0, POSITIONS, 50):
        threshold = found.thresholds[place]
        left = [row for row in rows if (row[0] >= threshold if highest_first else row[0] <= threshold)]
        assert found.samples[place] == len(left)
        # Rows of one score may stand in any order; either all of them are in or none.
        assert found.steps[place] == sum(row[1] for row in left)
        assert found.tokens[place] == sum(row[2] for row in left)


def test_nothing_to_rank_has_no_threshold() -> None:
    empty = pl.DataFrame(
        {"score": [None, None], "n_steps": [1, 2], "response_tokens": [3, 4]}, schema_overrides={"score": pl.Float64}
    )
    assert survivors_of(empty).thresholds == []


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 40))
def test_whole_prompts_are_drawn(prompts: list[int], most: int) -> None:
    frame = pl.DataFrame(
        {
            "sample_id": [str(number) for number in range(len(prompts))],
            "prompt_id": [str(prompt) for prompt in prompts],
            "rank": [number if number % 3 == 0 else None for number in range(len(prompts))],
            "score": [float(number) for number in range(len(prompts))],
        },
        schema_overrides={"rank": pl.Int64},
    )
    drawn = draw_prompts(frame, most)
    smallest = min(prompts.count(prompt) for prompt in prompts)
    assert 0 < len(drawn) <= max(most, smallest)
    assert drawn["score"].is_sorted(descending=True)
    for prompt in drawn["prompt_id"].unique():
        assert len(drawn.filter(pl.col("prompt_id") == prompt)) == prompts.count(int(prompt))


def test_a_release_shows_its_rows(made: Workspace) -> None:
    storage = made.warehouse.storage
    traces = release_traces(storage, "releases/best/1")
    data = pl.read_parquet(release_folder(made) / "data" / "train.parquet")
    assert set(traces.rows["sample_id"]) == set(data["sample_id"])
    page = page_text(traces)
    assert opened(page, "meta")["unit"] == "characters"
    assert opened(page, "block-0")[0]["messages"][-1]["role"] == "user"


@pytest.mark.parametrize("most", [10_000, 2])
def test_two_are_compared_by_what_they_chose(made: Workspace, most: int) -> None:
    best, picky = (subset_traces(made, made.settings.subset(name), chosen_only=True) for name in ("best", "picky"))
    found = compared(best, picky, most)
    counts = dict(found.facts)["in both / only first / only second"]
    ours, theirs = (set(read_stored(made, "subset", subset=name).collect()["sample_id"]) for name in ("best", "picky"))
    members = dict(found.rows.select("sample_id", "member").iter_rows())
    expected = {"both": ours & theirs, "first": ours - theirs, "second": theirs - ours}
    # Who chose what is said of all, however few are drawn.
    assert counts == " / ".join(str(len(expected[name])) for name in ("both", "first", "second"))
    assert found.of == len(ours | theirs)
    assert {name: {i for i, m in members.items() if m == name} for name in expected} == {
        name: ids & set(members) for name, ids in expected.items()
    }
    assert len(members) == (found.of if most > 2 else 2)
    assert page_text(found)


def test_the_direction_is_the_selectors_else_the_methods() -> None:
    assert takes_highest({"kind": "top", "order": "lowest"}, True) is False
    assert takes_highest({"kind": "top", "order": "highest"}, False) is True
    assert takes_highest({"kind": "top", "order": None}, False) is False
    assert takes_highest({"kind": "k_center"}, True) is True


def test_the_lowest_first_is_shown_so(made: Workspace) -> None:
    subset = made.settings.subset("best").model_copy(update={"selector": Top(order="lowest")})
    found = subset_traces(made, subset)
    assert found.highest_first is False
    chosen = found.rows.filter(pl.col("rank").is_not_null())
    assert found.survivors.samples[0] < found.survivors.samples[-1]
    last = chosen.sort("rank")["score"][-1]
    assert f"not selected: the last selected sample has grace = {last:.4f}" in found.rows["why"].to_list()


def test_scores_that_are_not_the_same_are_not_mixed(made: Workspace) -> None:
    best, picky = (subset_traces(made, made.settings.subset(name), chosen_only=True) for name in ("best", "picky"))
    found = compared(picky, replace(best, scored_by="another"))
    second = found.rows.filter(pl.col("member") == "second")
    assert len(second)
    assert second["step_scores"].null_count() == len(second)
    assert ("scores", "differ; the first's are shown") in found.facts


def test_small_scores_are_told_apart() -> None:
    assert _finite(1.23456789e-8) == 1.23457e-8
    frame = pl.DataFrame({"score": [1.00000049e-8, 2e-8], "n_steps": [1, 1], "response_tokens": [1, 1]})
    found = survivors_of(frame.with_columns(shown_score()))
    assert found.samples[0] == 2
    assert found.thresholds[0] == 1e-8


def test_images_of_a_release_are_opened_as_those_of_a_corpus_are(tmp_path: Path) -> None:
    (tmp_path / "r" / "images").mkdir(parents=True)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "r" / "images" / "eps").write_bytes(eps)
    pictures = release_pictures(FolderStorage(tmp_path), "r")
    names = ["images/eps", "images/none", "images/../x", "elsewhere.png"]
    found = pictures({"images": names})
    assert all("data" not in one for one in found)
    assert [one["name"] for one in found] == names


def test_a_trace_in_the_terminal_is_adjusted_unless_raw(made: Workspace) -> None:
    traces = subset_traces(made, made.settings.subset("best"))
    sample = traces.rows.filter(pl.col("rank") == 1)["sample_id"][0]
    show = ["show", sample, "--config", str(made.config_file)]
    adjusted, raw = (CliRunner().invoke(app, [*show, *more]).output.splitlines() for more in ([], ["--raw"]))
    assert traces.positions is not None
    score = traces.rows.filter(pl.col("rank") == 1)["step_scores"][0][0]
    (head,) = [line for line in adjusted if "step  " in line]
    assert head.split()[1:6] == ["step", "score", "z", "align", "consist"]
    assert any(line.split()[1:4] == ["1", f"{score:+.2f}", f"{traces.positions.z(1, score):+.2f}"] for line in adjusted)
    (head,) = [line for line in raw if "step  " in line]
    assert head.split()[1:5] == ["step", "score", "align", "consist"]


def test_the_command_writes_pages(made: Workspace, tmp_path: Path) -> None:
    config = ["--config", str(made.config_file)]
    for words in (["best"], ["best@1"], ["best", "picky"], ["best@1", "picky"], [str(release_folder(made))]):
        to = tmp_path / "page.html"
        done = CliRunner().invoke(app, ["report", *words, "--to", str(to), *config])
        assert done.exit_code == 0, done.output
        assert opened(to.read_text(), "meta")["id"]
    raw = CliRunner().invoke(app, ["report", "best", "--raw", "--to", str(to), *config])
    assert raw.exit_code == 0, raw.output
    assert opened(to.read_text(), "meta")["colour"] == "score"
    assert opened(to.read_text(), "meta")["scales"]["z"] is not None
    small = CliRunner().invoke(app, ["report", "best", "--most", "5", "--to", str(tmp_path / "small.html"), *config])
    assert "sampled by prompt" in small.output
    assert "are on this page, sampled by prompt" in (tmp_path / "small.html").read_text()
    elsewhere = CliRunner().invoke(app, ["report", "best", "--to", str(tmp_path / "no" / "page.html"), *config])
    assert "cannot be written" in elsewhere.stderr
    unknown = CliRunner().invoke(app, ["report", "worst", *config])
    assert unknown.exit_code == 1
    assert "worst" in unknown.stderr
