"""Output of `curate plan`: the estimated cost of a run, beside the cost of past runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from curation_assets.config.running_settings import Limits
from curation_assets.operations.plan import Plan, TargetPlan, WarmupPlan, make_plan
from curation_assets.operations.plan_seconds import MeasuredPass
from curation_assets.workspace.limits import HOUR
from curation_assets.workspace.workspace import Workspace
from curation_resources.terminal import progress_bars, simple_table
from curation_resources.text import duration, harmless, size_text

Row = tuple[str, object, object]

PROBLEMS = 5
"""Maximum number of files to name."""


def show_plan(workspace: Workspace, console: Console, probe: bool = True) -> None:
    """Make a plan, with progress bars on standard error, and print it.

    Raises:
        UserError: see `make_plan`.
    """
    from curation_assets.evaluation.audit_samples import kinds_of

    # Report a wrong kind before the work.
    kinds_of(workspace.settings.audit)
    with progress_bars(Console(stderr=True)):
        plan = make_plan(workspace, probe)
    print_plan(plan, console)
    console.print(audit_line(workspace, plan), style="dim", highlight=False)
    for line in limit_lines(plan, workspace.settings.limits):
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def limit_lines(plan: Plan, limits: Limits) -> list[str]:
    """Return a line for each limit that the plan exceeds, with the number of runs it would take."""
    seconds = [target.speed.seconds * target.speed.devices for target in plan.targets if target.speed is not None]
    amounts = [
        ("tokens", float(sum(target.tokens for target in plan.targets)), limits.tokens, "tokens"),
        ("device_hours", sum(seconds) / HOUR, limits.device_hours, "device hours"),
    ]
    return [
        f"exceeds limits.{key} of {limit:,} {unit}: a run stops there and leaves the rest due. The plan takes about "
        f"{math.ceil(planned / limit)} runs, or as many days of launched runs."
        for key, planned, limit, unit in amounts
        if limit is not None and planned > limit
    ]


def audit_line(workspace: Workspace, plan: Plan) -> str:
    """Return the cost of `curate audit`, estimated from the plan's and past runs' tokens per sample."""
    from curation_assets.evaluation.audit_samples import kinds_of

    settings = workspace.settings.audit
    samples = min(settings.samples, plan.samples) * (1 + len(kinds_of(settings)))
    tokens, seconds = 0.0, 0.0
    for target in plan.targets:
        if workspace.settings.target(target.target).kind == "judge":
            continue
        done = sum(one.tokens for one in target.measured), max((one.samples for one in target.measured), default=0)
        every, of = (target.tokens, target.samples) if target.samples else done
        if not of:
            return "an audit (`curate audit`): its cost is known once samples are planned or measured"
        tokens += samples * every / of
        rate = None if target.seconds is None or not target.tokens else target.seconds / target.tokens
        if rate is None and target.measured and done[0]:
            rate = sum(one.seconds for one in target.measured) / done[0]
        seconds += math.inf if rate is None else samples * every / of * rate
    time = f", about {duration(seconds)}" if math.isfinite(seconds) else ""
    return (
        f"an audit (`curate audit`) would measure at most {samples:,} samples, {tokens:,.0f} tokens (estimated){time}"
    )


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan: two or three tables per target, and a line of totals."""
    about = "about " if plan.estimated else ""
    unread = f", {plan.unread} of them not read yet" if plan.unread else ""
    shards = "1 shard" if plan.shards == 1 else f"{plan.shards:,} shards"
    console.print(f"{about}{plan.samples:,} samples in {shards}{unread}")
    for target in plan.targets:
        _print_target(target, console)
    for problem in plan.problems[:PROBLEMS]:
        console.print(f"cannot be read: {harmless(problem)}", style="yellow", markup=False, soft_wrap=True)
    if len(plan.problems) > PROBLEMS:
        console.print(f"and {len(plan.problems) - PROBLEMS} more files", style="yellow")
    console.print(total_line(plan))


def total_line(plan: Plan) -> str:
    """Return the line of totals over all targets."""
    tokens = sum(target.tokens for target in plan.targets)
    lacking = sum(target.samples for target in plan.targets)
    if not lacking:
        return "total: nothing to measure"
    seconds = [target.all_seconds for target in plan.targets if target.tokens]
    sizes = [target.bytes_to_write for target in plan.targets]
    known = [second for second in seconds if second is not None]
    about = "" if all(target.exact or not target.tokens for target in plan.targets) else "about "
    parts = [f"{lacking:,} samples", f"{about}{tokens:,} tokens"]
    if len(plan.targets) == 1:
        # With several targets, each has an F of its own.
        parts.append(f"{plan.targets[0].cost:,.0f} F")
    if known and len(known) == len(seconds):
        parts.append(f"about {duration(sum(known))}")
    if None not in sizes:
        parts.append(f"about {size_text(sum(size for size in sizes if size is not None))} to write")
    return "total: " + ", ".join(parts)


def _print_target(target: TargetPlan, console: Console) -> None:
    rows = [
        (
            signal.signal,
            signal.measured,
            signal.to_measure,
            size_text(signal.bytes_stored),
            None if signal.bytes_to_write is None else size_text(signal.bytes_to_write),
        )
        for signal in target.signals
    ]
    headers = ("signal", "measured", "to measure", "stored", "to write")
    console.print(simple_table(f"{target.target}: samples by signal", headers, _with_commas(rows)))
    body = [*_cost_rows(target), *_time_rows(target)]
    console.print(simple_table(f"{target.target}: plan and measured", ("what", "plan", "measured"), body))
    if len(target.measured) > 1:
        console.print(_passes_table(target))
    if target.scores:
        console.print(_scores_table(target))
    if target.waiting is not None:
        waiting = f"waiting: {target.waiting}; until then a run measures nothing"
        console.print(waiting, style="yellow", markup=False, highlight=False)
    for line in _notes(target):
        console.print(line, style="dim", markup=False, highlight=False)


def _with_commas(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    return [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]


def _cost_rows(target: TargetPlan) -> list[Row]:
    """Return the rows for samples, tokens and F."""
    done = target.measured
    more, about = (target.unrecorded, "about ") if target.unrecorded[0] else ((), "")
    planned = f"{target.tokens:,}"
    if target.tokens and target.exact:
        planned += " (exact)"
    elif target.tokens:
        planned = f"about {planned}" + (f" ± {target.tokens_margin:,.0f}" if target.tokens_margin >= 1 else "")
    rows: list[Row] = [
        ("samples", f"{target.samples:,}", _sum_text([*(one.samples for one in done), *more[:1]])),
        *([("of validation sets", f"{target.held_out:,}", None)] if target.held_out else []),
        (
            "tokens",
            planned,
            about + tokens if (tokens := _sum_text([*(one.tokens for one in done), *more[1:]])) else None,
        ),
    ]
    if target.requests:
        rows.append(("requests", f"about {target.requests:,}", None))
    if len(target.passes) > 1:
        rows += [(f"tokens {one.name}", f"{one.tokens:,}, {one.cost:,.0f} F", None) for one in target.passes]
    costs = [one.cost for one in done if one.cost is not None]
    passes = f"{sum(one.cost for one in target.passes):,.0f} F"
    rows.append(("forward passes", passes, f"{sum(costs):,.0f} F" if costs and len(costs) == len(done) else None))
    trained = target.measured_warmup
    if target.warmup is not None or trained is not None:
        plan = target.warmup and _warmup_text(target.warmup.samples, target.warmup.epochs)
        rows.append(("warm-up", plan, trained and _warmup_text(trained.samples, trained.epochs)))
    return rows


def _warmup_text(samples: int, epochs: int) -> str:
    return f"3 x {samples:,} x {epochs} = {3 * samples * epochs:,} F"


def _time_rows(target: TargetPlan) -> list[Row]:
    """Return the rows for seconds, speed, bytes and device."""
    speed, done = target.speed, target.measured
    took = sum(one.seconds for one in done)
    measured_speed = f"{sum(one.tokens for one in done) / took:,.0f}" if took else None
    planned = None if target.seconds is None else duration(target.seconds)
    rows: list[Row] = [("time to measure", planned, duration(took) if done else None)]
    if target.probe is not None:
        rows.append(("time to load the model", duration(target.probe.load_seconds), None))
    warmups = [_seconds(target.warmup), _seconds(target.measured_warmup)]
    if any(warmups):
        rows.append(("time to warm up", warmups[0], warmups[1]))
    rows.append(("tokens per second", speed and f"{speed.tokens_per_second:,.0f}", measured_speed))
    written = target.bytes_to_write
    stored = sum(signal.bytes_stored for signal in target.signals)
    rows.append(("bytes", None if written is None else size_text(written), size_text(stored)))
    devices = sorted({device for one in done for device in one.devices})
    rows.append(("device", speed and speed.device, ", ".join(devices) or None))
    return rows


def _seconds(warmup: WarmupPlan | None) -> str | None:
    return None if warmup is None or warmup.seconds is None else duration(warmup.seconds)


def _sum_text(values: Sequence[int]) -> str | None:
    return f"{sum(values):,}" if values else None


def _passes_table(target: TargetPlan) -> object:
    """Return the table of past measurements, grouped by signals measured together."""
    rows = [_pass_row(one) for one in target.measured]
    headers = ("signals", "samples", "tokens", "time", "tokens/s")
    return simple_table(f"{target.target}: measured, by pass", headers, rows)


def _pass_row(one: MeasuredPass) -> tuple[object, ...]:
    speed = one.tokens_per_second
    return (
        "\n".join(one.signals),
        f"{one.samples:,}",
        f"{one.tokens:,}",
        duration(one.seconds),
        None if speed is None else f"{speed:,.0f}",
    )


def _scores_table(target: TargetPlan) -> object:
    """Return the table of each score's cost if nothing were shared."""
    rows = []
    for score in target.scores:
        parts = [None if part is None else f"{float(part):,.0f} F" for part in (score.checkpoint, score.scoring)]
        rows.append((score.score, score.method, score.cost, *parts))
    headers = ("score", "method", "cost", "checkpoint", "scoring")
    return simple_table(f"{target.target}: each score separately, as in GRAPE's Table 13", headers, rows)


def _notes(target: TargetPlan) -> list[str]:
    """Return notes on how the figures were obtained."""
    notes = []
    if target.tokens and target.encoded < target.of:
        notes.append(
            f"tokens: estimated from {target.encoded:,} of {target.of:,} samples, drawn at random and tokenized"
        )
    probe = target.probe
    if probe is not None:
        base = ", measured with the base model, because the warm-up is not trained yet" if probe.base else ""
        probed = "one sample"
        if probe.batches:
            probed = f"{probe.samples:,} samples of {probe.batches} of {probe.of_batches} batches"
        notes.append(
            f"time and bytes: estimated from {probed} ({probe.tokens:,} tokens in {duration(probe.seconds)}){base}"
        )
    elif target.speed is not None:
        notes.append("time and bytes: estimated from stored runs of the same signals on this device")
    if target.unrecorded[0]:
        notes.append(
            f"measured: {target.unrecorded[0]:,} samples are of visits that were interrupted, or that a later visit to "
            "their shard replaced; their time is not known"
        )
    if target.measured:
        notes.append("measured: the last visit to each shard, from its records")
    return notes
