"""How responses are cut: each strategy, short and many segments, marks, and properties of every cut."""

from __future__ import annotations

import itertools
import random
import time
from typing import get_args

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.config.corpus_settings import Segmentation, Strategy
from curation_assets.steps.answers import TAGS
from curation_assets.steps.cutting import count_words
from curation_assets.steps.segmentation import AUTO_ORDER, Segments, merge_evenly, segment, segment_frame
from curation_assets.tables import SEGMENTED_STEPS
from tests.corpus.helpers import data_file, jsonl, read
from tests.steps.texts import Row, frame, rows


def settings(**values: object) -> Segmentation:
    return Segmentation.model_validate(values)


AUTO = settings()


def cut(response: str, steps: list[str] | None = None, answer: str | None = None, **values: object) -> list[str]:
    """The texts of the steps."""
    found = segment(response, settings(**values), steps, answer)
    return [response[start:end] for start, end in found.steps]


def strategy(response: str, steps: list[str] | None = None, **values: object) -> str:
    return segment(response, settings(**values), steps).strategy


def test_the_strategies_of_the_settings_are_there() -> None:
    assert set(AUTO_ORDER) == set(get_args(Strategy)) - {"auto"}


@pytest.mark.parametrize(
    ("response", "name", "steps"),
    [
        (
            "First we look.\nStep 1: add two numbers\nthen more\nStep 2: take them away\n†Answer: B",
            "markers",
            ["First we look.\nStep 1: add two numbers\nthen more", "Step 2: take them away"],
        ),
        ("**Step 1**\nadd two\n\n**Step 2**\nadd three", "markers", ["**Step 1**\nadd two", "**Step 2**\nadd three"]),
        ("## Step 1: add two\n## Step 2: add three", "markers", ["## Step 1: add two", "## Step 2: add three"]),
        ("Step 1: add two. Step 2: add three.", "markers", ["Step 1: add two.", "Step 2: add three."]),
        ("1. add two numbers\n2. add three numbers", "markers", ["1. add two numbers", "2. add three numbers"]),
        ("1) add two numbers\n2) add three numbers", "markers", ["1) add two numbers", "2) add three numbers"]),
        ("**1.** add two x\n**2.** add three x", "markers", ["**1.** add two x", "**2.** add three x"]),
        (
            "Step 1: a list\n1. one x y\n2. two x y\nStep 2: the end",
            "markers",
            ["Step 1: a list\n1. one x y\n2. two x y", "Step 2: the end"],
        ),
        ("one two three\nfour\n\nfive six seven", "paragraphs", ["one two three\nfour", "five six seven"]),
        ("one two three\r\n \t\r\nfive six seven", "paragraphs", ["one two three", "five six seven"]),
        ("12 + 5 = 17\n17 + 1 = 18\n#### 18", "lines", ["12 + 5 = 17", "17 + 1 = 18"]),
        ("It is 3.5 m. Then it grows.", "sentences", ["It is 3.5 m.", "Then it grows."]),
        ("From Step 2 we know this. Step 2 is done now.", "sentences", None),
        ("we know 3.5 is more than 2.5 m", "whole", ["we know 3.5 is more than 2.5 m"]),
        ("Step One: read the file.\nStep Two: count.", "markers", ["Step One: read the file.", "Step Two: count."]),
        ("第一步，先算乘法。第二步，再加一。", "markers", ["第一步，先算乘法。", "第二步，再加一。"]),
        ("步骤1：先算乘法。\n步骤2：再加一。", "markers", ["步骤1：先算乘法。", "步骤2：再加一。"]),
        ("ステップ1 足します。\nステップ2 引きます。", "markers", ["ステップ1 足します。", "ステップ2 引きます。"]),
        ("1단계: 둘을 더해\n2단계: 셋을 빼 봅니다", "markers", ["1단계: 둘을 더해", "2단계: 셋을 빼 봅니다"]),
        ("先算乘法得到十二。再加一得到十三。", "sentences", ["先算乘法得到十二。", "再加一得到十三。"]),
        ("まず数を数えます。\n\n次に引きます。", "paragraphs", ["まず数を数えます。", "次に引きます。"]),
        ("परिणाम बारह ही है। अब एक जोड़ें।", "sentences", ["परिणाम बारह ही है।", "अब एक जोड़ें।"]),
        ("هل هذا هو العدد؟ نعم هذا هو العدد", "sentences", ["هل هذا هو العدد؟", "نعم هذا هو العدد"]),
        (
            "Use this one loop.\n\n```python\ntotal = 0\n\nfor i in range(n):\n    total += i\n```\n\nIt sums them up.",
            "paragraphs",
            [
                "Use this one loop.",
                "```python\ntotal = 0\n\nfor i in range(n):\n    total += i\n```",
                "It sums them up.",
            ],
        ),
        # A fence that is never closed opens no block.
        (
            "Use this loop.\n\n```\none two three\n\nfour five six",
            "paragraphs",
            ["Use this loop.", "```\none two three", "four five six"],
        ),
        ("[THINK]Add two and two.\n\nIt is four.[/THINK]", "paragraphs", ["Add two and two.", "It is four."]),
    ],
)
def test_auto_takes_the_first_strategy_that_yields_two(response: str, name: str, steps: list[str] | None) -> None:
    assert strategy(response) == name
    found = cut(response)
    assert found == steps if steps is not None else len(found) == 2


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("We use e.g. Euler here. Then i.e. Gauss comes.", 2),
        ("Mr. Smith has 3.5 kg. Dr. J. Watson has 4 kg!", 2),
        ("He waits... and then he goes. Is it so? yes it is.", 3),
        ('She said "I go now." Then she left us.', 2),
        ("See Fig. 3 and No. 4 of this. The U.S. Army went home.", 2),
        ("It costs 24. Then it costs 25. 26 is too much.", 3),
        ("x is 1.5, y is 2.5. (That is all.) Now we stop here.", 3),
    ],
)
def test_sentences(text: str, sentences: int) -> None:
    assert len(cut(text, strategy="sentences")) == sentences


def test_windows_of_words() -> None:
    text = " ".join(f"w{i}" for i in range(100))
    found = cut(text)
    assert strategy(text) == "words"
    assert [len(piece.split()) for piece in found] == [40, 40, 20]
    assert " ".join(found) == text
    assert [len(piece.split()) for piece in cut(text, window_words=33)] == [33, 33, 34]
    assert cut("a b c d", window_words=2, min_step_words=2) == ["a b", "c d"]


def test_short_segments_join_their_neighbour() -> None:
    assert cut("a b c\nd\ne f g") == ["a b c\nd", "e f g"]
    assert cut("a\nb c d\ne f g") == ["a\nb c d", "e f g"]
    assert cut("a\nb\nc d e f\ng h i") == ["a\nb\nc d e f", "g h i"]
    assert cut("a\nb\nc\nd e f") == ["a\nb\nc", "d e f"]
    assert cut("a b c\nd e f\ng") == ["a b c", "d e f\ng"]
    assert cut("12 + 5 = 17\nOK\nso it is") == ["12 + 5 = 17\nOK", "so it is"]
    assert cut("a\nb c", min_step_words=1) == ["a", "b c"]


def test_a_strategy_whose_segments_are_too_short_is_not_taken() -> None:
    assert (strategy("a b c d e\n\nf"), cut("a b c d e\n\nf")) == ("whole", ["a b c d e\n\nf"])


def test_too_many_segments_are_merged_evenly_and_flagged() -> None:
    text = "\n".join(f"line number {i}" for i in range(150))
    found = segment(text, AUTO)
    assert (len(found.steps), found.merged, found.strategy) == (64, True, "lines")
    counts = [text[start:end].count("\n") + 1 for start, end in found.steps]
    assert set(counts) == {2, 3}
    assert sum(counts) == 150
    exact = segment("\n".join(f"line number {i}" for i in range(64)), AUTO)
    assert (len(exact.steps), exact.merged) == (64, False)
    assert merge_evenly([(0, 1), (2, 3), (4, 5)], 2) == [(0, 1), (2, 5)]


def test_explicit_steps_win() -> None:
    response = "Add two and two.\nIt makes four, no more. Answer: 4"
    steps = ["Add two and", "two.\nIt makes four,", "no more. Answer: 4"]
    assert strategy(response, steps) == "explicit"
    assert cut(response, steps, min_step_words=2) == ["Add two and", "two.\nIt makes four,", "no more."]
    assert strategy(response, ["Add two and two."]) == "lines"
    assert strategy(response, ["Add two and two."], strategy="explicit") == "explicit"
    assert strategy(response, strategy="explicit") == "whole"
    with pytest.raises(ValueError, match="order"):
        segment(response, AUTO, ["no such step"])


def test_a_named_strategy_is_used_as_it_is() -> None:
    text = "One line here.\nAnother line. And one more sentence."
    assert len(cut(text, strategy="lines")) == 2
    assert (strategy(text, strategy="paragraphs"), cut(text, strategy="paragraphs")) == ("paragraphs", [text])
    assert strategy(text, ["One line here.", "Another line."], strategy="sentences") == "sentences"


def test_no_text_before_the_answer_gives_no_steps() -> None:
    for text in ("Answer: 4", "  \n#### 4", "", "<think></think>4"):
        assert segment(text, AUTO).steps == ()
    assert segment("4", AUTO, None, "4").steps == ()


def test_what_follows_the_answer_belongs_to_nothing() -> None:
    assert cut("Add two and two.\nTake one away.\nAnswer: 3\nI hope this helps you.") == [
        "Add two and two.",
        "Take one away.",
    ]


def test_marks_belong_to_no_step() -> None:
    text = "<think>\nfirst I look\n\nthen I add\n\n</think>\n\nSo it makes 4.\n\nAnswer: 4"
    assert cut(text) == ["first I look", "then I add", "So it makes 4."]
    solution = "<|begin_of_thought|>\n\none two three\n\nfour five six\n\n<|end_of_thought|>\n\n"
    solution += "<|begin_of_solution|>\n\nseven eight nine $\\boxed{10}$\n\n<|end_of_solution|>"
    assert cut(solution) == ["one two three", "four five six", "seven eight nine"]


def test_a_long_thought_is_cut_even_if_the_solution_is_numbered() -> None:
    thought = "\n\n".join("I think and think again" for _ in range(5))
    text = f"<think>{thought}</think>1. add two numbers\n2. add three numbers\nAnswer: 4"
    assert strategy(text) == "paragraphs"
    assert len(cut(text)) == 6
    short = "<think>I think so</think>1. add two numbers\n2. add three numbers\nAnswer: 4"
    assert cut(short) == ["I think so", "1. add two numbers", "2. add three numbers"]
    uncut = "<think>I think so and so on and on</think>add two x\nadd three x\nAnswer: 4"
    assert (strategy(uncut), len(cut(uncut))) == ("lines", 3)


def test_items_of_nested_lists_are_not_cut() -> None:
    nested = "1. Read it:\n   1. open the file\n   2. take a line\n2. Count the lines."
    assert cut(nested) == [nested[: nested.index("2. Count") - 1], "2. Count the lines."]
    only_inside = "1. Read it:\n   1. open the file\n   2. take a line"
    assert cut(only_inside) == ["1. Read it:", "1. open the file", "2. take a line"]


def test_a_short_rest_between_marks_belongs_to_nothing() -> None:
    assert cut("<think>first I look\nthen I add</think>The answer: 4") == ["first I look", "then I add"]
    assert cut("<think>hm</think>Answer: 4") == ["hm"]


def check(response: str, found: Segments, values: Segmentation) -> None:
    """What holds of every segmentation."""
    end = len(response) if found.answer is None else found.answer.marker_start
    for start, stop in found.steps:
        assert 0 <= start < stop <= end
        assert response[start:stop] == response[start:stop].strip()
    for (_, stop), (start, _) in itertools.pairwise(found.steps):
        assert stop <= start
    assert len(found.steps) <= values.max_steps
    if not found.merged:
        assert not any(TAGS.search(response[start:stop]) for start, stop in found.steps)
    words = [count_words(response[start:stop]) for start, stop in found.steps]
    if not found.merged and max(words, default=0) >= values.min_step_words:
        assert min(words) >= values.min_step_words
    if not found.steps:
        assert not TAGS.sub("", response[:end]).strip()


PIECES = ["Step 1:", "\nStep 2:", "\n1. ", "\n2) ", "\n\n", "\n", " ", ". ", "? ", "a b c d", "Word", "3.5", "e.g. "]
PIECES += [
    "<think>",
    "</think>",
    "<|begin_of_solution|>",
    "<|end_of_thought|>",
    "Answer: ",
    "#### ",
    "\\boxed{4}",
    "\r\n",
]
PIECES += ["\u3002", "\u2003", "\x1c"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60)
SETTINGS = st.builds(
    Segmentation,
    strategy=st.sampled_from(get_args(Strategy)),
    min_step_words=st.integers(1, 5),
    max_steps=st.integers(2, 6),
    window_words=st.integers(1, 6),
)


@given(TEXTS, SETTINGS, st.none() | st.sampled_from(["Word", "4", "3.5"]))
def test_steps_are_disjoint_ordered_trimmed_and_before_the_answer(
    response: str, values: Segmentation, answer: str | None
) -> None:
    check(response, segment(response, values, None, answer), values)


@given(st.lists(TEXTS, min_size=1, max_size=5), SETTINGS)
def test_explicit_steps_hold_to_the_same_rules(steps: list[str], values: Segmentation) -> None:
    check("\n".join(steps), segment("\n".join(steps), values, steps), values)


@given(TEXTS)
def test_auto_takes_explicit_or_two_steps_if_any_strategy_has_them(response: str) -> None:
    """The twin tries every strategy by name; marks are left out, for they make regions."""
    response = TAGS.sub(" ", response)
    found = segment(response, AUTO)
    by_name = {name: segment(response, settings(strategy=name)) for name in AUTO_ORDER[1:]}
    first = next((name for name, other in by_name.items() if len(other.steps) > 1), None)
    assert found.strategy == (first or "whole")
    if first:
        assert found == by_name[first]
    else:
        assert len(found.steps) <= 1


@pytest.mark.parametrize(
    "piece", ["a. ", ". ", "1. ", "\n", "Step 1: ", "<think>", "a ", ".", "!)", "* ", "\n1. a b c", " "]
)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    begin = time.process_time()
    segment(piece * 60_000, AUTO)
    assert time.process_time() - begin < 10


def test_the_table() -> None:
    rows = [
        {"prompt": "q", "response": "Add two numbers.\nTake one away.\n#### 4"},
        {"prompt": "q", "response": "Add two numbers.\nTake one away.\n#### 4"},
        {"prompt": "q", "response": "#### 5"},
        {"prompt": "q", "response": "no answer at all"},
        {"prompt": "q", "response": "One x y. Two x y.", "steps": ["One x y.", "Two x y."]},
    ]
    accepted = read(jsonl(*rows)).accepted
    frame = segment_frame(accepted, AUTO)
    assert frame.schema == pl.Schema(SEGMENTED_STEPS.schema)
    assert frame.equals(segment_frame(accepted.reverse(), AUTO))
    assert frame.select("sample_id", "step_index").is_unique().all()
    ids = accepted["sample_id"].to_list()
    columns = ["step_index", "kind", "start", "end", "strategy", "merged"]
    by_sample = {key[0]: part.select(columns).rows() for key, part in frame.group_by("sample_id")}
    assert by_sample == {
        ids[0]: [
            (0, "answer", 37, 38, "hashes", False),
            (1, "step", 0, 16, "lines", False),
            (2, "step", 17, 31, "lines", False),
        ],
        ids[2]: [(0, "answer", 5, 6, "hashes", False)],
        ids[3]: [(1, "step", 0, 16, "whole", False)],
        ids[4]: [(1, "step", 0, 8, "explicit", False), (2, "step", 9, 17, "explicit", False)],
    }
    assert segment_frame(accepted.head(0), AUTO).is_empty()


@pytest.mark.data
def test_gsm8k_is_cut_by_lines_with_its_answer() -> None:
    accepted = read(data_file("gsm8k/train.jsonl")).accepted
    frame = segment_frame(accepted, AUTO)
    answers = frame.filter(kind="answer")
    assert answers.height == 7473
    assert set(answers["strategy"]) == {"hashes"}
    steps = frame.filter(kind="step").group_by("sample_id").agg(pl.len(), pl.first("strategy"))
    assert steps.height == 7473
    assert steps.filter(strategy="lines").height > 7300
    texts = dict(accepted.select("sample_id", "response").iter_rows())
    for sample, start, end in answers.select("sample_id", "start", "end").iter_rows():
        assert texts[sample][start:end] == texts[sample].split("#### ")[1].strip()
    # The twin: where no line is short and none is blank, the steps are the lines.
    spans = frame.filter(kind="step").group_by("sample_id", maintain_order=True).agg("start", "end")
    plain = 0
    for sample, starts, ends in spans.iter_rows():
        lines = texts[sample].split("\n")[:-1]
        if len(lines) > 1 and all(len(line.split()) >= 3 and not line[0].isdigit() for line in lines):
            plain += 1
            found = [texts[sample][start:end] for start, end in zip(starts, ends, strict=True)]
            assert found == [line.strip() for line in lines]
    assert plain > 6000


@pytest.mark.data
def test_model_solutions_have_their_labelled_answer() -> None:
    paths = ["ground_truth", "6b_finetuning.solution", "175b_verification.solution"]
    mapped = {"prompt": "question", "response": paths}
    accepted = read(data_file("gsm8k/example_model_solutions.jsonl"), columns=mapped).accepted
    answers = segment_frame(accepted, AUTO).filter(kind="answer")
    assert answers.height / accepted["sample_id"].n_unique() > 0.98
    assert set(answers["strategy"]) == {"label"}


@pytest.mark.data
def test_prm800k_explicit_steps() -> None:
    frame = pl.read_parquet(data_file("prm800k_phase1/phase1_train_plus.stepwise-critic.parquet"))
    solved = frame.filter("is_solution").select("instruction", "responses", "next_response", "answer").to_dicts()
    rows = [
        {"prompt": row["instruction"], "steps": [*row["responses"], row["next_response"]], "answer": row["answer"]}
        for row in solved
    ]
    found = read(jsonl(*rows))
    assert found.accepted.height == len(rows) == 808
    table = segment_frame(found.accepted, AUTO)
    assert set(table.filter(kind="step")["strategy"]) == {"explicit"}
    for row in found.accepted.iter_rows(named=True):
        check(row["response"], segment(row["response"], AUTO, row["steps"], row["answer"]), AUTO)


@given(st.lists(rows(), max_size=8), st.randoms(use_true_random=False))
def test_a_frame_is_cut_row_by_row_in_any_order(given_rows: list[Row], order: random.Random) -> None:
    corpus = frame(given_rows)
    whole = segment_frame(corpus, AUTO)
    shuffled = list(range(len(corpus)))
    order.shuffle(shuffled)
    assert whole.equals(segment_frame(corpus[shuffled], AUTO))
    assert whole.equals(segment_frame(pl.concat([corpus, corpus[::2]]), AUTO))
    for sample_id, response, answer, steps in corpus.select("sample_id", "response", "answer", "steps").iter_rows():
        found = segment(response, AUTO, steps, answer)
        mine = whole.filter(sample_id=sample_id)
        assert mine.filter(kind="step").select("start", "end").rows() == list(found.steps)
        expected = [] if found.answer is None else [found.answer[:2]]
        assert mine.filter(kind="answer").select("start", "end").rows() == expected


def test_steps_that_are_not_there_are_refused_among_others() -> None:
    good: Row = ("One two.\nThree four.", ["One two.", "Three four."], None)
    for bad in (["no such step"], ["Three four.", "One two."], ["One two.", "One two."]):
        corpus = frame([good, ("One two.\nThree four.", bad, None), good])
        for strategy in ("auto", "explicit"):
            with pytest.raises(ValueError, match="order"):
                segment_frame(corpus, Segmentation(strategy=strategy))
