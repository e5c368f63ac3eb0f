"""Image and pixel metrics of anomaly detection: arrays in, numbers out, exact at full resolution.

`Scorer` gives every metric of one unit in one pass; the functions give one number each. `python -m benchmarks.metrics`
scores maps on disk. Definitions: docs/metrics.md.
"""

from __future__ import annotations

from benchmarks.metrics.deployed import aupimo, pb, pg
from benchmarks.metrics.functions import aupro, auroc, auspro, average_precision, f1_max, iou, pro
from benchmarks.metrics.image import image_metrics, threshold_metrics
from benchmarks.metrics.ranks import MetricError
from benchmarks.metrics.regions import Region
from benchmarks.metrics.scorer import LIMITS, Scorer, Scores

VERSION = 1
"""Rises when a definition changes: records made with another version are scored again."""

__all__ = [
    "LIMITS",
    "VERSION",
    "MetricError",
    "Region",
    "Scorer",
    "Scores",
    "aupimo",
    "aupro",
    "auroc",
    "auspro",
    "average_precision",
    "f1_max",
    "image_metrics",
    "iou",
    "pb",
    "pg",
    "pro",
    "threshold_metrics",
]
