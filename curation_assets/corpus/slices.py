"""Rows of `raw_corpus` out of many rows of one shape, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import orjson
import polars as pl

from curation_assets.corpus.drafts import Turn
from curation_assets.corpus.fields import Row
from curation_assets.corpus.identity import identify
from curation_assets.corpus.recipes import Recipe, optional, texts, values
from curation_assets.tables import RAW_CORPUS

NO_IMAGES = pl.Series([[]], dtype=RAW_CORPUS.schema["images"])
NO_STEPS = pl.Series([None], dtype=RAW_CORPUS.schema["steps"])


def corpus_slice(
    recipe: Recipe, candidate: int, rows: Sequence[Row], indices: Sequence[int], shard: str
) -> pl.DataFrame:
    """The rows of `raw_corpus` that a recipe makes of rows of its shape.

    Raises:
        Refused: one of them cannot be used.
    """
    count = len(rows)
    turns, responses = recipe.turns_of(rows), texts(recipe.response, rows)
    answers = optional(recipe.answer, rows)
    ids = list(map(identify, turns, repeat(()), responses, answers, repeat(None)))
    columns: dict[str, pl.Series | Sequence[Any]] = {
        "sample_id": [own.sample_id for own in ids],
        "prompt_id": [own.prompt_id for own in ids],
        "shard": pl.repeat(shard, count, eager=True),
        "row": indices,
        "candidate": pl.repeat(candidate, count, eager=True),
        "source": pl.repeat(shard, count, eager=True) if recipe.source is None else texts(recipe.source, rows),
        "domain": optional(recipe.domain, rows),
        "generator": optional(recipe.generator, rows),
        "messages": [messages_json(own) for own in turns],
        "images": NO_IMAGES.new_from_index(0, count),
        "image_digests": NO_IMAGES.new_from_index(0, count),
        "response": responses,
        "answer": answers,
        "steps": NO_STEPS.new_from_index(0, count),
        "correct": values(recipe.correct, rows),
        "reward": values(recipe.reward, rows),
        "extra": recipe.extras(rows),
    }
    return pl.DataFrame([pl.Series(name, columns[name], dtype=dtype) for name, dtype in RAW_CORPUS.schema.items()])


def messages_json(turns: Sequence[Turn]) -> str:
    """`messages` of a row."""
    return orjson.dumps([{"role": role, "content": content} for role, content in turns]).decode()
