"""From positions to areas: AUROC, AP, F1-max and the area under PRO or sPRO, all without a threshold grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.metrics.curves import Curve
from benchmarks.metrics.ranks import Block


class Rates:
    """Sums up the blocks of one positive set.

    background, positives: numbers of scores. saturation: int64 [regions], pixels of each region that make its full
    overlap, or None if only pixel metrics are wanted. limits: FPR limits of the areas. regions: those of this set (the
    mean of a curve). points: > 0 for a curve.

    A pixel with a background scores above it and b not below it (a < b only for ties) raises the overlap of its region
    by 1 / saturation along the straight line from FPR a/N to b/N. The area below this ramp up to FPR l/N is 0 for
    l <= a, l - (a + b) / 2 for l >= b, and (l - a)^2 / (2 (b - a)) between; the area below the curve is the sum over
    pixels. At most one distinct score lies between, so all but its share is a sum of integers, whatever the order.
    """

    def __init__(
        self,
        background: int,
        positives: int,
        saturation: np.ndarray | None,
        limits: Sequence[float],
        regions: int = 0,
        points: int = 0,
    ) -> None:
        self.background, self.positives, self.saturation = background, positives, saturation
        self._ends = [limit * background for limit in limits]
        shape = (0 if saturation is None else saturation.size, len(self._ends))
        # By region and limit: pixels with b <= l, their sums of a + b, and the share of the tie that l cuts.
        self._full = np.zeros(shape, np.int64)
        self._sums = np.zeros(shape, np.int64)
        self._cut = np.zeros(shape)
        self._wrong = 0  # sum over positives of a + b: twice the pairs in the wrong order
        self._found = 0  # positives in blocks so far
        self._precision = 0  # sum over positives of precision, in units of 2^-52: the same whatever the blocks
        self._f1max = 0.0
        drawn = points > 0 and background > 0 and positives > 0
        self._tpr = Curve(points, background, positives) if drawn else None
        self._overlap = Curve(points, background, regions) if drawn and saturation is not None else None

    def add(self, block: Block) -> None:
        """The next block, with lower scores than those before."""
        pairs = block.greater + block.not_below
        found = np.bincount(block.index, weights=block.counts).astype(np.int64)
        self._wrong += int(found @ pairs)
        hits = self._found + np.cumsum(found[::-1])[::-1]  # positives not below each score
        self._found = int(hits[0])
        precision = np.rint(hits / (hits + block.not_below) * 2.0**52).astype(np.int64)
        self._precision += (int(found @ (precision >> 26)) << 26) + int(found @ (precision & (1 << 26) - 1))
        self._f1max = max(self._f1max, float((2 * hits / (self.positives + hits + block.not_below)).max()))
        if not self.background:
            return
        if self.saturation is not None:
            self._add_areas(block, pairs)
        if self._tpr is not None:
            self._tpr.add(block.greater, block.not_below, found)
        if self._overlap is not None:
            shares = block.counts / np.maximum(self.saturation, 1)[block.regions]
            self._overlap.add(block.greater, block.not_below, np.bincount(block.index, weights=shares))

    def _add_areas(self, block: Block, pairs: np.ndarray) -> None:
        size = self.saturation.size
        stop = block.index.size
        full, sums = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for column in sorted(range(len(self._ends)), key=lambda i: self._ends[i]):
            end = self._ends[column]
            # not_below falls with the score: from `first` on, pixels count in full
            first = block.not_below.size - int(np.searchsorted(block.not_below[::-1], end, side="right"))
            start = int(np.searchsorted(block.index, first))
            if start < stop:
                part = np.s_[start:stop]
                regions, counts = block.regions[part], block.counts[part]
                full = full + np.bincount(regions, weights=counts, minlength=size).astype(np.int64)
                weights = counts * pairs[block.index[part]]
                sums = sums + np.bincount(regions, weights=weights, minlength=size).astype(np.int64)
                stop = start
            self._full[:, column] += full
            self._sums[:, column] += sums
            if first and block.greater[first - 1] < end:
                low, high = int(block.greater[first - 1]), int(block.not_below[first - 1])
                part = np.s_[int(np.searchsorted(block.index, first - 1)) : start]
                tied = np.bincount(block.regions[part], weights=block.counts[part], minlength=size)
                self._cut[:, column] += tied * ((end - low) ** 2 / (2 * (high - low)))

    @property
    def areas(self) -> np.ndarray:
        """float64 [regions, limits]: area below each region's overlap up to the limit, divided by the limit."""
        ends = np.array(self._ends)
        with np.errstate(divide="ignore", invalid="ignore"):
            areas = (self._full * ends - self._sums / 2 + self._cut) / (self.saturation[:, None] * ends)
        return np.clip(areas, 0.0, 1.0)

    def why(self, prefix: str = "", unit: str = "pixel") -> str | None:
        """Why nothing can be measured, or None."""
        if not self.positives:
            return f"no {prefix}anomalous {unit}"
        if not self.background:
            return f"no {'good image' if unit == 'image' else 'defect-free pixel'}"
        return None

    def metrics(self, prefix: str) -> dict[str, float | None]:
        """`<prefix>_auroc`, `_ap`, `_f1max`; None where undefined. AP is the step-wise sum of precision."""
        if self.why():
            return dict.fromkeys((f"{prefix}_auroc", f"{prefix}_ap", f"{prefix}_f1max"))
        pairs = 2 * self.background * self.positives
        return {
            f"{prefix}_auroc": (pairs - self._wrong) / pairs,
            f"{prefix}_ap": self._precision / (self.positives << 52),
            f"{prefix}_f1max": self._f1max,
        }

    def curves(self, overlap: str = "pro") -> dict[str, dict[str, np.ndarray]]:
        """`roc` with float64 arrays `fpr` and `tpr`; if there are regions also `pro`, with their mean overlap under the
        name given. Empty if undefined or not asked for."""
        held = (("roc", "tpr", self._tpr), ("pro", overlap, self._overlap))
        return {name: dict(zip(("fpr", axis), c.result(), strict=True)) for name, axis, c in held if c is not None}
