"""Metrics of one score per image (or of any labelled scores)."""

from __future__ import annotations

import numpy as np

from benchmarks.metrics.ranks import MetricError, Ranks, exact
from benchmarks.metrics.rates import Rates


def image_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float | None = None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Metrics of scores [n] with labels [n] (0 good, 1 anomalous), None where undefined, and the reasons for that.

    Keys `image_auroc`, `image_ap`, `image_f1max`; with a threshold also those of `threshold_metrics`.
    Raises MetricError for labels and scores that do not fit together, NaN or infinite scores.
    """
    values, why, _ = rank_metrics(labels, scores)
    if threshold is not None:
        more, reasons = threshold_metrics(labels, scores, threshold)
        values, why = values | more, why | reasons
    return values, why


def rank_metrics(
    labels: np.ndarray, scores: np.ndarray, curve_points: int = 0
) -> tuple[dict[str, float | None], dict[str, str], dict[str, np.ndarray] | None]:
    """AUROC, AP and F1-max of scores [n] with labels [n] (0 good, 1 anomalous), reasons for None, and the ROC curve.

    Keys `image_auroc`, `image_ap`, `image_f1max`; the curve is None unless `curve_points` > 0.
    """
    labels, scores = check(labels, scores)
    rates = _rates(labels, scores, curve_points)
    reason = rates.why(unit="image")
    values = rates.metrics("image")
    return values, dict.fromkeys(values, reason) if reason else {}, rates.curves().get("roc")


def threshold_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float
) -> tuple[dict[str, float | None], dict[str, str]]:
    """accuracy, tpr, tnr, f1 when a score strictly greater than the threshold means anomalous; reasons for None."""
    labels, scores = check(labels, scores)
    found = scores > np.float64(threshold)  # NumPy would round a Python float to float32 beside float32 scores
    anomalous, good = int(labels.sum()), int((~labels).sum())
    hits, alarms = int((found & labels).sum()), int((found & ~labels).sum())
    values: dict[str, float | None] = dict.fromkeys(("accuracy", "tpr", "tnr", "f1"))
    why = {}
    if anomalous + good:
        values["accuracy"] = (hits + good - alarms) / (anomalous + good)
    else:
        why["accuracy"] = "no image"
    if anomalous:
        values["tpr"] = hits / anomalous
        values["f1"] = 2 * hits / (anomalous + hits + alarms)
    else:
        why["tpr"] = why["f1"] = "no anomalous image"
    if good:
        values["tnr"] = (good - alarms) / good
    else:
        why["tnr"] = "no good image"
    return values, why


def check(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """labels as bool [n] and scores as floats [n]. Raises MetricError on anything else."""
    labels, scores = np.asarray(labels).ravel(), np.asarray(scores).ravel()
    if labels.size != scores.size:
        raise MetricError(f"{labels.size} labels but {scores.size} scores")
    if labels.size and not np.isin(labels, (0, 1)).all():
        raise MetricError("labels other than 0 (good) and 1 (anomalous)")
    scores = exact("scores", scores)
    if not np.isfinite(scores).all():
        raise MetricError(f"score {int(np.flatnonzero(~np.isfinite(scores))[0])} is NaN or infinite")
    return labels.astype(bool), scores


def _rates(labels: np.ndarray, scores: np.ndarray, curve_points: int = 0) -> Rates:
    ranks = Ranks(1, [[0]])
    positive, background = scores[labels], scores[~labels]
    ranks.add_background(0, background)
    ranks.add_positive(0, positive, np.zeros(positive.size, np.int32))
    rates = Rates(background.size, positive.size, None, (), points=curve_points)
    for _, block in ranks.blocks():
        rates.add(block)
    return rates
