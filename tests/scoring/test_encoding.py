"""Tokens, segments and truncation: which token belongs to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_resources.scoring.batching import plan_batches
from curation_resources.scoring.encoding import Encoder, EncodingError, anchors_of, segment_of_anchors
from curation_resources.scoring.samples import Sample, Segment
from tests.benchmarks.common import padding_fraction
from tests.models import byte_tokenizer, byte_tokenizer_with
from tests.scoring.cases import make_sample


def test_prompt_is_rendered_and_the_response_is_verbatim() -> None:
    tokenizer = byte_tokenizer()
    response = "<think>two  and\ttwo</think>\r\nAnswer: 4 "
    sample = Sample("s", [{"role": "user", "content": "How many?"}], response)
    (encoded,) = Encoder(tokenizer, "auto", 500).encode([sample])
    text = tokenizer.decode(encoded.input_ids)
    assert text == f"user: How many?\nassistant: {response}<eos>"
    assert encoded.prompt_tokens == len("user: How many?\nassistant: ")
    assert encoded.response_tokens == len(response)
    assert len(encoded.segment_of_token) == len(encoded.input_ids)


def test_plain_template_joins_turns_with_newlines() -> None:
    tokenizer = byte_tokenizer(chat=False)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    (encoded,) = Encoder(tokenizer, "auto", 500).encode([Sample("s", turns, "4")])
    assert tokenizer.decode(encoded.input_ids) == "Be brief.\nHow many?\n4<eos>"


WITH_CALLS = (
    "{% for turn in messages %}{{ turn.role }}{{ turn.tool_call_id }}: {{ turn.content }}"
    "{% for call in turn.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]"
    "{% endfor %}{{ '\\n' }}{% endfor %}assistant: "
)


@pytest.mark.parametrize(("arguments", "shown"), [('{"a": 2}', '{"a": 2}'), ("2 + 2", '"2 + 2"')])
def test_tool_calls_reach_the_template(arguments: str, shown: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    encoder = Encoder(byte_tokenizer_with([], WITH_CALLS), "auto", 500)
    assert encoder.render_prompt(Sample("s", turns, "4")) == (
        f"user: How many?\nassistant: [add {shown}]\ntoolc1: 4\nassistant: "
    )
    plain = Encoder(byte_tokenizer(chat=False), "auto", 500).render_prompt(Sample("s", turns, "4"))
    assert plain == f'How many?\n{{"name": "add", "arguments": {shown}}}\n4\n'
    # The turns stay as they are.
    assert turns[1]["tool_calls"] == [call]


OPENS = "{% for turn in messages %}{{ turn.content }}|{% endfor %}<think>{{ '\\n' }}"


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("<think>\nTwo.\n</think>\n4", "q|<think>\nTwo.\n</think>\n4"),
        (" <think>Two.</think>4", "q| <think>Two.</think>4"),
        ("Two.\n</think>\n4", "q|<think>\nTwo.\n</think>\n4"),
        ("4", "q|<think>\n4"),
    ],
)
def test_a_thought_that_the_template_opens_is_not_opened_twice(response: str, text: str) -> None:
    tokenizer = byte_tokenizer_with([], OPENS)
    (encoded,) = Encoder(tokenizer, "auto", 500).encode([Sample("s", [{"role": "user", "content": "q"}], response)])
    assert tokenizer.decode(encoded.input_ids) == f"{text}<eos>"
    assert encoded.response_tokens == len(response)


def test_what_a_template_says_is_kept() -> None:
    says = "{{ raise_exception('System role not\\n supported') }}"
    refuses = f"{{% if messages[0].role == 'system' %}}{says}{{% endif %}}{{{{ messages[0].content }}}}"
    encoder = Encoder(byte_tokenizer_with([], refuses), "chat", 500)
    (encoded,) = encoder.encode([Sample("s", [{"role": "system", "content": "q"}], "4")])
    with pytest.raises(EncodingError, match="refuses even a single turn of the user: System role not"):
        Encoder(byte_tokenizer_with([], says), "chat", 500)
    assert encoded.flags == ("template_refused", "template_refused: System role not supported")


def test_chat_template_that_is_not_there_is_an_error() -> None:
    with pytest.raises(EncodingError, match="template: plain"):
        Encoder(byte_tokenizer(chat=False), "chat", 500)


def test_every_segment_gets_the_tokens_of_its_text() -> None:
    sample = make_sample(["two and two", "größer × 3"], "42")
    tokenizer = byte_tokenizer()
    (encoded,) = Encoder(tokenizer, "auto", 500).encode([sample])
    for segment in sample.segments:
        ids = [
            token
            for token, owner in zip(encoded.input_ids, encoded.segment_of_token, strict=True)
            if owner == segment.index
        ]
        assert tokenizer.decode(ids) == sample.response[segment.start : segment.end]


def test_samples_that_cannot_be_run_say_why() -> None:
    tokenizer = byte_tokenizer()
    user = [{"role": "user", "content": "How many?"}]
    samples = [
        Sample("empty", user, ""),
        Sample("fine", user, "4"),
        Sample("image", [{"role": "user", "content": "<image>How many?"}], "4", images=["data:,"]),
        Sample("outside", user, "í"),
    ]
    # Its second byte has the alphabet's last symbol.
    vocabulary = max(tokenizer("í")["input_ids"])
    encoded = Encoder(tokenizer, "auto", 500, vocabulary=vocabulary).encode(samples)
    assert [item.flags for item in encoded] == [
        ("empty_response",),
        (),
        ("images_not_supported",),
        ("token_outside_vocabulary",),
    ]
    assert [item.sample.sample_id for item in encoded] == ["empty", "fine", "image", "outside"]
    assert encoded[0].response_tokens == 0
    assert Encoder(tokenizer, "auto", 500).encode(samples[3:])[0].flags == ()


def test_a_text_that_speaks_of_images_is_text() -> None:
    tokenizer = byte_tokenizer()
    (encoded,) = Encoder(tokenizer, "auto", 500).encode([Sample("s", [{"role": "user", "content": "<image>?"}], "4")])
    assert encoded.flags == ()
    assert tokenizer.decode(encoded.input_ids) == "user: <image>?\nassistant: 4<eos>"


def test_threads_may_share_an_encoder() -> None:
    from concurrent.futures import ThreadPoolExecutor

    tokenizer = byte_tokenizer()
    # As some tokenizers are saved: their first call changes them.
    tokenizer.backend_tokenizer.enable_truncation(max_length=7)
    encoder = Encoder(tokenizer, "auto", 500)
    samples = [make_sample(["two and two"] * (number % 7 + 1), str(number)) for number in range(400)]
    chunks = [samples[start : start + 10] for start in range(0, 400, 10)]
    alone = [[encoded.input_ids for encoded in encoder.encode(chunk)] for chunk in chunks]
    assert max(len(ids) for chunk in alone for ids in chunk) > 7
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(encoder.encode, chunks))
    assert [[encoded.input_ids for encoded in chunk] for chunk in together] == alone


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.sampled_from("ab \t\n\u3000×😀"), max_size=20),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=9),
)
def test_a_token_belongs_to_its_first_non_space_character(text: str, spans: list[tuple[int, int]]) -> None:
    bounded = [(min(start, len(text)), min(start + length, len(text))) for start, length in spans]
    slow = [next((p for p in range(start, end) if not text[p].isspace()), start) for start, end in bounded]
    starts, ends = np.array(bounded, dtype=np.int64).reshape(-1, 2).T
    assert anchors_of(text, starts, ends).tolist() == slow


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=6), st.lists(st.integers(-5, 80), max_size=30)
)
def test_segments_of_anchors_equal_the_slow_search(spans: list[tuple[int, int]], anchors: list[int]) -> None:
    segments, end = [], 0
    for index, (gap, length) in enumerate(spans, 1):
        if length:
            segments.append(Segment(index, end + gap, end + gap + length))
            end += gap + length
    slow = [next((s.index for s in segments if s.start <= a < s.end), -1) for a in anchors]
    assert segment_of_anchors(np.array(anchors, dtype=np.int64), segments).tolist() == slow


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 2000))
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    assert 0.0 <= padding_fraction(lengths, batches) < 1.0


@pytest.mark.data
def test_similar_lengths_run_together(real_data: Path) -> None:
    import orjson

    lines = (real_data / "gsm8k" / "train.jsonl").read_bytes().splitlines()
    lengths = [len(row["question"]) + len(row["answer"]) for row in map(orjson.loads, lines)]
    assert padding_fraction(lengths, plan_batches(lengths, 16384)) < 0.05


def test_alpacas_prompt_ends_where_the_response_begins() -> None:
    tokenizer = byte_tokenizer()
    sample = Sample("s", [{"role": "user", "content": "How {many}?"}], " 4")
    (encoded,) = Encoder(tokenizer, "alpaca", 500).encode([sample])
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHow {many}?\n\n### Response:"
    )
    assert tokenizer.decode(encoded.input_ids) == f"{prompt} 4<eos>"
    assert encoded.prompt_tokens == len(prompt)
