"""The two tables as a whole, and the pool."""

from __future__ import annotations

import json

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.tables import RAW_CORPUS, REJECTED_ROWS
from tests.corpus.helpers import columns, draft, jsonl, read


def test_a_row_of_the_table_has_every_column() -> None:
    row = {
        "system": "Think.",
        "prompt": "2 + 2?",
        "response": "First. Then 4",
        "steps": ["First."],
        "answer": 4,
        "is_correct": True,
        "reward": 1,
        "subject": "sums",
        "model": "m",
        "note": {"b": 1, "a": None},
    }
    rows = read(jsonl(row))
    assert rows.accepted.schema == pl.Schema(RAW_CORPUS.schema)
    assert rows.rejected.schema == pl.Schema(REJECTED_ROWS.schema)
    (found,) = rows.accepted.to_dicts()
    assert len(found.pop("sample_id")) == len(found.pop("prompt_id")) == 32
    assert json.loads(found.pop("messages")) == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert found == {
        "shard": "shard",
        "row": 0,
        "candidate": 0,
        "source": "shard",
        "domain": "sums",
        "generator": "m",
        "images": [],
        "image_digests": [],
        "response": "First. Then 4",
        "answer": "4",
        "steps": ["First."],
        "correct": True,
        "reward": 1.0,
        "extra": '{"note":{"a":null,"b":1}}',
    }


def test_a_given_format_is_used_and_detection_looks_at_the_head() -> None:
    both = {"instruction": "i", "output": "o", "prompt": "p", "response": "r"}
    assert read(jsonl(both)).accepted["response"].to_list() == ["o"]
    assert read(jsonl(both), format="prompt_response").accepted["response"].to_list() == ["r"]
    late = [{"prompt": "p", "response": "r"}] * 50 + [{"instruction": "i", "output": "o"}] * 200
    assert read(jsonl(*late)).format == "prompt_response"


def test_instruction_and_input_belong_together() -> None:
    found = draft({"instruction": "Add.", "input": "2, 2", "response": "4"}, "prompt_response", columns())
    assert (found.turns[0].content, found.extra) == ("Add.\n2, 2", "{}")


ARRIVALS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3), st.integers(0, 2)), max_size=30
)


@given(ARRIVALS)
def test_pool_equals_its_slow_twin(arrivals: list[tuple[str, str, int, int]]) -> None:
    schema = {"sample_id": pl.String, "shard": pl.String, "row": pl.Int64, "candidate": pl.Int32}
    frame = pl.DataFrame(arrivals, schema, orient="row")
    pool = resolve_duplicates(frame)
    first: dict[str, tuple[str, int, int]] = {}
    for sample, shard, row, candidate in arrivals:
        best = first.setdefault(sample, (shard, row, candidate))
        first[sample] = min(best, (shard, row, candidate))
    assert {row[0]: row[1:] for row in pool.rows.rows()} == first
    assert pool.rows.height == len(first)
    assert pool.duplicates == len(arrivals) - len(first)
    assert pool.rows.equals(resolve_duplicates(frame.lazy()).rows)
