"""Names of devices; free of models, so that a command which only names devices starts fast."""

from __future__ import annotations

import torch

from curation_resources.scoring.errors import ScoringError


def devices_of(name: str) -> list[str]:
    """Return the names of single devices: `auto` is every visible CUDA device, else the CPU; `a,b` are a and b.

    Raises:
        ScoringError: a requested CUDA device does not exist.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return [f"cuda:{number}" for number in range(count)] or ["cpu"]
    devices = [part.strip() for part in name.split(",")]
    for device in devices:
        parsed = torch.device(device)
        if parsed.type == "cuda" and (parsed.index or 0) >= count:
            raise ScoringError(f"device {device} not found: {count} CUDA devices are visible")
    return devices
