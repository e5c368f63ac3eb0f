"""Exact nearest neighbours by matrix products, a chunk of queries at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from models.nn.memory import in_parts

BUDGET = 64 << 20  # bytes of one block of screened distances


def knn(queries: Tensor, bank: Tensor, k: int = 1, budget: int = BUDGET) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `bank` float32 [M, D] for each of `queries` float32 [N, D], in Euclidean distance.

    Returns distances float32 [N, k], rising, and indices int64 [N, k]; equal distances by lowest index. A matrix
    product screens all pairs; those that may be among the k within its rounding error are computed directly. Never
    more than `budget` bytes of distances are held, and less where memory runs out.
    Raises ValueError when the bank has fewer than k rows.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"{k} neighbours asked of a bank of {len(bank)}")
    queries, bank = queries.float(), bank.float()
    mean = bank.mean(0)  # distances do not change by a shift, and shorter vectors lose less to rounding
    centred = bank - mean
    norms = centred.square().sum(1)
    longest = norms.max()

    def block(some: Tensor) -> tuple[Tensor, Tensor]:
        shifted = some - mean
        own = shifted.square().sum(1, keepdim=True)
        screened = torch.addmm(norms.unsqueeze(0), shifted, centred.T, alpha=-2)  # less |query|^2, equal in a row
        # a sum of D rounded products is off by at most about D units in the last place of its largest terms
        error = (bank.shape[1] + 8) * 2.0**-23 * (own + longest)
        least = screened.amin(1, keepdim=True) if k == 1 else screened.kthvalue(k, dim=1, keepdim=True).values
        rows, columns = (screened <= least + 2 * error).nonzero(as_tuple=True)
        return _nearest(some, bank, rows, columns, k, budget)

    found = in_parts(block, queries, max(1, budget // (4 * len(bank))), "neighbours are searched for")
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _nearest(block: Tensor, bank: Tensor, rows: Tensor, columns: Tensor, k: int, budget: int) -> tuple[Tensor, Tensor]:
    """Of the candidate pairs (each row has at least k), the k nearest per row by distances computed directly."""
    step = max(1, budget // (16 * bank.shape[1]))
    exact = torch.cat([
        (block[r].double() - bank[c].double()).square_().sum(1)
        for r, c in zip(rows.split(step), columns.split(step), strict=True)
    ]).sqrt_().float()
    order = exact.argsort(stable=True)  # columns rise within a row, so equal distances keep the lowest first
    order = order[rows[order].argsort(stable=True)]
    counts = torch.bincount(rows, minlength=len(block))
    pick = (counts.cumsum(0) - counts).unsqueeze(1) + torch.arange(k, device=rows.device)
    chosen = order[pick]
    return exact[chosen], columns[chosen]
