"""The training loop: gradients of a batch in micro-batches, AdamW, a schedule, and a state in safetensors.

We have our own loop because transformers' Trainer resumes by unpickling its optimizer state. All random numbers derive
from the seed and the step number, so a resumed run gives the same bytes as an uninterrupted one (on the same device and
version of torch).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import get_scheduler

from curation_resources.scoring.batching import plan_batches
from curation_resources.scoring.collating import collate
from curation_resources.scoring.complete_weights import non_finite_weight
from curation_resources.scoring.gradient_spec import MOMENTS
from curation_resources.storage.digests import replacing
from curation_resources.training.examples import (
    Example,
    TrainingError,
    order_of_epoch,
    scheduled_steps,
    steps_in_epoch,
    steps_of,
)
from curation_resources.training.influence import Influence, Watched
from curation_resources.training.recipe import Recipe

INFLUENCE = "influence"
STEP_STRIDE = 1_000_003


@dataclass(frozen=True)
class StepFacts:
    """The results of an optimizer step: mean (weighted) loss in nats, gradient norm before clipping, learning rate."""

    loss: float
    gradient_norm: float
    learning_rate: float


class Loop:
    """Trains the weights of a model that require gradients.

    Args:
        model: on its device, with a causal LM head.
        examples: training data.
        recipe: hyper-parameters.
        device: of the model.
        half: run the model under bfloat16 autocast; trained weights stay in fp32.
        piece_tokens: token budget of one forward and backward pass, padding included; affects memory and the random
            numbers of dropout.
        watched: validation samples on which every sample's influence is accumulated (`training.influence`).
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        recipe: Recipe,
        device: torch.device,
        half: bool = False,
        piece_tokens: int = 4096,
        watched: Watched | None = None,
    ) -> None:
        self.model, self.examples, self.recipe = model, examples, recipe
        self.device, self.half, self.piece_tokens = device, half, piece_tokens
        self.lengths = [len(example.encoded) for example in examples]
        self.trained: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = self._optimizer()
        self.total = steps_of(len(examples), recipe)
        scheduled = scheduled_steps(len(examples), recipe)
        schedule: Any = get_scheduler(
            recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
            self.optimizer,
            num_warmup_steps=recipe.rising_steps(scheduled),
            num_training_steps=scheduled,
        )
        self._share_of_rate = schedule.lr_lambdas[0]
        self._order = lru_cache(maxsize=1)(lambda epoch: order_of_epoch(self.lengths, recipe, epoch))
        self.facts: list[StepFacts] = []
        self.influence = None if watched is None else Influence(model, watched, len(examples), piece_tokens)

    @property
    def done(self) -> int:
        """The number of finished optimizer steps."""
        return len(self.facts)

    def rate(self, number: int) -> float:
        """Return the learning rate of a step, which is never 0 at first.

        A schedule that rises from 0 would waste its first step, a large part of a short run: that step has half the
        rate of the second.
        """
        share: float = self._share_of_rate(number)
        return self.recipe.learning_rate * (share if share or number else self._share_of_rate(1) / 2)

    def step(self) -> StepFacts:
        """Run the next optimizer step.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights stay as they were before the step.
        """
        recipe, number = self.recipe, self.done
        rate = self.rate(number)
        positions = self._batch(number)
        batch = [self.examples[position] for position in positions]
        if self.influence is not None:
            # Influence refers to the plain validation loss, whatever weights training uses.
            self.influence.aim(partial(self._loss, weighed=False))
        labels = sum(example.labels for example in batch)
        loss = 0.0
        pieces = plan_batches([len(example.encoded) for example in batch], self.piece_tokens)
        for place, piece in enumerate(pieces):
            # Seed dropout by step and micro-batch, so that a resumed run draws the same numbers.
            torch.manual_seed(recipe.seed + STEP_STRIDE * (number * len(batch) + place + 1))
            with self._watching([positions[position] for position in piece], labels, rate):
                part = self._loss([batch[position] for position in piece]) / max(1, labels)
                part.backward()
            loss += float(part.detach())
        if not math.isfinite(loss):
            self.optimizer.zero_grad()
            damaged = non_finite_weight(self.model)
            if damaged is not None:
                raise TrainingError(
                    f"tensor {damaged} of the model contains NaN or Infinity, so it cannot be trained. Copy or "
                    "download the model again, or name an earlier checkpoint."
                )
            raise TrainingError(f"the loss is {loss} at step {number + 1}. Lower learning_rate.")
        limit = recipe.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.trained.values()), limit))
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise TrainingError(f"the gradient's norm is {norm} at step {number + 1}. Lower learning_rate.")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.facts.append(StepFacts(loss, norm, rate))
        return self.facts[-1]

    def _watching(self, positions: Sequence[int], labels: int, rate: float) -> AbstractContextManager[None]:
        """Return a context that accumulates the influence of a micro-batch's samples, if requested."""
        if self.influence is None:
            return nullcontext()
        scales = [labels / max(1, self.examples[position].labels) for position in positions]
        longest = max(self.lengths[position] for position in positions)
        return self.influence.watching(positions, scales, rate, longest)

    def _batch(self, number: int) -> list[int]:
        size = self.recipe.batch_size
        epoch, place = divmod(number, steps_in_epoch(len(self.examples), size))
        return self._order(epoch)[place * size : (place + 1) * size]

    def _loss(self, piece: Sequence[Example], weighed: bool = True) -> Tensor:
        """Return the sum over a micro-batch's labels of weight times -log p; `weighed` applies likelihood weights."""
        encoded = [example.encoded for example in piece]
        inputs = collate(encoded, self.device)
        rows, places, weights, owners = _labels(piece, self.device)
        logits = self._logits_at(inputs, rows, places - 1)
        nll = F.cross_entropy(logits.float(), inputs["input_ids"][rows, places], reduction="none")
        if weighed and self.recipe.likelihood_weights == "current":
            weights = weights * _likelihood_weights(nll, owners, len(piece), self.recipe)
        return (weights * nll).sum()

    def _logits_at(self, inputs: dict[str, Tensor], rows: Tensor, places: Tensor) -> Tensor:
        """Return the logits at these positions of a padded micro-batch [labels, V].

        The LM head sees only their hidden states: logits of a whole batch, prompts and padding included, take more
        memory than anything else. Influence needs those of every token, by sample.
        """
        head, gathered = self.model.get_output_embeddings(), False

        def gather(_head: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            nonlocal gathered
            if states[0].shape[:2] != inputs["input_ids"].shape:
                return None
            gathered = True
            return states[0][rows, places].unsqueeze(0), *states[1:]

        by_label = isinstance(head, nn.Module) and self.influence is None
        handle = head.register_forward_pre_hook(gather) if by_label else None
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                logits: Tensor = self.model(**inputs, use_cache=False).logits
        finally:
            if handle is not None:
                handle.remove()
        return logits[0] if gathered else logits[rows, places]

    def _optimizer(self) -> torch.optim.AdamW:
        recipe = self.recipe
        decayed = [weight for weight in self.trained.values() if weight.dim() > 1]
        others = [weight for weight in self.trained.values() if weight.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.epsilon,
        )

    def moments(self) -> dict[str, Tensor]:
        """Return AdamW's state, by `exp_avg.NAME` and `exp_avg_sq.NAME`, of the weights that ever had a gradient."""
        return {
            f"{moment}.{name}": self.optimizer.state[weight][moment]
            for name, weight in self.trained.items()
            for moment in MOMENTS
            if weight in self.optimizer.state
        }

    def keep(self, path: Path, identity: str) -> None:
        """Write the state to resume from, atomically; `identity` names the run."""
        tensors = {f"weights.{name}": weight.detach() for name, weight in self.trained.items()} | self.moments()
        if self.influence is not None:
            tensors[INFLUENCE] = self.influence.values
        # A weight without gradients in some steps (an expert that received no token) has a lower step count.
        taken = {
            name: int(self.optimizer.state[weight]["step"])
            for name, weight in self.trained.items()
            if weight in self.optimizer.state
        }
        facts = json.dumps([asdict(fact) for fact in self.facts])
        metadata = {"identity": identity, "facts": facts, "taken": json.dumps(taken)}
        with replacing(path) as beside:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside, metadata)

    def go_on(self, path: Path, identity: str, whole: Callable[[int], bool]) -> bool:
        """Load a state that `keep` wrote for the same run; return False, without any change, if there is none.

        Args:
            path: of the state.
            identity: of the run.
            whole: checks whether all intermediate checkpoints up to a step exist.
        """
        if not path.is_file():
            return False
        with safe_open(path, "pt", device=str(self.device)) as kept:
            metadata = kept.metadata()
            facts = json.loads(metadata["facts"])
            if metadata["identity"] != identity or not whole(len(facts)):
                return False
            self.facts = [StepFacts(**fact) for fact in facts]
            taken = json.loads(metadata["taken"])
            if self.influence is not None:
                self.influence.values = kept.get_tensor(INFLUENCE).cpu()
            with torch.no_grad():
                for name, weight in self.trained.items():
                    weight.copy_(kept.get_tensor(f"weights.{name}"))
                    if name in taken:
                        state = {moment: kept.get_tensor(f"{moment}.{name}") for moment in MOMENTS}
                        self.optimizer.state[weight] = {"step": torch.tensor(float(taken[name])), **state}
        return True


def _labels(piece: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the row, position, weight and example of every label of a padded micro-batch, each [labels]."""
    rows: list[int] = []
    places: list[int] = []
    weights: list[float] = []
    for row, example in enumerate(piece):
        start, end = max(1, example.encoded.prompt_tokens), len(example.encoded)
        rows += [row] * (end - start)
        places += range(start, end)
        own = example.weights or [1.0] * (end - example.encoded.prompt_tokens)
        weights += own[start - example.encoded.prompt_tokens :]
    index = torch.tensor([rows, places], device=device)
    return index[0], index[1], torch.tensor(weights, device=device), index[0]


def _likelihood_weights(nll: Tensor, owners: Tensor, count: int, recipe: Recipe) -> Tensor:
    """Return sg[p(y_t)] of every label, with mean 1 per example if the recipe says so (token-level GRAPE)."""
    weights = torch.exp(-nll.detach())
    if recipe.normalise == "mean1":
        sums = torch.zeros(count, device=nll.device).index_add_(0, owners, weights)
        counts = torch.zeros(count, device=nll.device).index_add_(0, owners, torch.ones_like(weights))
        weights = weights * (counts / sums.clamp_min(torch.finfo(weights.dtype).tiny))[owners]
    return weights
