"""Alerts reach a real command and a real server, and their failures say what to mend without telling secrets."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curation_resources.alert_delivery import Alert, AlertError, Channels, masked, send

ALERT = Alert("run_failed", "curation: run 1234 failed: no room", {"run_id": "1234", "assets": ["raw_corpus"]})


class Hook:
    """A webhook: answers with the statuses that it is given, then with 200, and keeps what it took."""

    def __init__(self) -> None:
        self.taken: list[dict[str, object]] = []
        self.statuses: list[int] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = owner.statuses.pop(0) if owner.statuses else 200
                if status == 200:
                    owner.taken.append(json.loads(body))
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "600")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/services/T000/secret-path"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()
    monkeypatch.setenv("WEBHOOK", made.address)
    yield made
    made.close()


def writer(path: Path) -> list[str]:
    """A command that writes what it gets to a file."""
    return [sys.executable, "-c", f"import sys; open({str(path)!r}, 'w').write(sys.stdin.read())"]


def test_a_command_gets_the_alert_as_json(tmp_path: Path) -> None:
    send(ALERT, Channels(writer(tmp_path / "alert.json")))
    said = json.loads((tmp_path / "alert.json").read_text())
    assert said.pop("time")
    assert said == {"text": ALERT.text, "event": "run_failed", "run_id": "1234", "assets": ["raw_corpus"]}


def test_a_webhook_gets_it_too_and_is_asked_again_while_it_is_busy(hook: Hook) -> None:
    hook.statuses = [503, 429]
    send(ALERT, Channels(webhook_variable="WEBHOOK"))
    (taken,) = hook.taken
    assert taken["text"] == ALERT.text


@pytest.mark.parametrize("statuses", [[404], [500] * 9])
def test_a_webhook_that_does_not_take_it_is_an_error_without_its_address(hook: Hook, statuses: list[int]) -> None:
    hook.statuses = statuses
    with pytest.raises(AlertError, match="the address in WEBHOOK") as caught:
        send(ALERT, Channels(webhook_variable="WEBHOOK"))
    assert "secret-path" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/secret-path", "no address secret-path", "ftp://secret-path/"])
def test_an_address_that_leads_nowhere_is_not_told(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("WEBHOOK", address)
    with pytest.raises(AlertError, match="the address in WEBHOOK") as caught:
        send(ALERT, Channels(webhook_variable="WEBHOOK"))
    assert "secret-path" not in str(caught.value)


def test_one_channel_that_fails_does_not_keep_it_from_the_other(hook: Hook) -> None:
    with pytest.raises(AlertError, match="program 'no-such-program' not found"):
        send(ALERT, Channels(["no-such-program"], "WEBHOOK"))
    assert len(hook.taken) == 1


def test_a_command_that_fails_says_why() -> None:
    command = [sys.executable, "-c", "import sys; print('no mailer here', file=sys.stderr); sys.exit(3)"]
    with pytest.raises(AlertError, match="exited with status 3: no mailer here"):
        send(ALERT, Channels(command))


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBHOOK", raising=False)
    with pytest.raises(AlertError, match="WEBHOOK is not set"):
        send(ALERT, Channels(webhook_variable="WEBHOOK"))


def test_secrets_of_the_environment_do_not_leave_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'top"secret/value')
    alert = Alert("run_failed", 'denied for top"secret/value', {"error": 'key top"secret/value was refused'})
    send(alert, Channels(writer(tmp_path / "alert.json")))
    text = (tmp_path / "alert.json").read_text()
    assert "secret/value" not in text
    assert json.loads(text)["text"] == "denied for (AWS_SECRET_ACCESS_KEY)"


def test_a_secret_is_taken_out_before_a_text_is_cut(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecretvalue")
    text = f"x topsecretvalue and {hook.address}"
    assert masked(text, Channels(webhook_variable="WEBHOOK")) == "x (AWS_SECRET_ACCESS_KEY) and (WEBHOOK)"
    assert masked("a text", Channels()) == "a text"
