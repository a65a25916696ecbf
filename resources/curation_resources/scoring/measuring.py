"""Measure one batch: every requested signal from one forward pass over its samples.

Source of the step gradients: GRACE, arXiv 2605.13130, Eq. 9 and 11. By linearity, the mean gradient of a segment is its
mean residual times W, so residuals are summed per segment before the product with W.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curation_resources.scoring.collating import collate
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.gradient_pass import GradientPass
from curation_resources.scoring.gram_of_steps import add_step_gradients, flag_non_finite
from curation_resources.scoring.head import StreamedHead, TokenStatistics
from curation_resources.scoring.labels import Labels, SampleLabels, label_batch, segment_order
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.prefixes import cut_to_windows, reasons_without_windows
from curation_resources.scoring.proxies import gram_of_gradients, linear_gram, lm_head_gram
from curation_resources.scoring.results import (
    DirectAnswer,
    Likelihoods,
    ResponseLosses,
    SequenceLikelihoods,
    SequenceUncertainty,
)
from curation_resources.scoring.retrieval_heads import RetrievalHeads, masked_heads
from curation_resources.scoring.samples import (
    ANSWER,
    NON_FINITE,
    UNRUNNABLE,
    AnswerPrefix,
    Encoded,
    Pooling,
    PrefixWindows,
    Request,
    SampleSignals,
)

LEAST_TOKENS = 2
"""A response of one token has none that can be predicted without the prompt."""

Floats = npt.NDArray[np.float64]


def describe(encoded: Encoded, position: int, windows: PrefixWindows | None = None) -> SampleSignals:
    """Return a sample's token counts and flags without measurements; `windows` are the requested prefix windows."""
    order = segment_order(encoded)
    return SampleSignals(
        sample_id=encoded.sample.sample_id,
        position=position,
        prompt_tokens=encoded.prompt_tokens,
        response_tokens=encoded.response_tokens,
        step_indices=[index for index in order if index != ANSWER],
        segment_tokens=[encoded.segment_of_token.count(index) for index in order],
        flags=list(encoded.flags),
        gradient_flags=_reasons_without_gradients(encoded, order),
        prefix_flags=[] if windows is None else reasons_without_windows(encoded, windows),
    )


def _reasons_without_gradients(encoded: Encoded, order: list[int]) -> list[str]:
    """Return why a sample cannot have a GRACE score; empty if it can, or if no signal can be measured."""
    if set(encoded.flags) & UNRUNNABLE.keys() or "truncated" in encoded.flags:
        return []
    reasons = []
    if ANSWER not in order:
        found = any(segment.index == ANSWER for segment in encoded.sample.segments)
        reasons.append("answer_without_tokens" if found else "no_answer")
    if not any(index != ANSWER for index in order):
        reasons.append("no_steps")
    return reasons


def _has_gradients(described: SampleSignals) -> bool:
    """Return True if the sample's step gradients can be measured."""
    return not described.gradient_flags and not set(described.flags) & {"truncated", *UNRUNNABLE}


def narrowed(request: Request, described: SampleSignals) -> Request:
    """Return the part of a request that can be measured for a sample."""
    if set(described.flags) & UNRUNNABLE.keys():
        return Request()
    if (request.step_gradients or request.trajectory_gradients) and not _has_gradients(described):
        request = replace(request, step_gradients=None, trajectory_gradients=None, step_features=None)
    if not described.labels:
        request = request.forward
    if described.response_tokens < LEAST_TOKENS:
        request = replace(request, unconditional=False, direct=frozenset())
    if described.prefix_flags:
        request = replace(request, prefix_losses=None)
    return request if described.segment_tokens else replace(request, segment_likelihoods=False)


def needed(encoded: Encoded, request: Request) -> Encoded:
    """Return the part of a sample to run for a request (see `narrowed`): all of it, or up to its prefix windows."""
    windows = request.prefix_losses
    if windows is None or request != Request(prefix_losses=windows):
        return encoded
    return cut_to_windows(encoded, windows)


def measure_batch(
    checkpoint: Checkpoint,
    head: StreamedHead,
    gradients: GradientPass,
    batch: Sequence[Encoded],
    described: Sequence[SampleSignals],
    request: Request,
    encoder: Encoder,
    retrieval: RetrievalHeads,
) -> list[SampleSignals]:
    """Run a batch, with backward pass, without prompts or with masked heads if requested; see `_measure`.

    `encoder` is needed for `request.direct` alone: it tokenizes a response as a text of its own. `retrieval` is needed
    for `request.attention_influence` alone.
    """
    if request.forward != request:
        results = list(described)
        if request.forward != Request():
            results = measure_batch(checkpoint, head, gradients, batch, described, request.forward, encoder, retrieval)
        return gradients.add(batch, results, request)
    given = replace(request, unconditional=False, direct=frozenset())
    results = list(described) if given == Request() else _measure(checkpoint, head, batch, described, given)
    if request.unconditional:
        alone = [without_prompt(encoded) for encoded in batch]
        results = add_unconditional(results, _nll_of(checkpoint, head, alone))
    for prefix in sorted(request.direct):
        answers = [encoder.direct_answer(encoded, prefix) for encoded in batch]
        measured = _nll_of(checkpoint, head, [answer for answer, _ in answers])
        results = add_direct(results, measured, prefix, [special for _, special in answers])
    if request.attention_influence is not None:
        masking = Request(attention_influence=request.attention_influence)
        heads = retrieval.heads(request.attention_influence)
        with masked_heads(checkpoint, heads):
            masked = _measure(replace(checkpoint, decoder=checkpoint.uncompiled), head, batch, described, masking)
        results = add_masked(results, masked, heads)
    return results


def _nll_of(checkpoint: Checkpoint, head: StreamedHead, batch: Sequence[Encoded]) -> list[SampleSignals]:
    """Return token likelihoods of responses without their prompts."""
    described = [describe(encoded, position) for position, encoded in enumerate(batch)]
    return _measure(checkpoint, head, batch, described, Request(token_likelihoods=True))


def _measure(
    checkpoint: Checkpoint,
    head: StreamedHead,
    batch: Sequence[Encoded],
    described: Sequence[SampleSignals],
    request: Request,
) -> list[SampleSignals]:
    """Run a batch and add its measurements to its samples' results.

    Args:
        checkpoint: the weights to measure at.
        head: its LM head, streamed.
        batch: samples to run.
        described: the result of `describe` for each sample.
        request: the signals to measure, all of which the samples can provide (see `narrowed`).
    """
    with torch.inference_mode():
        hidden: Tensor = checkpoint.decoder(**collate(batch, checkpoint.device), use_cache=False).last_hidden_state
        labels = label_batch(batch, request)
        statistics, gram = _apply_head(head, hidden, labels, request)
        pooled = [pool(hidden[row, : len(encoded)], request.embeddings) for row, encoded in enumerate(batch)]
    results = []
    for row, known in enumerate(described):
        result = replace(
            known,
            tokens=len(batch[row]),
            flags=list(known.flags),
            gradient_flags=list(known.gradient_flags),
            prefix_flags=list(known.prefix_flags),
        )
        own = labels.samples[row]
        if request.step_gradients is not None:
            add_step_gradients(result, gram[row])
        if request.likelihoods:
            _add_likelihoods(result, own, statistics)
        if request.token_likelihoods:
            _add_token_likelihoods(result, own, statistics["nll"], request.with_eos)
        if request.sequence_likelihoods:
            _add_sequence_likelihoods(result, own, statistics)
        if request.sequence_uncertainty:
            _add_sequence_uncertainty(result, own, statistics)
        if request.error_norms:
            _add_error_norm(result, statistics["error_norm"][own.response])
        if request.attention_influence is not None:
            _add_response_losses(result, own, statistics["nll"])
        if request.segment_likelihoods:
            _add_segment_likelihoods(result, own, statistics["nll"])
        if request.prefix_losses is not None:
            _add_prefix_losses(result, own, statistics["nll"], request.prefix_losses)
        for pooling, vector in pooled[row].items():
            result.embeddings[pooling] = vector.cpu().numpy()
        if not all(np.isfinite(vector).all() for vector in result.embeddings.values()):
            result.embeddings.clear()
            flag_non_finite(result)
        results.append(result)
    return results


def _apply_head(
    head: StreamedHead, hidden: Tensor, labels: Labels, request: Request
) -> tuple[dict[str, Floats], list[Floats]]:
    """Return token statistics of all label rows and the Gram matrix of every sample, as far as requested."""
    device = hidden.device
    states = hidden[torch.from_numpy(labels.batch_rows).to(device), torch.from_numpy(labels.positions).to(device)]
    targets = torch.from_numpy(labels.targets).to(device)
    uncertainty = request.likelihoods or request.sequence_likelihoods or request.sequence_uncertainty
    per_token = request.segment_likelihoods or request.token_likelihoods or request.prefix_losses is not None
    per_token = per_token or request.attention_influence is not None
    wants_statistics = uncertainty or per_token or request.error_norms
    bias = request.step_gradients == "bias"
    statistics = TokenStatistics(torch.empty(0))
    gram: list[Floats] = []
    if bias or wants_statistics:
        statistics, gradients = head.run(
            states,
            targets,
            labels.segment_rows if bias else (),
            statistics=wants_statistics,
            uncertainty=uncertainty,
            error_norms=request.error_norms,
        )
        if bias:
            counts = [len(sample.segments) for sample in labels.samples]
            gram = [gram_of_gradients(rows).numpy() for rows in gradients.cpu().split(counts)]
    if request.step_gradients in ("linear", "lm_head"):
        make = linear_gram if request.step_gradients == "linear" else lm_head_gram
        for sample in labels.samples:
            rows = torch.from_numpy(sample.in_segments).to(device)
            gram.append(make(head, states[rows], targets[rows], sample.segment_rows).cpu().numpy())
    return _to_numpy(statistics), gram


def _to_numpy(statistics: TokenStatistics) -> dict[str, Floats]:
    columns = {"nll": statistics.nll} | (vars(statistics.uncertainty) if statistics.uncertainty else {})
    if statistics.error_norm is not None:
        columns["error_norm"] = statistics.error_norm
    return {name: column.cpu().numpy().astype(np.float64) for name, column in columns.items()}


def _add_likelihoods(result: SampleSignals, labels: SampleLabels, statistics: dict[str, Floats]) -> None:
    nll = statistics["nll"]
    response = nll[labels.response]
    windows = nll[np.concatenate([labels.response, labels.eos])]
    likelihoods = Likelihoods(
        mean_nll=float(response.mean()),
        first_nll=float(response[0]),
        first_100_nll=float(windows[:100].mean()),
        first_1000_nll=float(windows[:1000].mean()),
        mean_entropy=float(statistics["entropy"][labels.response].mean()),
        least_confidence=float(statistics["least_confidence"][labels.response].mean()),
        mean_margin=float(statistics["margin"][labels.response].mean()),
    )
    if all(math.isfinite(value) for value in vars(likelihoods).values()):
        result.likelihoods = likelihoods
    else:
        flag_non_finite(result)


def _add_token_likelihoods(result: SampleSignals, labels: SampleLabels, nll: Floats, with_eos: bool) -> None:
    rows = np.concatenate([labels.response, labels.eos]) if with_eos else labels.response
    losses = nll[rows].astype(np.float32)
    if np.isfinite(losses).all():
        result.token_nll = losses
    else:
        flag_non_finite(result)


def _add_error_norm(result: SampleSignals, norms: Floats) -> None:
    mean = float(norms.mean())
    if math.isfinite(mean):
        result.error_norm = mean
    else:
        flag_non_finite(result)


def _add_sequence_likelihoods(result: SampleSignals, labels: SampleLabels, statistics: dict[str, Floats]) -> None:
    # The position after the last token, if it is there, predicts no token.
    rows = labels.sequence[: result.tokens - 1]
    means = {name: float(column[rows].mean()) for name, column in statistics.items()}
    if all(math.isfinite(value) for value in means.values()):
        result.sequence_likelihoods = SequenceLikelihoods(
            sequence_nll=means["nll"],
            sequence_entropy=means["entropy"],
            largest_logit=means["largest_logit"],
            logit_margin=means["logit_margin"],
        )
    else:
        flag_non_finite(result)


def _add_sequence_uncertainty(result: SampleSignals, labels: SampleLabels, statistics: dict[str, Floats]) -> None:
    names = ("entropy", "largest_logit", "logit_margin")
    found = SequenceUncertainty(*(float(statistics[name][labels.sequence].mean()) for name in names))
    if all(math.isfinite(value) for value in vars(found).values()):
        result.sequence_uncertainty = found
    else:
        flag_non_finite(result)


def _add_segment_likelihoods(result: SampleSignals, labels: SampleLabels, nll: Floats) -> None:
    ends = np.cumsum(labels.segment_rows)[:-1]
    means = [float(nll[rows].mean()) for rows in np.split(labels.in_segments, ends)] if labels.segments else []
    if all(math.isfinite(value) for value in means):
        result.segment_nll = means
    else:
        flag_non_finite(result)


def _add_response_losses(result: SampleSignals, labels: SampleLabels, nll: Floats) -> None:
    ends = np.cumsum(labels.segment_rows)[:-1]
    parts = np.split(labels.in_segments, ends) if labels.segments else []
    losses = ResponseLosses(float(nll[labels.response].mean()), [float(nll[rows].sum()) for rows in parts])
    if all(math.isfinite(value) for value in (losses.mean_nll, *losses.segment_sums)):
        result.response_losses = losses
    else:
        flag_non_finite(result)


def _add_prefix_losses(result: SampleSignals, labels: SampleLabels, nll: Floats, windows: PrefixWindows) -> None:
    losses = nll[labels.window]
    means = {length: float(losses[:length].mean()) for length in windows.lengths}
    if all(math.isfinite(value) for value in means.values()):
        result.prefix_nll = means
    else:
        flag_non_finite(result)


def pool(hidden: Tensor, poolings: Collection[Pooling]) -> dict[Pooling, Tensor]:
    """Pool one sample's hidden states [T, d], after the final norm, into the requested vectors [d] in fp32.

    All positions count: prompt, response and end-of-sequence token.

        mean                h = mean of h_t                               K-center greedy, NV-Embed style
        last                h = h_T                                       RDS
        position_weighted   h = sum of w_t h_t, w_t = t / (1 + ... + T)   RDS+
    """
    pooled: dict[Pooling, Tensor] = {}
    states = hidden.to(torch.float32) if set(poolings) - {"last"} else hidden
    if "mean" in poolings:
        pooled["mean"] = states.mean(dim=0)
    if "last" in poolings:
        pooled["last"] = states[-1].to(torch.float32)
    if "position_weighted" in poolings:
        positions = torch.arange(1, len(states) + 1, dtype=torch.float32, device=states.device)
        pooled["position_weighted"] = (positions / positions.sum()) @ states
    return pooled


def without_prompt(encoded: Encoded) -> Encoded:
    """Return the response's tokens as a sequence of their own, for IFD's second pass.

    They are the tokens of the conditional pass, truncated at the same length, whatever tokens the text alone would
    have; there is no BOS before them. So nothing predicts the first token, and IFD leaves it out of both passes (Cherry
    LLM, arXiv 2308.12032; Superfiltering, arXiv 2402.00530).
    """
    end = encoded.prompt_tokens + encoded.response_tokens
    ids = encoded.input_ids[encoded.prompt_tokens : end]
    return Encoded(encoded.sample, ids, 0, len(ids), [-1] * len(ids))


def add_unconditional(results: Sequence[SampleSignals], alone: Sequence[SampleSignals]) -> list[SampleSignals]:
    """Return results with those of the pass without prompts added."""
    added = []
    for result, own in zip(results, alone, strict=True):
        nll = None if own.token_nll is None else float(np.mean(own.token_nll, dtype=np.float64))
        flags = result.flags
        if nll is None and NON_FINITE not in flags:
            flags = [*flags, NON_FINITE]
        added.append(replace(result, unconditional_nll=nll, unconditional_tokens=own.tokens, flags=flags))
    return added


def add_masked(
    results: Sequence[SampleSignals], masked: Sequence[SampleSignals], heads: Sequence[tuple[int, int]]
) -> list[SampleSignals]:
    """Return results with the losses of the pass with masked heads added."""
    added = []
    for result, own in zip(results, masked, strict=True):
        losses = own.response_losses
        flags = result.flags
        if losses is None and NON_FINITE not in flags:
            flags = [*flags, NON_FINITE]
        added.append(replace(result, masked_losses=losses, masked_heads=heads, masked_tokens=own.tokens, flags=flags))
    return added


def add_direct(
    results: Sequence[SampleSignals],
    alone: Sequence[SampleSignals],
    prefix: AnswerPrefix,
    after_special: Sequence[bool],
) -> list[SampleSignals]:
    """Return results with those of the pass over responses as texts of their own added."""
    added = []
    for result, own, special in zip(results, alone, after_special, strict=True):
        if own.token_nll is None or not len(own.token_nll):
            flags = result.flags if NON_FINITE in result.flags else [*result.flags, NON_FINITE]
            added.append(replace(result, flags=flags))
            continue
        nll = float(np.mean(own.token_nll, dtype=np.float64))
        found = DirectAnswer(nll, special, own.tokens)
        added.append(replace(result, direct={**result.direct, prefix: found}))
    return added
