"""Export formats for trainers: the records of each format, and the rows that it cannot represent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from curation_resources.plugins import plugins
from curation_resources.scoring.samples import without_nulls

GROUP = "curation_assets.exports"
"""Entry points of this group name a `Format`."""

Row = Mapping[str, Any]
"""A row of a release's Parquet file."""


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        name: name used on the command line.
        summary: the consumers of the format.
        file: name of the file to write.
        record: converts a row; steps with a score of at least the threshold count as good.
        cannot: returns why a row cannot be represented; None if it can.
        loses: description of the content that the format omits.
        once_a_prompt: keep only each prompt's best row, because responses are not trained on.
        registers: column mapping for LLaMA-Factory's `dataset_info.json`, if the format is its own.
        threshold: whether the threshold is unused, sets weights, or labels steps; a default threshold that gives all
            steps the same label is an error.
        skips: returns why a row does not belong into the format, so that it is left out and counted; None if it does.
        needs_truth: rows have `ground_truth` and `ground_truth_from` (`releases.ground_truth`).
    """

    name: str
    summary: str
    file: str
    record: Callable[[Row, float], dict[str, Any]]
    cannot: Callable[[Row], str | None]
    loses: str
    registers: Mapping[str, Any] | None = None
    once_a_prompt: bool = False
    threshold: Literal["unused", "weighs", "labels"] = "unused"
    skips: Callable[[Row], str | None] = lambda _row: None
    needs_truth: bool = False


def prompt_turns(row: Row) -> list[dict[str, Any]]:
    """Return all turns but the response."""
    turns: list[dict[str, Any]] = without_nulls(row["messages"][:-1])
    return turns


def step_parts(row: Row, threshold: float) -> list[tuple[str, bool]]:
    """Split the response into parts, each with whether to train on it; joined, they equal the response.

    Steps below the threshold are not trained on. Text between steps belongs to the step before it, except for
    trailing white space, which starts the next part: measurement assigns tokens the same way, and axolotl warns of
    parts that end in white space. Text before the first step, the answer, and steps without a score are trained on.
    """
    response = row["response"]
    parts: list[tuple[str, bool]] = []
    spans = [(span["start"], score) for span, score in zip(row["step_spans"] or [], scores_of(row), strict=True)]
    answer = row["answer_span"]
    marks = [(start, score is None or score >= threshold) for start, score in spans]
    if answer is not None and all(answer["start"] >= span["end"] for span in row["step_spans"] or []):
        marks.append((answer["start"], True))
    edges = [(0, True)]
    for start, learned in marks:
        # A step of only white space belongs to the text after it.
        edges.append((max(edges[-1][0], len(response[:start].rstrip())), learned))
    edges.append((len(response), True))
    for (start, learned), (end, _) in pairwise(edges):
        if start == end:
            continue
        if parts and parts[-1][1] == learned:
            parts[-1] = (parts[-1][0] + response[start:end], learned)
        else:
            parts.append((response[start:end], learned))
    return parts


def step_weights(row: Row, threshold: float) -> list[float]:
    """Return, for every step [K], 1 if its score is at least the threshold or missing, else 0."""
    return [float(score is None or score >= threshold) for score in scores_of(row)]


def scores_of(row: Row) -> list[float | None]:
    """Return the score of every step [K], None where it has none."""
    return list(row["step_scores"] or [None] * len(row["step_spans"] or []))


def _with_images(row: Row, record: dict[str, Any], wrap: Callable[[str], Any] = str) -> dict[str, Any]:
    images = {"images": [wrap(image) for image in row["images"]]} if row["images"] else {}
    return record | images | {"sample_id": row["sample_id"]}


def _messages(row: Row, _threshold: float) -> dict[str, Any]:
    return _with_images(row, {"messages": [*prompt_turns(row), {"role": "assistant", "content": row["response"]}]})


def _prompt_completion(row: Row, _threshold: float) -> dict[str, Any]:
    completion = [{"role": "assistant", "content": row["response"]}]
    return _with_images(row, {"prompt": prompt_turns(row), "completion": completion})


SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def _sharegpt(row: Row, _threshold: float) -> dict[str, Any]:
    turns = [*prompt_turns(row), {"role": "assistant", "content": row["response"]}]
    said = [{"from": SHAREGPT_ROLES[turn["role"]], "value": turn["content"]} for turn in turns]
    return _with_images(row, {"conversations": said})


def _not_sharegpt(row: Row) -> str | None:
    if any("tool_calls" in turn for turn in prompt_turns(row)):
        return "ShareGPT has no tool calls"
    unknown = {turn["role"] for turn in prompt_turns(row)} - SHAREGPT_ROLES.keys()
    return f"ShareGPT has no role {sorted(unknown)[0]}" if unknown else None


def _alpaca(row: Row, _threshold: float) -> dict[str, Any]:
    turns = prompt_turns(row)
    record = {"instruction": turns[-1]["content"], "input": "", "output": row["response"]}
    if turns[0]["role"] == "system":
        record["system"] = turns[0]["content"]
    return record | {"sample_id": row["sample_id"]}


def _not_alpaca(row: Row) -> str | None:
    if row["images"]:
        return "Alpaca does not support images"
    roles = [turn["role"] for turn in prompt_turns(row)]
    return None if roles in (["user"], ["system", "user"]) else "Alpaca supports one instruction, not a conversation"


def _stepwise(row: Row, threshold: float) -> dict[str, Any]:
    steps = [row["response"][span["start"] : span["end"]] for span in row["step_spans"]]
    labels = [weight == 1 for weight in step_weights(row, threshold)]
    record = {"prompt": prompt_turns(row)[0]["content"], "completions": steps, "labels": labels}
    return record | {"sample_id": row["sample_id"]}


def _not_stepwise(row: Row) -> str | None:
    if row["images"]:
        return "stepwise supervision does not support images"
    if [turn["role"] for turn in prompt_turns(row)] != ["user"]:
        return "stepwise supervision supports one prompt text, not turns"
    if not row["step_spans"]:
        return "the response has no steps"
    if None in scores_of(row):
        return "some steps have no score: stepwise labels need a subset by a score of steps (method: grace)"
    return None


def _axolotl(row: Row, threshold: float) -> dict[str, Any]:
    parts = [{"type": "text", "text": text, "train": learned} for text, learned in step_parts(row, threshold)]
    turns: list[dict[str, Any]] = [
        {**turn, "content": [{"type": "text", "text": turn["content"], "train": False}]} for turn in prompt_turns(row)
    ]
    return {"messages": [*turns, {"role": "assistant", "content": parts}], "sample_id": row["sample_id"]}


def _no_images(row: Row) -> str | None:
    return "content parts with train flags do not support images" if row["images"] else None


def _verl(row: Row, _threshold: float) -> dict[str, Any]:
    record = {
        "data_source": row["source"],
        "prompt": prompt_turns(row),
        "ability": row["domain"] or "reasoning",
        "reward_model": {"style": "rule", "ground_truth": row["ground_truth"]},
        "extra_info": {"split": "train", "index": row["rank"], "response": row["response"]},
    }
    return _with_images(row, record, lambda image: {"image": image})


def _marked_wrong(row: Row) -> str | None:
    wrong = row["correct"] is False and not row["ground_truth"]
    return "the response is marked wrong, and no response to its prompt is marked right" if wrong else None


def _no_ground_truth(row: Row) -> str | None:
    return None if row["ground_truth"] else "there is no reference answer for rollouts"


def _weights(row: Row, threshold: float) -> dict[str, Any]:
    record = {
        "prompt": prompt_turns(row),
        "response": row["response"],
        "weight": row["weight"],
        "step_spans": row["step_spans"],
        "step_scores": row["step_scores"],
        "step_weights": step_weights(row, threshold),
    }
    return _with_images(row, record)


def _anything(_row: Row) -> None:
    return None


OTHERS = "the other columns (join them by sample_id)"
STEPS_LOST = f"step boundaries and scores; {OTHERS}"
FORMATS = {
    one.name: one
    for one in (
        Format("messages", "TRL, axolotl, torchtune, verl's SFT", "train.jsonl", _messages, _anything, STEPS_LOST),
        Format(
            "sharegpt",
            "LLaMA-Factory and others",
            "train.jsonl",
            _sharegpt,
            _not_sharegpt,
            STEPS_LOST,
            {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
        ),
        Format(
            "alpaca",
            "LLaMA-Factory and others",
            "train.jsonl",
            _alpaca,
            _not_alpaca,
            STEPS_LOST,
            {"columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}},
        ),
        Format(
            "prompt-completion",
            "TRL: computes the loss on the completion only",
            "train.jsonl",
            _prompt_completion,
            _anything,
            STEPS_LOST,
        ),
        Format(
            "stepwise",
            "TRL's process reward models: one label per step",
            "train.jsonl",
            _stepwise,
            _not_stepwise,
            f"text between the steps, and the answer, which has no score; {OTHERS}",
            threshold="labels",
        ),
        Format(
            "axolotl",
            "axolotl: parts of the response with train flags",
            "train.jsonl",
            _axolotl,
            _no_images,
            f"the scores themselves; {OTHERS}",
            threshold="labels",
        ),
        Format(
            "verl",
            "verl's reinforcement learning: prompts with a ground truth",
            "train.parquet",
            _verl,
            _no_ground_truth,
            f"all responses of a prompt but the best one; {STEPS_LOST}",
            once_a_prompt=True,
            skips=_marked_wrong,
            needs_truth=True,
        ),
        Format(
            "weights",
            "your own trainer: loss weights by sample, step and token",
            "train.parquet",
            _weights,
            _anything,
            OTHERS,
            threshold="weighs",
        ),
        *plugins(GROUP, Format),
    )
}

DATASETS = "datasets"
"""The format of the library `datasets`, which writes every column itself."""

NAMES = (*FORMATS, DATASETS)
