"""The compiled steps of `models.nn.coreset`, in a file of their own because numba takes a moment to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

BLOCK = 32  # dimensions summed between two looks at the limit
MARGIN = 1.0 + 1e-6  # on squared bounds: far above the rounding of float32, so that skipping is always safe


def compiled(**options: Any) -> Callable[[Any], Any]:
    """numba's njit, kept on disk where there is a folder to write to."""

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no such folder
            return njit(**options)(function)

    return decorate


@compiled(fastmath={"reassoc", "contract", "nsz"}, nogil=True)
def squared(a, b, limit):  # type: ignore[no-untyped-def]
    """Squared distance in float64, or some value >= limit as soon as it is certain to reach it."""
    total = 0.0
    for low in range(0, a.shape[0], BLOCK):
        # slices that start at 0 let the compiler use vector instructions: four times as fast as a[i] with i from `low`
        x, y = a[low : low + BLOCK], b[low : low + BLOCK]
        part = 0.0
        for i in range(x.shape[0]):
            difference = np.float64(x[i]) - np.float64(y[i])
            part += difference * difference
        total += part
        if total >= limit:
            return total
    return total


@compiled(fastmath={"reassoc", "contract", "nsz"}, nogil=True)
def squared_head(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(a.shape[0]):
        difference = a[i] - b[i]
        total += difference * difference
    return total


@compiled(nogil=True)
def widened(limit, slack):  # type: ignore[no-untyped-def]
    """A squared length in the heads from which on the squared distance is certain to reach `limit`."""
    length = (np.sqrt(limit) + slack) * (1.0 + 1e-5)
    return np.float32(length * length)


@compiled(nogil=True)
def advance(  # type: ignore[no-untyped-def]
    points, heads, centres, slack, nearest, after, first, radius, moved, chosen, done, until, computed
):
    count = chosen.shape[0]
    for step in range(done, until):
        # the farthest of the clusters' farthest points, lowest index first
        best = count if step == 0 else 0
        for k in range(step):
            if radius[k] > radius[best] or (radius[k] == radius[best] and first[k] < first[best]):
                best = k
        new = first[best]
        chosen[step] = new
        first[best] = after[new]
        nearest[new] = -1.0
        centre = points[new]
        centres[step] = heads[new]
        size = 0

        for slot in range(max(step, 1)):
            k = count if step == 0 else slot
            between = -1.0  # the very first step has no centre to bound by
            if step > 0:
                limit = 4.0 * MARGIN * radius[k]
                if k != best and (
                    radius[k] <= 0 or squared_head(centres[step], centres[k]) >= widened(limit, slack)
                ):
                    continue
                computed[0] += 1
                between = squared(centre, points[chosen[k]], limit)
            before, point = -1, first[k]
            # the list falls in distance: from the first point that the bound spares, it spares all
            while point >= 0 and between < 4.0 * MARGIN * nearest[point]:
                current, following = nearest[point], after[point]
                distance = current
                if squared_head(centres[step], heads[point]) < widened(np.float64(current), slack):
                    computed[0] += 1
                    distance = np.float32(squared(centre, points[point], np.float64(current)))
                if distance < current:
                    nearest[point] = distance
                    moved[size] = point
                    size += 1
                    if before < 0:
                        first[k] = following
                    else:
                        after[before] = following
                else:
                    before = point
                point = following
            radius[k] = nearest[first[k]] if first[k] >= 0 else -1.0

        # the new cluster's list, by falling distance and rising index
        members = np.sort(moved[:size])
        members = members[np.argsort(-nearest[members], kind="mergesort")]
        for i in range(size):
            after[members[i]] = members[i + 1] if i + 1 < size else -1
        first[step] = members[0] if size > 0 else -1
        radius[step] = nearest[members[0]] if size > 0 else -1.0
