"""The plan of a run: for each target and signal what there is to measure, and what that costs; nothing is stored.

What runs did cost stands beside it (`curation_assets.operations.plan_measured`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import polars as pl

from curation_assets.config.settings import Target
from curation_assets.methods.registry import method_of
from curation_assets.operations.plan_drawn import drawn_samples, trains_anew, untrained, waiting_for
from curation_assets.operations.plan_formulas import FORMULAS, Formula, Sizes, formula_of, training
from curation_assets.operations.plan_measured import (
    ALONE,
    MeasuredPass,
    MeasuredWarmup,
    measured_passes,
    measured_warmup,
    stored_bytes,
)
from curation_assets.operations.plan_pool import Pool, known_samples, look_at_pool
from curation_assets.operations.plan_probe import Probe, run_probe
from curation_assets.operations.plan_tokens import TokenCount, count_tokens
from curation_assets.signals.held_out import validation_of
from curation_assets.signals.store import SignalStore, signal_dir
from curation_assets.signals.warmup import planned_checkpoints
from curation_assets.workspace.workspace import Workspace
from curation_resources.sections import SignalName
from curation_resources.training.examples import steps_of


@dataclass(frozen=True)
class SignalPlan:
    """One signal of a target.

    Attributes:
        signal: its name.
        measured: samples of the pool that are stored under the current fingerprint.
        to_measure: samples of the pool that are not.
        bytes_stored: of its parts under the current fingerprint.
        bytes_to_write: of the parts that a run would add; None without a probe.
    """

    signal: SignalName
    measured: int
    to_measure: int
    bytes_stored: int
    bytes_to_write: int | None


@dataclass(frozen=True)
class PassPlan:
    """One pass over a model, and the signals that come from it.

    Attributes:
        name: `with prompt` or `response alone`.
        signals: measured in it.
        samples: that are run; those that cannot be are not among them.
        tokens: that are run.
        cost: in F, the forward pass of one sample with its prompt; a response alone is the shorter by its prompt.
    """

    name: str
    signals: tuple[SignalName, ...]
    samples: int
    tokens: int
    cost: float


@dataclass(frozen=True)
class WarmupPlan:
    """A warm-up that a run would train: samples drawn, epochs, `cost` = 3 |D| T in F, seconds by that cost."""

    samples: int
    epochs: int
    cost: int
    seconds: float | None


@dataclass(frozen=True)
class ScorePlan:
    """What a named score would cost by itself.

    Attributes:
        score: its name.
        method: its method.
        cost: as text, in the units of GRAPE's Table 13.
        checkpoint: making its checkpoints, in F; None where the sizes behind it are not configured.
        scoring: scoring with them, in F; None likewise.
    """

    score: str
    method: str
    cost: str
    checkpoint: Fraction | None
    scoring: Fraction | None


@dataclass(frozen=True)
class TargetPlan:
    """What a run would measure of one target, and what runs did.

    Attributes:
        target: its name.
        samples: that lack some signal.
        held_out: of these, samples of validation sets.
        signals: one by one, of the pool.
        passes: over the model, as few as these signals need; empty if there is nothing to run.
        tokens: of all passes.
        tokens_margin: twice the standard error of `tokens`, where only a sample was encoded; else 0.
        encoded: samples that were encoded to count them; 0 if there was nothing to count.
        of: samples that lack a signal and were seen.
        exact: whether every sample was seen and encoded, so that a run will count the same tokens.
        warmup: the warm-up that a run would train first; None if none is due.
        waiting: why a run would not measure yet, and the mend.
        probe: what a few batches took; None if none were run.
        seconds: that measuring takes, the model loaded; None without a probe.
        scores: what each configured score would cost by itself.
        measured: passes that runs did make, under the current fingerprints.
        measured_warmup: the warm-up that has been trained.
    """

    target: str
    samples: int
    held_out: int
    signals: tuple[SignalPlan, ...]
    passes: tuple[PassPlan, ...]
    tokens: int
    tokens_margin: float
    encoded: int
    of: int
    exact: bool
    warmup: WarmupPlan | None
    waiting: str | None
    probe: Probe | None
    seconds: float | None
    scores: tuple[ScorePlan, ...]
    measured: tuple[MeasuredPass, ...]
    measured_warmup: MeasuredWarmup | None

    @property
    def cost(self) -> float:
        """All passes and the warm-up, in F."""
        return sum(one.cost for one in self.passes) + (self.warmup.cost if self.warmup else 0)

    @property
    def all_seconds(self) -> float | None:
        """The warm-up, loading the model and measuring; None without a probe."""
        if self.probe is None or self.seconds is None:
            return None
        return self.seconds + self.probe.load_seconds + ((self.warmup and self.warmup.seconds) or 0.0)

    @property
    def bytes_to_write(self) -> int | None:
        """Of all signals; None if it is not known of some."""
        sizes = [signal.bytes_to_write for signal in self.signals]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True)
class Plan:
    """What a run would do now.

    Attributes:
        shards: that are present.
        unread: of these, shards whose file is to be read first.
        samples: of the pool: distinct samples of present shards.
        estimated: whether some new file is so large that its rows were counted from its first ones.
        problems: files of which nothing, or not all, can be read, each with the reason.
        probed: whether a probe was asked for.
        targets: one by one.
    """

    shards: int
    unread: int
    samples: int
    estimated: bool
    problems: tuple[str, ...]
    probed: bool
    targets: tuple[TargetPlan, ...]


def make_plan(workspace: Workspace, probe: bool = True) -> Plan:
    """Say what a run would measure now and what that would cost; nothing is stored.

    Without a probe, or with nothing to measure, no model is loaded (the tokenizer is, to count tokens).

    Raises:
        LandingError: the landing folder is missing, or has lost too much at once.
        ModelError: a target's model cannot be had.
        ScoringError: it cannot be measured with.
    """
    with tempfile.TemporaryDirectory(prefix="curation-plan-") as folder:
        pool = look_at_pool(workspace, Path(folder))
        targets = tuple(_plan_target(workspace, target, pool, probe) for target in workspace.settings.targets)
    problems = tuple(pool.problems)
    return Plan(pool.shards, len(pool.heads), pool.size, pool.estimated, problems, probe, targets)


def _plan_target(workspace: Workspace, target: Target, pool: Pool, probe: bool) -> TargetPlan:
    anew = trains_anew(workspace, target, pool)
    of_pool = _lacking(workspace, target, pool.known.with_columns(wanted=pl.lit("+".join(target.signals))), anew)
    held_out = _lacking(workspace, target, _held_out(workspace, target, pool), anew)
    lacking = pl.concat([of_pool, held_out])
    drawn = drawn_samples(workspace, target, pool)
    count = count_tokens(workspace, target, pool, lacking, planned_checkpoints(workspace, target, drawn))
    trains = anew or untrained(workspace, target)
    probed = run_probe(workspace, target, pool, count, base=trains) if probe else None
    if probed is not None:
        seconds: float | None = probed.seconds_for(count.tokens)
    else:
        # Nothing to run takes no time; what was not probed takes a time that is not known.
        seconds = None if count.tokens else 0.0
    parts = _parts(workspace, lacking, count, seconds, probed)
    return TargetPlan(
        target=target.name,
        samples=round(float(lacking["weight"].sum())),
        held_out=len(held_out),
        signals=tuple(
            _signal(workspace, target, signal, pool, of_pool, held_out, parts, probed)
            for signal in workspace.settings.measured_signals(target)
        ),
        passes=tuple(_passes(workspace.settings.measured_signals(target), lacking, count)),
        tokens=count.tokens,
        tokens_margin=count.margin,
        encoded=len(count.rows),
        of=count.of,
        exact=count.exact,
        warmup=_warmup(target, drawn, count, probed) if trains else None,
        waiting=waiting_for(workspace, target, pool) if trains else None,
        probe=probed,
        seconds=seconds,
        scores=tuple(_scores(workspace, target, pool, drawn)),
        measured=tuple(measured_passes(workspace, target)),
        measured_warmup=measured_warmup(workspace, target),
    )


def _held_out(workspace: Workspace, target: Target, pool: Pool) -> pl.DataFrame:
    """Samples of validation sets, with the signals that scores look at in a column `wanted`, joined by +.

    Of those that the pool holds too these are the signals that are not measured with it.
    """
    measured, with_pool = workspace.settings.measured_signals(target), pool.known["sample_id"].implode()
    parts = [pool.known.clear().with_columns(wanted=pl.lit(""))]
    for name, signals in validation_of(workspace, target).items():
        head = pool.held_out.get(workspace.validation_shard(name))
        if head is not None:
            known = known_samples(head.rows.lazy(), head.weight)
            alone = "+".join(signal for signal in measured if signal in signals and signal not in target.signals)
            wanted = "+".join(signal for signal in measured if signal in signals)
            held = pl.col("sample_id").is_in(with_pool)
            parts.append(known.with_columns(wanted=pl.when(held).then(pl.lit(alone)).otherwise(pl.lit(wanted))))
    own = pl.all().exclude("sample_id", "wanted").first()
    return pl.concat(parts).group_by("sample_id", maintain_order=True).agg(own, pl.col("wanted").str.join("+"))


def _lacking(workspace: Workspace, target: Target, known: pl.DataFrame, anew: bool) -> pl.DataFrame:
    """The samples that lack some signal of those in `wanted`, with these in a column `lacking`, joined by +.

    With a checkpoint that is trained anew, all lack all that is not measured at the model before its run.
    """
    names = []
    for signal in workspace.settings.measured_signals(target):
        lacks = _names(pl.col("wanted"), signal)
        stays = not anew or signal == "base_likelihoods"
        if stays and signal_dir(workspace, target, signal) is not None:
            missing = SignalStore.of(workspace, target, signal).missing(known["sample_id"])
            lacks &= pl.col("sample_id").is_in(sorted(missing))
        names.append(pl.when(lacks).then(pl.lit(signal)))
    lacking = pl.concat_str(names, separator="+", ignore_nulls=True)
    return known.with_columns(lacking=lacking).filter(pl.col("lacking") != "").drop("wanted")


def _names(joined: pl.Expr, signal: SignalName) -> pl.Expr:
    return joined.str.split("+").list.contains(signal)


def _lacks(signal: SignalName) -> pl.Expr:
    return _names(pl.col("lacking"), signal)


def _signal(
    workspace: Workspace,
    target: Target,
    signal: SignalName,
    pool: Pool,
    lacking: pl.DataFrame,
    held_out: pl.DataFrame,
    parts: int,
    probe: Probe | None,
) -> SignalPlan:
    of_sets = len(held_out.filter(_lacks(signal)))
    to_measure, size = round(float(lacking.filter(_lacks(signal))["weight"].sum())), pool.size
    if signal not in target.signals:
        # Of validation sets alone: what the pool holds is not measured.
        to_measure = of_sets
        size = of_sets + _stored_rows(workspace, target, signal)
    rows = to_measure + (of_sets if signal in target.signals else 0)
    stored = stored_bytes(workspace, target, signal)
    written: int | None = None
    if not rows:
        written = 0
    elif probe is not None and signal in probe.row_bytes:
        written = round(rows * probe.row_bytes[signal] + parts * probe.part_bytes[signal])
    return SignalPlan(signal, size - to_measure, to_measure, stored, written)


def _stored_rows(workspace: Workspace, target: Target, signal: SignalName) -> int:
    if signal_dir(workspace, target, signal) is None:
        return 0
    scan = SignalStore.of(workspace, target, signal).scan()
    return 0 if scan is None else int(scan.select(pl.col("sample_id").n_unique()).collect().item())


def _parts(
    workspace: Workspace, lacking: pl.DataFrame, count: TokenCount, seconds: float | None, probe: Probe | None
) -> int:
    """Parts that a run would write of each signal: one a shard, and one more every `part_seconds`."""
    shards, engine = lacking["shard"].n_unique(), workspace.settings.engine
    if probe is None or seconds is None:
        return shards
    # No part is smaller than a batch.
    batches = max(probe.of_batches, count.tokens // engine.batch_tokens)
    more = seconds / engine.part_seconds if engine.part_seconds else float("inf")
    return max(shards, round(min(batches, shards + more)))


def _passes(signals: Sequence[SignalName], lacking: pl.DataFrame, count: TokenCount) -> list[PassPlan]:
    """The passes of a run: one for all signals together, and one over the responses alone if that is lacking."""
    wanted = [signal for signal in signals if lacking.select(_lacks(signal).any()).item()]
    together = tuple(signal for signal in wanted if signal != ALONE)
    passes = []
    if count.forward_tokens:
        rows = count.forward_rows
        passes.append(PassPlan("with prompt", together, rows, count.forward_tokens, count.forward_passes))
    if count.alone_tokens:
        # In units of the whole sample's forward pass, taken to be proportional to its tokens.
        cost = count.alone_rows * count.alone_tokens / count.alone_length
        passes.append(PassPlan("response alone", (ALONE,), count.alone_rows, count.alone_tokens, cost))
    return passes


def _warmup(target: Target, drawn: int, count: TokenCount, probe: Probe | None) -> WarmupPlan:
    assert target.warmup != "none"
    recipe = target.warmup.recipe()
    # max_steps may leave some samples out.
    cost = training(min(drawn * recipe.epochs, steps_of(drawn, recipe) * recipe.batch_size))
    seconds = None
    if probe is not None and probe.tokens and count.forward_rows:
        # On one device, whatever number of them measures.
        one = probe.seconds / probe.tokens * count.forward_tokens / count.forward_rows
        seconds = cost * one
    return WarmupPlan(drawn, recipe.epochs, cost, seconds)


def _scores(workspace: Workspace, target: Target, pool: Pool, drawn: int) -> Sequence[ScorePlan]:
    run = None if target.warmup == "none" else target.warmup
    sizes = Sizes(samples=pool.size, trained=drawn, warmup=drawn, epochs=1 if run is None else run.recipe().epochs)
    plans = []
    for score in workspace.settings.scores_of(target.name):
        method = method_of(score)
        formula = formula_of(method.name, method.cost)
        known = formula is not None and _configured(formula, target)
        cost = formula.cost(sizes) if formula is not None and known else None
        parts = (None, None) if cost is None else (cost.checkpoint.own, cost.scoring.own)
        plans.append(ScorePlan(score.name, method.name, method.cost, *parts))
    return plans


def _configured(formula: Formula, target: Target) -> bool:
    """Whether the configuration says all sizes of a formula.

    It does where the only checkpoint is a warm-up of one epoch, or none; where there is one at the end of each epoch;
    and where the target's own run is all there is.
    """
    if formula.checkpoint in ("0", "C(theta_lora, D_warmup, 1)"):
        return True
    if target.warmup == "none":
        return False
    if formula is FORMULAS["in_run"]:
        return target.warmup.recipe().epochs == 1
    return formula.checkpoint == FORMULAS["less"].checkpoint and target.warmup.save_every == "epoch"
