"""Curves for plots, thinned to a number of points without changing their area."""

from __future__ import annotations

import heapq
from itertools import pairwise

import numpy as np


class Curve:
    """Collects the points of a rank curve from the highest score on: FPR against a share that rises from 0 to 1.

    points: most points of the result. background, total: what counts and rises are divided by.
    """

    def __init__(self, points: int, background: int, total: float) -> None:
        self._points = max(points, 3)
        self._scale = np.array([[background], [total]], np.float64)
        self._kept = [np.zeros((2, 1))]
        self._y = 0.0

    def add(self, greater: np.ndarray, not_below: np.ndarray, rises: np.ndarray) -> None:
        """For the ascending scores of a block: background counts > and >= the score, and the rise at it."""
        y = self._y + np.concatenate(([0.0], np.cumsum(rises[::-1])))
        points = np.empty((2, 2 * greater.size))
        points[0, ::2], points[0, 1::2] = greater[::-1], not_below[::-1]
        points[1, ::2], points[1, 1::2] = y[:-1], y[1:]
        self._y = float(y[-1])
        joined = np.hstack((self._kept[-1][:, -1:], points / self._scale))
        self._kept.append(thin(joined, 2 * self._points)[:, 1:])

    def result(self) -> np.ndarray:
        """float64 [2, n]: FPR and the share, from (0, 0) to (1, 1)."""
        points = np.hstack((*self._kept, np.ones((2, 1))))
        new = np.append(True, (np.diff(points, axis=1) != 0).any(0))
        # sums of shares may miss 1 by a rounding error
        return np.maximum.accumulate(np.minimum(thin(points[:, new], self._points), 1.0), axis=1)


def thin(points: np.ndarray, count: int) -> np.ndarray:
    """A rising polygon of at most `count` points [2, n] with the area of the one given, which rises too.

    Chords of the polygon are split, the one that cuts off most area first. Each chord then gets a corner on the other
    diagonal of its rectangle where it gives back the area that the chord cuts off: the area is exact at all ends of
    chords, so thinning moves no area from one to another.
    """
    x, y = points
    last = x.size - 1
    if last < count:
        return points
    areas = np.concatenate(([0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)))

    def off(i: int, j: int) -> float:
        return float(areas[j] - areas[i] - (x[j] - x[i]) * (y[i] + y[j]) / 2)

    way = x + y
    ends = {0, last}
    heap = [(-abs(off(0, last)), 0, last)]
    while heap and len(ends) <= (count - 1) // 2:
        _, i, j = heapq.heappop(heap)
        if j - i < 2:
            continue
        middle = min(max(int(np.searchsorted(way, (way[i] + way[j]) / 2)), i + 1), j - 1)
        ends.add(middle)
        for a, b in ((i, middle), (middle, j)):
            heapq.heappush(heap, (-abs(off(a, b)), a, b))
    order = sorted(ends)
    out = [points[:, :1]]
    for i, j in pairwise(order):
        width, height = x[j] - x[i], y[j] - y[i]
        if width > 0 and height > 0 and j - i > 1:
            t = min(max(2 * off(i, j) / (width * height), -1.0), 1.0)
            out.append(np.array([[x[i] + (1 - t) * width / 2], [y[i] + (1 + t) * height / 2]]))
        out.append(points[:, j : j + 1])
    return np.hstack(out)
