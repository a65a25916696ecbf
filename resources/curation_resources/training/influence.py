"""In-run influence: how much each sample's training steps lower the loss of validation samples.

To first order, a step of rate lr along -g_i lowers the validation loss by lr <g_val, g_i>; a sample's influence is the
sum of that over its steps (In-Run Data Shapley, arXiv 2406.11011, first order). Per-sample gradients are
never materialized: with G_val the validation gradient of a layer's weight, <G_val, D_i^T X_i> = sum over t of
(d_t G_val) . x_t, whose factors the step's own backward pass provides (ghost dot products).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from curation_resources.scoring.attention_layers import by_sample, is_linear, is_of_experts
from curation_resources.scoring.batching import plan_batches
from curation_resources.training.examples import Example, TrainingError

Loss = Callable[[Sequence[Example]], Tensor]
"""The sum over the labels of some examples of -log p."""


@dataclass(frozen=True)
class Watched:
    """Validation sets to compute influence on.

    Attributes:
        names: names of the validation sets.
        sets: examples of each set.
    """

    names: Sequence[str]
    sets: Sequence[Sequence[Example]]


class Influence:
    """Accumulates influences over the steps of a run.

    Full training covers only weights that belong to a single linear layer, so embeddings, norms and a head tied to the
    embeddings are ignored; of an adapter, all weights count.

    Args:
        model: the model in training; its trained weights require gradients.
        watched: the validation samples.
        samples: N, the number of training samples.
        piece_tokens: token budget of one forward and backward pass.

    Attributes:
        values: [N, S] in fp64, by sample and validation set.

    Raises:
        TrainingError: no linear layer is trained, or experts are, or no sample of a validation set has a loss.
    """

    def __init__(self, model: Any, watched: Watched, samples: int, piece_tokens: int) -> None:
        self.model, self.watched, self.piece_tokens = model, watched, piece_tokens
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        self.layers: dict[str, nn.Module] = {
            name: module
            for name, module in model.named_modules()
            if is_linear(module) and _trained_weight(module) and id(module.weight) not in embeddings
        }
        experts = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.dim() > 2]
        if experts:
            raise TrainingError(
                f"influence cannot be computed for weights outside linear layers, such as experts ({experts[0]}). "
                "Train an adapter (adapter: lora)."
            )
        if not self.layers:
            raise TrainingError("no linear layer is trained, so influence cannot be computed")
        for name, own in zip(watched.names, watched.sets, strict=True):
            if not any(example.labels for example in own):
                raise TrainingError(f"validation set {name} has no sample with a loss under the run's model")
        self.values = torch.zeros(samples, len(watched.sets), dtype=torch.float64)
        self._aims: list[dict[str, Tensor]] = []

    def aim(self, loss: Loss) -> None:
        """Compute the gradients of all validation sets at the current weights, without dropout.

        The gradient of a set is the mean over its samples of the gradient of each sample's mean loss.
        """
        self._aims = []
        training = self.model.training
        self.model.eval()
        for own in self.watched.sets:
            usable = [example for example in own if example.labels]
            for piece in plan_batches([len(example.encoded) for example in usable], self.piece_tokens):
                # The loss is a sum over labels; these weights make each example count by its own mean.
                even = [replace(usable[place], weights=_even(usable[place])) for place in piece]
                (loss(even) / len(usable)).backward()
            self._aims.append({name: _gradient(module) for name, module in self.layers.items()})
            self.model.zero_grad(set_to_none=True)
        self.model.train(training)

    @contextmanager
    def watching(self, positions: Sequence[int], scales: Sequence[float], rate: float, longest: int) -> Iterator[None]:
        """Accumulate influence during the backward pass of some samples.

        Args:
            positions: positions of the samples among those of the run, one per row of the batch.
            scales: factors that turn a sample's part of the step's gradient into that of its own mean loss.
            rate: the step's learning rate.
            longest: tokens of the batch's longest sample.

        Raises:
            TrainingError: a layer does not see the tokens of every sample.
        """
        shape = (len(positions), longest)
        weights = torch.tensor(scales, dtype=torch.float64) * rate
        found = torch.zeros(len(positions), len(self._aims), dtype=torch.float64)

        def seen(name: str, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                what = None if is_of_experts(name) else by_sample(inputs[0].detach(), *shape)
                if what is None:
                    raise TrainingError(
                        f"layer {name} does not see the tokens of every sample (experts do not), so influence "
                        "cannot be computed. Train an adapter of the attention (lora_modules)."
                    )
                output.register_hook(partial(self._dot, found, name, what, shape))

        handles = [module.register_forward_hook(partial(seen, name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.values.index_add_(0, torch.tensor(positions), found * weights.unsqueeze(1))

    def _dot(self, found: Tensor, name: str, inputs: Tensor, shape: tuple[int, int], gradients: Tensor) -> None:
        """Add a layer's part of <g_val, g_i> to each sample's sum [B, S]."""
        own = by_sample(gradients.detach(), *shape)
        assert own is not None, "a linear layer keeps the number of rows"
        with torch.no_grad():
            inputs, gradients = inputs.float(), own.float()
            for place, aims in enumerate(self._aims):
                products = torch.linalg.vecdot((gradients @ aims[name]).flatten(1), inputs.flatten(1))
                found[:, place] += products.double().cpu()


def _even(example: Example) -> list[float]:
    """Return weights under which the sum over an example's labels becomes their mean."""
    return [1.0 / example.labels] * (len(example.encoded) - example.encoded.prompt_tokens)


def _trained_weight(module: nn.Module) -> bool:
    weight: Any = module.weight
    return bool(weight.requires_grad)


def _gradient(module: nn.Module) -> Tensor:
    """Return the gradient of a layer's weight [d_out, d_in] in fp32."""
    weight: Any = module.weight
    # A layer that no token of the set passed through has no gradient.
    found: Tensor = torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()
    # GPT-2's Conv1D keeps its weight as [d_in, d_out].
    return found.float().T if type(module).__name__ == "Conv1D" else found.float()
