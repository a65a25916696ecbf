"""Send alerts about failures: a run-failure sensor, and refused scans of the landing area."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from curation_assets.workspace.workspace import Workspace
from curation_resources.alert_delivery import Alert, AlertError, Channels, masked, send
from curation_resources.errors import UserError
from curation_resources.text import shortened

RETRIED_TAG = "dagster/will_retry"
LONGEST_LINE = 500
LONGEST_ERROR = 2000
"""Maximum characters of an alert's text, and of the error in it: chat services reject more."""
NEWLINE = "\n"
NUMBERS = re.compile(r"\d+")
logger = logging.getLogger("curation")
_reported: dict[str, str] = {}
"""Reported problems that are not fixed yet, with the sensor that reported each; a problem is reported once."""


def channels(workspace: Workspace) -> Channels:
    """Return the alert channels of a configuration."""
    section = workspace.settings.alerts
    return Channels(section.command, section.webhook_variable)


def _line(message: str) -> str:
    return shortened(message.strip().partition(NEWLINE)[0], LONGEST_LINE)


def failure_alert(run: dg.DagsterRun, message: str, config_file: str) -> Alert:
    """Build the alert for a failed run."""
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    ends = [run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
    partition = run.tags.get("dagster/partition")
    what = run.tags.get("curation/stage") or ", ".join(assets) or run.job_name
    return Alert(
        "run_failed",
        f"curation: run {run.run_id[:8]} ({what}) failed: {_line(message)}",
        {
            "run_id": run.run_id,
            "assets": assets,
            "partitions": ends if ends[0] else [partition] if partition else [],
            "error": shortened(message, LONGEST_ERROR),
            "config_file": config_file,
        },
    )


def alert_sensors(workspace: Workspace) -> list[dg.SensorDefinition]:
    """Return the sensor that reports failed runs, if the configuration has an alert channel."""
    if not channels(workspace):
        return []

    # Runs of `curate run` belong to no code location, but are reported like those of the daemon.
    @dg.run_failure_sensor(
        name="alerts",
        monitor_all_code_locations=True,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports failed runs through the command or the webhook under `alerts` in curation.yaml.",
    )
    def alerts(context: dg.RunFailureSensorContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason | None:
        run = context.dagster_run
        if run.tags.get(RETRIED_TAG) == "true":
            return dg.SkipReason(f"run {run.run_id[:8]} will be retried")
        causes = [_cause(event) for event in context.get_step_failure_events()]
        message = (causes or [context.failure_event.message or "(the run ended without a message)"])[0]
        message = masked(message, channels(workspace))
        send(failure_alert(run, message, str(workspace.config_file)), channels(workspace))
        return None

    return [alerts]


def _cause(event: dg.DagsterEvent) -> str:
    """Return the message of a step failure's root cause, which is the error that the stage raised."""
    error = event.step_failure_data.error
    if error is None:
        return event.message or "(the step ended without a message)"
    while error.cause is not None:
        error = error.cause
    return error.message.strip()


@contextmanager
def report_refusals(workspace: Workspace, sensor: str) -> Iterator[None]:
    """Report errors that a user has to fix before a sensor can continue, once per unchanged problem.

    A sensor's failed tick starts no run, so the run-failure sensor does not see it.
    """
    try:
        yield
    except UserError as error:
        if channels(workspace):
            _report(workspace, sensor, str(error))
        raise
    for problem in [problem for problem, reporter in _reported.items() if reporter == sensor]:
        del _reported[problem]


def _report(workspace: Workspace, sensor: str, message: str) -> None:
    """Report a refusal unless it was already reported; a failing channel must not hide the refusal itself."""
    # The same message with other numbers (for example, one more missing file) is the same problem.
    problem = NUMBERS.sub("#", message)
    if problem in _reported:
        return
    # Mark it before sending: otherwise a failing channel would be tried at every tick.
    _reported[problem] = sensor
    message = masked(message, channels(workspace))
    alert = Alert(
        f"{sensor}_refused",
        f"curation: sensor {sensor} cannot continue: {_line(message)}",
        {"error": shortened(message, LONGEST_ERROR), "config_file": str(workspace.config_file)},
    )
    try:
        send(alert, channels(workspace))
    except AlertError as error:
        logger.error("the alert that sensor %s cannot continue was not delivered: %s", sensor, error)
