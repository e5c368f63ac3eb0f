"""Coordinates of points in the few directions along which they spread most."""

from __future__ import annotations

import torch
from torch import Tensor

HEAD = 32  # leading directions in which distances are first bounded from below


def leading(points: Tensor) -> tuple[Tensor, float]:
    """Coordinates float32 [N, HEAD] in orthonormal leading directions, and what a length in them may be off by.

    Any orthonormal directions give valid bounds; those of largest variance, found here roughly by subspace iteration
    on a sample, give close ones.
    """
    sample = points[:: max(1, len(points) // 4096)].double()
    mean = sample.mean(0)
    covariance = (sample - mean).T @ (sample - mean)
    basis = torch.randn(len(mean), min(HEAD, len(mean)), generator=torch.Generator().manual_seed(0)).to(mean)
    for _ in range(5):
        basis = torch.linalg.qr(covariance @ basis + 1e-12 * basis)[0]
    heads, longest = [], 0.0
    for part in points.split(1 << 14):
        centred = part - mean.float()
        longest = max(longest, float(centred.norm(dim=1).max()))
        heads.append(centred @ basis.float())
    # a float32 product of D terms is off by at most D units in the last place, in each of HEAD coordinates and at
    # both ends of a difference
    slack = 2 * (len(mean) + 4) * 2.0**-24 * HEAD**0.5 * longest
    return torch.cat(heads), slack
