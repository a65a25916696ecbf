"""Solve prompts with a model behind an endpoint: several sampled answers to each, compared with the reference.

Answers are kept as they arrive, one file per prompt, so that all responses to a prompt share them, an interrupted run
resumes, and a larger number of answers asks only for the rest. See docs/methods.md, "Solve rate".
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curation_resources.models.chat_endpoint import ChatEndpoint, RefusedError, Reply, storable
from curation_resources.scoring.results import Solved
from curation_resources.scoring.samples import Sample
from curation_resources.storage.digests import digest, replacing

Grade = Callable[[str, str], tuple[str | None, bool]]
"""A function that returns the answer stated in a text, and whether it equals the reference."""


@dataclass(frozen=True)
class SolvingSpec:
    """Sampling of the answers to prompts.

    Attributes:
        answers: answers per prompt.
        temperature: sampling temperature.
        top_p: sample only from the likeliest tokens with this total probability.
        max_tokens: maximum tokens of an answer.
        seed: seed of the first request for a prompt; each further one adds the number of answers that are there.
    """

    answers: int = 4
    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 4096
    seed: int = 0


class Solver:
    """Asks an endpoint for answers; used by several threads.

    Args:
        endpoint: the endpoint.
        spec: how prompts are answered.
        folder: folder for answers, keyed by model, prompt and sampling settings.
    """

    def __init__(self, endpoint: ChatEndpoint, spec: SolvingSpec, folder: Path) -> None:
        self._endpoint, self._spec, self._folder = endpoint, spec, folder
        self._locks: dict[Path, threading.Lock] = {}
        self._new_lock = threading.Lock()
        self._one_each = False
        # Not stored, so that another run asks again; but other responses to the prompt share them.
        self._unanswered: dict[Path, list[Reply] | RefusedError] = {}

    def solve(self, sample: Sample, grade: Grade) -> Solved:
        """Return the model's answers to a sample's prompt, compared with its reference.

        Raises:
            JudgeError: the endpoint cannot be reached, or rejects every request.
        """
        reference = (sample.reference or "").strip()
        if not reference:
            return Solved(None, [], 0, 0, ["no_reference"])
        replies, tokens, refusal = self._replies(sample)
        if refusal is not None:
            return Solved(None, [], 0, tokens, ["refused_by_endpoint"], str(refusal))
        if _all_empty(replies):
            return Solved(None, [None] * len(replies), 0, tokens, ["empty_answers"])
        graded = [grade(reply.text, reference) for reply in replies]
        right = sum(equal for _, equal in graded)
        flags = ["answers_cut_off"] if any(reply.cut_off for reply in replies) else []
        return Solved(right / len(graded), [stated for stated, _ in graded], right, tokens, flags)

    def path_of(self, sample: Sample) -> Path:
        """Return the file of the answers to a sample's prompt."""
        return self._body_and_path(sample)[1]

    def left(self, sample: Sample) -> int:
        """Return the number of answers that are still to be asked for."""
        return max(0, self._spec.answers - len(_stored(self.path_of(sample)))) if sample.reference else 0

    def _body_and_path(self, sample: Sample) -> tuple[dict[str, Any], Path]:
        body = {
            "model": self._endpoint.spec.model,
            "messages": [dict(turn) for turn in sample.messages],
            "temperature": self._spec.temperature,
            "top_p": self._spec.top_p,
            "max_tokens": self._spec.max_tokens,
            "seed": self._spec.seed,
        }
        key = digest("answers", self._endpoint.spec.revision, body)
        return body, self._folder / key[:2] / f"{key}.json"

    def _replies(self, sample: Sample) -> tuple[list[Reply], int, RefusedError | None]:
        """Return as many answers as are wanted, the tokens used for those that were missing, and any refusal."""
        body, path = self._body_and_path(sample)
        with self._new_lock:
            lock = self._locks.setdefault(path, threading.Lock())
        # The lock makes threads that have the same prompt ask only once.
        with lock:
            unanswered = self._unanswered.get(path)
            if isinstance(unanswered, RefusedError):
                return [], 0, unanswered
            if unanswered is not None:
                return unanswered, 0, None
            replies, tokens = _stored(path), 0
            if replies:
                self._endpoint.replied = True
            try:
                while len(replies) < self._spec.answers:
                    more, used = self._ask(body, self._spec.answers - len(replies), len(replies))
                    replies, tokens = replies + more, tokens + used
                    if not _all_empty(replies):
                        _store(path, replies)
            except RefusedError as refusal:
                self._unanswered[path] = refusal
                return [], tokens, refusal
            if _all_empty(replies):
                self._unanswered[path] = replies
        return replies[: self._spec.answers], tokens, None

    def _ask(self, body: dict[str, Any], count: int, there: int) -> tuple[list[Reply], int]:
        """Return at least one and at most `count` further answers, and the tokens used.

        An endpoint that gives one answer to each request, or refuses to give several, is asked for one at a time.
        """
        # The same seed would give the same answers again.
        body = {**body, "seed": self._spec.seed + there}
        if count > 1 and not self._one_each:
            try:
                replies, tokens = self._endpoint.ask({**body, "n": count}, tentative=True)
            except RefusedError:
                replies, tokens = self._endpoint.ask(body)
            self._one_each = self._one_each or len(replies) == 1
        else:
            replies, tokens = self._endpoint.ask(body)
        return replies[:count], tokens


def solving_facts(spec: SolvingSpec) -> dict[str, object]:
    """Return the settings that a solve rate depends on."""
    return asdict(spec)


def _all_empty(replies: list[Reply]) -> bool:
    """Return whether no answer has any text, other than those that were cut off while the model was thinking."""
    return not any(reply.text.strip() or reply.cut_off for reply in replies)


def _stored(path: Path) -> list[Reply]:
    """Return the stored answers; none if the file is missing or incomplete."""
    try:
        return [
            Reply(storable(str(one["text"])), bool(one["cut_off"]))
            for one in json.loads(path.read_text(encoding="utf-8"))["answers"]
        ]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return []


def _store(path: Path, replies: list[Reply]) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps({"answers": [asdict(reply) for reply in replies]}), encoding="utf-8")
