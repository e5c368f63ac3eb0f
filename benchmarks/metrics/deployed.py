"""What those who deploy ask: good parts passed, defects caught, and defects found where false alarms are rare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from benchmarks.metrics.image import check
from benchmarks.metrics.ranks import MetricError, exact
from benchmarks.metrics.regions import check_mask


def pg(labels: np.ndarray, scores: np.ndarray, missed: float = 0.02) -> float | None:
    """Share of good parts that pass when a share `missed` of the defects does (Baitieva et al. 2025, PG2).

    labels [n] (0 good, 1 anomalous), scores [n]. The threshold is the `missed` quantile of the anomalous scores,
    interpolated between neighbours; a good part passes with a score strictly below it. None without good or anomalous
    scores. Raises MetricError for labels and scores that do not fit together and a share outside [0, 1].
    """
    labels, scores = check(labels, scores)
    if labels.all() or not labels.any():
        return None
    return float(np.mean(scores[~labels] < _quantile(scores[labels], missed)))


def pb(labels: np.ndarray, scores: np.ndarray, alarms: float = 0.02) -> float | None:
    """Share of defects that are caught when a share `alarms` of the good parts is taken for defective (PB2).

    As `pg`: the threshold is the 1 - `alarms` quantile of the good scores; a score strictly above it is caught.
    """
    labels, scores = check(labels, scores)
    if labels.all() or not labels.any():
        return None
    return float(np.mean(scores[labels] > _quantile(scores[~labels], alarms, upper=True)))


def _quantile(scores: np.ndarray, share: float, upper: bool = False) -> np.float64:
    """The share quantile (upper: 1 - share) at place share * (n - 1). The place is a fraction of the number as it is
    written: in floats 0.02 * 50 may fall beside the score that it means, and equal scores would be judged by that."""
    if not 0 <= share <= 1:
        raise MetricError(f"a share of {share} does not lie in [0, 1]")
    ordered = np.sort(scores).astype(np.float64)
    place = (1 - Fraction(str(share)) if upper else Fraction(str(share))) * (ordered.size - 1)
    low = math.floor(place)
    if place == low:
        return ordered[low]
    return ordered[low] + float(place - low) * (ordered[low + 1] - ordered[low])


def aupimo(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], bounds: tuple[float, float] = (1e-5, 1e-4)
) -> tuple[float | None, list[float | None]]:
    """AUPIMO (Bertoldo et al. 2024): the mean over anomalous pictures, and each picture's own (None if good).

    maps, masks: [H, W] each, sizes may differ; a mask marks values above 0, None or an empty one: good picture.
    The false positive rate of a threshold is the mean over good pictures of the share of pixels not below it. A
    picture's value is the mean over the logarithm of that rate, from bounds[0] to bounds[1], of the share of its marked
    pixels not below the threshold. Every score is a threshold; neighbouring points are joined by straight lines over
    the logarithm, and from a rate of 0 on by the level that the curve has there, which is the limit of those lines.
    None without good or without anomalous pictures. Raises MetricError that names the map.
    """
    low, high = bounds
    if not 0 < low < high <= 1:
        raise MetricError(f"bounds {bounds} are not 0 < lower < upper <= 1")
    if len(maps) != len(masks):
        raise MetricError(f"as many masks as maps are needed: {len(masks)} and {len(maps)}")
    good, marked = [], {}
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        scores = exact(f"map {i}", np.asarray(scores))
        if not scores.size or not np.isfinite(scores).all():
            raise MetricError(f"map {i} has no pixels, or holds NaN or infinite scores")
        truth = None if mask is None else check_mask(f"map {i}", mask, scores.shape)
        if truth is None or not truth.any():
            good.append(scores.ravel())
        else:
            marked[i] = np.sort(scores[truth])
    if not good or not marked:
        return None, [None] * len(maps)
    thresholds, rates = _false_positives(good, high)
    values = [_area(marked[i], thresholds, rates, low, high) if i in marked else None for i in range(len(maps))]
    return math.fsum(values[i] for i in marked) / len(marked), values


def _false_positives(good: Sequence[np.ndarray], high: float) -> tuple[np.ndarray, np.ndarray]:
    """Distinct scores of the good pictures from the highest on, and their rates, up to the first that reaches `high`.

    Only a picture's `high` * pictures highest scores can lie above that one.
    """
    tops = []
    for scores in good:
        count = min(scores.size, math.ceil(high * len(good) * scores.size) + 1)
        tops.append(np.sort(scores[scores >= np.partition(scores, scores.size - count)[scores.size - count]]))
    thresholds = np.unique(np.concatenate(tops))
    counts: dict[int, np.ndarray] = {}  # by the size of the picture: integers, so that equal sizes give exact rates
    for scores, top in zip(good, tops, strict=True):
        found = top.size - np.searchsorted(top, thresholds, side="left")
        counts[scores.size] = counts.get(scores.size, 0) + found
    rates = sum(found / (size * len(good)) for size, found in counts.items())
    thresholds, rates = thresholds[::-1], rates[::-1]
    last = int(np.argmax(rates >= high)) + 1
    return thresholds[:last], rates[:last]


def _area(hits: np.ndarray, thresholds: np.ndarray, rates: np.ndarray, low: float, high: float) -> float:
    """Mean share of the ascending scores `hits` between the bounds, over the logarithm of the rate."""
    above = 1 - np.searchsorted(hits, thresholds, side="right") / hits.size  # just before the rate rises, and after
    not_below = 1 - np.searchsorted(hits, thresholds, side="left") / hits.size
    area = (math.log(min(rates[0], high)) - math.log(low)) * above[0] if rates[0] > low else 0.0
    x, start, stop = np.log(rates), math.log(low), math.log(high)
    x0, x1 = np.clip(x[:-1], start, stop), np.clip(x[1:], start, stop)
    slope = (not_below[1:] - above[1:]) / np.diff(x)
    y0, y1 = above[1:] + slope * (x0 - x[:-1]), above[1:] + slope * (x1 - x[:-1])
    return float(area + math.fsum((x1 - x0) * (y0 + y1) / 2)) / (stop - start)
