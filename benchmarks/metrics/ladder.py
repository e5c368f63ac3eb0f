"""Per-picture counts over a common ladder of thresholds: what draws of pictures need, in little space.

The ladder's thresholds are scores of the unit, chosen when all are known: close where curves rise and where areas end.
Counts at them are exact; between them a curve is a straight line.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from benchmarks.metrics.ranks import Ranks
from benchmarks.metrics.tensors import TensorRanks

SAMPLE = 1 << 18  # scores of each set from which the ladder is chosen
STEPS = 64  # thresholds between neighbouring limits of areas, over the false positive rate
RISES = 160  # thresholds over the mean overlap; LOCO also over the share of saturating pixels
HITS = 480  # thresholds over the share of marked pixels: F1-max lies on one of them, not between

Source = Ranks | TensorRanks


def choose(
    ranks: Source, backgrounds: int, sizes: Sequence[np.ndarray], limits: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The thresholds, descending, float64 [K], at most some 1,000 (LOCO 1,700); and bool [K + 1], cells whose marked
    pixels have one score, so that precision there is a step and no line.

    backgrounds: number of background sets. sizes: for each positive set the pixels of its regions [regions].
    """
    ends = np.unique([0.0, *limits, 1.0])
    shares = np.unique(np.concatenate([
        np.geomspace(1e-6, ends[1], STEPS), *(np.linspace(a, b, STEPS) for a, b in pairwise(ends)),
    ]))
    background = _sample([c for i in range(backgrounds) for c, _ in ranks.chunks(i)])[0]
    marked = np.zeros(0)
    chosen = [_at(background, np.ones(background.size), shares)]
    for which, pixels in enumerate(sizes):
        chunks = list(ranks.chunks(which, positive=True))
        scores, regions = _sample([c for c, _ in chunks], [r for _, r in chunks])
        if scores.size:
            chosen.append(_at(scores, 1 / np.maximum(pixels, 1)[regions], np.linspace(0, 1, RISES)))
            chosen.append(_at(scores, np.ones(scores.size), np.linspace(0, 1, RISES if which else HITS)))
        marked = marked if which else np.unique(scores)
    ladder = np.unique(np.concatenate(chosen))
    cells = ladder.size - np.searchsorted(ladder, marked, side="right")
    return ladder[::-1], np.bincount(cells, minlength=ladder.size + 1) < 2


def _sample(chunks: Sequence[np.ndarray], regions: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray]:
    step = max(1, sum(c.size for c in chunks) // SAMPLE)
    held = [c[::step].astype(np.float64) for c in chunks]
    of = [r[::step] for r in regions]
    return np.concatenate(held or [np.zeros(0)]), np.concatenate(of or [np.zeros(0, np.int32)])


def _at(scores: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The scores above which these shares of the weight lie."""
    if not scores.size:
        return scores
    order = np.argsort(-scores)
    above = np.cumsum(weights[order])
    return scores[order][np.minimum(np.searchsorted(above, shares * above[-1]), scores.size - 1)]


def background(
    ranks: Source, which: int, parts: Sequence[tuple[int, int]], ladder: np.ndarray, out: np.ndarray
) -> None:
    """Add the scores of a background set to out, int64 [pictures, K + 1], by picture and cell.

    Cell k holds the scores from threshold k up to the one before it, cell K those below all. parts: (picture, number
    of scores) in the order in which they were added.
    """
    from benchmarks.metrics.kernels import rungs

    ascending, none, one = np.ascontiguousarray(ladder[::-1]), np.zeros(0, np.int32), np.ones(1, np.int64)
    waiting = iter(parts)
    picture, left = 0, 0
    for scores, _ in ranks.chunks(which):
        start = 0
        while start < scores.size:
            if not left:
                picture, left = next(waiting)
            count = min(left, scores.size - start)
            rungs(scores[start : start + count], none, ascending, np.array([picture]), one, out)
            start, left = start + count, left - count


def positive(
    ranks: Source, which: int, rows: np.ndarray, share: np.ndarray, ladder: np.ndarray, out: np.ndarray
) -> None:
    """Add `share` [regions] for each score of a positive set to out, float64 [rows, K + 1]; rows [regions]: where."""
    from benchmarks.metrics.kernels import rungs

    ascending = np.ascontiguousarray(ladder[::-1])
    for scores, regions in ranks.chunks(which, positive=True):
        rungs(scores, regions, ascending, rows, share, out)
