"""Image and pixel metrics of anomaly detection: arrays in, numbers out, exact at full resolution."""

from __future__ import annotations

from benchmarks.metrics.image import image_metrics, threshold_metrics
from benchmarks.metrics.ranks import MetricError
from benchmarks.metrics.regions import Region
from benchmarks.metrics.scorer import LIMITS, Scorer, Scores

VERSION = 1
"""Rises when a definition changes: records made with another version are scored again."""

__all__ = ["LIMITS", "VERSION", "MetricError", "Region", "Scorer", "Scores", "image_metrics", "threshold_metrics"]
