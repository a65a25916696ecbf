"""A model behind any OpenAI-compatible endpoint, as a judge: prompts, a content-addressed reply cache, and parsing.

Questions are about a sample's prompt (how many intentions it has, InsTag; how difficult and how complex it is), or
about the response to it (how good it is). A reply that cannot be parsed yields no value. The model may also solve the
prompt itself (`curation_resources.models.solving`). See docs/methods.md, "Reward models and judges".
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from curation_resources.models.chat_endpoint import (
    ChatEndpoint,
    EndpointSpec,
    JudgeError,
    RefusedError,
    storable,
    tokens_by_bytes,
)
from curation_resources.models.solving import Grade, Solver, SolvingSpec
from curation_resources.scoring.results import Judgement
from curation_resources.scoring.samples import Question, Request, Sample, SampleSignals, turn_text
from curation_resources.storage.digests import digest, replacing

__all__ = ["JudgeError", "JudgeScorer", "JudgeSpec", "parse", "spec_facts", "tokens_by_bytes"]

TAGS_PROMPT = """\
Below is a request that somebody made of an assistant. Name every intention that it has: what it is about, what it asks
to be done, and what it demands of the answer. Give each a short tag and a sentence that explains it.

Answer with a JSON list and nothing else, as in
[{"tag": "unit conversion", "explanation": "The request asks for a length in other units."}]

Request:
{prompt}"""

DIFFICULTY_PROMPT = """\
Below is a request that somebody made of an assistant. How difficult is it to answer well, from 1 (anybody can at once)
to 10 (an expert needs long)? Write the number alone on the first line.

Request:
{prompt}"""

COMPLEXITY_PROMPT = """\
Below is a request that somebody made of an assistant. How complex is it, from 1 (a single plain demand) to 6 (many
demands, conditions or steps of reasoning that depend on one another)? Rate what it asks for, not how it is worded.
Write the number alone on the first line.

Request:
{prompt}"""

QUALITY_PROMPT = """\
Below are a request that somebody made of an assistant, and the assistant's response. How good is the response, from 1
(wrong, empty or beside the point) to 6 (correct, complete, clear and exactly what was asked for)? A longer response is
not a better one. Write the number alone on the first line.

Request:
{prompt}

Response:
{response}"""

TAG = re.compile(r'"tag"\s*:')
TAG_NAME = re.compile(r'"tag"\s*:\s*"((?:[^"\\]|\\.)*)"')
SCORE = re.compile(r"^\s*(\d+)")

WINDOW = 16
"""Samples per worker among which different prompts are asked about first."""

AHEAD = 2
"""Queued samples per worker; also the most requests that are still sent after an interrupt."""


@dataclass(frozen=True)
class QuestionKind:
    """A question that a judge can be asked about a sample.

    Attributes:
        template: the field of `JudgeSpec` and of `endpoint` with its wording.
        scale: lowest and highest valid rating; None if the reply is a list of tags.
        placeholders: what the wording must contain.
    """

    template: str
    scale: tuple[int, int] | None
    placeholders: tuple[str, ...] = ("{prompt}",)

    @property
    def reads_response(self) -> bool:
        """Return whether it is asked about each response; otherwise all responses to a prompt share one request."""
        return "{response}" in self.placeholders


QUESTIONS: dict[Question, QuestionKind] = {
    "instruction_tags": QuestionKind("tags_prompt", None),
    "difficulty": QuestionKind("difficulty_prompt", (1, 10)),
    "complexity": QuestionKind("complexity_prompt", (1, 6)),
    "quality": QuestionKind("quality_prompt", (1, 6), ("{prompt}", "{response}")),
}
PLACEHOLDER = re.compile(r"\{(?:prompt|response)\}")


@dataclass(frozen=True)
class JudgeSpec(EndpointSpec):
    """The endpoint, the model and the settings of a judge.

    Attributes:
        cache: folder for replies, keyed by model and question.
        tags_prompt: question about intentions; `{prompt}` stands for the sample's prompt.
        difficulty_prompt: question about difficulty.
        complexity_prompt: question about complexity.
        quality_prompt: question about the response; `{response}` stands for it.
        temperature: sampling temperature.
        max_tokens: maximum tokens of a reply.
        solving: how the model answers prompts itself.
    """

    cache: Path
    tags_prompt: str = TAGS_PROMPT
    difficulty_prompt: str = DIFFICULTY_PROMPT
    complexity_prompt: str = COMPLEXITY_PROMPT
    quality_prompt: str = QUALITY_PROMPT
    temperature: float = 0.0
    max_tokens: int = 512
    solving: SolvingSpec = field(default_factory=SolvingSpec)

    def question(self, kind: Question) -> str:
        """Return the prompt template of a kind of question."""
        template: str = getattr(self, QUESTIONS[kind].template)
        return template

    def about(self, kind: Question, sample: Sample) -> str:
        """Return the question about a sample's prompt, or about its response."""
        texts = {"{prompt}": "\n".join(map(turn_text, sample.messages))}
        if QUESTIONS[kind].reads_response:
            texts["{response}"] = sample.response
        # In a single pass: a prompt may contain a placeholder itself.
        return PLACEHOLDER.sub(lambda found: texts.get(found[0], found[0]), self.question(kind))


@dataclass(frozen=True)
class DueRequest:
    """A request that is still to be sent: where its reply will be cached, and an estimate of its tokens."""

    path: Path
    tokens: int


class JudgeScorer:
    """Measures samples with an LLM judge; has the interface of `curation_resources.models.scorer.Scorer`.

    Args:
        spec: the endpoint and the questions.
        grade: returns the answer that a text states, and whether it equals a reference; needed to solve prompts.
    """

    device_count = 1

    def __init__(self, spec: JudgeSpec, grade: Grade | None = None) -> None:
        self.spec = spec
        self._endpoint = ChatEndpoint(spec)
        self._grade = grade
        self._solver = Solver(self._endpoint, spec.solving, spec.cache)
        self._locks = [threading.Lock() for _ in range(64)]

    def __enter__(self) -> JudgeScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._endpoint.close()

    def device_name(self) -> str:
        """Return the model and host of the endpoint."""
        return f"{self.spec.model} at {self._endpoint.host()}"

    def measure(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None = None
    ) -> Generator[list[SampleSignals], None, None]:
        """Yield the requested judgements and solved prompts, in order of completion.

        Raises:
            JudgeError: the endpoint cannot be reached, or rejects every request.
        """
        queue, asked = prompts_first(samples, WINDOW * self.spec.workers), set[Future[SampleSignals]]()
        pool = ThreadPoolExecutor(self.spec.workers)
        try:
            while True:
                for place, sample in islice(queue, AHEAD * self.spec.workers - len(asked)):
                    asked.add(pool.submit(self._judge, sample, request, place))
                if not asked:
                    return
                done, asked = wait(asked, return_when=FIRST_COMPLETED)
                results = [one.result() for one in done]
                if progress is not None:
                    progress(len(results))
                yield results
        finally:
            # Cancel queued questions, so that an interrupted run, or one at its limit, ends now.
            pool.shutdown(wait=False, cancel_futures=True)

    def _judge(self, sample: Sample, request: Request, position: int) -> SampleSignals:
        result = SampleSignals(sample.sample_id, position, response_tokens=tokens_by_bytes(sample.response))
        if sample.images:
            result.flags.append("images_not_supported")
            return result
        for kind in request.questions:
            try:
                reply, tokens = self._reply(kind, self.spec.about(kind, sample))
            except RefusedError as refusal:
                result.question_flags[kind] = "refused_by_endpoint"
                result.judgements[kind] = Judgement(None, str(refusal), 0, [])
                continue
            result.judgements[kind] = parse(kind, reply, tokens)
            result.tokens += tokens
        if request.solving:
            assert self._grade is not None, "answers cannot be compared"
            result.solved = self._solver.solve(sample, self._grade)
            result.tokens += result.solved.tokens
        return result

    def _request_body(self, question: str) -> tuple[dict[str, Any], Path]:
        """Return the request body for a question, and the path of its cached reply."""
        body = {
            "model": self.spec.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.spec.temperature,
            "max_tokens": self.spec.max_tokens,
        }
        key = digest("judge", self.spec.revision, body)
        return body, self.spec.cache / key[:2] / f"{key}.json"

    def due(self, sample: Sample, request: Request) -> Iterator[DueRequest]:
        """Yield the requests that measuring a sample would send, without replies that are cached on this machine.

        Nothing is sent. Two samples may yield requests with the same path, which are sent once.
        """
        if sample.images:
            return
        for kind in request.questions:
            question = self.spec.about(kind, sample)
            path = self._request_body(question)[1]
            if _cached_reply(path) is None:
                yield DueRequest(path, tokens_by_bytes(question))
        if request.solving and (answers := self._solver.left(sample)):
            prompt = tokens_by_bytes("\n".join(map(turn_text, sample.messages)))
            # The model's own answers are assumed to be as long as the response in the pool.
            answer = min(tokens_by_bytes(sample.response), self.spec.solving.max_tokens)
            yield DueRequest(self._solver.path_of(sample), prompt + answers * answer)

    def forget(self, sample: Sample) -> int:
        """Delete the cached replies about a sample's prompt; return their number."""
        paths = [self._request_body(self.spec.about(kind, sample))[1] for kind in QUESTIONS]
        paths.append(self._solver.path_of(sample))
        there = [path for path in paths if path.is_file()]
        for path in there:
            path.unlink()
        return len(there)

    def _reply(self, kind: Question, question: str) -> tuple[str, int]:
        """Return the reply to a question and the tokens that it used; 0 tokens for a cached reply.

        Replies without a value are not cached: a repeated request may return one.
        """
        body, path = self._request_body(question)
        # The lock makes threads that have the same question send it only once.
        with self._locks[int(path.name[:2], 16) % len(self._locks)]:
            kept = _cached_reply(path)
            if kept is not None:
                self._endpoint.replied = True
                return kept, 0
            (first, *_), tokens = self._endpoint.ask(body)
            reply = first.text
            if parse(kind, reply, tokens).value is not None:
                with replacing(path) as beside:
                    beside.write_text(json.dumps({"reply": reply, "tokens": tokens}))
        return reply, tokens


def prompts_first(samples: Sequence[Sample], window: int) -> Iterator[tuple[int, Sample]]:
    """Yield samples with their positions; within a window, responses to a prompt that was there before come last.

    Workers would otherwise wait for one another's replies about the same prompt.
    """
    for start in range(0, len(samples), window):
        seen: set[str] = set()
        later: list[tuple[int, Sample]] = []
        for position, sample in enumerate(samples[start : start + window], start):
            prompt = json.dumps(list(sample.messages))
            if prompt in seen:
                later.append((position, sample))
            else:
                seen.add(prompt)
                yield position, sample
        yield from later


def _cached_reply(path: Path) -> str | None:
    """Return a cached reply; None if it is missing or incomplete."""
    try:
        return storable(str(json.loads(path.read_text(encoding="utf-8"))["reply"]))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def parse(kind: Question, reply: str, tokens: int) -> Judgement:
    """Parse a reply into its number of tags, or a rating within its scale; the value is None if parsing fails."""
    scale = QUESTIONS[kind].scale
    if scale is None:
        count = len(TAG.findall(reply))
        # An empty list is a valid answer: the prompt has no tags.
        value = count if count or reply.strip() == "[]" else None
        return Judgement(value, reply, tokens, TAG_NAME.findall(reply))
    found = SCORE.match(reply)
    rating = int(found[1]) if found and len(found[1]) <= 2 else 0
    return Judgement(rating if scale[0] <= rating <= scale[1] else None, reply, tokens, [])


def spec_facts(spec: JudgeSpec, question: Question | None = None) -> dict[str, object]:
    """Return the settings that replies to a question depend on, without the location of the model or the concurrency.

    Without a question, return the settings that all questions share.
    """
    kept = ("model", "revision", "temperature", "max_tokens")
    facts: dict[str, object] = {name: value for name, value in asdict(spec).items() if name in kept}
    return facts if question is None else {**facts, "question": spec.question(question)}
