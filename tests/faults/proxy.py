"""An S3 that fails: a proxy before a real server that answers wrongly, late, in part or not at all."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>made up</Message></Error>'
STATUS = {"InternalError": 500, "SlowDown": 503}
HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "expect"})
CUT_OFF = struct.pack("ii", 1, 0)
"""SO_LINGER of a connection that is reset when it is closed."""


@dataclass
class Trouble:
    """What goes wrong, and how often.

    Attributes:
        kind: errors, throttling, slow, reset or partial; empty: nothing.
        share: share of requests that it happens to.
        from_request: how many requests go well before.
    """

    kind: str = ""
    share: float = 0.0
    from_request: int = 0


class FailingS3:
    """Passes requests on to a server, but for those that meet trouble; `failed` counts these."""

    def __init__(self, server: str, seed: int) -> None:
        self.trouble = Trouble()
        self.failed = 0
        self.seen = 0
        self._server = urlsplit(server).netloc
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                owner._handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        """Stop answering."""
        self._http.shutdown()
        self._http.server_close()

    def _fate(self) -> str:
        with self._lock:
            self.seen += 1
            trouble = self.trouble
            if not trouble.kind or self.seen <= trouble.from_request or self._draw.random() >= trouble.share:
                return ""
            self.failed += 1
            # An answer that is lost: the server did what it was asked, and nobody knows.
            return trouble.kind + (
                " after" if trouble.kind in ("reset", "errors") and self._draw.random() < 0.5 else ""
            )

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        fate = self._fate()
        if fate == "slow":
            time.sleep(self._draw.uniform(0.2, 1.5))
        if fate in ("errors", "throttling"):
            self._refuse(request, "InternalError" if fate == "errors" else "SlowDown")
            return
        if fate == "reset":
            self._reset(request)
            return
        status, headers, answer = self._forward(request, body)
        if fate == "errors after":
            self._refuse(request, "InternalError")
        elif fate == "reset after":
            self._reset(request)
        else:
            self._answer(request, status, headers, answer, partial=fate == "partial")

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._server, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        connection.request(request.command, request.path, body, headers)
        found = connection.getresponse()
        answer = found.read()
        connection.close()
        return found.status, found.getheaders(), answer

    def _refuse(self, request: BaseHTTPRequestHandler, code: str) -> None:
        answer = b"" if request.command == "HEAD" else ERROR.format(code=code).encode()
        self._answer(request, STATUS[code], [("Content-Type", "application/xml")], answer)

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        answer: bytes,
        partial: bool = False,
    ) -> None:
        said = next((value for name, value in headers if name.lower() == "content-length"), str(len(answer)))
        request.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP:
                request.send_header(name, value)
        request.send_header("Content-Length", said if request.command == "HEAD" else str(len(answer)))
        request.end_headers()
        if partial and len(answer) > 1:
            request.wfile.write(answer[: len(answer) // 2])
            self._reset(request)
            return
        request.wfile.write(answer)

    def _reset(self, request: BaseHTTPRequestHandler) -> None:
        request.wfile.flush()
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CUT_OFF)
        request.close_connection = True
        # The socket goes when the handler ends; what was written so far may still arrive.
        request.connection.close()
