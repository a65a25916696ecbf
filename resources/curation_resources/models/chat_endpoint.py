"""A client of an OpenAI-compatible chat completions endpoint: retries, refusals, and errors that name the fix."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import urllib3

from curation_resources.errors import UserError

MAX_REPLY_BYTES = 2**20
"""Maximum size of a response, for each completion that it may contain."""

RETRIED = (408, 409, 429, *range(500, 600))
"""Status codes that are worth a retry."""

REFUSED = (400, 413, 422)
"""Status codes that reject a single request."""

ALL_REFUSED = 8
"""Refusals without any reply after which the endpoint itself is considered unusable."""

MOST_SAID = 200
"""Maximum characters of an endpoint's response that an error repeats."""

BYTES_A_TOKEN = 4
"""Bytes per token for endpoints that do not report token usage."""

CUT_OFF = "length"
"""The endpoint's reason for the end of a reply that reached the maximum of tokens."""


class JudgeError(UserError):
    """An endpoint cannot be used."""


class RefusedError(Exception):
    """An endpoint refused to answer a single request; the message repeats its response."""


@dataclass(frozen=True)
class EndpointSpec:
    """The endpoint, the model and how it is queried.

    Attributes:
        url: base address of the endpoint, as in `https://api.example.com/v1`.
        model: name of the model at the endpoint.
        revision: any string; changing it asks everything again.
        key_variable: environment variable with the key, or None if the endpoint needs no key.
        workers: concurrent requests.
        timeout: seconds for one request.
        attempts: attempts of a request that fails for a temporary reason.
    """

    url: str
    model: str
    revision: str | None = field(default=None, kw_only=True)
    key_variable: str | None = field(default=None, kw_only=True)
    workers: int = field(default=8, kw_only=True)
    timeout: float = field(default=120.0, kw_only=True)
    attempts: int = field(default=5, kw_only=True)


@dataclass(frozen=True)
class Reply:
    """A completion.

    Attributes:
        text: its text; empty if it has none.
        cut_off: whether it reached the maximum of tokens.
    """

    text: str
    cut_off: bool


class ChatEndpoint:
    """Sends requests to an endpoint; used by several threads.

    Attributes:
        replied: whether it ever replied, so that refusals are due to single requests.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec
        self.replied = False
        self._refusals = 0

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def host(self) -> str:
        """Return the endpoint's host name."""
        return str(urllib3.util.parse_url(self.spec.url).host)

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

    def ask(self, body: dict[str, Any], tentative: bool = False) -> tuple[list[Reply], int]:
        """Send one request, with retries where they may help; return all replies and the tokens used.

        Args:
            body: the request.
            tentative: do not count a refusal, because the caller tries another request then.

        Raises:
            JudgeError: all attempts failed, or the endpoint rejects every request.
            RefusedError: the endpoint refused this request.
        """
        url = f"{self.spec.url.rstrip('/')}/chat/completions"
        status, content = self._request(url, body)
        # Remove the key before cutting the text: even a part of it must not be shown.
        text = self._without_key(content.decode("utf-8", "replace"))[:MOST_SAID]
        if status in REFUSED:
            self._refusals += not tentative
            if self._refusals >= ALL_REFUSED and not self.replied:
                options = ", ".join(f"{name}: {body[name]}" for name in sorted(body.keys() - {"model", "messages"}))
                raise JudgeError(
                    f"the endpoint at {url} refuses every question (the last with {status}: {text}). Check that it "
                    f"serves {self.spec.model} and accepts {options} (targets.endpoint, targets.solving)."
                )
            raise RefusedError(f"{status}: {text}")
        if status != 200:
            raise JudgeError(f"the endpoint at {url} responded with {status}: {text}{self._suggestion(status)}")
        self.replied = True
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
                content = answer.read(MAX_REPLY_BYTES * body.get("n", 1) + 1)
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
            f"the endpoint at {url} does not answer ({reason}). Check that it is running, or correct "
            "targets.endpoint.url."
        )

    def _suggestion(self, status: int) -> str:
        """Return the fix to suggest for a status code, or an empty string."""
        if status in (401, 403):
            named = self.spec.key_variable
            return f"; the key is read from {named}" if named else "; name the key's variable in endpoint.key_variable"
        if status == 429:
            return "; lower targets.endpoint.workers, or raise attempts"
        if status in RETRIED:
            return "; check its log, or raise targets.endpoint.attempts"
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


def _content(url: str, content: bytes, shown: Callable[[str], str]) -> tuple[list[Reply], int]:
    """Return the replies in a response body and its tokens; `shown` removes the key from text that an error repeats."""
    try:
        document = json.loads(content)
        choices = [(choice["message"]["content"], choice.get("finish_reason")) for choice in document["choices"]]
        _ = choices[0]
        usage = document.get("usage")
        used = usage.get("total_tokens") if isinstance(usage, dict) else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise JudgeError(
            f"{url} did not return an OpenAI chat completion: {shown(repr(content))[:MOST_SAID]}"
        ) from error
    replies = [Reply(storable(text) if isinstance(text, str) else "", reason == CUT_OFF) for text, reason in choices]
    estimated = sum(tokens_by_bytes(reply.text) for reply in replies)
    return replies, int(used) if isinstance(used, int) else estimated


def storable(text: str) -> str:
    """Return the text with a question mark for each lone surrogate, which JSON allows but tables cannot store."""
    return text.encode("utf-8", "replace").decode()


def tokens_by_bytes(text: str) -> int:
    """Return an estimate of a text's tokens, for endpoints that do not report usage."""
    return math.ceil(len(text.encode()) / BYTES_A_TOKEN)
