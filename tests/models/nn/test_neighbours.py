"""Nearest neighbours by matrix products are the ones that direct distances give."""

from __future__ import annotations

import pytest
import torch

from models.nn import neighbours
from models.nn.neighbours import knn


def direct(queries, bank, k):
    distances = (queries.double().unsqueeze(1) - bank.double().unsqueeze(0)).square().sum(2).sqrt().float()
    found = distances.sort(dim=1, stable=True)
    return found.values[:, :k], found.indices[:, :k]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("budget", [1 << 10, 1 << 26])
@pytest.mark.parametrize("kind", ["smooth", "integers", "far_off", "duplicates", "same"])
def test_same_as_direct_distances(kind, budget, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(neighbours, "_kernel", lambda: None)
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        m, d = (int(torch.randint(1, high, (1,), generator=g)) for high in (80, 50))
        k = min(m, 1 + seed % 9)
        bank, queries = torch.randn(m, d, generator=g), torch.randn(33, d, generator=g)
        if kind == "integers":
            bank, queries = bank.round(), queries.round()
        if kind == "far_off":  # large common offset: |a|^2 + |b|^2 - 2ab alone would lose the distances
            bank, queries = bank * 0.01 + 1000, queries * 0.01 + 1000
        if kind == "duplicates":
            bank = bank[torch.randint(0, max(1, m // 5), (m,), generator=g)]
        if kind == "same":
            queries = bank.clone()
        distances, indices = knn(queries, bank, k, budget)
        expected = direct(queries, bank, k)
        assert torch.equal(distances, expected[0]) and torch.equal(indices, expected[1]), (kind, seed)


def test_offset_larger_than_any_distance_still_ranks_exactly():
    bank = torch.tensor([[4096.0, 0.001], [4096.0, 0.0], [4096.0, 0.002]])
    distances, indices = knn(torch.tensor([[4096.0, 0.0021]]), bank, 3)
    assert indices.tolist() == [[2, 0, 1]]
    assert distances[0, 0] == pytest.approx(1e-4, rel=1e-3)


def test_too_few_rows():
    with pytest.raises(ValueError, match="3 neighbours asked of a bank of 2"):
        knn(torch.zeros(1, 4), torch.zeros(2, 4), 3)


def test_bank_that_is_asked_for_whole_and_rows_as_near_as_rounding_tells():
    g = torch.Generator().manual_seed(0)
    bank = torch.randn(1, 300, generator=g) + 1e-6 * torch.randn(40, 300, generator=g)  # one product cannot rank them
    queries = torch.randn(20, 300, generator=g)
    for k in (1, 2, 39, 40):
        distances, indices = knn(queries, bank, k)
        expected = direct(queries, bank, k)
        assert torch.equal(distances, expected[0]) and torch.equal(indices, expected[1])
    same = knn(queries, bank[:1].repeat(5, 1), 3)
    assert same[1].tolist() == [[0, 1, 2]] * 20
