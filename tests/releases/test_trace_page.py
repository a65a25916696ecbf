"""The page in Chromium, from a file: click, filter, slide, search, keys, a phone, ten thousand traces, no request."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curation_assets.releases.trace_images import data_url
from curation_assets.releases.trace_page import page_text
from curation_assets.releases.traces import COLUMNS, Traces, compared, survivors_of
from curation_assets.subsets.moments import Moments
from curation_assets.subsets.step_positions import StepPositions
from curation_assets.tables.audit import METHOD_AUDIT

pytestmark = pytest.mark.system

COUNT = 10_000
HOSTILE = "<img src=x onerror='window.ran=1'></script><script>window.ran=2</script>"


def synthetic(count: int, shift: int = 0) -> Traces:
    """Traces with scores that fall by their number; three to a prompt."""
    made = []
    for number in range(count):
        response = f"First {number}.\nThen 🦊 {HOSTILE}.\nAnswer: {number}"
        spans = [(0, response.index("\n") + 1), (response.index("\n") + 1, response.index("Answer"))]
        made.append(
            {
                "sample_id": f"{number:032x}",
                "prompt_id": str(number // 3),
                "source": f"source {number % 4}",
                "generator": "somebody",
                "domain": None,
                "correct": None,
                "shard": "a.jsonl",
                "row": number,
                "score": 1.0 - number / count,
                "rank": number + 1 if (number + shift) % 2 == 0 else None,
                "why": f"because of {number} {HOSTILE}",
                "n_steps": 2,
                "response_tokens": 10 + number % 100,
                "flags": ["few_steps"] if number % 10 == 0 else [],
                "messages": json.dumps([{"role": "user", "content": f"Question {number // 3} {HOSTILE}"}]),
                "response": response,
                "images": ["picture.png"] if number == 0 else [],
                "image_digests": [],
                "step_spans": [{"start": a, "end": b} for a, b in spans],
                "step_scores": [0.9, -0.8],
                "step_alignments": [0.5, -0.25],
                "step_consistencies": [None, 0.125],
                "answer_span": {"start": response.index("Answer") + 8, "end": len(response)},
            }
        )
    rows = pl.DataFrame(made, infer_schema_length=None).select(COLUMNS)
    facts = [("score", "made up")]
    return Traces(
        "subset made up", facts, "made_up", "made up", True, rows, count, survivors_of(rows), rows["sample_id", "score"]
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on the PATH: install it (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        started = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("pages") / "large.html"
    picture = {"name": "picture.png", "data": data_url(Image.new("RGB", (600, 300), "red"))}
    path.write_text(page_text(synthetic(COUNT), lambda row: [picture] if row["images"] else []))
    return path


@pytest.fixture
def page(browser: Any, large: Path) -> Iterator[Any]:
    yield from shown(browser, large)


def shown(browser: Any, path: Path, **viewport: int) -> Iterator[Any]:
    context = browser.new_context(viewport=viewport or {"width": 1280, "height": 800})
    opened = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(path.as_uri())
    opened.wait_for_selector(".row")
    yield opened
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert opened.evaluate("window.ran") is None
    context.close()


def until(holds: Callable[[], object]) -> None:
    """Look until something holds: the page's own policy lets no text be evaluated in it."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(page: Any) -> str:
    return str(page.locator("#status").inner_text())


def test_ten_thousand_traces_stay_fluid(page: Any) -> None:
    assert status(page) == "10,000 of 10,000 traces"
    assert page.locator(".row").count() < 60
    page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
    until(lambda: "Question 3333" in page.locator(".row").last.inner_text())
    assert page.locator(".row").count() < 60
    # From anywhere to anywhere, twenty times: each draws some dozen rows, whatever the number of traces.
    drawn = page.evaluate(
        "async () => { const list = document.getElementById('list'); let most = 0;"
        " for (let n = 0; n < 20; n++) { list.scrollTop = (n * 7919 % 20) / 20 * list.scrollHeight;"
        " await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame);"
        " most = Math.max(most, document.querySelectorAll('.row').length); } return most; }"
    )
    assert 0 < drawn < 60


def test_a_click_shows_a_trace_with_its_steps(page: Any, tmp_path: Path) -> None:
    page.locator(".row").nth(0).click()
    page.wait_for_selector("#trace .response")
    steps = page.locator("#trace > .response .step")
    assert steps.count() == 2
    assert steps.nth(1).inner_text().startswith("2 −0.80Then 🦊 <img src=x")
    assert page.locator("#trace > .response .answer").inner_text() == "0"
    steps.nth(1).hover()
    tip = page.locator("#tip").inner_text()
    assert tip == "step 2 of 2 · score -0.8000 · answer alignment -0.2500 · trajectory consistency 0.1250"
    steps.nth(0).focus()
    assert "trajectory consistency –" in page.locator("#tip").inner_text()
    # Colour is not all that tells high from low.
    assert "high" in steps.nth(0).get_attribute("class")
    assert "low" in steps.nth(1).get_attribute("class")
    assert page.locator("#trace p").first.inner_text().startswith("because of 0 <img")
    assert page.locator("#trace img").evaluate("image => image.naturalWidth") == 512
    page.wait_for_selector(".group button")
    assert page.locator(".group button").count() == 2
    page.locator(".group button").nth(1).click()
    until(lambda: page.locator("#trace h2").inner_text().endswith("02"))
    page.screenshot(path=tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 10_000


@pytest.mark.parametrize("raw", [False, True])
def test_steps_are_coloured_by_z_or_by_score(browser: Any, tmp_path: Path, raw: bool) -> None:
    # The first step's score is high, but below most at its position; the second's the other way round.
    positions = StepPositions([1, 2], [Moments(30, 1.0, 0.1), Moments(30, -1.0, 0.1)])
    path = tmp_path / "adjusted.html"
    path.write_text(page_text(replace(synthetic(30), positions=positions), raw=raw))
    for page in shown(browser, path):
        the_colour_can_be_switched(page, raw)


def the_colour_can_be_switched(page: Any, raw: bool) -> None:
    by_score, by_z = ["1 +0.90", "2 −0.80"], ["1 z −1.0", "2 z +2.0"]
    page.locator(".row").first.click()
    page.wait_for_selector("#trace .response")
    page.wait_for_selector(".group .step")
    steps = page.locator("#trace > .response .step")

    def seen() -> list[str]:
        return [steps.nth(place).locator(".n").inner_text() for place in range(2)]

    def classes() -> list[str]:
        return [str(steps.nth(place).get_attribute("class")).removeprefix("step ") for place in range(2)]

    choice = page.get_by_label("colour:")
    assert choice.input_value() == ("score" if raw else "z")
    assert seen() == (by_score if raw else by_z)
    assert classes() == (["high", "low"] if raw else ["low", "high"])
    # From the keyboard, and everywhere on the page.
    choice.focus()
    page.keyboard.press("ArrowUp" if raw else "ArrowDown")
    until(lambda: seen() == (by_z if raw else by_score))
    assert classes() == (["low", "high"] if raw else ["high", "low"])
    others = page.locator(".group .step .n").all_inner_texts()
    assert others == (by_z if raw else by_score) * 2
    meaning = page.locator(".legend .meaning").inner_text()
    assert meaning.startswith("standard deviations from the mean" if raw else "step score")
    steps.nth(0).hover()
    assert "score 0.9000 · z at this position -1.00 · " in page.locator("#tip").inner_text()
    # Another trace is shown the same way, and the list keeps its scores.
    page.locator(".row").nth(1).click()
    until(lambda: page.locator("#trace h2").inner_text().endswith("1"))
    assert seen() == (by_z if raw else by_score)
    assert page.locator(".row b").first.inner_text() == "1.0000"


def test_filters_and_orders(page: Any) -> None:
    page.select_option("#source", "source 1")
    assert status(page) == "2,500 of 10,000 traces"
    page.select_option("#chosen", "selected")
    assert status(page) == "0 of 10,000 traces"
    page.select_option("#chosen", "not selected")
    assert status(page) == "2,500 of 10,000 traces"
    page.locator("#reset").click()
    page.select_option("#flag", "few_steps")
    assert status(page) == "1,000 of 10,000 traces"
    page.locator("#reset").click()
    page.fill("#least", "108")
    assert status(page) == "200 of 10,000 traces"
    page.fill("#most", "108")
    assert status(page) == "100 of 10,000 traces"
    page.locator("#reset").click()
    assert page.locator(".row b").first.inner_text() == "1.0000"
    page.select_option("#order", "worst score first")
    assert page.locator(".row b").first.inner_text() == "0.0001"
    page.select_option("#order", "longest first")
    assert page.locator(".row .top span").last.inner_text() == "109"


def test_the_slider_says_what_is_left(page: Any) -> None:
    page.locator("#slider").fill("500")
    said = page.locator("#survivors").inner_text()
    left = int(status(page).split(" ")[0].replace(",", ""))
    assert 4_990 <= left <= 5_010
    assert f"leaves {left:,} samples (" in said
    assert f" {2 * left:,} steps (" in said
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#survivors").inner_text() != said
    assert page.locator("#histogram rect.in").count() in range(25, 35)


def audit() -> pl.DataFrame:
    """An audit with a kind and a score that would run as markup."""
    kinds = ["wrong_number", "shuffled_steps", "foreign_response", HOSTILE]
    common = {"target": "t", "score": HOSTILE, "method": "grace", "configured": True, "within": "all"}
    rows = [
        common
        | {"kind": kind, "measure": measure, "value": place / 4, "low": place / 8, "high": place / 4 + 0.1}
        | {"verdict": ("inverted", "at_chance", "separates", "separates")[place], "samples": 100}
        for place, kind in enumerate(kinds)
        for measure in ("win_rate", "auroc", "step_auroc", "step_rank")
    ]
    rows.append(common | {"kind": "", "measure": "source_share", "value": 0.14, "samples": 100})
    return pl.DataFrame(rows, METHOD_AUDIT.schema)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (400, 800)])
def test_the_audit_is_a_view_of_its_own(browser: Any, tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "audited.html"
    path.write_text(page_text(replace(synthetic(30), score=HOSTILE, audit=audit())))
    for page in shown(browser, path, width=width, height=height):
        view, tab = page.locator("#view-audit"), page.get_by_role("tab", name="Audit")
        assert not view.is_visible()
        tab.click()
        assert view.is_visible()
        assert not page.locator("#list").is_visible()
        assert tab.get_attribute("aria-selected") == "true"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # A dot is as far along its track as its value says.
        for place in range(4):
            track, dot = (
                page.locator(".dots li").nth(place).locator(name).bounding_box() for name in (".track", ".dot")
            )
            middle = dot["x"] + dot["width"] / 2
            assert (middle - track["x"]) / track["width"] == pytest.approx(place / 4, abs=0.01)
        assert page.locator(".dots .kind").nth(3).inner_text() == HOSTILE
        assert view.locator("table").first.locator("tbody tr").count() == 4
        # The keyboard: arrows go between the tabs, and the keys of the list are not taken here.
        page.keyboard.press("j")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "tab-audit"
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.id") == "tab-funnel"
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.id") == "tab-traces"
        assert page.locator("#list").is_visible()
        assert not view.is_visible()
        page.keyboard.press("ArrowLeft")
        assert view.is_visible()


def test_a_page_without_an_audit_says_how_to_make_one(page: Any) -> None:
    page.locator("#tab-audit").click()
    assert page.locator("#view-audit").inner_text().startswith("Not audited: curate audit finds out")
    page.locator("#tab-traces").click()
    page.locator(".row").first.click()
    page.wait_for_selector("#trace .response")


def test_search_goes_through_all_texts(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("First 9998.")
    until(lambda: status(page).startswith("1 of"))
    assert "Question 3332" in page.locator(".row").inner_text()
    page.fill("#search", "QUESTION 12 <IMG")
    until(lambda: status(page).startswith("3 of"))
    page.fill("#search", f"{77:032x}"[:31])
    until(lambda: status(page).startswith("16 of"))


def test_keys_go_through_the_list(page: Any) -> None:
    page.locator("#list").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert page.locator('.row[aria-selected="true"]').get_attribute("aria-posinset") == "3"
    assert page.locator("#list").get_attribute("aria-activedescendant") == "row-2"
    page.keyboard.press("Enter")
    page.wait_for_selector("#trace h2")
    assert page.locator("#trace h2").inner_text() == f"{2:032x}"
    page.keyboard.press("End")
    assert page.locator('.row[aria-selected="true"]').get_attribute("aria-posinset") == "10000"
    assert page.url.endswith(f"#{2:032x}")
    page.reload()
    page.wait_for_selector("#trace h2")
    assert page.locator("#trace h2").inner_text() == f"{2:032x}"


def test_on_a_phone_one_thing_is_shown_at_a_time(browser: Any, large: Path) -> None:
    for page in shown(browser, large, width=390, height=800):
        assert not page.locator("#trace").is_visible()
        page.locator(".row").nth(1).click()
        page.wait_for_selector("#trace .response", state="visible")
        assert not page.locator("#list").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= 390")
        page.locator("#trace > .response .step").first.click()
        assert "step 1 of 2" in page.locator("#tip").inner_text()
        page.locator("#back").click()
        assert page.locator("#list").is_visible()


def test_two_are_compared(browser: Any, tmp_path: Path) -> None:
    first, second = synthetic(30), synthetic(30, shift=1)
    theirs = second.rows.with_columns(rank=pl.when(pl.col("score") > 0.5).then(1).cast(pl.Int64))
    both = compared(first, replace(second, title="subset other", rows=theirs))
    path = tmp_path / "compared.html"
    path.write_text(page_text(both))
    for page in shown(browser, path):
        counts = dict(both.rows.group_by("member").len().iter_rows())
        for choice, member in (("in both", "both"), ("only in the first", "first"), ("only in the second", "second")):
            page.select_option("#chosen", choice)
            assert status(page).startswith(f"{counts[member]} of")
        page.select_option("#chosen", "only in the second")
        assert "not selected" in page.locator(".row").first.inner_text()
        assert "only second" in page.locator(".row").first.inner_text()
