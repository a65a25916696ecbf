"""Deliver failure alerts to a command, which reads the alert from standard input, and to a webhook."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import urllib3

from curation_resources.errors import UserError

COMMAND_SECONDS = 20.0
"""Time limit of the command. A sensor that waits for all channels has 60 seconds for its tick."""
WEBHOOK_SECONDS = 5.0
TRIES = 2
"""Retries after the first attempt."""
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables whose values never leave the machine in an alert."""
SHORTEST_SECRET = 6


class AlertError(UserError):
    """An alert could not be delivered; the message names the channel and never contains the webhook's address."""


@dataclass(frozen=True)
class Alert:
    """A message to people, with machine-readable details.

    Attributes:
        event: machine-readable event name: run_failed, landing_refused, test.
        text: human-readable summary in one line.
        details: further JSON-serializable fields.
    """

    event: str
    text: str
    details: Mapping[str, object] = field(default_factory=dict)

    def document(self) -> bytes:
        """Return the alert as JSON: `text` (shown by chat services), `event`, `time` (UTC), and the details."""
        made = {"text": self.text, "event": self.event, "time": datetime.now(UTC).isoformat(), **self.details}
        return json.dumps(made, default=str).encode()


@dataclass(frozen=True)
class Channels:
    """Destinations of alerts.

    Attributes:
        command: program and arguments; None: no command.
        webhook_variable: environment variable that holds the address to POST to; None: no webhook.
    """

    command: Sequence[str] | None = None
    webhook_variable: str | None = None

    def __bool__(self) -> bool:
        """Return True if there is at least one channel."""
        return self.command is not None or self.webhook_variable is not None

    def secrets(self) -> list[str]:
        """Return the environment variables whose values must not appear in alerts."""
        return [*SECRETS, *([] if self.webhook_variable is None else [self.webhook_variable])]


def send(alert: Alert, channels: Channels) -> None:
    """Deliver an alert to every channel; a failing channel does not block the other.

    Raises:
        AlertError: at least one channel failed; the message covers each failure.
    """
    variable = channels.webhook_variable
    document = alert.document()
    for name in channels.secrets():
        # Values are matched in their JSON encoding, so that one with quotes is found, too.
        document = _replaced(document, json.dumps(_secret(name))[1:-1].encode(), f"({name})".encode())
    problems = []
    if channels.command is not None:
        problems.append(_run(channels.command, document))
    if variable is not None:
        problems.append(_post(variable, document))
    failed = [problem for problem in problems if problem is not None]
    if failed:
        raise AlertError("; ".join(failed))


def masked(text: str, channels: Channels) -> str:
    """Replace the values of secret variables in text. Call it before cutting text, or half a secret may remain."""
    for name in channels.secrets():
        text = _replaced(text.encode(), _secret(name).encode(), f"({name})".encode()).decode()
    return text


def _secret(name: str) -> str:
    """Return a variable's value if it is long enough for a secret; a short one would match ordinary words."""
    value = os.environ.get(name, "")
    return value if len(value) >= SHORTEST_SECRET else ""


def _replaced(text: bytes, value: bytes, name: bytes) -> bytes:
    return text.replace(value, name) if value else text


def _run(command: Sequence[str], document: bytes) -> str | None:
    """Run the command without a shell; return an error message, or None."""
    try:
        done = subprocess.run(list(command), input=document, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        return f"alerts.command: program {command[0]!r} not found. Name one that is on the daemon's PATH."
    except subprocess.TimeoutExpired:
        return f"alerts.command: {command[0]} timed out after {COMMAND_SECONDS:.0f} s"
    except OSError as error:
        return f"alerts.command: cannot run {command[0]} ({error.strerror})"
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        message = lines[-1] if lines else "(no message)"
        return f"alerts.command: {command[0]} exited with status {done.returncode}: {message}"
    return None


def _post(variable: str, document: bytes) -> str | None:
    """POST to the address in the variable, with retries if the service is busy; return an error message, or None.

    The address is a secret. Library messages repeat it, so only the type of an error is reported.
    """
    address = os.environ.get(variable)
    if not address:
        return f"alerts.webhook_variable: {variable} is not set. Set it to the webhook's address."
    retry = urllib3.Retry(
        TRIES,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
        redirect=0,
        # A service may ask us to wait for minutes, which a sensor does not have.
        respect_retry_after_header=False,
    )
    try:
        with urllib3.PoolManager(retries=retry, timeout=urllib3.Timeout(total=WEBHOOK_SECONDS)) as pool:
            answer = pool.request("POST", address, body=document, headers={"Content-Type": "application/json"})
    except urllib3.exceptions.MaxRetryError as error:
        kind = type(error.reason).__name__ if error.reason is not None else "no answer"
        return (
            f"alerts.webhook_variable: the address in {variable} did not accept the alert in {TRIES + 1} attempts "
            f"({kind})"
        )
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return f"alerts.webhook_variable: the address in {variable} cannot be used ({type(error).__name__})"
    if answer.status >= 300:
        return f"alerts.webhook_variable: the address in {variable} answered with status {answer.status}"
    return None
