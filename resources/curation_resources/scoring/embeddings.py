"""Pool the last layer's hidden states, after the final norm, into one vector per sample.

All positions count: prompt, response and end-of-sequence token.

    mean                h = mean of h_t                               K-center greedy, NV-Embed style
    last                h = h_T                                       RDS
    position_weighted   h = sum of w_t h_t, w_t = t / (1 + ... + T)   RDS+
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from curation_resources.scoring.samples import Pooling


def pool(hidden: Tensor, poolings: Collection[Pooling]) -> dict[Pooling, Tensor]:
    """Return the requested poolings [d], in fp32, of one sample's hidden states [T, d]."""
    pooled: dict[Pooling, Tensor] = {}
    states = hidden.to(torch.float32) if set(poolings) - {"last"} else hidden
    if "mean" in poolings:
        pooled["mean"] = states.mean(dim=0)
    if "last" in poolings:
        pooled["last"] = states[-1].to(torch.float32)
    if "position_weighted" in poolings:
        positions = torch.arange(1, len(states) + 1, dtype=torch.float32, device=states.device)
        pooled["position_weighted"] = (positions / positions.sum()) @ states
    return pooled
