"""The learning rate that rises and falls."""

from __future__ import annotations

import math

import pytest
import torch

from models.nn.schedule import schedulers


def test_rises_over_three_epochs_and_falls_to_nothing() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    (one,) = schedulers("warm_cosine", optimizer, 8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        one.step()
    cosine = [0.1 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(8)]
    expected = [c * share for c, share in zip(cosine, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1], strict=True)]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert schedulers("constant", optimizer, 8) == []
