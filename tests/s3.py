"""A real S3 server on this machine (moto's) for tests, which can watch and disturb its requests, and its buckets."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import boto3  # type: ignore[import-untyped]
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Fate = Literal["lost", "cut"]
"""What happens to an answer: it is not sent though the request was done, or ends after its first half."""


@dataclass(frozen=True)
class Request:
    """A request that a server received.

    Attributes:
        method: of HTTP.
        key: the object's key; empty for a request on the bucket, such as a listing.
        question: path, query and range, which are equal if the request asks for the same.
    """

    method: str
    key: str
    question: str


_watchers: list[list[Request]] = []
_disturbers: list[Callable[[Request], Fate | None]] = []


@contextmanager
def watched() -> Iterator[list[Request]]:
    """Collect the requests that servers of this process receive."""
    seen: list[Request] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


@contextmanager
def disturbed(fate: Callable[[Request], Fate | None]) -> Iterator[None]:
    """Decide what happens to the answers of servers of this process."""
    _disturbers.append(fate)
    try:
        yield
    finally:
        _disturbers.remove(fate)


class _Watched:
    """A WSGI application in front of moto's."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"].encode("latin-1").decode()
        question = f"{path}?{environ['QUERY_STRING']} {environ.get('HTTP_RANGE', '')}"
        request = Request(environ["REQUEST_METHOD"], path.lstrip("/").partition("/")[2], question)
        for seen in _watchers:
            seen.append(request)
        fates = [fate for fate in (decide(request) for decide in _disturbers) if fate is not None]
        answer: Iterable[bytes] = self._moto(environ, start_response)
        if not fates:
            return answer
        body = b"".join(answer)
        sent = body[: len(body) // 2] if fates[0] == "cut" else b""
        return _broken_off(sent, environ["werkzeug.socket"])


def _broken_off(sent: bytes, connection: socket.socket) -> Iterator[bytes]:
    """Send these bytes, if any, and close the connection."""
    if sent:
        yield sent
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


@contextmanager
def serve_s3() -> Iterator[str]:
    """Yield the address of a server that runs for the block."""
    server = make_server("127.0.0.1", 0, _Watched(), threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def new_bucket(
    server: str, set_variable: Callable[[str, str], object] = os.environ.__setitem__, name: str | None = None
) -> str:
    """The address of an empty bucket, which the environment says how to reach from then on."""
    for variable, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        set_variable(variable, value)
    name = name or f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of the server."""
    with serve_s3() as address:
        yield address


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket, which the environment says how to reach."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return new_bucket(s3_server, monkeypatch.setenv)
