"""A small server that speaks OpenAI's chat completions, and misbehaves as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_server import served

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def completion(reply: str | None, tokens: int | None = 30) -> Answer:
    """What an endpoint sends with a reply."""
    return completions([reply], tokens)


def completions(replies: Sequence[str | None], tokens: int | None = 30, reason: str = "stop") -> Answer:
    """What an endpoint sends with several replies to one request."""
    choices = [{"message": {"role": "assistant", "content": one}, "finish_reason": reason} for one in replies]
    document: dict[str, Any] = {"choices": choices}
    if tokens is not None:
        document["usage"] = {"total_tokens": tokens}
    return 200, {}, json.dumps(document).encode()


@dataclass
class JudgeServer:
    """What was asked of it, and what it answers next.

    Attributes:
        url: its base address.
        answer: gives the answer to a question.
        asked: the requests' bodies, as they came.
        keys: their authorization headers.
        first: answers that come before any other.
        respond: gives the answer to a whole request, instead of `answer`.
    """

    url: str
    answer: Callable[[str], Answer]
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    first: list[Answer] = field(default_factory=list)
    respond: Callable[[dict[str, Any]], Answer] | None = None


@contextmanager
def judge_server(answer: Callable[[str], Answer]) -> Iterator[JudgeServer]:
    """A server on a free port of this machine."""
    state = JudgeServer("", answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.asked.append(body)
                state.keys.append(self.headers.get("Authorization"))
                early = state.first.pop(0) if state.first else None
            assert self.path == "/v1/chat/completions"
            status, headers, content = early or (
                state.respond(body) if state.respond else state.answer(body["messages"][0]["content"])
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            # What is cut short ends here.
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with served(Handler) as address:
        state.url = f"{address}/v1"
        yield state
