"""Token weights of GRAPE's token-level variant, from the likelihoods measured by a subset's target."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import polars as pl

from curation_assets import tables
from curation_assets.signals.store import SignalStore
from curation_assets.subsets.stored_tables import pick, write_frame
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError

Normalise = Literal["none", "mean1"]
SIGNAL: SignalName = "token_likelihoods"


class TokenWeightsError(UserError):
    """The tokens of a subset cannot be weighted."""


def token_weights(workspace: Workspace, subset: str, normalise: Normalise = "none") -> pl.DataFrame:
    """Return a weight for every response token of a subset: p(y_t), its probability at the checkpoint.

    The token-level loss of GRAPE (arXiv 2502.04194) is then L = -(1/T) sum_t sg[p(y_t)] log p(y_t), with sg for stop
    gradient and T for the number of response tokens, without EOS.

    Args:
        workspace: the configuration.
        subset: the subset's name.
        normalise: none: p(y_t) unchanged, in [0, 1]; mean1: divided by the mean over the response.

    Returns:
        sample_id, weights [T] (List(Float32)) and response_tokens, in the subset's order; weights are null for a
        sample that could not be measured. Log-likelihoods are stored in half precision, so the relative error of a
        weight is |log p| / 2048.

    Raises:
        TokenWeightsError: the subset has not been made, its target does not measure token_likelihoods, or some of its
            samples have not been measured.
        TableRequestError: there is no such subset.
        MeasuringError: the target's warm-up has not been trained.
    """
    settings = workspace.settings
    name = pick("subset", subset, [item.name for item in settings.subsets])
    target = settings.target(settings.score_of(settings.subset(name)).target)
    if SIGNAL not in target.signals:
        raise TokenWeightsError(
            f"target {target.name} of subset {name} does not measure {SIGNAL}. Add it to the target's signals in "
            "curation.yaml and run `curate run`."
        )
    chosen = workspace.warehouse.scan_table(tables.subset_path(name))
    if chosen is None:
        raise TokenWeightsError(f"subset {name} has not been made yet. Run `curate run`.")
    ids = chosen.select("sample_id").collect()
    rows = SignalStore.of(workspace, target, SIGNAL).rows(ids["sample_id"])
    measured = tables.TOKEN_LIKELIHOODS.empty() if rows is None else rows
    missing = len(ids.join(measured, on="sample_id", how="anti"))
    if missing:
        raise TokenWeightsError(
            f"{missing} of {len(ids)} samples of subset {name} have no {SIGNAL} of target {target.name} yet. Run "
            "`curate run`."
        )
    found = ids.join(measured, on="sample_id", how="left", maintain_order="left")
    return found.select("sample_id", _weights(normalise).alias("weights"), "response_tokens")


def write_token_weights(workspace: Workspace, subset: str, normalise: str, to: Path) -> str:
    """Write `token_weights` to a file; return the message to print.

    Raises:
        TokenWeightsError: the value of normalise is unknown; see also `token_weights`.
        TableRequestError: there is no such subset, or the file extension is not supported.
    """
    if normalise not in get_args(Normalise):
        raise TokenWeightsError(f"unknown --normalise {normalise}. Use one of {', '.join(get_args(Normalise))}.")
    frame = token_weights(workspace, subset, "mean1" if normalise == "mean1" else "none")
    rows, without = write_frame(frame.lazy(), to), frame["weights"].null_count()
    return f"wrote {rows:,} rows to {to}" + (f", {without:,} without weights (not measured)" if without else "")


def _weights(normalise: Normalise) -> pl.Expr:
    """Return the expression for a row's weights from its log-likelihoods; null stays null."""
    log_p = pl.element().cast(pl.Float64)
    if normalise == "mean1":
        # Relative to the likeliest token, so that a response of extremely unlikely tokens does not underflow.
        relative = (log_p - log_p.max()).exp()
        weights = relative / relative.mean()
    else:
        weights = log_p.exp()
    return pl.col("log_likelihoods").list.eval(weights.cast(pl.Float32))
