"""Exact nearest neighbours by matrix products, a block of queries at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from models.nn.memory import in_parts

BUDGET = 64 << 20  # bytes of one block of screened distances
ROWS = 1024  # queries of a block on a CPU at most, so that it stays in the cache
GROUPS = 4  # groups of the bank per neighbour asked for: few of the k nearest then share one
WIDE = 8  # candidates of a row per neighbour asked for, up to which they are sorted in a table


def knn(queries: Tensor, bank: Tensor, k: int = 1, budget: int = BUDGET) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `bank` float32 [M, D] for each of `queries` float32 [N, D], in Euclidean distance.

    Returns distances float32 [N, k], rising, and indices int64 [N, k]; equal distances by lowest index. A matrix
    product screens all pairs; those that may be among the k within its rounding error are computed directly. Never
    more than `budget` bytes of distances are held, and less where memory runs out.
    Raises ValueError when the bank has fewer than k rows.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"{k} neighbours asked of a bank of {len(bank)}")
    queries, bank = queries.float(), bank.float().contiguous()
    mean = bank.mean(0)  # distances do not change by a shift, and shorter vectors lose less to rounding
    centred = bank - mean
    norms = centred.square().sum(1)
    longest = norms.max()

    def block(some: Tensor) -> tuple[Tensor, Tensor]:
        shifted = some - mean
        own = torch.linalg.vector_norm(shifted, dim=1).square()
        screened = torch.addmm(norms.unsqueeze(0), shifted, centred.T, alpha=-2)  # less |query|^2, equal in a row
        # a sum of D rounded products is off by at most about D units in the last place of its largest terms
        error = (bank.shape[1] + 8) * 2.0**-23 * (own + longest)
        limit = _bound(screened, k) + 2 * error
        if some.device.type == "cpu" and (nearest := _kernel()) is not None:
            out = torch.full((len(some), k), torch.inf), torch.zeros(len(some), k, dtype=torch.int64)
            nearest(*(tensor.numpy() for tensor in (some.contiguous(), bank, screened, limit, *out)))
            return out
        rows, near = (screened <= limit.unsqueeze(1)).nonzero(as_tuple=True)
        return _nearest(some, bank, rows, near, k, budget)

    rows = max(1, budget // (4 * len(bank)))
    rows = min(rows, ROWS) if queries.device.type == "cpu" else rows
    found = in_parts(block, queries, rows, "neighbours are searched for")
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _bound(screened: Tensor, k: int) -> Tensor:
    """For each row [n, M] a value that at least k of its entries do not exceed, mostly the k-th least itself.

    It is the k-th least among the minima of groups of entries, which is far quicker to find than among all.
    """
    if k == 1:
        return screened.amin(1)
    size = max(1, screened.shape[1] // (GROUPS * k))
    groups = screened.shape[1] // size
    least = screened[:, : size * groups].view(len(screened), size, groups).amin(1) if size > 1 else screened
    return least.topk(k, dim=1, largest=False).values[:, -1]


def _nearest(block: Tensor, bank: Tensor, rows: Tensor, columns: Tensor, k: int, budget: int) -> tuple[Tensor, Tensor]:
    """Of the candidate pairs (each row has at least k), the k nearest per row by distances computed directly."""
    exact = _exact(block, bank, rows, columns, budget)
    counts = torch.bincount(rows, minlength=len(block))
    most = int(counts.max())
    if most > WIDE * k:  # equal rows in the bank: a table of candidates would be mostly empty
        order = exact.argsort(stable=True)  # columns rise within a row, so equal distances keep the lowest first
        order = order[rows[order].argsort(stable=True)]
        chosen = order[(counts.cumsum(0) - counts).unsqueeze(1) + torch.arange(k, device=rows.device)]
        return exact[chosen], columns[chosen]
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    table = exact.new_full((len(block), most), torch.inf)
    table[rows, place] = exact
    found = columns.new_zeros(table.shape)
    found[rows, place] = columns
    if most == 1:
        return table, found
    distances, order = table.sort(dim=1, stable=True)
    return distances[:, :k], found.gather(1, order[:, :k])


def _exact(block: Tensor, bank: Tensor, rows: Tensor, columns: Tensor, budget: int) -> Tensor:
    """Distances float32 [P] of the pairs (block[rows], bank[columns]), summed in float64."""
    step = max(1, budget // (16 * bank.shape[1]))
    parts = zip(rows.split(step), columns.split(step), strict=True)
    return torch.cat([(block[r].double() - bank[c].double()).square_().sum(1) for r, c in parts]).sqrt_().float()


@cache
def _kernel() -> Any:
    """The compiled search, or None where numba is not installed."""
    try:
        from models.nn.neighbours_kernel import nearest
    except ImportError:
        return None
    return nearest
