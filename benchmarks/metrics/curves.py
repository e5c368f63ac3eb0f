"""Curves for plots: all points of a rank curve, thinned without moving its area."""

from __future__ import annotations

import heapq

import numpy as np

AREA = 1e-6
"""Largest change of the area under a curve, up to any of its points, through thinning."""


class Curve:
    """Collects the points of FPR against TPR, and against the mean overlap of regions, from the highest score on.

    points: how many to keep at least, if there are so many; more if the area would change by more than AREA.
    background, positives, regions: what the counts are divided by.
    """

    def __init__(self, points: int, background: int, positives: int, regions: int) -> None:
        self._points = max(points, 2)
        self._scale = np.array([background, positives, max(regions, 1)], np.float64)[:, None]
        self._kept = [np.zeros((3, 1))]
        self._end = np.zeros(3)

    def add(self, greater: np.ndarray, not_below: np.ndarray, found: np.ndarray, overlap: np.ndarray | None) -> None:
        """Counts for the ascending scores of a block: background > and >= the score, positives and overlap at it."""
        size = greater.size
        rises = np.stack((found, np.zeros(size) if overlap is None else overlap))[:, ::-1]
        after = self._end[1:, None] + np.cumsum(rises, axis=1)
        points = np.empty((3, 2 * size))
        points[0, ::2], points[0, 1::2] = greater[::-1], not_below[::-1]
        points[1:, ::2], points[1:, 1::2] = np.column_stack((self._end[1:], after[:, :-1])), after
        self._end = points[:, -1].copy()
        points /= self._scale
        start = self._kept[-1][:, -1:]
        share = float((points[:, -1:] - start).sum()) / 3
        self._kept.append(_thin(np.hstack((start, points)), 2, AREA / 4 * share)[:, 1:])

    def result(self) -> np.ndarray:
        """float64 [3, n]: FPR, TPR, mean overlap, from (0, 0, 0) to (1, 1, 1)."""
        last = np.array([[1.0], [1.0], [self._kept[-1][2, -1]]])
        points = np.hstack((*self._kept, last))
        new = np.concatenate(([True], (np.diff(points, axis=1) != 0).any(0)))
        return _thin(points[:, new], self._points, AREA / 2)


def _thin(points: np.ndarray, count: int, tolerance: float) -> np.ndarray:
    """A subset of the points [3, n] of two curves over a common axis: at least `count` of them, and as many as it takes
    to keep the sum of the areas between curve and chords below the tolerance. Splits the worst chord first."""
    x = points[0]
    areas = np.zeros((2, x.size))
    np.cumsum(np.diff(x) * (points[1:, 1:] + points[1:, :-1]) / 2, axis=1, out=areas[:, 1:])
    way = points.sum(0)

    def off(i: int, j: int) -> float:
        chord = (x[j] - x[i]) * (points[1:, i] + points[1:, j]) / 2
        return float(np.abs(areas[:, j] - areas[:, i] - chord).max())

    last = x.size - 1
    keep = {0, last}
    total = off(0, last)
    heap = [(-total, 0, last)]
    while heap and (len(keep) < count or total > tolerance):
        worst, i, j = heapq.heappop(heap)
        if j - i < 2:
            continue
        middle = min(max(int(np.searchsorted(way, (way[i] + way[j]) / 2)), i + 1), j - 1)
        keep.add(middle)
        total += worst
        for a, b in ((i, middle), (middle, j)):
            error = off(a, b)
            total += error
            heapq.heappush(heap, (-error, a, b))
    return points[:, sorted(keep)]
