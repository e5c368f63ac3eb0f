"""What lies beside a record: per-image scores, curves and long training logs, read for figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks import history
from benchmarks.metrics.image import rank_metrics
from benchmarks.report.numbers.pool import Record

Arrays = Mapping[str, np.ndarray]

NEEDED = ("name", "label", "kind", "score")
CURVE = "curve."
LADDER = "ladder."  # counts of each picture, which only intervals need
POINTS = 200
LOCO = {"structural_anomalies": "structural", "logical_anomalies": "logical"}


def arrays_of(record: Record, *, counts: bool = False) -> dict[str, np.ndarray]:
    """The arrays beside the record, with `counts` also those over the ladder of thresholds.

    Empty when there are none or they cannot be read (the record itself stands).
    """
    name = (record.get("images") or {}).get("scores")
    if not name or not record.get("path"):
        return {}
    path = Path(record["path"]).parent / Path(name).name
    try:
        return dict(_read(path, path.stat().st_mtime_ns, counts))
    except (OSError, ValueError, KeyError, EOFError):
        return {}


@lru_cache(maxsize=1)  # a unit's misses and charts come from one file
def _read(path: Path, changed: int, counts: bool) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        arrays = {key: held[key] for key in held.files if counts or not key.startswith(LADDER)}
    return arrays if set(NEEDED) <= set(arrays) else {}


def image_rocs(arrays: Arrays) -> dict[str, np.ndarray]:
    """ROC of the image scores, float64 [2, n] with FPR and TPR, by which defects: '' for all, or LOCO's two kinds.

    Each kind is set against all good pictures. Kinds without a finite score or without a good picture are left out.
    """
    if not arrays:
        return {}
    label, kind = arrays["label"].astype(int), arrays["kind"].astype(str)
    score = arrays["score"].astype(np.float64)
    finite = np.isfinite(score)
    wanted = {"": label == 1}
    if set(LOCO) & set(kind):
        wanted = {short: kind == long for long, short in LOCO.items()}
    found = {}
    for name, bad in wanted.items():
        chosen = finite & (bad | (label == 0))
        if bad[chosen].any() and not bad[chosen].all():
            curve = rank_metrics(bad[chosen].astype(int), score[chosen], curve_points=POINTS)[2]
            found[name] = np.stack([curve["fpr"], curve["tpr"]])
    return found


def map_curves(arrays: Arrays) -> dict[str, np.ndarray]:
    """Stored curves [2, n] by name: 'pixel', 'pro', or for LOCO 'spro/logical' and 'spro/structural'."""
    return {
        name.removeprefix(CURVE): values for name, values in arrays.items()
        if name.startswith(CURVE) and values.ndim == 2 and values.shape[0] == 2 and values.shape[1] > 1
    }


def losses(record: Record, arrays: Arrays, *, all_series: bool = False) -> dict[str, np.ndarray]:
    """Training losses by name, float64 [epochs]; those of a method's parts only where it has none of its own.

    all_series: everything that was logged per epoch.
    """
    found = history.series(record.get("training") or {}, arrays)
    found = {name: values for name, values in found.items() if np.isfinite(values).any()}
    if all_series:
        return found
    own = {name: values for name, values in found.items() if name.endswith("loss") and "/" not in name}
    return own or {name: values for name, values in found.items() if name.endswith("loss")}


def watched(record: Record) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Shares of the training, and metrics of the test pictures by name at each (NaN where undefined), or None."""
    log = dict((record.get("training") or {}).get("watched_on_test") or {})
    done = np.asarray(log.pop("done", []), np.float64)
    series = {
        name: np.array([np.nan if v is None else v for v in values], np.float64)
        for name, values in log.items() if len(values) == done.size
    }
    series = {name: values for name, values in series.items() if np.isfinite(values).any()}
    return (done, series) if done.size and series else None


def scores_by_kind(arrays: Arrays) -> dict[str, np.ndarray]:
    """Finite image scores by kind of defect, good pictures first."""
    if not arrays:
        return {}
    kinds, score = arrays["kind"].astype(str), arrays["score"].astype(np.float64)
    label = arrays["label"].astype(int)
    order = sorted(set(kinds), key=lambda k: (bool(label[kinds == k].any()), k))
    found = {kind: score[(kinds == kind) & np.isfinite(score)] for kind in order}
    return {kind: values for kind, values in found.items() if values.size}


def reach(limit: float | None) -> float:
    """How far the axis of false positive rates goes: to 1, but for a limit that would be a sliver of it."""
    return 1.0 if limit is None or limit >= 0.3 else 4 * limit


def cut(curve: np.ndarray, end: float) -> np.ndarray:
    """A curve [2, n] up to a false positive rate, float64."""
    inside = curve[0] < end
    tail = [[end], [np.interp(end, curve[0], curve[1])]]
    return np.hstack((np.asarray(curve, np.float64)[:, inside], tail))


def area(curve: np.ndarray, limit: float = 1.0) -> float:
    """Area below a curve [2, n] up to a false positive rate, divided by it."""
    x, y = cut(curve, limit)
    return math.fsum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2) / limit
