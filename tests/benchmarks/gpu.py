"""How much of a CUDA device the pass uses, with all signals on, and how far bf16 is from fp32.

    python -m tests.benchmarks.gpu --keep

The model has random weights and the shape of Qwen3-VL-2B's text part, in bf16. `mfu` is the arithmetic of the
model (2 x the weights of matrix products x tokens, the tied head once and the embedding not, plus causal
attention) per second, over the rate of a large bf16 matrix product measured in the same process.
`max_relative_error_bf16` compares Gram matrices with those of the same weights in fp32 on the CPU, relative to
each matrix's largest entry.

The last line is one JSON object. Without CUDA only `--small` runs: a tiny model, to see that it works.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.head import Head
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.samples import Encoded, Request
from tests.benchmarks.common import even_samples, finish, parser, table
from tests.benchmarks.forward import ALL, GRACE

LIKELIHOODS = Request(likelihoods=True)


def make_model(small: bool, device: torch.device) -> tuple[Any, Checkpoint]:
    """The model in bf16 on the device."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2000 if small else 151_936,
        hidden_size=64 if small else 2048,
        intermediate_size=128 if small else 6144,
        num_hidden_layers=2 if small else 28,
        num_attention_heads=4 if small else 16,
        num_key_value_heads=2 if small else 8,
        head_dim=16 if small else 128,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    with device:
        model: Any = Qwen3ForCausalLM(config)
    model = model.to(torch.bfloat16).eval()
    model.requires_grad_(False)
    head = Head(model.lm_head.weight.detach())
    return model, Checkpoint(model.model, head, None, device, 32_768, config.vocab_size)


def model_operations(config: Any, lengths: Sequence[int]) -> float:
    """Arithmetic of one forward pass over sequences of these lengths."""
    attention = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * attention + 2 * shared + 3 * config.intermediate_size)
    weights = config.num_hidden_layers * layer + config.hidden_size * config.vocab_size
    # Scores and weighted values, 2 operations each for every pair of positions that see each other.
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return 2.0 * float(weights) * sum(lengths) + 4.0 * float(config.num_hidden_layers * attention) * pairs


def matrix_rate(device: torch.device, size: int) -> float:
    """Operations a second of a bf16 matrix product, the best of several."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(8):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        synchronize(device)
        times.append((time.perf_counter() - started) / 4)
    return 2.0 * size**3 / min(times)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(checkpoint: Checkpoint, samples: Sequence[Encoded], request: Request, budget: int, rounds: int) -> float:
    """Median time of the pass over all samples; the first round is not counted."""
    scoring = ForwardPass(checkpoint, None, budget)  # type: ignore[arg-type]
    times = []
    for _ in range(rounds + 1):
        synchronize(checkpoint.device)
        started = time.perf_counter()
        for _ in scoring.measure_encoded(samples, request):
            pass
        synchronize(checkpoint.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def gram_error(model: Any, checkpoint: Checkpoint, samples: Sequence[Encoded]) -> tuple[float, float]:
    """Largest and median relative difference of Gram matrices from fp32 on the CPU."""
    half = grams(checkpoint, samples)
    exact_model = model.to("cpu", torch.float32)
    exact = replace(
        checkpoint,
        decoder=exact_model.model,
        head=Head(exact_model.lm_head.weight.detach()),
        device=torch.device("cpu"),
    )
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(half, grams(exact, samples), strict=True)]
    return float(max(errors)), float(np.median(errors))


def grams(checkpoint: Checkpoint, samples: Sequence[Encoded]) -> list[Any]:
    """Packed Gram matrices of samples, in order."""
    scoring = ForwardPass(checkpoint, None, 4096)  # type: ignore[arg-type]
    results = [result for batch in scoring.measure_encoded(samples, GRACE) for result in batch]
    results.sort(key=lambda result: result.position)
    return [np.array(result.step_gradients.gram) for result in results if result.step_gradients is not None]


def main() -> None:
    """Measure several lengths and print them."""
    options = parser(__doc__).parse_args()
    if not torch.cuda.is_available() and not options.small:
        raise SystemExit("no CUDA device: this benchmark needs one (or --small, to see that it runs)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, checkpoint = make_model(options.small, device)
    rate = matrix_rate(device, 256 if options.small else 8192)
    budget = 512 if options.small else 32_768
    rows, best = [], (0.0, 0.0)
    for length in (128,) if options.small else (256, 1024, 4096):
        samples = even_samples(2 * budget // length, length, 8, model.config.vocab_size)
        operations = model_operations(model.config, [length] * len(samples))
        for name, request in (("all signals", ALL), ("GRACE", GRACE), ("likelihoods", LIKELIHOODS)):
            taken = seconds(checkpoint, samples, request, budget, options.rounds)
            mfu, speed = operations / taken / rate, length * len(samples) / taken
            rows.append((length, name, f"{speed:.0f}", f"{mfu:.3f}"))
            if request == ALL and mfu > best[0]:
                best = (mfu, speed)
    print(table(("length", "signals", "tokens/s", "mfu"), rows))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    worst, median = gram_error(model, checkpoint, even_samples(4, 256, 8, model.config.vocab_size))
    result = {
        "mfu": round(best[0], 3),
        "tokens_per_second": round(best[1]),
        "max_relative_error_bf16": round(worst, 5),
        "median_relative_error_bf16": round(median, 5),
        "matrix_rate_tflops": round(rate / 1e12, 1),
        "peak_gib": round(memory, 1),
    }
    finish("gpu", result, options)


if __name__ == "__main__":
    main()
