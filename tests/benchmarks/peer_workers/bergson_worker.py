"""bergson's per-sequence gradients, projected to 16 x 16 for every linear layer; runs in bergson's environment.

Its collector, its loss and its builder in memory are driven directly: no data set, no file, no progress bar.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.peer_workers.protocol import Side, load_model, serve

PROJECTION = 16
BATCHES = (1, 2, 4, 8, 16, 32)


def make(name: str, folder: Path) -> Side:
    """`bergson` prepares the model as bergson's own `build` does; `bergson, trimmed` asks autograd for less.

    `build` makes the embeddings trainable, so that gradients flow through every layer; their own gradient, and that
    of an LM head tied to them, is computed and thrown away. For the same gradients of the linear layers it is
    enough that the first layer's normalisation is trainable, which a user of the collector may choose.
    """
    bergson: Any = import_module("bergson")
    collecting: Any = import_module("bergson.collector.collector")
    model = load_model(folder).requires_grad_(False)
    if name == "bergson":
        model.get_input_embeddings().requires_grad_(True)
    else:
        model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    nowhere = str(Path(tempfile.gettempdir()) / "bergson-unused")

    def collect(ids: torch.Tensor, batch: int, config: Any, processor: Any) -> torch.Tensor:
        loss_and_backward = collecting.fwd_bwd_factory(config)
        positions = range(len(ids))
        collector = bergson.InMemoryCollector(
            model=model.base_model, cfg=config, processor=processor, data=list(positions)
        )
        for start in range(0, len(ids), batch):
            rows = ids[start : start + batch]
            labelled = torch.ones_like(rows, dtype=torch.bool)
            labelled[:, -1] = False
            with collector.with_batch(labelled):
                losses = loss_and_backward(model, rows, rows, {})
            collector.process_batch(list(positions[start : start + batch]), losses=losses)
        collector.teardown()
        gradients: dict[str, torch.Tensor] = collector.gradients
        return torch.cat([part.flatten(1) for part in gradients.values()], dim=1)

    def settings(projection: int) -> tuple[Any, Any]:
        config = bergson.IndexConfig(run_path=nowhere, projection_dim=projection, loss_reduction="mean")
        return config, bergson.GradientProcessor(projection_dim=projection or None)

    projected = settings(PROJECTION)  # the processor keeps its projections from one pass to the next

    def run(ids: torch.Tensor, batch: int) -> torch.Tensor:
        return collect(ids, batch, *projected)

    def norms(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = collect(ids, len(ids), *settings(0)).norm(dim=1)
        return found

    trainable = "embeddings trainable, as its build does" if name == "bergson" else "one normalisation trainable"
    return Side(run, BATCHES, f"InMemoryCollector, {PROJECTION} x {PROJECTION} a layer, {trainable}", norms)


if __name__ == "__main__":
    serve(make, "bergson")
