"""GRACE, gradient features, the bare forward pass and a loop over gradients as LESS has it, in our environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch.nn import functional as F

from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.gradient_pass import GradientPass
from curation_resources.scoring.gradient_spec import FeatureSpec
from curation_resources.scoring.head import Head, StreamedHead
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.samples import Encoded, Request, SampleSignals
from tests.benchmarks.common import even_samples
from tests.benchmarks.forward import GRACE
from tests.benchmarks.peer_workers.protocol import Side, linear_weights, load_model, serve

STEPS = 8
BATCHES = (1, 2, 4, 8, 16, 32)


def taken_apart(folder: Path) -> Checkpoint:
    """The model as our pass takes it."""
    model = load_model(folder).requires_grad_(False)
    return Checkpoint(
        decoder=model.model,
        head=Head(model.lm_head.weight.detach()),
        tokenizer=None,
        device=torch.device("cpu"),
        max_length=model.config.max_position_embeddings,
        vocabulary=model.config.vocab_size,
        model=model,
    )


@cache
def samples_of(vocabulary: int, count: int, tokens: int) -> list[Encoded]:
    """The sequences as samples: nobody else turns text into tokens or tokens into samples while the clock runs."""
    return even_samples(count, tokens, STEPS, vocabulary)


def grace(folder: Path) -> Side:
    """Our pass, eight steps a sequence."""
    checkpoint = taken_apart(folder)

    def run(ids: torch.Tensor, batch: int) -> torch.Tensor:
        samples = samples_of(checkpoint.vocabulary, *ids.shape)
        assert [sample.input_ids for sample in samples] == ids.tolist(), "not the tokens of the other sides"
        scoring = ForwardPass(checkpoint, None, batch * ids.shape[1])  # type: ignore[arg-type]
        found = {one.position: one.step_gradients for batch in scoring.measure_encoded(samples, GRACE) for one in batch}
        grams = [gradients.gram for position in range(len(ids)) if (gradients := found[position]) is not None]
        return torch.stack([torch.tensor(gram) for gram in grams])

    return Side(run, BATCHES, f"{STEPS} steps a sequence")


def features(projection: int, folder: Path) -> Side:
    """Our gradient features: a two-sided projection of the gradient of every linear layer of the decoder."""
    checkpoint, spec = taken_apart(folder), FeatureSpec("layers", projection)
    passing = GradientPass(checkpoint, StreamedHead(checkpoint.head))

    def add(samples: Sequence[Encoded], request: Request) -> list[SampleSignals]:
        described = [describe(sample, place) for place, sample in enumerate(samples)]
        return passing.add(samples, described, request)

    def run(ids: torch.Tensor, batch: int) -> torch.Tensor:
        samples, request = samples_of(checkpoint.vocabulary, *ids.shape), Request(features=spec)
        found = [one for start in range(0, len(ids), batch) for one in add(samples[start : start + batch], request)]
        vectors = [one.features for one in found if one.features is not None]
        return torch.stack([torch.from_numpy(vector.values) * vector.scale for vector in vectors])

    def norms(ids: torch.Tensor) -> torch.Tensor:
        samples = samples_of(checkpoint.vocabulary, *ids.shape)
        return torch.tensor([one.gradient_norm for one in add(samples, Request(gradient_norms="layers"))])

    return Side(run, BATCHES, f"{projection} x {projection} a layer, 8,192 numbers in int8 stored at most", norms)


def forward(folder: Path) -> Side:
    """The whole model and a loss: the unit."""
    model = load_model(folder)

    def run(ids: torch.Tensor, batch: int) -> None:
        with torch.inference_mode():
            for rows in ids.split(batch):
                logits = model(input_ids=rows, use_cache=False).logits
                F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())

    return Side(run, BATCHES, "model(ids) and cross-entropy")


def less_loop(folder: Path) -> Side:
    """One sequence at a time: the gradient of its mean loss by all linear weights of the decoder, as one vector.

    The way in which LESS obtains its features (arXiv:2402.04333), by full weights and before projection.
    """
    model = load_model(folder).requires_grad_(False)
    weights = [model.get_parameter(name).requires_grad_() for name in linear_weights(model)]

    def gradient(row: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=row[None], use_cache=False).logits[0]
        loss = F.cross_entropy(logits[:-1], row[1:])
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])

    def run(ids: torch.Tensor, batch: int) -> torch.Tensor:
        # A gradient is as large as the model: one is held at a time, and a few of its numbers are kept to look at.
        return torch.stack([gradient(row)[:4096].clone() for row in ids])

    def norms(ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([gradient(row).norm() for row in ids])

    return Side(run, (1,), "one sequence at a time, no projection", norms)


if __name__ == "__main__":
    sides: dict[str, Callable[[Path], Side]] = {
        "grace": grace,
        "features": partial(features, 16),
        "features 8192": partial(features, 64),
        "forward": forward,
        "less loop": less_loop,
    }
    serve(lambda name, folder: sides[name](folder))
