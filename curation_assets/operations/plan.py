"""Plan a run: the samples to measure for each target and signal, and the cost. Nothing is stored.

`plan_tokens` reads the samples and counts their tokens, `plan_seconds` estimates the time and reads the cost of past
runs, and `plan_formulas` holds the cost of each method by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.methods.apportionment import ceil_share
from curation_assets.methods.registry import method_of
from curation_assets.operations.plan_formulas import FORMULAS, Formula, Sizes, formula_of, training
from curation_assets.operations.plan_seconds import (
    ALONE,
    PROBE_SECONDS,
    MeasuredPass,
    Probe,
    Speed,
    measured_passes,
    speed_of,
    stored_bytes,
    unrecorded,
)
from curation_assets.operations.plan_tokens import Pool, TokenCount, count_tokens, known_samples, read_pool
from curation_assets.operations.stages import waits_for_pool
from curation_assets.quality.filtered_pool import stored_pool
from curation_assets.signals.carrying import carried
from curation_assets.signals.held_out import validation_of
from curation_assets.signals.store import SignalStore, signal_dir
from curation_assets.signals.warmup import grown_pool, planned_checkpoints, release_rows_of, warmup_checkpoint
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.training.examples import steps_of


@dataclass(frozen=True)
class SignalPlan:
    """The plan for one signal of a target.

    Attributes:
        signal: the signal's name.
        measured: samples of the pool that are stored under the current fingerprint.
        to_measure: samples of the pool that are not stored yet.
        bytes_stored: size of the stored parts under the current fingerprint.
        bytes_to_write: size of the parts that a run would add; None if neither stored rows nor a probe can tell.
    """

    signal: SignalName
    measured: int
    to_measure: int
    bytes_stored: int
    bytes_to_write: int | None


@dataclass(frozen=True)
class PassPlan:
    """One pass over a model, and the signals that it yields.

    Attributes:
        name: `with prompt` or `response alone`.
        signals: the signals measured in this pass.
        samples: number of samples to run, without those that cannot be run.
        tokens: number of tokens to run.
        cost: in F, the forward pass of one sample with its prompt; a pass over the response alone costs less.
    """

    name: str
    signals: tuple[SignalName, ...]
    samples: int
    tokens: int
    cost: float


@dataclass(frozen=True)
class WarmupPlan:
    """A warm-up: samples drawn, epochs, `cost` = 3 |D| T in F, and the seconds it implies or took, if known."""

    samples: int
    epochs: int
    cost: int
    seconds: float | None = None


@dataclass(frozen=True)
class ScorePlan:
    """The cost of computing one named score by itself.

    Attributes:
        score: the score's name.
        method: the score's method.
        cost: the formula as text, in the units of GRAPE's Table 13.
        checkpoint: cost of making its checkpoints, in F; None if the configuration does not determine the sizes.
        scoring: cost of scoring with them, in F; None in the same case.
    """

    score: str
    method: str
    cost: str
    checkpoint: int | Fraction | None
    scoring: int | Fraction | None


@dataclass(frozen=True)
class TargetPlan:
    """The plan for one target, and the recorded cost of past runs.

    Attributes:
        target: the target's name.
        samples: number of samples that lack some signal.
        held_out: number of these that belong to validation sets.
        signals: the plan for each signal, over the pool.
        passes: the passes over the model, as few as these signals need; empty if there is nothing to run.
        tokens: tokens of all passes.
        requests: requests to send to the target's endpoint; 0 if it has none.
        tokens_margin: twice the standard error of `tokens` if only a sample was encoded, else 0.
        encoded: samples encoded to count tokens; 0 if there was nothing to count.
        of: samples seen that lack a signal.
        exact: whether every sample was seen and encoded, so that a run will count the same tokens.
        warmup: the warm-up that a run would train first; None if none is outdated.
        waiting: why a run would not measure yet, and the fix.
        speed: the speed that the time is estimated from; None if it is unknown or there is nothing to run.
        seconds: time to measure; None if it is unknown.
        scores: the cost of each configured score by itself.
        measured: the passes of past runs, under the current fingerprints.
        unrecorded: samples that are stored, but that no record describes, and about how many tokens they took: from
            visits that were interrupted, or whose record a later visit replaced.
        measured_warmup: the warm-up that has been trained.
    """

    target: str
    samples: int
    held_out: int
    signals: tuple[SignalPlan, ...]
    passes: tuple[PassPlan, ...]
    tokens: int
    requests: int
    tokens_margin: float
    encoded: int
    of: int
    exact: bool
    warmup: WarmupPlan | None
    waiting: str | None
    speed: Speed | None
    seconds: float | None
    scores: tuple[ScorePlan, ...]
    measured: tuple[MeasuredPass, ...]
    unrecorded: tuple[int, int]
    measured_warmup: WarmupPlan | None

    @property
    def cost(self) -> float:
        """Cost of all passes and the warm-up, in F."""
        return sum(one.cost for one in self.passes) + (self.warmup.cost if self.warmup else 0)

    @property
    def probe(self) -> Probe | None:
        """The probe that the time is estimated from; None if there was none."""
        return None if self.speed is None else self.speed.probe

    @property
    def all_seconds(self) -> float | None:
        """Time to train the warm-up, load the model and measure; None if it is unknown."""
        if self.seconds is None:
            return None
        loading = 0.0 if self.probe is None else self.probe.load_seconds
        return self.seconds + loading + ((self.warmup and self.warmup.seconds) or 0.0)

    @property
    def bytes_to_write(self) -> int | None:
        """Bytes to write for all signals; None if unknown for any of them."""
        sizes = [signal.bytes_to_write for signal in self.signals]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        shards: number of present shards.
        unread: number of these whose file has to be read first.
        samples: size of the pool: distinct samples of present shards.
        estimated: whether some new file is so large that its rows were extrapolated from its first rows.
        problems: files that cannot be read, or not completely, with the reason.
        targets: the plan for each target.
    """

    shards: int
    unread: int
    samples: int
    estimated: bool
    problems: tuple[str, ...]
    targets: tuple[TargetPlan, ...]


def make_plan(workspace: Workspace, probe: bool = True) -> Plan:
    """Plan what a run would measure now and what that would cost; store nothing.

    The model is loaded only for a probe: if `probe` is set, something is to be measured, and stored runs do not show
    how long that takes. Probes of several targets share PROBE_SECONDS.

    Raises:
        LandingError: the landing folder is missing, or has lost too many files at once.
        ModelError: a target's model is not available.
        ScoringError: a target's model cannot be used for measuring.
    """
    targets: list[TargetPlan] = []
    left = PROBE_SECONDS
    with tempfile.TemporaryDirectory(prefix="curation-plan-") as folder:
        pool = read_pool(workspace, Path(folder))
        for number, target in enumerate(workspace.settings.targets):
            share = left / (len(workspace.settings.targets) - number)
            planned = _plan_target(workspace, target, pool, share if probe else None)
            left -= planned.probe.spent if planned.probe is not None else 0.0
            targets.append(planned)
    problems = tuple(pool.problems)
    return Plan(pool.shards, len(pool.heads), pool.size, pool.estimated, problems, tuple(targets))


def _plan_target(workspace: Workspace, target: Target, pool: Pool, probe_seconds: float | None) -> TargetPlan:
    sizes = _drawable(workspace, pool)
    anew = grown_pool(workspace, target, sizes[0]) is not None
    of_pool = _lacking(workspace, target, pool.known.with_columns(wanted=pl.lit("+".join(target.signals))), anew)
    held_out = _lacking(workspace, target, _held_out(workspace, target, pool), anew)
    lacking = pl.concat([of_pool, held_out])
    drawn = _drawn(workspace, target, sizes[0])
    count = count_tokens(workspace, target, pool, lacking, planned_checkpoints(workspace, target, drawn))
    trained = None if target.warmup == "none" else warmup_checkpoint(workspace, target)
    trains = anew or (target.warmup != "none" and trained is None)
    measured = measured_passes(workspace, target)
    speed = speed_of(workspace, target, pool, count, measured, base=trains, probe_seconds=probe_seconds)
    seconds = speed.seconds if speed is not None else None if count.tokens else 0.0
    measured_warmup = None
    if trained is not None:
        samples, epochs = trained.record["samples"], trained.record["recipe"]["epochs"]
        # Early warm-ups recorded no time.
        measured_warmup = WarmupPlan(samples, epochs, training(samples, epochs), trained.record.get("seconds"))
    return TargetPlan(
        target=target.name,
        samples=round(float(lacking["weight"].sum())),
        held_out=len(held_out),
        signals=tuple(
            _signal(workspace, target, signal, pool, of_pool, held_out, speed)
            for signal in workspace.settings.measured_signals(target)
        ),
        passes=tuple(_passes(workspace.settings.measured_signals(target), lacking, count)),
        tokens=count.tokens,
        requests=count.requests,
        tokens_margin=count.margin,
        encoded=len(count.rows),
        of=count.of,
        exact=count.exact,
        warmup=_warmup(target, drawn, count, speed) if trains else None,
        waiting=waits_for_pool(workspace, target, sizes),
        speed=speed,
        seconds=seconds,
        scores=tuple(_scores(workspace, target, pool, drawn)),
        measured=tuple(measured),
        unrecorded=unrecorded(workspace, target, measured),
        measured_warmup=measured_warmup,
    )


def _drawable(workspace: Workspace, pool: Pool) -> tuple[int, int]:
    """Return the number of text samples, which a warm-up can draw from, and of samples with images, which it cannot.

    Samples known to be removed by filters are not counted; samples not filtered yet are.
    """
    known = pool.known
    if stored_pool(workspace) is not None:
        out = workspace.warehouse.read_table(tables.pool_path()).filter(pl.col("reason").is_not_null())
        known = known.join(out, on="sample_id", how="anti")
    of_text = pl.col("images") == 0
    weights = (known.filter(of_text)["weight"], known.filter(~of_text)["weight"])
    return round(float(weights[0].sum())), round(float(weights[1].sum()))


def _drawn(workspace: Workspace, target: Target, of_text: int) -> int:
    """Return the number of samples that the target's run is, or would be, trained on."""
    if target.warmup == "none":
        return 0
    if target.warmup.release is not None:
        return release_rows_of(workspace, target.warmup.release) or 0
    return ceil_share(Fraction(str(target.warmup.fraction)), of_text)


def _held_out(workspace: Workspace, target: Target, pool: Pool) -> pl.DataFrame:
    """Return the samples of validation sets, with the signals that scores need in a column `wanted`, joined by +.

    For samples that are also in the pool, these are only the signals that are not measured with the pool.
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
    """Return the samples that lack a signal listed in `wanted`, with these in a column `lacking`, joined by +.

    If the checkpoint is to be retrained, every sample lacks all signals except those measured at the model before its
    run.
    """
    signals = workspace.settings.measured_signals(target)
    stay = [signal for signal in signals if not anew or signal == "base_likelihoods"]
    missing = {
        signal: SignalStore.of(workspace, target, signal).missing(known["sample_id"])
        for signal in stay
        if signal_dir(workspace, target, signal) is not None
    }
    kept = carried(workspace, target, missing)
    names = []
    for signal in signals:
        lacks = _names(pl.col("wanted"), signal)
        if signal in missing:
            lacks &= pl.col("sample_id").is_in(sorted(missing[signal] - kept[signal]))
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
    speed: Speed | None,
) -> SignalPlan:
    of_sets, stored_rows = len(held_out.filter(_lacks(signal))), _stored_rows(workspace, target, signal)
    to_measure, size = round(float(lacking.filter(_lacks(signal))["weight"].sum())), pool.size
    if signal not in target.signals:
        # Measured on validation sets only, not on the pool.
        to_measure, size = of_sets, of_sets + stored_rows
    rows = to_measure + (of_sets if signal in target.signals else 0)
    stored = stored_bytes(workspace, target, signal)
    probe = None if speed is None else speed.probe
    written: int | None = None
    if not rows:
        written = 0
    elif stored_rows:
        written = round(rows * stored / stored_rows)
    elif probe is not None and signal in probe.row_bytes:
        # A run leaves one part per shard.
        parts = pl.concat([lacking, held_out]).filter(_lacks(signal))["shard"].n_unique()
        written = round(rows * probe.row_bytes[signal] + parts * probe.part_bytes[signal])
    return SignalPlan(signal, size - to_measure, to_measure, stored, written)


def _stored_rows(workspace: Workspace, target: Target, signal: SignalName) -> int:
    if signal_dir(workspace, target, signal) is None:
        return 0
    scan = SignalStore.of(workspace, target, signal).scan()
    return 0 if scan is None else int(scan.select(pl.col("sample_id").n_unique()).collect().item())


def _passes(signals: Sequence[SignalName], lacking: pl.DataFrame, count: TokenCount) -> list[PassPlan]:
    """Return the passes of a run: one for all signals together, plus those over responses alone that are lacking."""
    wanted = [signal for signal in signals if lacking.select(_lacks(signal).any()).item()]
    together = tuple(signal for signal in wanted if signal not in ALONE)
    passes = []
    if count.forward_tokens:
        rows = count.forward_rows
        passes.append(PassPlan("with prompt", together, rows, count.forward_tokens, count.forward_passes))
    if count.alone_tokens:
        # In units of the whole sample's forward pass, assuming that cost is proportional to tokens.
        cost = count.alone_rows * count.alone_tokens / count.alone_length
        alone = tuple(signal for signal in wanted if signal in ALONE)
        passes.append(PassPlan("response alone", alone, count.alone_rows, count.alone_tokens, cost))
    return passes


def _warmup(target: Target, drawn: int, count: TokenCount, speed: Speed | None) -> WarmupPlan:
    assert target.warmup != "none"
    recipe = target.warmup.recipe_for(drawn)
    # max_steps may stop training before all samples are used.
    cost = training(min(drawn * recipe.epochs, steps_of(drawn, recipe) * recipe.batch_size))
    seconds = None
    if speed is not None and count.forward_rows:
        # Training runs on one device, however many devices measure.
        per_second = speed.tokens_per_second / speed.devices
        seconds = cost * count.forward_tokens / count.forward_rows / per_second
    return WarmupPlan(drawn, recipe.epochs, cost, seconds)


def _scores(workspace: Workspace, target: Target, pool: Pool, drawn: int) -> Sequence[ScorePlan]:
    run = None if target.warmup == "none" else target.warmup
    sizes = Sizes(samples=pool.size, trained=drawn, warmup=drawn, epochs=1 if run is None else run.recipe().epochs)
    plans = []
    for score in workspace.settings.scores_of(target.name):
        method = method_of(score)
        formula = formula_of(method.name, method.cost)
        checkpoint, scoring = None, None
        if formula is not None and _configured(formula, target):
            checkpoint, scoring = formula.cost(sizes)
        plans.append(ScorePlan(score.name, method.name, method.cost, checkpoint, scoring))
    return plans


def _configured(formula: Formula, target: Target) -> bool:
    """Return whether the configuration determines all sizes of a formula.

    It does if the only checkpoint is a one-epoch warm-up or there is none, if there is a checkpoint at the end of each
    epoch, or if the target's own run is the only cost.
    """
    if formula.checkpoint in ("0", "C(theta_lora, D_warmup, 1)"):
        return True
    if target.warmup == "none":
        return False
    if formula is FORMULAS["in_run"]:
        return target.warmup.recipe().epochs == 1
    return formula.checkpoint == FORMULAS["less"].checkpoint and target.warmup.save_every == "epoch"
