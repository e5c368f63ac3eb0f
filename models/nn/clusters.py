"""k-means by Lloyd's rounds, from given means."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 8192  # vectors per product


def k_means(x: Tensor, means: Tensor, rounds: int, moved: float) -> tuple[Tensor, Tensor]:
    """Means float32 [K, C] of the clusters of vectors [N, C], and whose each vector is, int64 [N].

    means: where to start. Ends after `rounds`, or when all means together have moved by less than `moved`. An empty
    cluster keeps its mean.
    """
    for _ in range(rounds):
        own = torch.cat([torch.cdist(part, means).argmin(1) for part in x.split(BLOCK)])
        after = torch.stack([x[own == k].mean(0) if (own == k).any() else means[k] for k in range(len(means))])
        shift, means = float((after - means).norm()), after
        if shift < moved:
            break
    return means, own
