"""One number from arrays, for those who need no `Scorer`. All return None where the metric is undefined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.metrics.image import rank_metrics
from benchmarks.metrics.ranks import MetricError
from benchmarks.metrics.regions import Region
from benchmarks.metrics.scorer import LIMITS, Scorer, Scores


def auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Probability that an anomalous score is greater than a good one, equal ones counting half. Any shape."""
    return rank_metrics(labels, scores)[0]["image_auroc"]


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Sum over the distinct scores of precision times the rise of recall, as scikit-learn's."""
    return rank_metrics(labels, scores)[0]["image_ap"]


def f1_max(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Greatest F1 over all thresholds."""
    return rank_metrics(labels, scores)[0]["image_f1max"]


def aupro(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], limits: Sequence[float] = LIMITS
) -> dict[float, float | None]:
    """AUPRO by FPR limit. maps, masks: [H, W] each, sizes may differ; a mask marks values above 0, None: good image."""
    metrics = _ad(maps, masks, limits=limits).metrics
    return {limit: metrics[f"aupro@{limit:g}"] for limit in limits}


def auspro(
    maps: Sequence[np.ndarray], regions: Sequence[Sequence[Region]], limits: Sequence[float] = LIMITS
) -> dict[float, float | None]:
    """AUsPRO by FPR limit of images of one anomaly type and good images. regions: those of each map, good: none."""
    scorer = Scorer(loco=True, limits=limits)
    for i, (scores, held) in enumerate(zip(maps, regions, strict=True)):
        kind = "logical_anomalies" if held else "good"
        scorer.add(f"map {i}", label=int(bool(held)), kind=kind, anomaly_map=scores, score=None, regions=held)
    metrics = scorer.result().metrics
    return {limit: metrics[f"auspro@{limit:g}/logical"] for limit in limits}


def pro(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], threshold: float) -> float | None:
    """Mean over regions of the share of pixels with a score strictly greater than the threshold."""
    return _ad(maps, masks, pixel_threshold=threshold).metrics["pixel_pro"]


def iou(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], threshold: float) -> float | None:
    """Intersection over union of marked pixels and those with a score strictly greater, over all images together."""
    return _ad(maps, masks, pixel_threshold=threshold).metrics["pixel_iou"]


def _ad(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray | None], **options: object) -> Scores:
    if len(maps) != len(masks):
        raise MetricError(f"as many masks as maps are needed: {len(masks)} and {len(maps)}")
    scorer = Scorer(**options)  # type: ignore[arg-type]
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        label = int(mask is not None and bool(np.any(np.asarray(mask) > 0)))
        scorer.add(f"map {i}", label=label, kind="test", anomaly_map=scores, score=None, mask=mask)
    return scorer.result()
