"""Telling people that something failed: a command that gets the alert on its standard input, and a webhook."""

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
"""A command that takes longer is stopped. A sensor that waits for all channels has 60 seconds for its tick."""
WEBHOOK_SECONDS = 5.0
TRIES = 2
"""Beside the first one."""
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables whose values never leave the machine in an alert."""
SHORTEST_SECRET = 6


class AlertError(UserError):
    """An alert could not be delivered; the message says where, and never holds the webhook's address."""


@dataclass(frozen=True)
class Alert:
    """Something that people are told.

    Attributes:
        event: what happened, as programs know it: run_failed, landing_refused, test.
        text: what happened, as people read it, in a line.
        details: more of it, as JSON holds it.
    """

    event: str
    text: str
    details: Mapping[str, object] = field(default_factory=dict)

    def document(self) -> bytes:
        """The alert as JSON: `text` (what chat services show), `event`, `time` (UTC), and the details."""
        made = {"text": self.text, "event": self.event, "time": datetime.now(UTC).isoformat(), **self.details}
        return json.dumps(made, default=str).encode()


@dataclass(frozen=True)
class Channels:
    """Where alerts go.

    Attributes:
        command: program and arguments; None: no command.
        webhook_variable: environment variable that holds the address to POST to; None: no webhook.
    """

    command: Sequence[str] | None = None
    webhook_variable: str | None = None

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.command is not None or self.webhook_variable is not None

    def secrets(self) -> list[str]:
        """Environment variables whose values no alert holds."""
        return [*SECRETS, *([] if self.webhook_variable is None else [self.webhook_variable])]


def send(alert: Alert, channels: Channels) -> None:
    """Deliver an alert to every channel; one that fails does not keep it from the other.

    Raises:
        AlertError: a channel failed; what went wrong with each that did.
    """
    variable = channels.webhook_variable
    document = alert.document()
    for name in channels.secrets():
        # As JSON writes it, so that a value with quotes is found, too.
        document = _without(document, json.dumps(_secret(name))[1:-1].encode(), f"({name})".encode())
    problems = []
    if channels.command is not None:
        problems.append(_run(channels.command, document))
    if variable is not None:
        problems.append(_post(variable, document))
    failed = [problem for problem in problems if problem is not None]
    if failed:
        raise AlertError("; ".join(failed))


def masked(text: str, channels: Channels) -> str:
    """Text without the values of secret variables: to be called before a text is cut, or half of one may be left."""
    for name in channels.secrets():
        text = _without(text.encode(), _secret(name).encode(), f"({name})".encode()).decode()
    return text


def _secret(name: str) -> str:
    """A variable's value, if it is long enough for a secret: a short one would hit ordinary words."""
    value = os.environ.get(name, "")
    return value if len(value) >= SHORTEST_SECRET else ""


def _without(text: bytes, value: bytes, name: bytes) -> bytes:
    return text.replace(value, name) if value else text


def _run(command: Sequence[str], document: bytes) -> str | None:
    """Run the command without a shell; what went wrong."""
    try:
        done = subprocess.run(list(command), input=document, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        return f"alerts.command: there is no program {command[0]!r}; name one that is on the PATH of the daemon"
    except subprocess.TimeoutExpired:
        return f"alerts.command: {command[0]} was stopped after {COMMAND_SECONDS:.0f} s"
    except OSError as error:
        return f"alerts.command: {command[0]} cannot be run ({error.strerror})"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"alerts.command: {command[0]} ended with {done.returncode}: {said[-1] if said else '(no message)'}"
    return None


def _post(variable: str, document: bytes) -> str | None:
    """POST to the address that the variable holds, again where the service is busy; what went wrong.

    The address is a secret: of an error only its kind is told, since messages of the library repeat it.
    """
    address = os.environ.get(variable)
    if not address:
        return f"alerts.webhook_variable: the environment has no {variable}; set it to the webhook's address"
    retry = urllib3.Retry(
        TRIES,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
        redirect=0,
        # A service may ask for minutes, which a sensor does not have.
        respect_retry_after_header=False,
    )
    try:
        with urllib3.PoolManager(retries=retry, timeout=urllib3.Timeout(total=WEBHOOK_SECONDS)) as pool:
            answer = pool.request("POST", address, body=document, headers={"Content-Type": "application/json"})
    except urllib3.exceptions.MaxRetryError as error:
        kind = type(error.reason).__name__ if error.reason is not None else "no answer"
        return (
            f"alerts.webhook_variable: the address in {variable} did not take the alert in {TRIES + 1} tries ({kind})"
        )
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return f"alerts.webhook_variable: the address in {variable} cannot be used ({type(error).__name__})"
    if answer.status >= 300:
        return f"alerts.webhook_variable: the address in {variable} answered with status {answer.status}"
    return None
