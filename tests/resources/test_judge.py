"""A judge: what it is asked, how replies are parsed and kept, what happens when it does not answer, the whole path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.config.config_file import ConfigError
from curation_assets.operations.plan import make_plan
from curation_assets.operations.purge import purge
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.tables.signals import SIGNALS
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.judge import JudgeError, JudgeScorer, JudgeSpec, parse, spec_facts
from curation_resources.scoring.samples import Question, Request, Sample, SampleSignals
from curation_resources.storage.digests import digest
from tests.pipeline.workspaces import rows, run, write_shard
from tests.resources.judge_server import Answer, JudgeServer, completion, judge_server

BOTH = Request(questions=("instruction_tags", "difficulty"))
TAGS = json.dumps([{"tag": "counting", "explanation": "how many"}, {"tag": "fruit", "explanation": "pears"}])


def said(question: str) -> Answer:
    return completion("7\nIt is hard." if "difficult" in question else TAGS)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(said) as started:
        yield started


def sample(number: int, prompt: str | None = None) -> Sample:
    return Sample(f"s{number}", [{"role": "user", "content": prompt or f"How many pears are {number} pears?"}], "Some.")


def judged(spec: JudgeSpec, samples: list[Sample], request: Request = BOTH) -> dict[str, SampleSignals]:
    with JudgeScorer(spec) as scorer:
        return {one.sample_id: one for part in scorer.measure(samples, request) for one in part}


def spec_of(server: JudgeServer, folder: Path, **changes: Any) -> JudgeSpec:
    return replace(JudgeSpec(server.url, "wise", folder / "replies"), **changes)


def test_both_questions_are_asked_of_each_prompt_once(server: JudgeServer, tmp_path: Path) -> None:
    samples = [sample(number % 70) for number in range(140)]
    samples = [replace(one, sample_id=f"s{place}") for place, one in enumerate(samples)]
    found = judged(spec_of(server, tmp_path), samples)
    assert len(found) == 140
    assert sorted(one.position for one in found.values()) == list(range(140))
    for one in found.values():
        assert one.judgements["instruction_tags"].value == 2
        assert one.judgements["instruction_tags"].names == ["counting", "fruit"]
        assert one.judgements["difficulty"].value == 7
    # Two responses to one prompt are one question, whichever thread comes first; who asks first pays.
    assert len(server.asked) == 140
    assert sum(one.tokens for one in found.values()) == 140 * 30
    assert all(body["model"] == "wise" and body["temperature"] == 0.0 for body in server.asked)
    assert any("How many pears are 3 pears?" in body["messages"][0]["content"] for body in server.asked)
    # What was replied is known, also to another process; another revision of the model is asked anew.
    again = judged(spec_of(server, tmp_path), samples[:5])
    assert len(server.asked) == 140
    assert [one.tokens for one in again.values()] == [0] * 5
    judged(spec_of(server, tmp_path, revision="2"), samples[:5])
    assert len(server.asked) == 150


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("7", 7),
        (" 10\nbecause", 10),
        ("3/10", 3),
        ("0", None),
        ("11", None),
        ("100", None),
        ("about 5", None),
        ("", None),
        ("-4", None),
    ],
)
def test_a_score_is_the_number_that_a_reply_begins_with(reply: str, value: int | None) -> None:
    assert parse("difficulty", reply, 1).value == value


@pytest.mark.parametrize("kind", ["complexity", "quality"])
@pytest.mark.parametrize(
    ("reply", "value"),
    [("1", 1), ("6\nwhy", 6), ("3/6", 3), ("7", None), ("Score: 7", None), ("0", None), ("五", None), ("", None)],
)
def test_deita_s_ratings_are_from_1_to_6(kind: Question, reply: str, value: int | None) -> None:
    assert parse(kind, reply, 1).value == value


def test_complexity_is_asked_once_a_prompt_and_quality_of_each_response(server: JudgeServer, tmp_path: Path) -> None:
    server.answer = lambda question: completion("5" if "complex" in question else "Score: 7")
    both = Request(questions=("complexity", "quality"))
    # A prompt of several turns, which contains a placeholder itself.
    turns = [
        {"role": "user", "content": "Qué es {response}?"},
        {"role": "assistant", "content": "🍐"},
        {"role": "user", "content": "And {prompt}?"},
    ]
    samples = [Sample(f"s{n}", turns, f"response {n} to {{prompt}}") for n in range(3)]
    found = judged(spec_of(server, tmp_path), samples, both)
    asked = [body["messages"][0]["content"] for body in server.asked]
    assert len(asked) == 4
    assert all("Request:\nQué es {response}?\n🍐\nAnd {prompt}?" in question for question in asked)
    assert sorted(question.split("Response:\n")[1] for question in asked if "Response:" in question) == [
        f"response {n} to {{prompt}}" for n in range(3)
    ]
    assert [one.judgements["complexity"].value for one in found.values()] == [5] * 3
    # What is out of the scale is no value, and its reply is kept to look at.
    assert [one.judgements["quality"].value for one in found.values()] == [None] * 3
    assert {one.judgements["quality"].reply for one in found.values()} == {"Score: 7"}
    (row,) = SIGNALS["quality"].frame([found["s0"]]).rows(named=True)
    assert (row["quality"], row["reply"], row["flags"]) == (None, "Score: 7", ["unparsed_reply"])
    server.answer = lambda _: completion("3")
    again = judged(spec_of(server, tmp_path), samples, both)
    assert [one.judgements["quality"].value for one in again.values()] == [3] * 3
    assert len(server.asked) == 7


def test_questions_that_were_asked_before_keep_their_keys() -> None:
    spec = JudgeSpec("http://there/v1", "wise", Path("replies"))
    assert spec_facts(spec) == {"model": "wise", "revision": None, "temperature": 0.0, "max_tokens": 512}
    assert digest("difficulty", 1, "judge", spec_facts(spec, "difficulty")) == "91121b40087fbf65876b77b61ab93009"
    with JudgeScorer(spec) as scorer:
        _, path = scorer._request_body(spec.about("difficulty", sample(1)))
    assert path.stem == "27ff11fa5ecb5a57af6fdd4ceedb05a4"


@pytest.mark.parametrize(
    ("reply", "value", "names"),
    [
        (TAGS, 2, ["counting", "fruit"]),
        ("```json\n" + TAGS + "\n```", 2, ["counting", "fruit"]),
        ('[{"tag" : "cut off', 1, []),
        ("[]", 0, []),
        ("There are none.", None, []),
        ("", None, []),
    ],
)
def test_tags_are_counted_by_their_name(reply: str, value: int | None, names: list[str]) -> None:
    found = parse("instruction_tags", reply, 1)
    assert (found.value, found.names) == (value, names)


@given(st.text())
def test_no_reply_breaks_the_parser(reply: str) -> None:
    assert parse("difficulty", reply, 0).value in {None, *range(1, 11)}
    tags = parse("instruction_tags", reply, 0)
    assert tags.value is None or tags.value >= len(tags.names) >= 0


def test_what_may_pass_is_tried_again_and_what_does_not_is_said(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: Answer = (429, {"Retry-After": "0"}, b"slow down")
    server.first = [busy, (500, {}, b"oh"), (503, {}, b"")]
    spec = spec_of(server, tmp_path, workers=1)
    assert judged(spec, [sample(1)])["s1"].judgements["difficulty"].value == 7
    assert len(server.asked) == 5
    server.first = [busy] * 5
    with pytest.raises(JudgeError, match="responded with 429: slow down"):
        judged(replace(spec, attempts=2), [sample(2)])
    server.first = [(401, {}, b"who are you?")]
    monkeypatch.setenv("JUDGE_KEY", "open sesame")
    with pytest.raises(JudgeError, match=r"responded with 401: who are you.; the key is read from JUDGE_KEY"):
        judged(replace(spec, key_variable="JUDGE_KEY"), [sample(3)])
    assert server.keys[-1] == "Bearer open sesame"
    server.first = [(403, {}, b"no Bearer open sesame here")]
    with pytest.raises(JudgeError, match="responded with 403: no Bearer JUDGE_KEY here"):
        judged(replace(spec, key_variable="JUDGE_KEY"), [sample(3)])
    server.first = [(200, {}, b'{"headers": "Bearer open sesame"}')]
    with pytest.raises(JudgeError, match=r"chat completion: .*Bearer JUDGE_KEY"):
        judged(replace(spec, key_variable="JUDGE_KEY"), [sample(3)])
    # A secret that is mounted from a file often ends in a newline; what no header can carry is not shown.
    monkeypatch.setenv("JUDGE_KEY", "open sesame\n")
    judged(replace(spec, key_variable="JUDGE_KEY"), [sample(7)])
    assert server.keys[-1] == "Bearer open sesame"
    monkeypatch.setenv("JUDGE_KEY", "open\nsesame")
    with pytest.raises(JudgeError, match=r"the key in JUDGE_KEY contains characters that are not allowed in a header$"):
        judged(replace(spec, key_variable="JUDGE_KEY"), [sample(8)])
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(JudgeError, match="JUDGE_KEY is not set"):
        judged(replace(spec, key_variable="JUDGE_KEY"), [sample(3)])
    server.first = [(200, {}, b"<html>")]
    with pytest.raises(JudgeError, match="did not return an OpenAI chat completion"):
        judged(spec, [sample(4)])
    server.first = [(302, {"Location": "http://127.0.0.1:1/v1"}, b"")]
    with pytest.raises(JudgeError, match="does not answer"):
        judged(spec, [sample(5)])
    with pytest.raises(JudgeError, match=r"does not answer .*correct targets\.endpoint\.url"):
        judged(replace(spec, url="http://127.0.0.1:9/v1", attempts=1), [sample(6)])
    server.first = [(404, {}, b"?")]
    with pytest.raises(
        JudgeError, match=r"responded with 404: \?; check that targets\.endpoint\.url is the part before"
    ):
        judged(spec, [sample(9)])
    with pytest.raises(JudgeError, match="connection refused"):
        judged(replace(spec, url="http://127.0.0.1:9/v1", attempts=1), [sample(6)])


def test_what_is_refused_or_not_understood_is_no_value(server: JudgeServer, tmp_path: Path) -> None:
    def answer(question: str) -> Answer:
        if "forbidden" in question:
            return 400, {}, b"no"
        return completion(None if "mute" in question else "I would rather not.", tokens=None)

    server.answer = answer
    prompts = [sample(1, "a forbidden one"), sample(2, "a mute one"), sample(3)]
    pictured = replace(sample(4), images=[b"image"])
    found = judged(spec_of(server, tmp_path), [*prompts, pictured])
    assert [one.reply for one in found["s1"].judgements.values()] == ["400: no"] * 2
    assert [one.value for one in found["s1"].judgements.values()] == [None] * 2
    assert found["s1"].question_flags == dict.fromkeys(BOTH.questions, "refused_by_endpoint")
    assert [one.value for name in ("s2", "s3") for one in found[name].judgements.values()] == [None] * 4
    assert found["s3"].tokens > 0
    assert (found["s4"].flags, found["s4"].judgements) == (["images_not_supported"], {})


def test_what_said_nothing_is_asked_again(server: JudgeServer, tmp_path: Path) -> None:
    server.answer = lambda question: completion("I would rather not.") if "pears" in question else (400, {}, b"no")
    spec = spec_of(server, tmp_path)
    judged(spec, [sample(1), sample(2, "about plums")])
    server.answer = said
    found = judged(spec, [sample(1), sample(2, "about plums")])
    assert {one.judgements["difficulty"].value for one in found.values()} == {7}
    assert len(server.asked) == 8


def test_an_endpoint_that_refuses_everything_ends_the_run(server: JudgeServer, tmp_path: Path) -> None:
    server.answer = lambda _: (400, {}, b"temperature is not supported")
    few = judged(spec_of(server, tmp_path), [sample(number) for number in range(3)])
    assert len(few) == 3
    with pytest.raises(JudgeError, match=r"refuses every question .*400: temperature is not supported"):
        judged(spec_of(server, tmp_path), [sample(number) for number in range(30)])
    assert len(server.asked) < 60
    # It did say something once: questions are to blame.
    server.answer = lambda question: said(question) if " 0 pears" in question else (400, {}, b"too rude")
    spec = spec_of(server, tmp_path, workers=1)
    assert len(judged(spec, [sample(number) for number in range(30)])) == 30


def test_replies_that_are_kept_say_that_it_does_answer(server: JudgeServer, tmp_path: Path) -> None:
    spec = spec_of(server, tmp_path, workers=1)
    judged(spec, [sample(number) for number in range(3)])
    server.answer = lambda _: (400, {}, b"too rude")
    found = judged(spec, [sample(number) for number in range(30)])
    assert sum(one.question_flags != {} for one in found.values()) == 27


def test_a_reply_that_is_half_there_is_asked_for_again(server: JudgeServer, tmp_path: Path) -> None:
    spec = spec_of(server, tmp_path)
    judged(spec, [sample(1)])
    for path, text in zip(sorted(spec.cache.rglob("*.json")), ("", '{"tokens": 3}'), strict=True):
        path.write_text(text)
    assert judged(spec, [sample(1)])["s1"].judgements["difficulty"].value == 7
    assert len(server.asked) == 4


def test_odd_counts_of_tokens_are_counted_by_bytes(server: JudgeServer, tmp_path: Path) -> None:
    for number, usage in enumerate(('"much"', "[]", '{"total_tokens": "9"}')):
        body = '{"choices": [{"message": {"content": "7"}}], "usage": ' + usage + "}"
        server.answer = lambda _, body=body: (200, {}, body.encode())  # type: ignore[misc]
        found = judged(spec_of(server, tmp_path, revision=str(number)), [sample(1)])
        assert found["s1"].judgements["difficulty"].tokens == 1


def test_no_part_of_a_key_is_shown(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k" * 40)
    server.answer = lambda _: (403, {}, b"x" * 180 + b"k" * 40)
    with pytest.raises(JudgeError) as refused:
        judged(spec_of(server, tmp_path, key_variable="JUDGE_KEY"), [sample(1)])
    assert "kkk" not in str(refused.value)


def test_half_a_surrogate_pair_can_be_stored(server: JudgeServer, tmp_path: Path) -> None:
    server.answer = lambda _: (200, {}, b'{"choices": [{"message": {"content": "7 \\ud83d"}}]}')
    for _ in range(2):
        (found,) = judged(spec_of(server, tmp_path), [sample(1)]).values()
        assert found.judgements["difficulty"].reply == "7 ?"


def test_an_answer_that_breaks_off_is_asked_for_again(server: JudgeServer, tmp_path: Path) -> None:
    broken = (200, {"Content-Length": "100"}, b'{"choices":')
    server.first = [broken, (520, {}, b"")]
    spec = spec_of(server, tmp_path, workers=1)
    assert judged(spec, [sample(1)])["s1"].judgements["difficulty"].value == 7
    server.first = [broken] * 5
    with pytest.raises(JudgeError, match="does not answer"):
        judged(spec, [sample(2)])


def test_no_more_is_asked_than_workers_were_at(server: JudgeServer, tmp_path: Path) -> None:
    with JudgeScorer(spec_of(server, tmp_path, workers=2)) as scorer:
        stream = scorer.measure([sample(number) for number in range(100)], BOTH)
        next(stream)
        stream.close()
    assert len(server.asked) <= 2 * (1 + 2 * 2)


def test_where_a_judge_is_and_how_fast_it_is_asked_changes_no_reply(server: JudgeServer, tmp_path: Path) -> None:
    spec = spec_of(server, tmp_path)
    same = replace(spec, url="https://elsewhere/v1", workers=1, timeout=1.0, attempts=1, key_variable="K")
    assert spec_facts(replace(same, cache=tmp_path)) == spec_facts(spec)
    others: dict[str, Any] = {"model": "m", "tags_prompt": "{prompt}?", "temperature": 1.0, "max_tokens": 9}
    for name, value in others.items():
        changed = replace(spec, **{name: value})
        assert spec_facts(changed, "instruction_tags") != spec_facts(spec, "instruction_tags")
        # One question's wording is no other's business.
        assert (spec_facts(changed, "difficulty") == spec_facts(spec, "difficulty")) == (name == "tags_prompt")


CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - {{name: judge, model: wise, warmup: none, signals: [instruction_tags, difficulty], endpoint: {{url: "{url}"}}}}
scores:
  - {{name: tags, target: judge, method: instag}}
  - {{name: hard, target: judge, method: difficulty}}
subsets:
  - {{name: hardest, score: hard, budget: {{samples: 3}}}}
engine: {{device: cpu}}
"""


def test_the_whole_path(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation_assets.workspace.fingerprints.cache_folder", lambda: tmp_path / "cache")

    def answer(question: str) -> Answer:
        return said(question) if "difficult" not in question else completion(str(len(question) % 10 + 1))

    server.answer = answer
    (tmp_path / "curation.yaml").write_text(CONFIG.format(url=server.url))
    write_shard(tmp_path / "landing" / "a.jsonl", rows(9))
    workspace = Workspace.load(tmp_path / "curation.yaml")
    (planned,) = make_plan(workspace, probe=True).targets
    assert not server.asked  # a plan asks nobody
    assert planned.tokens > 0
    assert not planned.exact
    summary = run(workspace)
    assert summary.measured == {"judge": 9}
    assert summary.tokens_measured == 30 * len(server.asked)
    stored = read_stored(workspace, "difficulty").collect()
    assert stored["difficulty"].is_between(1, 10).all()
    best = read_stored(workspace, "subset").collect()["sample_id"].to_list()
    order = stored.sort("difficulty", "sample_id", descending=[True, False])["sample_id"].to_list()
    assert best == order[:3]
    assert set(read_stored(workspace, "instruction_tags").collect()["tags"]) == {2}
    asked = len(server.asked)
    assert run(workspace).tokens_measured == 0
    assert len(server.asked) == asked


def test_a_purge_forgets_what_was_replied(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation_assets.workspace.fingerprints.cache_folder", lambda: tmp_path / "cache")
    config = tmp_path / "curation.yaml"
    config.write_text(CONFIG.format(url=server.url))
    write_shard(tmp_path / "landing" / "a.jsonl", rows(4))
    run(Workspace.load(config))
    replies = set((tmp_path / "cache" / "judge").rglob("*.json"))
    asked = {body["messages"][0]["content"] for body in server.asked}
    sample_id = read_stored(Workspace.load(config), "raw_corpus").collect()["sample_id"][0]
    done = purge(Workspace.load(config), sample_id)
    assert done.replies == 2
    assert len(replies - set((tmp_path / "cache" / "judge").rglob("*.json"))) == 2
    assert len(asked) == len(replies) == 8


def test_what_was_refused_is_asked_again_when_that_is_asked_for(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation_assets.workspace.fingerprints.cache_folder", lambda: tmp_path / "cache")
    server.answer = lambda question: (400, {}, b"no") if "from 3" in question else completion("7" + TAGS)
    config = tmp_path / "curation.yaml"
    config.write_text(CONFIG.format(url=server.url))
    write_shard(tmp_path / "landing" / "a.jsonl", rows(9))
    run(Workspace.load(config))
    stored = read_stored(Workspace.load(config), "difficulty").collect()
    refused = stored.filter(pl.col("flags").list.contains("refused_by_endpoint"))
    assert refused["difficulty"].null_count() == len(refused) > 0
    assert refused["reply"].str.starts_with("400").all()
    asked, server.answer = len(server.asked), lambda _: completion("7" + TAGS)
    assert run(Workspace.load(config)).tokens_measured == 0
    config.write_text(config.read_text().replace('url: "', 'ask_again: 1, url: "'))
    assert run(Workspace.load(config)).tokens_measured > 0
    assert len(server.asked) == asked + 2 * len(refused)
    again = read_stored(Workspace.load(config), "difficulty").collect()
    assert again["difficulty"].to_list() == [7] * 9


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (', endpoint: {{url: "{url}"}}', "", "Name its endpoint, as in endpoint"),
        (
            "instruction_tags, difficulty]",
            "difficulty, likelihoods]",
            "requires a judge. Measure likelihoods with",
        ),
        ("warmup: none, ", "", "a judge is measured without training. Add warmup: none."),
        ('url: "{url}"', "url: ftp://there", "url"),
        ('url: "{url}"', "url: http://name:secret@there", "url"),
        ('url: "{url}"', 'url: "{url}", tags_prompt: "?"', "Put {prompt} where the prompt goes"),
        ('url: "{url}"', 'url: "{url}", quality_prompt: "{{prompt}}?"', "Put {response} where the response goes"),
        ('url: "{url}"', 'url: "{url}", key: secret', "key"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in CONFIG
    (tmp_path / "curation.yaml").write_text(CONFIG.replace(before, after).format(url="http://there/v1"))
    with pytest.raises(ConfigError) as refused:
        Workspace.load(tmp_path / "curation.yaml")
    assert message in str(refused.value)
