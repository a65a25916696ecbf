"""Poolings of hidden states against plain sums."""

from __future__ import annotations

import torch

from curation_resources.scoring.measuring import pool


def test_poolings_equal_plain_sums() -> None:
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    states = hidden.double()
    found = pool(hidden, ("mean", "last", "position_weighted"))
    expected = {
        "mean": sum(states) / 5,
        "last": states[4],
        "position_weighted": sum((t + 1) / 15 * states[t] for t in range(5)),
    }
    for pooling, vector in found.items():
        assert vector.dtype == torch.float32
        torch.testing.assert_close(vector.double(), torch.as_tensor(expected[pooling]), rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_for_is_pooled() -> None:
    assert set(pool(torch.ones(2, 3), frozenset({"last"}))) == {"last"}
    assert pool(torch.ones(2, 3), ()) == {}
