"""Greedy k-centre selection (Sener & Savarese 2018; PatchCore, Roth et al. 2022, Alg. 1), exact and fast.

The rule: starting from one point, take again and again the point that is farthest from all points taken; ties go to
the lowest index, and a point is taken once. A plain implementation computes every distance to every new centre. Here
points are kept in clusters by their nearest centre, and by the triangle inequality a new centre c cannot come nearer
to a point p with nearest centre a when d(c, a) >= 2 d(p, a). So most clusters are skipped by their radius, most points
of the others by their own distance. Whether a bound is reached shows mostly in a few leading directions of the data,
where distances can only be smaller; the whole sum runs for the rest, and stops as soon as it exceeds what it must beat.

Every squared distance is summed in float64 and rounded to float32 before it is compared, so that the result does not
hang on the order of summation and all forms in this file select the same points.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.base import Progress, no_progress
from models.nn.leading import leading

STEPS = 256  # selections between two progress calls


def greedy_coreset(
    features: Tensor,
    count: int,
    *,
    start: int,
    progress: Progress = no_progress,
    stats: dict[str, Any] | None = None,
) -> Tensor:
    """Indices int64 [count] of the coreset of `features` float32 [N, D], in the order of selection, on its device.

    start: the first point taken. stats: filled with 'distances' (computed, many of them only in part), 'share' of the
    N * count that the plain rule computes, and 'curve', a list of (selected, share within the steps since the last).
    On the CPU the extra memory is 144 bytes a point. On other devices, and where numba is absent, a form in tensor
    operations runs (`models.nn.coreset_device`), which waits for the host once in STEPS selections.
    Raises ValueError when count or start is out of range or a feature is not finite.
    """
    points = features.detach().float().contiguous()
    if points.ndim != 2 or not 1 <= count <= len(points) or not 0 <= start < len(points):
        raise ValueError(f"cannot select {count} of {tuple(points.shape)} features from start {start}")
    if not torch.isfinite(points.sum()) and not torch.isfinite(points).all():
        raise ValueError("features are not finite")
    if points.device.type == "cpu" and (advance := _kernel()) is not None:
        return torch.from_numpy(_pruned(points.numpy(), count, start, advance, progress, stats))
    from models.nn.coreset_device import select

    return select(points, count, start, progress, stats)


def plain_greedy(features: Tensor, count: int, *, start: int) -> Tensor:
    """The rule as it reads, for comparison: every distance of every step, with NumPy."""
    points = features.numpy().astype(np.float64)
    nearest = np.full(len(points), np.inf, np.float32)
    chosen = [start]
    while True:
        distance = np.square(points - points[chosen[-1]]).sum(1).astype(np.float32)
        nearest = np.minimum(nearest, distance)
        nearest[chosen[-1]] = -1  # taken
        if len(chosen) == count:
            return torch.tensor(chosen)
        chosen.append(int(nearest.argmax()))


def _pruned(
    points: np.ndarray, count: int, start: int, advance: Any, progress: Progress, stats: dict[str, Any] | None
) -> np.ndarray:
    """Clusters and bounds, in compiled steps.

    A cluster is a linked list of its points, farthest first: `first` by cluster, then `after` by point.
    """
    total = len(points)
    found, slack = leading(torch.from_numpy(points))
    heads = found.numpy()
    centres = np.zeros((count, heads.shape[1]), np.float32)  # heads of the chosen points, side by side
    nearest = np.full(total, np.inf, np.float32)  # squared distance to the own centre; -1 once taken
    after = np.arange(1, total + 1, dtype=np.int32)
    first = np.full(count + 1, -1, np.int32)
    radius = np.full(count + 1, -1, np.float32)
    moved = np.zeros(total, np.int32)
    chosen = np.zeros(count, np.int64)
    computed = np.zeros(1, np.int64)
    # before the first step all points are in a cluster without a centre (the last slot), `start` in front
    first[count], radius[count] = start, np.inf
    after[-1] = -1
    if start > 0:
        after[start - 1] = after[start]
        after[start] = 0
    curve = []
    done = 0
    while done < count:
        until = min(count, done + STEPS if done >= STEPS else max(done * 2, 16))
        before = int(computed[0])
        advance(
            points, heads, centres, slack, nearest, after, first, radius, moved, chosen, done, until, computed
        )
        curve.append((until, (int(computed[0]) - before) / (total * (until - done))))
        done = until
        progress(done, count)
    if stats is not None:
        stats.update(distances=int(computed[0]), share=int(computed[0]) / (total * count), curve=curve)
    return chosen


@cache
def _kernel() -> Any:
    """The compiled steps, or None where numba is not installed (the dense form then runs)."""
    try:
        from models.nn.coreset_kernel import advance
    except ImportError:
        return None
    return advance
