"""An LLM judge behind any OpenAI-compatible endpoint: prompts, a content-addressed reply cache, and parsing.

Questions are about a sample's prompt (how many intentions it has, InsTag; how difficult and how complex it is), or
about the response to it (how good it is). A reply that cannot be parsed yields no value. See docs/methods.md, "Reward
models and judges".
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import urllib3

from curation_resources.errors import UserError
from curation_resources.scoring.results import Judgement
from curation_resources.scoring.samples import Question, Request, Sample, SampleSignals, turn_text
from curation_resources.storage.digests import digest, replacing

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

MAX_REPLY_BYTES = 2**20
AHEAD = 2
"""Queued samples per worker; also the most requests that are still sent after an interrupt."""

RETRIED = (408, 409, 429, *range(500, 600))
"""Status codes that are worth a retry."""

REFUSED = (400, 413, 422)
"""Status codes that reject a single question."""

ALL_REFUSED = 8
"""Refusals without any reply after which the endpoint itself is considered unusable."""

MOST_SAID = 200
"""Maximum characters of an endpoint's response that an error repeats."""

BYTES_A_TOKEN = 4
"""Bytes per token for endpoints that do not report token usage."""


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


class JudgeError(UserError):
    """An endpoint cannot be used."""


class RefusedError(Exception):
    """An endpoint refused to answer a single question; the message repeats its response."""


@dataclass(frozen=True)
class JudgeSpec:
    """The endpoint, the model and the settings of a judge.

    Attributes:
        url: base address of the endpoint, as in `https://api.example.com/v1`.
        model: name of the model at the endpoint.
        revision: any string; changing it asks all questions again.
        key_variable: environment variable with the key, or None if the endpoint needs no key.
        tags_prompt: question about intentions; `{prompt}` stands for the sample's prompt.
        difficulty_prompt: question about difficulty.
        complexity_prompt: question about complexity.
        quality_prompt: question about the response; `{response}` stands for it.
        temperature: sampling temperature.
        max_tokens: maximum tokens of a reply.
        workers: concurrent requests.
        timeout: seconds for one request.
        attempts: attempts of a request that fails for a temporary reason.
        cache: folder for replies, keyed by model and question.
    """

    url: str
    model: str
    cache: Path
    revision: str | None = None
    key_variable: str | None = None
    tags_prompt: str = TAGS_PROMPT
    difficulty_prompt: str = DIFFICULTY_PROMPT
    complexity_prompt: str = COMPLEXITY_PROMPT
    quality_prompt: str = QUALITY_PROMPT
    temperature: float = 0.0
    max_tokens: int = 512
    workers: int = 8
    timeout: float = 120.0
    attempts: int = 5

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


class JudgeScorer:
    """Measures samples with an LLM judge; has the interface of `curation_resources.models.scorer.Scorer`."""

    device_count = 1

    def __init__(self, spec: JudgeSpec) -> None:
        self.spec = spec
        self._locks = [threading.Lock() for _ in range(64)]
        self._replied = False
        self._refusals = 0

    def __enter__(self) -> JudgeScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def device_name(self) -> str:
        """Return the model and host of the endpoint."""
        return f"{self.spec.model} at {urllib3.util.parse_url(self.spec.url).host}"

    def measure(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None = None
    ) -> Generator[list[SampleSignals], None, None]:
        """Yield the requested judgements, in order of completion.

        Raises:
            JudgeError: the endpoint cannot be reached, or rejects every request.
        """
        queue, asked = iter(enumerate(samples)), set[Future[SampleSignals]]()
        pool = ThreadPoolExecutor(self.spec.workers)
        try:
            while True:
                for place, sample in islice(queue, AHEAD * self.spec.workers - len(asked)):
                    asked.add(pool.submit(self._judge, sample, request.questions, place))
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

    def _judge(self, sample: Sample, questions: Sequence[Question], position: int) -> SampleSignals:
        result = SampleSignals(sample.sample_id, position, response_tokens=tokens_by_bytes(sample.response))
        if sample.images:
            result.flags.append("images_not_supported")
            return result
        for kind in questions:
            try:
                reply, tokens = self._reply(kind, self.spec.about(kind, sample))
            except RefusedError as refusal:
                result.question_flags[kind] = "refused_by_endpoint"
                result.judgements[kind] = Judgement(None, str(refusal), 0, [])
                continue
            result.judgements[kind] = parse(kind, reply, tokens)
            result.tokens += tokens
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

    def forget(self, sample: Sample) -> int:
        """Delete the cached replies about a sample's prompt; return their number."""
        paths = [self._request_body(self.spec.about(kind, sample))[1] for kind in QUESTIONS]
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
                self._replied = True
                return kept, 0
            reply, tokens = self._ask(body)
            if parse(kind, reply, tokens).value is not None:
                with replacing(path) as beside:
                    beside.write_text(json.dumps({"reply": reply, "tokens": tokens}))
        return reply, tokens

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        retry = urllib3.Retry(
            total=self.spec.attempts - 1,
            backoff_factor=0.5,
            backoff_max=30,
            status_forcelist=RETRIED,
            allowed_methods=None,
            raise_on_status=False,
            redirect=0,
        )
        return urllib3.PoolManager(
            maxsize=self.spec.workers, retries=retry, timeout=urllib3.Timeout(total=self.spec.timeout)
        )

    def _ask(self, body: dict[str, Any]) -> tuple[str, int]:
        """Send one request, with retries where they may help.

        Raises:
            JudgeError: all attempts failed, or the endpoint rejects every request.
            RefusedError: the endpoint refused this question.
        """
        url = f"{self.spec.url.rstrip('/')}/chat/completions"
        status, content = self._request(url, body)
        # Remove the key before cutting the text: even a part of it must not be shown.
        text = self._without_key(content.decode("utf-8", "replace"))[:MOST_SAID]
        if status in REFUSED:
            self._refusals += 1
            if self._refusals >= ALL_REFUSED and not self._replied:
                raise JudgeError(
                    f"the judge at {url} refuses every question (the last with {status}: {text}). Check that it "
                    f"serves {self.spec.model} and accepts temperature and max_tokens as set in endpoint."
                )
            raise RefusedError(f"{status}: {text}")
        if status != 200:
            raise JudgeError(f"the judge at {url} responded with {status}: {text}{self._suggestion(status)}")
        self._replied = True
        return _content(url, content, self._without_key)

    def _request(self, url: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Return the status and content of the response; a connection that breaks off is retried.

        Raises:
            JudgeError: there is no response.
        """
        for left in reversed(range(self.spec.attempts)):
            try:
                answer = self._pool.request("POST", url, json=body, headers=self._headers(), preload_content=False)
            except urllib3.exceptions.HTTPError as error:
                raise self._no_response_error(url, getattr(error, "reason", None) or error) from error
            try:
                content = answer.read(MAX_REPLY_BYTES + 1)
            except urllib3.exceptions.HTTPError as error:
                if not left:
                    raise self._no_response_error(url, error) from error
            else:
                answer.release_conn()
                return answer.status, content
        raise AssertionError("attempts is at least 1")

    def _no_response_error(self, url: str, why: Exception) -> JudgeError:
        """Return the error for an endpoint that does not respond."""
        if isinstance(why, urllib3.exceptions.NameResolutionError):
            reason = "unknown host name"
        elif isinstance(why, urllib3.exceptions.NewConnectionError):
            reason = "connection refused"
        elif isinstance(why, urllib3.exceptions.TimeoutError):
            reason = f"no response within {self.spec.timeout:g} s (targets.endpoint.timeout_seconds)"
        else:
            reason = self._without_key(f"{type(why).__name__}: {why}")[:MOST_SAID]
        return JudgeError(
            f"the judge at {url} does not answer ({reason}). Check that it is running, or correct targets.endpoint.url."
        )

    def _suggestion(self, status: int) -> str:
        """Return the fix to suggest for a status code, or an empty string."""
        if status in (401, 403):
            named = self.spec.key_variable
            return f"; the key is read from {named}" if named else "; name the key's variable in endpoint.key_variable"
        if status == 404:
            return (
                f"; check that targets.endpoint.url is the part before /chat/completions (it often ends in /v1), and "
                f"that it serves {self.spec.model}"
            )
        return ""

    def _without_key(self, text: str) -> str:
        """Return an endpoint's text without the key, which it may repeat."""
        name = self.spec.key_variable
        key = os.environ.get(name, "").strip() if name is not None else ""
        return text.replace(key, str(name)) if key else text

    def _headers(self) -> dict[str, str]:
        if self.spec.key_variable is None:
            return {}
        # Secrets mounted from a file often end in a newline.
        key = os.environ.get(self.spec.key_variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise JudgeError(
                f"the key in {self.spec.key_variable} contains characters that are not allowed in a header"
            )
        if not key:
            raise JudgeError(
                f"{self.spec.key_variable} is not set. Set it to the endpoint's key (targets.endpoint.key_variable)."
            )
        return {"Authorization": f"Bearer {key}"}


def _content(url: str, content: bytes, shown: Callable[[str], str]) -> tuple[str, int]:
    """Return the reply in a response body and its tokens; `shown` removes the key from text that an error repeats."""
    try:
        document = json.loads(content)
        reply = document["choices"][0]["message"]["content"]
        usage = document.get("usage")
        used = usage.get("total_tokens") if isinstance(usage, dict) else None
    except (ValueError, LookupError, TypeError) as error:
        raise JudgeError(
            f"{url} did not return an OpenAI chat completion: {shown(repr(content))[:MOST_SAID]}"
        ) from error
    reply = storable(reply) if isinstance(reply, str) else ""
    return reply, int(used) if isinstance(used, int) else tokens_by_bytes(reply)


def _cached_reply(path: Path) -> str | None:
    """Return a cached reply; None if it is missing or incomplete."""
    try:
        return storable(str(json.loads(path.read_text(encoding="utf-8"))["reply"]))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def storable(text: str) -> str:
    """Return the text with a question mark for each lone surrogate, which JSON allows but tables cannot store."""
    return text.encode("utf-8", "replace").decode()


def tokens_by_bytes(text: str) -> int:
    """Return an estimate of a text's tokens, for endpoints that do not report usage."""
    return math.ceil(len(text.encode()) / BYTES_A_TOKEN)


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
