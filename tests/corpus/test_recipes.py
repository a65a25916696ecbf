"""Rows read together by their shape against the same rows parsed one by one."""

from __future__ import annotations

import contextlib
import random
from typing import Any, cast

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation_assets.config.corpus_settings import Columns
from curation_assets.corpus import reading
from curation_assets.corpus.assemble import SHARED_NAMES
from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.formats import FORMATS, Parser
from curation_assets.corpus.reading import ShardRows
from curation_assets.corpus.recipes import MOST_RECIPES, Recipe, Recipes
from curation_assets.corpus.shapes import LOOKED_AT, Shape, Shapes
from tests.corpus.helpers import Json, columns, data_file, jsonl, read
from tests.corpus.test_bad_input import FIELDS, JSON
from tests.corpus.test_bad_input import FORMATS as NAMES

TEXTS = st.sampled_from(
    ["a", "so it is 4", " padded\n", "two\nlines", "x" * 230, "", "  ", "nul\0", "#### 4", "data:x"]
)
ROLES = st.sampled_from(["user", "human", "assistant", "gpt", "system", "Assistant", "judge"])
TALKS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), min_size=1, max_size=3) | st.lists(
    st.fixed_dictionaries({"from": ROLES, "value": TEXTS}), min_size=1, max_size=3
)
USUAL = TEXTS | TALKS | st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.lists(TEXTS, max_size=2)
ROWS = st.dictionaries(st.sampled_from([*FIELDS, "note", "is_correct", "source"]), USUAL | JSON, max_size=8)
MAPPED = [
    {},
    {"prompt": "instruction", "response": "output", "correct": "reward"},
    {"response": ["response", "output"], "correct": [True, "correct"], "generator": ["model", None]},
    {"answer": "note", "steps": "steps"},
    {"response": "messages", "source": "note.at"},
]


class OneByOne(Recipes):
    """The slow twin: no shape has a recipe."""

    def of(self, shape: Shape) -> tuple[Recipe, ...]:
        return ()


def both_ways(data: bytes, name: str = "a.jsonl", **values: Any) -> tuple[ShardRows, ShardRows]:
    together = read(data, name, **values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "Recipes", OneByOne)
        return together, read(data, name, **values)


def assert_same(found: ShardRows, twin: ShardRows) -> None:
    assert found.accepted.equals(twin.accepted)
    assert found.rejected.equals(twin.rejected)
    assert (found.rows_in, found.candidates_in, found.format) == (twin.rows_in, twin.candidates_in, twin.format)
    assert found.file_problem == twin.file_problem


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROWS, max_size=6), st.sampled_from(NAMES), st.sampled_from(MAPPED))
def test_rows_of_a_shape_equal_rows_one_by_one(rows: list[Json], form: str, mapped: Json) -> None:
    assert_same(*both_ways(jsonl(*rows, *rows), format=form, columns=mapped))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(sorted(FORMATS)))
def test_usual_rows_equal_rows_one_by_one(data: st.DataObject, form: str) -> None:
    """Rows that fit their format, with what stands beside the fields it needs."""
    needed: dict[str, list[str]] = {
        "alpaca": ["instruction", "output"],
        "prompt_response": ["prompt", "response"],
        "preference": ["prompt", "chosen", "rejected"],
        "m23k": ["prompt", "reasoning", "distilled_answer_string"],
        "mmathcot": ["image_url", "instruction", "output"],
        "ultrainteract": ["instruction", "response", "parent_id", "id"],
    }
    talks = {"messages": "messages", "sharegpt": "conversations", "openthoughts": "conversations"}
    always: dict[str, st.SearchStrategy[object]] = {name: cast(Any, TEXTS) for name in needed.get(form, [])}
    if form in talks:
        always[talks[form]] = TALKS
    rows = data.draw(
        st.lists(
            st.tuples(st.fixed_dictionaries(always), ROWS).map(lambda both: both[1] | both[0]), min_size=1, max_size=5
        )
    )
    assert_same(*both_ways(jsonl(*rows), format=form))


@pytest.mark.parametrize(
    ("path", "mapped"),
    [
        ("gsm8k/example_model_solutions.jsonl", {}),
        ("gsm8k/train.jsonl", {}),
        ("puzzlevqa/sample.jsonl", {}),
        ("prm800k_phase1/phase1_test.stepwise-critic.parquet", {}),
    ],
)
def test_real_files_equal_rows_one_by_one(path: str, mapped: Json) -> None:
    file = data_file(path)
    assert_same(*both_ways(file.read_bytes(), file.name, images_root=file.parent, columns=mapped))


class Watched(dict[str, object]):
    """A row that remembers which of its values were looked at."""

    def __init__(self, row: Json) -> None:
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> object:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: object = None) -> object:
        self.seen.add(name)
        return super().get(name, default)


def test_no_format_looks_at_a_value_that_does_not_count() -> None:
    """Recipes rest on `LOOKED_AT`: of a field that is missing in it only the name would count."""
    names = [*LOOKED_AT, "parent_id", "id", "task", "dataset", "note"]
    draw = random.Random(5)
    for form in FORMATS.values():
        for _ in range(300):
            row = Watched(dict.fromkeys(draw.sample(names, draw.randint(1, len(names))), "a text"))
            form.matches(row)
            with contextlib.suppress(Refused):
                form.read(row)
            assert row.seen <= LOOKED_AT
    assert {name for names in SHARED_NAMES.values() for name in names} <= LOOKED_AT


def found_recipes(row: Json, form: str, mapped: Columns | None = None) -> tuple[Recipe, ...]:
    shapes = Shapes(mapped or columns())
    shaped, others = shapes.sort([row])
    assert not others
    (shape,) = shaped
    return Recipes(Parser(form, mapped), shapes).of(shape)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": "p", "response": "r", "answer": 4, "is_correct": True, "n": {"a": 1}}, "prompt_response"),
        ({"question": "p", "answer": "r\n#### 4"}, "prompt_response"),
        ({"instruction": "i", "input": "more", "output": "o"}, "alpaca"),
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}, "sharegpt"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference"),
        ({"prompt": "p", "reasoning": "r", "distilled_answer_string": "4"}, "m23k"),
    ],
)
def test_usual_shapes_have_recipes(row: Json, form: str) -> None:
    """The fast way is taken where it matters: this fails if a recipe can no longer be found."""
    assert found_recipes(row, form)


def test_a_response_that_is_put_together_is_so_in_the_recipe() -> None:
    (recipe,) = found_recipes({"prompt": "p", "reasoning": "r", "distilled_answer_string": "4"}, "m23k")
    assert recipe.response[0] == "<think>\n"
    assert len(recipe.response) == 4


def test_shapes_without_end_are_read_one_by_one() -> None:
    rows = [{"prompt": "p", "response": f"r{i}", f"field{i}": i} for i in range(MOST_RECIPES + 20)]
    assert_same(*both_ways(jsonl(*rows)))


def test_a_bad_row_leaves_the_others_of_its_block() -> None:
    good = [orjson.dumps({"prompt": "p", "response": f"r{i}"}) for i in range(5)]
    data = b"\n".join([good[0], b"{bad", good[1], b"", good[2], b"[1]", good[3], good[4]])
    rows = read(data)
    assert rows.accepted["row"].to_list() == [0, 2, 4, 6, 7]
    assert rows.rejected["row"].to_list() == [1, 5]
    assert rows.rejected["excerpt"].to_list() == ["{bad", "[1]"]


def test_pieces_are_in_the_order_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 1)
    monkeypatch.setattr("curation_assets.corpus.containers._BLOCK", 64)
    rows = [{"prompt": f"p{i}", "response": "r" * i} if i % 3 else {"prompt": "p"} for i in range(50)]
    together, twin = both_ways(jsonl(*rows))
    assert_same(together, twin)
    assert together.accepted["row"].is_sorted()
