"""Gradient features: how true they are to the gradients, what signals of one backward cost together, and memory.

    python -m tests.benchmarks.features

What they cost beside a forward pass and beside bergson: `python -m tests.benchmarks.peers`.

Fidelity: the demo's trained model and responses of the demo's corpus; gradients of all linear layers of its decoder.
Of all pairs of responses the exact cosines are correlated (Pearson) with those of stored vectors: one vector of 8,192
numbers made of 64 x 64 a layer; the same before it is int8; blocks of 16 x 16, 32 x 32 and 64 x 64 side by side; and
one dense Rademacher projection to 512.

Time: a Qwen2 of hidden size 128, 4 layers, intermediate size 512, vocabulary 1,000; 64 sequences of 256 tokens, eight
at a time, one thread. Memory: hidden size 256, intermediate size 704, four sequences of 256 tokens, each depth in a
process of its own: the peak above what there was before the first batch.

The last line is one JSON object: `features_8192_pearson`, `features_int8_loss` (what int8 takes from it),
`all_signals_over_dearest` (spectra, norms and features of one backward over the dearest of the three alone) and
`peak_gib_by_layers`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation_assets.demo.corpus import generate
from curation_assets.demo.tour import MODEL
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.factors import Taker, backward
from curation_resources.scoring.features import FeaturesOfBatch, Sketch, formed_gradients
from curation_resources.scoring.gradient_pass import GradientPass
from curation_resources.scoring.gradient_spec import FeatureSpec
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.samples import Encoded, Request, Sample
from curation_resources.scoring.trained_matrices import linear_layers, trained_matrices
from tests.benchmarks.common import alternate, even_samples, finish, median_ratio, parser, qwen2, table
from tests.benchmarks.memory import GIB, peak_bytes, reset_peak

STORED = FeatureSpec("layers", 64, 8192)
SIGNALS = {
    "spectra": Request(spectra=True),
    "norms": Request(gradient_norms="layers"),
    "features": Request(features=STORED),
    "all": Request(spectra=True, gradient_norms="layers", features=STORED),
}


def demo_samples(checkpoint: Checkpoint, count: int) -> list[Encoded]:
    """Responses of the demo's corpus as tokens."""
    encoder = Encoder(checkpoint.tokenizer, "question_answer", checkpoint.max_length, vocabulary=checkpoint.vocabulary)
    rows = islice(generate(seed=1), count)
    samples = [
        Sample(f"s{number}", [{"role": "user", "content": row["prompt"]}], row["response"])
        for number, row in enumerate(rows)
    ]
    return encoder.encode(samples)


def exact_gradients(checkpoint: Checkpoint, batch: Sequence[Encoded]) -> dict[str, Tensor]:
    """Of every matrix the gradients [B, rows x columns] of a batch."""
    matrices = {matrix.layer: matrix for matrix in trained_matrices(checkpoint, "layers")}
    found: dict[str, Tensor] = {}

    def take(name: str, inputs: Tensor, gradients: Tensor) -> None:
        found[name] = torch.cat(list(formed_gradients(matrices[name], inputs, gradients))).flatten(1)

    backward(checkpoint, StreamedHead(checkpoint.head), batch, [Taker(linear_layers(checkpoint), take)])
    return found


def sketched(checkpoint: Checkpoint, batch: Sequence[Encoded], spec: FeatureSpec) -> Tensor:
    """Vectors [B, k] before they are int8."""
    sketch = Sketch.of(trained_matrices(checkpoint, "layers"), spec, checkpoint.device)
    features = FeaturesOfBatch(sketch, len(batch), checkpoint.device)
    backward(checkpoint, StreamedHead(checkpoint.head), batch, [Taker(linear_layers(checkpoint), features.take)])
    return features.vectors


def stored(checkpoint: Checkpoint, batch: Sequence[Encoded]) -> Tensor:
    """Vectors [B, k] as they are stored."""
    passing = GradientPass(checkpoint, StreamedHead(checkpoint.head))
    found = passing.add(batch, [describe(one, place) for place, one in enumerate(batch)], SIGNALS["features"])
    return torch.stack([torch.from_numpy(one.features.values * one.features.scale) for one in found if one.features])


def cosines(vectors: Tensor) -> Any:
    """Of all pairs [n (n - 1) / 2]."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[rows, columns].numpy()


def fidelity(count: int) -> dict[str, float]:
    """Pearson's correlation of each kind of vector's cosines with the exact ones."""
    checkpoint = load_checkpoint(MODEL, device="cpu")
    encoded = demo_samples(checkpoint, count)
    batches = [encoded[start : start + 8] for start in range(0, len(encoded), 8)]
    gradients = torch.cat([torch.cat(list(exact_gradients(checkpoint, batch).values()), dim=1) for batch in batches])
    exact = cosines(gradients)
    generator = torch.Generator().manual_seed(0)
    dense = torch.zeros(len(gradients), 512)
    for columns in gradients.split(16_384, dim=1):
        signs = torch.randint(0, 2, (columns.shape[1], 512), generator=generator).float() * 2 - 1
        dense += columns @ signs
    kinds = {
        "int8": torch.cat([stored(checkpoint, batch) for batch in batches]),
        "fp32": torch.cat([sketched(checkpoint, batch, STORED) for batch in batches]),
        "dense to 512": dense,
    }
    for p in (16, 32, 64):
        whole = FeatureSpec("layers", p, 2**24)
        kinds[f"{p} x {p}, side by side"] = torch.cat([sketched(checkpoint, batch, whole) for batch in batches])
    found = {kind: float(np.corrcoef(exact, cosines(vectors))[0, 1]) for kind, vectors in kinds.items()}
    rows = [(kind, kinds[kind].shape[1], round(value, 3)) for kind, value in found.items()]
    print(table(("vectors", "numbers", "Pearson with exact cosines"), rows))
    return found


def together(rounds: int, small: bool) -> float:
    """Time of all signals of one backward over the dearest of them alone."""
    hidden, layers, tokens, count = (64, 2, 32, 8) if small else (128, 4, 256, 64)
    _, checkpoint = qwen2(1_000, hidden, layers, 4 * hidden, 4096, key_value_heads=max(1, hidden // 64))
    samples = even_samples(count, tokens, 8, 1_000)
    passing = GradientPass(checkpoint, StreamedHead(checkpoint.head))

    def run(request: Request) -> None:
        for start in range(0, count, 8):
            batch = samples[start : start + 8]
            passing.add(batch, [describe(one, place) for place, one in enumerate(batch)], request)

    seconds = alternate({name: partial(run, request) for name, request in SIGNALS.items()}, rounds)
    alone = {name: took for name, took in seconds.items() if name != "all"}
    dearest = max(alone, key=lambda name: sum(alone[name]))
    rows = [(name, round(min(took), 3), median_ratio(took, seconds[dearest])) for name, took in seconds.items()]
    print(table(("signals", "seconds", f"over {dearest}"), rows))
    return median_ratio(seconds["all"], seconds[dearest])


def peak_of(layers: int) -> float:
    """GiB that all signals of a batch of four take at their peak, in this process."""
    _, checkpoint = qwen2(1_000, 256, layers, 704, 4096)
    passing = GradientPass(checkpoint, StreamedHead(checkpoint.head))
    batch = even_samples(4, 256, 8, 1_000)
    described = [describe(one, place) for place, one in enumerate(batch)]
    passing.add(batch[:1], described[:1], SIGNALS["all"])  # what the first call keeps for good
    reset_peak()
    before = peak_bytes()
    passing.add(batch, described, SIGNALS["all"])
    return (peak_bytes() - before) / GIB


def in_own_process(layers: int) -> float:
    """`peak_of` in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.features", "--layers", str(layers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure fidelity, time and memory."""
    made = parser(__doc__)
    made.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    given = made.parse_args()
    torch.set_num_threads(given.threads or 1)
    if given.layers:
        print(peak_of(given.layers))
        return
    found = fidelity(12 if given.small else 200)
    peaks = {layers: round(in_own_process(layers), 3) for layers in ((2,) if given.small else (4, 8, 16, 32))}
    print(table(("layers", "peak GiB"), list(peaks.items())))
    result = {
        "features_8192_pearson": round(found["int8"], 4),
        "features_int8_loss": round(found["fp32"] - found["int8"], 5),
        "all_signals_over_dearest": together(given.rounds, given.small),
        "peak_gib_by_layers": peaks,
    }
    finish("features", result, given)


if __name__ == "__main__":
    main()
