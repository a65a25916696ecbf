"""kronfluence's self-influence with the identity for a curvature: squared norms; runs in kronfluence's environment.

Its scores are computed as its analyzer does, with the model's linear layers tracked, but held in memory: no file is
written and no data set read while the clock runs.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.peer_workers.protocol import Side, linear_weights, load_model, serve

BATCHES = (1, 2, 4, 8, 16, 32)


class Biased(torch.nn.Module):
    """A linear layer whose bias is added behind it: kronfluence counts the bias as a column of the weight."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.inner, self.added = linear, linear.bias
        linear.register_parameter("bias", None)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(inputs) + self.added
        return found


def with_biases_apart(model: Any) -> list[str]:
    """Take biases out of the decoder's linear layers; names of the layers, as they are then called."""
    names = []
    for name in (weight.removesuffix(".weight") for weight in linear_weights(model)):
        linear = model.get_submodule(name)
        if linear.bias is not None:
            model.set_submodule(name, Biased(linear))
        names.append(name if model.get_submodule(name) is linear else f"{name}.inner")
    return names


def make(_name: str, folder: Path) -> Side:
    """Squared norms of the gradients of every sequence's mean loss, by the weights of the decoder's linear layers."""
    arguments: Any = import_module("kronfluence.arguments")
    analyzer: Any = import_module("kronfluence.analyzer")
    scoring: Any = import_module("kronfluence.score.self")
    states: Any = import_module("kronfluence.utils.state")
    tasks: Any = import_module("kronfluence.task")
    model = load_model(folder)
    tracked = with_biases_apart(model)

    class MeanLosses(tasks.Task):  # type: ignore[misc]
        """Sum over sequences of their mean losses: each one's gradient is its own."""

        def compute_train_loss(self, batch: Any, model: torch.nn.Module, sample: bool = False) -> torch.Tensor:
            del sample
            (rows,) = batch
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
            losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
            return losses.view(len(rows), -1).mean(dim=1).sum()

        def compute_measurement(self, batch: Any, model: torch.nn.Module) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return tracked

    task = MeanLosses()
    prepared = analyzer.prepare_model(model, task)
    state = states.State(cpu=True)

    def run(ids: torch.Tensor, batch: int) -> torch.Tensor:
        scores = scoring.compute_self_scores_with_loaders(
            {},
            prepared,
            state,
            task,
            DataLoader(TensorDataset(ids), batch_size=batch),
            arguments.ScoreArguments(damping_factor=0.0),
            arguments.FactorArguments(strategy="identity"),
            None,
            disable_tqdm=True,
        )
        found: torch.Tensor = scores["all_modules"]
        return found[:, None]

    def norms(ids: torch.Tensor) -> torch.Tensor:
        return run(ids, len(ids))[:, 0].sqrt()

    return Side(run, BATCHES, "self-influence, identity: squared norms, no projection", norms)


if __name__ == "__main__":
    serve(make, "kronfluence")
