"""Solve rates: what is asked, how often, what is kept, how answers are compared, and what fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curation_assets.config.config_file import ConfigError
from curation_assets.operations.plan import make_plan
from curation_assets.operations.purge import purge
from curation_assets.steps.correctness import solved as grade
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.signals import SIGNALS
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.chat_endpoint import JudgeError
from curation_resources.models.judge import JudgeScorer, JudgeSpec, prompts_first
from curation_resources.models.solving import SolvingSpec
from curation_resources.scoring.results import Solved
from curation_resources.scoring.samples import Request, Sample, SampleSignals
from tests.pipeline.workspaces import run, write_shard
from tests.resources.judge_server import Answer, JudgeServer, completion, completions, judge_server

SOLVING = Request(solving=True)
TEXTS = ["So.\nAnswer: 12", "\\boxed{12}", "Answer: 13", "I do not know."]


def several(body: dict[str, Any]) -> Answer:
    """An endpoint that samples n answers to a request: two right, one wrong, one without an answer."""
    return completions((TEXTS * 8)[: body.get("n", 1)])


def one_each(body: dict[str, Any]) -> Answer:
    """An endpoint that ignores n."""
    return completion(TEXTS[body["seed"] % 4])


def refuses_n(body: dict[str, Any]) -> Answer:
    return (400, {}, b"only one completion choice is allowed") if "n" in body else one_each(body)


def two_at_most(body: dict[str, Any]) -> Answer:
    return completions([TEXTS[(body["seed"] + place) % 4] for place in range(min(2, body.get("n", 1)))])


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(completion) as started:
        started.respond = several
        yield started


def sample(number: int, prompt: str | None = None, reference: str | None = "12") -> Sample:
    turns = [{"role": "user", "content": prompt or f"How many pears are {number} pears?"}]
    return Sample(f"s{number}", turns, "Some.", reference=reference)


def spec_of(server: JudgeServer, folder: Path, **changes: Any) -> JudgeSpec:
    return replace(JudgeSpec(server.url, "wise", folder / "replies"), **changes)


def results(spec: JudgeSpec, samples: list[Sample], request: Request = SOLVING) -> dict[str, SampleSignals]:
    with JudgeScorer(spec, grade) as scorer:
        return {one.sample_id: one for part in scorer.measure(samples, request) for one in part}


def solved(spec: JudgeSpec, samples: list[Sample]) -> dict[str, Solved]:
    found = {name: one.solved for name, one in results(spec, samples).items()}
    return {name: one for name, one in found.items() if one is not None}


def row(result: SampleSignals) -> dict[str, Any]:
    (only,) = SIGNALS["solve_rate"].frame([result]).rows(named=True)
    return only


@pytest.mark.parametrize(
    ("respond", "requests"),
    [(several, 1), (one_each, 4), (refuses_n, 5), (two_at_most, 2)],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_n_answers_are_compared_however_the_endpoint_gives_them(
    server: JudgeServer, tmp_path: Path, respond: Any, requests: int
) -> None:
    server.respond = respond
    (found,) = results(spec_of(server, tmp_path), [sample(1)]).values()
    made = row(found)
    assert made["stated"] == ["12", "12", "13", None]
    assert (made["solve_rate"], made["answers"], made["answered"], made["right"]) == (0.5, 4, 3, 2)
    assert made["flags"] == []
    answered = len(server.asked) - (respond is refuses_n)
    assert made["tokens"] == found.tokens == 30 * answered
    assert len(server.asked) == requests
    first, *more = server.asked
    settings = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 4096, "seed": 0, "n": 4}
    assert (
        first == {"model": "wise", "messages": [{"role": "user", "content": "How many pears are 1 pears?"}]} | settings
    )
    # The same seed would give the same answer again.
    seeds = [body["seed"] for body in more[respond is refuses_n :]]
    assert seeds == sorted(set(seeds))
    assert 0 not in seeds


def test_what_an_endpoint_cannot_do_is_found_out_once(server: JudgeServer, tmp_path: Path) -> None:
    server.respond = refuses_n
    # More prompts at once than refusals end a run: this is not one.
    found = solved(spec_of(server, tmp_path, workers=16), [sample(number) for number in range(40)])
    assert [one.rate for one in found.values()] == [0.5] * 40
    assert sum("n" in body for body in server.asked) <= 16
    assert sum("n" not in body for body in server.asked) == 160


def test_responses_to_one_prompt_share_its_answers(server: JudgeServer, tmp_path: Path) -> None:
    # As rows come: all responses to a prompt together, and their references may differ.
    samples = [
        replace(sample(4 * prompt + number, f"prompt {prompt}", str(12 + number % 2)), response=f"response {number}")
        for prompt in range(20)
        for number in range(4)
    ]
    found = solved(spec_of(server, tmp_path, workers=8), samples)
    assert len(server.asked) == 20
    assert [found[f"s{number}"].rate for number in range(4)] == [0.5, 0.25, 0.5, 0.25]
    assert sum(one.tokens for one in found.values()) == 20 * 30
    # Another process knows them too; more answers ask for the rest alone, other settings for all.
    assert solved(spec_of(server, tmp_path), samples[:4])["s0"].tokens == 0
    assert len(server.asked) == 20
    solved(spec_of(server, tmp_path, solving=SolvingSpec(answers=6)), samples[:4])
    assert (len(server.asked), server.asked[-1]["n"], server.asked[-1]["seed"]) == (21, 2, 4)
    assert solved(spec_of(server, tmp_path), samples[:1])["s0"].stated == ["12", "12", "13", None]
    changes: list[dict[str, Any]] = [{"temperature": 0.5}, {"top_p": 1.0}, {"max_tokens": 9}, {"seed": 1}]
    for change in changes:
        before = len(server.asked)
        solved(spec_of(server, tmp_path, solving=SolvingSpec(**change)), samples[:4])
        assert len(server.asked) == before + 1
    # How a judge is asked changes no answer.
    solved(spec_of(server, tmp_path, temperature=0.7, max_tokens=9, workers=1), samples[:4])
    assert len(server.asked) == 25


@pytest.mark.parametrize("reference", ["12", "12.0", "$12", "\\boxed{12}", "3 * 4 = <<3*4=12>>12\n#### 12"])
def test_a_reference_may_be_a_worked_solution(server: JudgeServer, tmp_path: Path, reference: str) -> None:
    assert solved(spec_of(server, tmp_path), [sample(1, reference=reference)])["s1"].rate == 0.5


def test_different_prompts_come_first_within_a_window() -> None:
    samples = [sample(number, f"prompt {number // 3}") for number in range(12)]
    order = [position for position, _ in prompts_first(samples, 6)]
    assert order == [0, 3, 1, 2, 4, 5, 6, 9, 7, 8, 10, 11]
    assert list(prompts_first([], 6)) == []


def test_answers_are_kept_as_they_arrive(server: JudgeServer, tmp_path: Path) -> None:
    answers = 0

    def fails_at_the_third(body: dict[str, Any]) -> Answer:
        nonlocal answers
        answers += 1
        return (401, {}, b"expired") if answers == 3 else one_each(body)

    server.respond = fails_at_the_third
    spec = spec_of(server, tmp_path, workers=1)
    with pytest.raises(JudgeError, match="responded with 401: expired; name the key's variable"):
        solved(spec, [sample(1)])
    assert solved(spec, [sample(1)])["s1"].stated == ["12", "12", "13", None]
    # Two were there: the fourth request failed, and is the only one that is repeated.
    assert len(server.asked) == 5
    # A file that breaks off is asked for again.
    (path,) = spec.cache.rglob("*.json")
    for text in ("", "[]", '{"answers": [{"text": "half"}'):
        path.write_text(text)
        assert solved(spec, [sample(1)])["s1"].rate == 0.5


def test_a_prompt_without_a_reference_is_not_asked(server: JudgeServer, tmp_path: Path) -> None:
    pictured = replace(sample(3), images=[b"image"])
    found = results(spec_of(server, tmp_path), [sample(1, reference=None), sample(2, reference=" \n"), pictured])
    assert not server.asked
    for name, flag in (("s1", "no_reference"), ("s2", "no_reference"), ("s3", "images_not_supported")):
        made = row(found[name])
        assert made["flags"] == [flag]
        assert {made[one] for one in ("solve_rate", "answers", "answered", "right", "refusal")} == {None}


def test_turns_are_sent_as_they_are(server: JudgeServer, tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Sé breve 🍐"},
        {"role": "user", "content": "问题 {prompt}"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "c"},
        {"role": "user", "content": "Well?"},
    ]
    assert solved(spec_of(server, tmp_path), [replace(sample(1), messages=turns)])["s1"].rate == 0.5
    assert server.asked[0]["messages"] == turns


def test_a_refused_prompt_says_why_and_is_asked_once_a_run(server: JudgeServer, tmp_path: Path) -> None:
    server.respond = lambda body: (400, {}, b"too rude") if "rude" in str(body["messages"]) else several(body)
    samples = [replace(sample(number, "a rude one"), response=str(number)) for number in range(4)]
    found = results(spec_of(server, tmp_path), [sample(9), *samples])
    made = row(found["s3"])
    assert (made["solve_rate"], made["refusal"], made["flags"]) == (None, "400: too rude", ["refused_by_endpoint"])
    # With n and without, once for all four.
    assert sum("rude" in str(body["messages"]) for body in server.asked) == 2
    server.respond = several
    assert solved(spec_of(server, tmp_path), samples)["s3"].rate == 0.5


def test_an_endpoint_that_refuses_everything_ends_the_run(server: JudgeServer, tmp_path: Path) -> None:
    server.respond = lambda _: (400, {}, b"seed is not supported")
    assert len(results(spec_of(server, tmp_path), [sample(number) for number in range(3)])) == 3
    with pytest.raises(JudgeError, match=r"refuses every question .*seed is not supported.*top_p: 0.95.*solving"):
        results(spec_of(server, tmp_path), [sample(number) for number in range(30)])


def test_empty_answers_are_no_solve_rate_unless_thinking_was_cut_off(server: JudgeServer, tmp_path: Path) -> None:
    server.respond = lambda body: completions([None, "", " \n", None][: body.get("n", 1)])
    spec = spec_of(server, tmp_path)
    found = results(spec, [sample(1), replace(sample(2), messages=sample(1).messages)])
    made = row(found["s1"])
    assert (made["solve_rate"], made["answers"], made["answered"]) == (None, 4, 0)
    assert made["flags"] == ["empty_answers"]
    assert len(server.asked) == 1
    # Nothing was said, so it is asked again.
    server.respond = lambda body: completions([None] * body["n"], reason="length")
    made = row(results(spec, [sample(1)])["s1"])
    assert (made["solve_rate"], made["right"], made["flags"]) == (0.0, 0, ["answers_cut_off"])
    server.respond = lambda body: completions(["", *TEXTS[:3]])
    assert row(results(spec, [sample(3)])["s3"])["solve_rate"] == 0.5


def test_what_may_pass_is_tried_again_and_what_does_not_is_named(server: JudgeServer, tmp_path: Path) -> None:
    busy: Answer = (429, {"Retry-After": "0"}, b"slow down")
    server.first = [busy, (500, {}, b"oh"), (503, {}, b""), (200, {"Content-Length": "100"}, b'{"choices":')]
    spec = spec_of(server, tmp_path, workers=1)
    assert solved(spec, [sample(1)])["s1"].rate == 0.5
    assert len(server.asked) == 5
    server.first = [busy] * 3
    with pytest.raises(JudgeError, match=r"responded with 429: slow down; lower targets\.endpoint\.workers"):
        solved(replace(spec, attempts=2), [sample(2)])
    server.first = [(500, {}, b"out of memory")] * 3
    with pytest.raises(JudgeError, match=r"responded with 500: out of memory; .*raise targets\.endpoint\.attempts"):
        solved(replace(spec, attempts=1), [sample(2)])
    for body in (b"<html>", b'{"choices": []}', b'{"choices": [7]}', b'{"choices": [{"message": null}]}', b"[]"):
        server.first = [(200, {}, body)]
        with pytest.raises(JudgeError, match="did not return an OpenAI chat completion"):
            solved(spec, [sample(3)])
    with pytest.raises(JudgeError, match=r"connection refused.*correct targets\.endpoint\.url"):
        solved(replace(spec, url="http://127.0.0.1:9/v1", attempts=1), [sample(4)])
    free = threading.Event()
    server.respond = lambda body: several(body) if free.wait(10) else (500, {}, b"")
    with pytest.raises(JudgeError, match=r"no response within 0\.2 s \(targets\.endpoint\.timeout_seconds\)"):
        solved(replace(spec, timeout=0.2, attempts=1), [sample(5)])
    free.set()


def test_answers_that_fill_more_than_one_reply_s_share_are_read(server: JudgeServer, tmp_path: Path) -> None:
    long = "x" * 900_000
    server.respond = lambda body: completions([f"{long}\nAnswer: 12"] * body["n"])
    assert solved(spec_of(server, tmp_path), [sample(1)])["s1"].rate == 1.0


CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - name: solver
    model: wise
    warmup: none
    signals: [solve_rate, difficulty]
    endpoint: {{url: "{url}"}}
    solving: {{answers: 4, max_tokens: 100}}
scores:
  - {{name: solvable, target: solver, method: solve_rate}}
subsets:
  - {{name: hardest, score: solvable, budget: {{samples: 3}}}}
engine: {{device: cpu}}
"""


def workspace_of(server: JudgeServer, folder: Path, prompts: int = 6) -> Workspace:
    """A workspace with two responses to each prompt, and one row without an answer."""
    (folder / "curation.yaml").write_text(CONFIG.format(url=server.url))
    rows = [
        {"prompt": f"What is {number} and 10?", "response": f"Way {way}.\nAnswer: {number + 10}", "answer": number + 10}
        for number in range(prompts)
        for way in range(2)
    ]
    rows.append({"prompt": "Why?", "response": "Because."})
    write_shard(folder / "landing" / "a.jsonl", [json.loads(json.dumps(one)) for one in rows])
    return Workspace.load(folder / "curation.yaml")


def endpoint(body: dict[str, Any]) -> Answer:
    """An endpoint that rates every prompt 7, and always answers 12."""
    if "difficult" in body["messages"][0]["content"]:
        return completion("7")
    return completions(["Answer: 12", "Answer: 12", "Answer: 13", "Hm."][: body["n"]])


def test_the_whole_path(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation_assets.workspace.fingerprints.cache_folder", lambda: tmp_path / "cache")
    server.respond = endpoint
    workspace = workspace_of(server, tmp_path)
    (planned,) = make_plan(workspace).targets
    assert not server.asked
    # One request for the answers to each of six prompts, and one for the difficulty of each of seven.
    assert planned.requests == 13
    assert planned.tokens > 0
    run(workspace)
    assert len(server.asked) == 13
    (left,) = make_plan(workspace, probe=False).targets
    assert (left.requests, left.tokens) == (0, 0)
    stored = read_stored(workspace, "solve_rate").collect()
    corpus = read_stored(workspace, "raw_corpus").collect().select("sample_id", "answer")
    rates = dict(stored.join(corpus, on="sample_id").select("answer", "solve_rate").iter_rows())
    assert rates == {"10": 0.0, "11": 0.0, "12": 0.5, "13": 0.25, "14": 0.0, "15": 0.0, None: None}
    assert stored.filter(pl.col("solve_rate").is_null())["flags"].to_list() == [["no_reference"]]
    # The lowest solve rates come first.
    subset = read_stored(workspace, "subset").collect()
    assert set(subset.join(corpus, on="sample_id")["answer"]) <= {"10", "11", "14", "15"}
    assert run(workspace).tokens_measured == 0
    assert len(server.asked) == 13
    # Further responses to known prompts ask for nothing, and are not planned.
    more = [{"prompt": "What is 2 and 10?", "response": "Third.\nAnswer: 12", "answer": "12"}]
    write_shard(tmp_path / "landing" / "b.jsonl", more)
    (planned,) = make_plan(workspace, probe=False).targets
    assert (planned.samples, planned.requests, planned.tokens) == (1, 0, 0)
    run(workspace)
    assert len(server.asked) == 13
    assert read_stored(workspace, "solve_rate").collect().filter(pl.col("solve_rate") == 0.5).height == 3


def test_a_purge_forgets_the_answers(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation_assets.workspace.fingerprints.cache_folder", lambda: tmp_path / "cache")
    server.respond = endpoint
    workspace = workspace_of(server, tmp_path)
    run(workspace)
    corpus = read_stored(workspace, "raw_corpus").collect()
    sample_id = corpus.filter(pl.col("answer") == "12")["sample_id"][0]
    kept = set((tmp_path / "cache").rglob("*.json"))
    assert purge(workspace, sample_id).replies == 2
    assert len(kept - set((tmp_path / "cache").rglob("*.json"))) == 2


def test_empty_answers_are_asked_for_again_when_that_is_asked_for(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation_assets.workspace.fingerprints.cache_folder", lambda: tmp_path / "cache")
    server.respond = lambda body: completions([""] * body["n"]) if "n" in body else endpoint(body)
    workspace = workspace_of(server, tmp_path)
    run(workspace)
    assert read_stored(workspace, "solve_rate").collect()["solve_rate"].null_count() == 13
    asked, server.respond = len(server.asked), endpoint
    config = tmp_path / "curation.yaml"
    config.write_text(config.read_text().replace('{url: "', '{ask_again: 1, url: "'))
    workspace = Workspace.load(config)
    run(workspace)
    assert len(server.asked) == asked + 6
    assert read_stored(workspace, "solve_rate").collect()["solve_rate"].null_count() == 1


def test_an_empty_pool_asks_nothing(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation_assets.workspace.fingerprints.cache_folder", lambda: tmp_path / "cache")
    (tmp_path / "curation.yaml").write_text(CONFIG.format(url=server.url))
    write_shard(tmp_path / "landing" / "a.jsonl", [])
    workspace = Workspace.load(tmp_path / "curation.yaml")
    (planned,) = make_plan(workspace).targets
    assert (planned.samples, planned.requests) == (0, 0)
    assert results(spec_of(server, tmp_path), []) == {}
    assert not server.asked


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("answers: 4", "answers: 4, temperature: 0", "all answers to a prompt are equal. Raise it, or ask once"),
        ("answers: 4", "answers: 0", "answers"),
        ("answers: 4", "top_p: 0", "top_p"),
        ("answers: 4", "seed: -1", "seed"),
        ('endpoint: {{url: "{url}"}}', "", "solve_rate is measured by a model at an endpoint. Name its endpoint"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in CONFIG
    text = CONFIG.replace(before, after).replace("[solve_rate, difficulty]", "[solve_rate]")
    (tmp_path / "curation.yaml").write_text(text.format(url="http://there/v1"))
    with pytest.raises(ConfigError) as refused:
        Workspace.load(tmp_path / "curation.yaml")
    assert message in str(refused.value)
