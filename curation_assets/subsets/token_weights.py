"""Weights by token: GRAPE's token-level variant, from the likelihoods that a subset's target has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import polars as pl

from curation_assets import tables
from curation_assets.signals.store import SignalStore
from curation_assets.subsets.stored_tables import pick, write_frame
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.sections import SignalName

Normalise = Literal["none", "mean1"]
SIGNAL: SignalName = "token_likelihoods"


class TokenWeightsError(UserError):
    """A subset's tokens cannot be weighted."""


def token_weights(workspace: Workspace, subset: str, normalise: Normalise = "none") -> pl.DataFrame:
    """A weight for every token of the responses of a subset: p(y_t), the checkpoint's probability of it.

    With it the token-level loss of GRAPE (arXiv 2502.04194) is L = -(1/T) sum_t sg[p(y_t)] log p(y_t), sg for stop
    gradient and T for the response's tokens; EOS is not among them.

    Args:
        workspace: the configuration.
        subset: its name.
        normalise: none: p(y_t) as it is, in [0, 1]; mean1: divided by the mean over the response.

    Returns:
        sample_id, weights [T] (List(Float32)) and response_tokens, in the subset's order; weights are null for a
        sample that could not be measured. Log-likelihoods are stored in half precision, so that a weight is exact
        to |log p| / 2048 of itself.

    Raises:
        TokenWeightsError: the subset has not been made, its target does not measure token_likelihoods, or samples
            of it have not been measured.
        TableRequestError: there is no such subset.
        MeasuringError: the target's warm-up has not been trained.
    """
    settings = workspace.settings
    name = pick("subset", subset, [item.name for item in settings.subsets])
    target = settings.target(settings.score(settings.subset(name).score).target)
    if SIGNAL not in target.signals:
        raise TokenWeightsError(
            f"target {target.name} of subset {name} does not measure {SIGNAL}: add it to the target's signals in "
            "curation.yaml, and use `curate run`"
        )
    chosen = workspace.warehouse.scan_table(tables.subset_path(name))
    if chosen is None:
        raise TokenWeightsError(f"subset {name} has not been made yet: use `curate run`")
    ids = chosen.select("sample_id").collect()
    rows = SignalStore.of(workspace, target, SIGNAL).rows(ids["sample_id"])
    measured = tables.TOKEN_LIKELIHOODS.empty() if rows is None else rows
    missing = len(ids.join(measured, on="sample_id", how="anti"))
    if missing:
        raise TokenWeightsError(
            f"{missing} of {len(ids)} samples of subset {name} have no {SIGNAL} of target {target.name} yet: use "
            "`curate run`"
        )
    found = ids.join(measured, on="sample_id", how="left", maintain_order="left")
    return found.select("sample_id", _weights(normalise).alias("weights"), "response_tokens")


def write_token_weights(workspace: Workspace, subset: str, normalise: str, to: Path) -> str:
    """Write `token_weights` as a file; gives what there is to say of it.

    Raises:
        TokenWeightsError: normalise is none of its values; see also `token_weights`.
        TableRequestError: there is no such subset, or the file's ending is unknown.
    """
    if normalise not in get_args(Normalise):
        raise TokenWeightsError(f"--normalise {normalise}: must be one of {', '.join(get_args(Normalise))}")
    frame = token_weights(workspace, subset, "mean1" if normalise == "mean1" else "none")
    rows, without = write_frame(frame.lazy(), to), frame["weights"].null_count()
    return f"wrote {rows:,} rows to {to}" + (f", {without:,} without weights: not measured" if without else "")


def _weights(normalise: Normalise) -> pl.Expr:
    """Weights of a row from its log-likelihoods; null stays null."""
    log_p = pl.element().cast(pl.Float64)
    if normalise == "mean1":
        # Relative to the likeliest token: of a response whose tokens are all next to impossible, too.
        relative = (log_p - log_p.max()).exp()
        weights = relative / relative.mean()
    else:
        weights = log_p.exp()
    return pl.col("log_likelihoods").list.eval(weights.cast(pl.Float32))
