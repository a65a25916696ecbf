"""What the signals cost over running the model at all; the forward pass against what people write.

    python -m tests.benchmarks.forward

Ours runs GRACE alone and all signals together, on encoded samples. Against it, on the same samples:
  bare       model(ids) and cross-entropy on all positions, unpadded: sequences of equal length
  padded_8   the same in batches of 8 in arrival order, padded to the longest of the batch (GSM8K's lengths)
  padded_32  in batches of 32
  naive      all logits at once, u_t = (p_t - y_t) W for every token, then means

GSM8K's train.jsonl is looked for in `CURATION_TEST_DATA` (default `../shared/data`). The last line is one JSON
object; ratios are medians over rounds that run every side in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from curation_resources.scoring.batching import plan_batches
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.labels import segment_order
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.samples import Encoded, Request
from tests.benchmarks.common import (
    alternate,
    even_samples,
    finish,
    gsm8k_samples,
    median_ratio,
    padding_fraction,
    parser,
    qwen2,
    table,
)

GRACE = Request(step_gradients="bias")
ALL = Request(
    step_gradients="bias",
    likelihoods=True,
    segment_likelihoods=True,
    embeddings=frozenset(("mean", "last", "position_weighted")),
)
BATCH_TOKENS = 2048


def ours(checkpoint: Checkpoint, samples: Sequence[Encoded], request: Request) -> None:
    """Our pass over encoded samples."""
    scoring = ForwardPass(checkpoint, None, BATCH_TOKENS)  # type: ignore[arg-type]
    for results in scoring.measure_encoded(samples, request):
        assert all(result.step_gradients is not None for result in results)


def bare(model: Any, samples: Sequence[Encoded], batch: int) -> None:
    """What scoring costs at least: the whole model and a loss, in batches of arrival order."""
    for start in range(0, len(samples), batch):
        rows = samples[start : start + batch]
        longest = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), -100)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            tokens = torch.tensor(row.input_ids)
            ids[place, : len(row)], mask[place, : len(row)] = tokens, 1
            labels[place, row.prompt_tokens : len(row)] = tokens[row.prompt_tokens :]
        with torch.inference_mode():
            padded = bool((mask == 0).any())
            logits = model(input_ids=ids, attention_mask=mask if padded else None, use_cache=False).logits
            F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def naive(checkpoint: Checkpoint, samples: Sequence[Encoded]) -> None:
    """GRACE's gradients by the definition, one sample at a time, a product with W for every token."""
    weight = checkpoint.head.weight
    for row in samples:
        ids = torch.tensor([row.input_ids])
        with torch.inference_mode():
            hidden = checkpoint.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
            residual = torch.softmax(hidden[:-1] @ weight.T, dim=-1)
            residual -= F.one_hot(ids[0, 1:], len(weight))
            gradients = residual @ weight
            owners = torch.tensor(row.segment_of_token[1:])
            rows = torch.stack([gradients[owners == segment].mean(dim=0) for segment in segment_order(row)])
            rows @ rows.T


def main() -> None:
    """Run both comparisons and print them."""
    options = parser(__doc__).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    shape = (1000, 64, 2, 128) if options.small else (32_000, 512, 8, 1408)
    model, checkpoint = qwen2(*shape)
    lengths = gsm8k_samples(32 if options.small else 128, shape[0])
    even = even_samples(4 if options.small else 16, 256, 8, shape[0])
    batch = BATCH_TOKENS // 256
    seconds = alternate(
        {
            "bare": lambda: bare(model, even, batch),
            "bare, one by one": lambda: bare(model, even, 1),
            "grace": lambda: ours(checkpoint, even, GRACE),
            "all signals": lambda: ours(checkpoint, even, ALL),
            "naive": lambda: naive(checkpoint, even),
        },
        options.rounds,
    )
    real = alternate(
        {
            "padded 8": lambda: bare(model, lengths, 8),
            "padded 32": lambda: bare(model, lengths, 32),
            "grace": lambda: ours(checkpoint, lengths, GRACE),
            "all signals": lambda: ours(checkpoint, lengths, ALL),
        },
        max(1, options.rounds // 2),
    )
    for title, measured, of in (
        (f"{len(even)} sequences of 256 tokens, 8 steps", seconds, "bare"),
        (f"{len(lengths)} rows of GSM8K, {sum(map(len, lengths))} tokens", real, "grace"),
    ):
        rows = [(side, f"{min(times):.2f}", median_ratio(times, measured[of])) for side, times in measured.items()]
        print(f"\n{title}, Qwen2 of vocabulary, hidden size, layers, intermediate size {shape}")
        print(table(("side", "seconds, best round", f"time over {of}"), rows))
    window = [len(row) for row in gsm8k_samples(4096, shape[0])]
    finish(
        "forward",
        {
            "ratio_all_signals": median_ratio(seconds["all signals"], seconds["bare"]),
            "ratio_grace": median_ratio(seconds["grace"], seconds["bare"]),
            "speedup_over_padded_8": median_ratio(real["padded 8"], real["grace"]),
            "speedup_over_padded_32": median_ratio(real["padded 32"], real["grace"]),
            "speedup_over_naive": median_ratio(seconds["naive"], seconds["grace"]),
            "padding_fraction": round(padding_fraction(window, plan_batches(window, BATCH_TOKENS)), 4),
        },
        options,
    )


if __name__ == "__main__":
    main()
