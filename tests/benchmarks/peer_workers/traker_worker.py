"""traker's features of a language model, projected densely to 512; runs in traker's environment.

The model output is the mean loss of a sequence, and gradients are kept for the weights of the decoder's linear
layers, as on the other sides. Timed is `TRAKer.featurize` over all sequences, in fp32.
"""

from __future__ import annotations

import logging
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tests.benchmarks.peer_workers.protocol import Side, linear_weights, load_model, serve

PROJECTION = 512
BATCHES = (8, 16, 32, 64)
COMMON_BATCH = 8
MOST_BYTES = 8 * 2**30
"""A whole projection matrix that takes more is not tried."""


class MeanLoss:
    """What traker calls a model output function; it asks for these two methods."""

    @staticmethod
    def get_output(model: Any, weights: Any, buffers: Any, row: torch.Tensor) -> torch.Tensor:
        """Mean loss of one sequence, ids [T]; traker maps it over a batch."""
        output = torch.func.functional_call(model, (weights, buffers), (row[None],), {"use_cache": False})
        return F.cross_entropy(output.logits[0, :-1], row[1:])

    @staticmethod
    def get_out_to_loss_grad(model: Any, weights: Any, buffers: Any, batch: Any) -> torch.Tensor:
        """The output is the loss."""
        return torch.ones(len(batch[0]), 1)


def make(name: str, folder: Path) -> Side:
    """Which projection, and in which batches.

    `traker 512` is what TRAKer(proj_dim=512) makes on a CPU: the projection matrix is drawn anew for every batch,
    100 columns at a time, so that its cost falls with the batch size. `traker 512, batches of 8` is the same at a
    fixed batch size. `traker 512, stored` draws the whole matrix once and keeps it, 2 KiB a weight, which only a
    small model allows.
    """
    trak: Any = import_module("trak")
    projectors: Any = import_module("trak.projectors")
    logging.disable()
    model = load_model(folder)
    names = linear_weights(model)
    size = sum(model.get_parameter(weight).numel() for weight in names)
    stored = name == "traker 512, stored"
    projector = None
    if stored:
        if 4 * size * PROJECTION > MOST_BYTES:
            raise SystemExit(f"{name}: a projection matrix for {size} weights does not fit into memory")
        projector = projectors.BasicProjector(
            grad_dim=size,
            proj_dim=PROJECTION,
            seed=0,
            proj_type=projectors.ProjectionType.normal,
            device="cpu",
            block_size=PROJECTION,
        )
    made: dict[int, Any] = {}

    def traker_for(count: int) -> Any:
        if count not in made:
            made[count] = trak.TRAKer(
                model=model,
                task=MeanLoss(),
                train_set_size=count,
                save_dir=tempfile.mkdtemp(dir=folder),
                device="cpu",
                projector=projector,
                proj_dim=PROJECTION,
                use_half_precision=False,
                grad_wrt=names,
            )
            made[count].load_checkpoint(model.state_dict(), model_id=0)
        return made[count]

    def run(ids: torch.Tensor, batch: int) -> torch.Tensor:
        traker = traker_for(len(ids))
        store = traker.saver.current_store
        store["is_featurized"][:] = 0  # else it skips what it has seen
        for start in range(0, len(ids), batch):
            rows = ids[start : start + batch]
            traker.featurize((rows,), inds=np.arange(start, start + len(rows)))
        return torch.from_numpy(np.array(store["grads"]))

    def norms(ids: torch.Tensor) -> torch.Tensor:
        computer = next(iter(made.values())).gradient_computer
        gradients = computer.compute_per_sample_grad((ids,)).values()
        found: torch.Tensor = torch.cat([part.flatten(1) for part in gradients], dim=1).norm(dim=1)
        return found

    if stored:
        return Side(run, BATCHES, "one stored projection matrix", norms)
    if name == "traker 512":
        return Side(run, BATCHES, "its default projection", norms)
    return Side(run, (COMMON_BATCH,), "its default projection", norms, sequences=2 * COMMON_BATCH)


if __name__ == "__main__":
    serve(make, "traker")
