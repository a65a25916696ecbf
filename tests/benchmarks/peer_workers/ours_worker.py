"""GRACE, the bare forward pass and a loop over gradients in the manner of LESS, in our environment."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from resources.scoring.forward import ForwardPass
from resources.scoring.head import Head
from resources.scoring.loading import Checkpoint
from resources.scoring.samples import Encoded
from tests.benchmarks.common import even_samples
from tests.benchmarks.forward import GRACE
from tests.benchmarks.peer_workers.protocol import Side, linear_weights, load_model, serve

STEPS = 8
BATCHES = (1, 2, 4, 8, 16, 32)


def grace(folder: Path) -> Side:
    """Our pass, eight steps a sequence."""
    model = load_model(folder).requires_grad_(False)
    checkpoint = Checkpoint(
        decoder=model.model,
        head=Head(model.lm_head.weight.detach()),
        tokenizer=None,
        device=torch.device("cpu"),
        max_length=model.config.max_position_embeddings,
        vocabulary=model.config.vocab_size,
    )

    samples: list[Encoded] = []

    def run(ids: torch.Tensor, batch: int) -> torch.Tensor:
        if not samples:  # nobody else turns text into tokens or tokens into samples while the clock runs
            count, tokens = ids.shape
            samples.extend(even_samples(count, tokens, STEPS, checkpoint.vocabulary))
            assert [sample.input_ids for sample in samples] == ids.tolist(), "not the tokens of the other sides"
        scoring = ForwardPass(checkpoint, None, batch * ids.shape[1])  # type: ignore[arg-type]
        found = {one.position: one.step_gradients for batch in scoring.measure_encoded(samples, GRACE) for one in batch}
        grams = [gradients.gram for position in range(len(ids)) if (gradients := found[position]) is not None]
        return torch.stack([torch.tensor(gram) for gram in grams])

    return Side(run, BATCHES, f"{STEPS} steps a sequence")


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
    serve(lambda name, folder: {"grace": grace, "forward": forward, "less loop": less_loop}[name](folder))
