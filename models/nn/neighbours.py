"""Exact nearest neighbours by matrix products, a chunk of queries at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

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
        own = shifted.square().sum(1)
        screened = torch.addmm(norms.unsqueeze(0), shifted, centred.T, alpha=-2)  # less |query|^2, equal in a row
        # a sum of D rounded products is off by at most about D units in the last place of its largest terms
        error = (bank.shape[1] + 8) * 2.0**-23 * (own + longest)
        least, columns = _least(screened, min(k + 1, len(bank)))
        distances, columns = _sorted(some, bank, columns[:, :k], budget)
        if k < len(bank):
            # where the next one is as near within the error, every row of the bank that is so must be looked at
            limit = least[:, k - 1] + 2 * error
            unsure = (least[:, k] <= limit).nonzero()[:, 0]
            if len(unsure):
                rows, near = (screened[unsure] <= limit[unsure].unsqueeze(1)).nonzero(as_tuple=True)
                distances[unsure], columns[unsure] = _nearest(some[unsure], bank, rows, near, k, budget)
        return distances, columns

    found = in_parts(block, queries, max(1, budget // (4 * len(bank))), "neighbours are searched for")
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _least(screened: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` least values of each row, rising, and their columns; `screened` is as before afterwards."""
    if count != 2:
        return screened.topk(count, dim=1, largest=False)
    # twice the least is quicker than the two least
    least, column = screened.min(1, keepdim=True)
    screened.scatter_(1, column, torch.inf)
    following, second = screened.min(1, keepdim=True)
    screened.scatter_(1, column, least)
    return torch.cat([least, following], 1), torch.cat([column, second], 1)


def _sorted(block: Tensor, bank: Tensor, columns: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Exact distances to the rows `columns` [n, k] of the bank, rising, equal ones by lowest index; and the columns."""
    columns = columns.sort(1).values
    rows = torch.arange(len(block), device=block.device).repeat_interleave(columns.shape[1])
    distances, order = _exact(block, bank, rows, columns.flatten(), budget).view(columns.shape).sort(dim=1, stable=True)
    return distances, columns.gather(1, order)


def _nearest(block: Tensor, bank: Tensor, rows: Tensor, columns: Tensor, k: int, budget: int) -> tuple[Tensor, Tensor]:
    """Of the candidate pairs (each row has at least k), the k nearest per row by distances computed directly."""
    exact = _exact(block, bank, rows, columns, budget)
    order = exact.argsort(stable=True)  # columns rise within a row, so equal distances keep the lowest first
    order = order[rows[order].argsort(stable=True)]
    counts = torch.bincount(rows, minlength=len(block))
    pick = (counts.cumsum(0) - counts).unsqueeze(1) + torch.arange(k, device=rows.device)
    chosen = order[pick]
    return exact[chosen], columns[chosen]


def _exact(block: Tensor, bank: Tensor, rows: Tensor, columns: Tensor, budget: int) -> Tensor:
    """Distances float32 [P] of the pairs (block[rows], bank[columns]), summed in float64."""
    if block.device.type == "cpu" and (pairs := _kernel()) is not None:
        out = torch.empty(len(rows))
        pairs(*(tensor.contiguous().numpy() for tensor in (block, bank, rows, columns)), out.numpy())
        return out
    step = max(1, budget // (16 * bank.shape[1]))
    parts = zip(rows.split(step), columns.split(step), strict=True)
    return torch.cat([(block[r].double() - bank[c].double()).square_().sum(1) for r, c in parts]).sqrt_().float()


@cache
def _kernel() -> Any:
    """The compiled distances, or None where numba is not installed."""
    try:
        from models.nn.neighbours_kernel import pairs
    except ImportError:
        return None
    return pairs
