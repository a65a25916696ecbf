"""Measure the loss of right responses: their mean NLL, as signal `likelihoods` measures it for the pool."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING, Any

import polars as pl

from curation_assets.evaluation.benchmarks import Item, Problems
from curation_assets.tables.evaluation import POST_TRAINING_LOSSES
from curation_resources.scoring.samples import NON_FINITE, Request, Sample, SampleSignals

if TYPE_CHECKING:
    from curation_resources.scoring.forward import ForwardPass


def responses_of(problems: Problems) -> int:
    """Return the number of responses to measure."""
    return sum(len(item.responses) for item in problems.items)


def measure_losses(
    scoring: ForwardPass, problems: Problems, run: str, progress: Callable[[int], None] | None = None
) -> pl.DataFrame:
    """Return table `post_training_losses` of one run and benchmark.

    A response's loss is the mean of -log p over its tokens, without EOS, given the prompt in the encoder's template; a
    problem's loss is the mean over its right responses. Responses that cannot be run are left out; a problem with a
    loss that is not finite has none.

    Args:
        scoring: the model, with the encoder of its template.
        problems: a benchmark's problems for metric `loss`.
        run: key of the run.
        progress: called with the number of responses measured since the last call.
    """
    samples = [Sample(item.prompt_id, item.turns, response) for item in problems.items for response in item.responses]
    batches = scoring.stream(samples, Request(likelihoods=True), progress)
    measured = {result.position: result for batch in batches for result in batch}
    rows, start = [], 0
    for item in problems.items:
        end = start + len(item.responses)
        own = [measured[position] for position in range(start, end)]
        rows.append({"run": run, "benchmark": problems.name} | _row(item, own))
        start = end
    return POST_TRAINING_LOSSES.conform(pl.DataFrame(rows, schema=POST_TRAINING_LOSSES.schema))


def _row(item: Item, results: list[SampleSignals]) -> dict[str, Any]:
    flags = sorted({flag for result in results for flag in result.flags})
    found = [result for result in results if result.likelihoods is not None]
    values = [result.likelihoods.mean_nll for result in found if result.likelihoods is not None]
    return {
        "item": item.row,
        "responses": len(found),
        "tokens": sum(result.response_tokens for result in found),
        "loss": fmean(values) if values and NON_FINITE not in flags else None,
        "flag": ", ".join(flags) or None,
    }
