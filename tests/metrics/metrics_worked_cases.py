"""Small cases where other implementations differ: `PYTHONPATH=. python tests/metrics/metrics_worked_cases.py`.

Prints the rows of the table in docs/metrics.md. Rows against anomalib need it installed; rows against the official
MVTec code take its numbers from the golden vectors and are left out where those are absent.
"""

from __future__ import annotations

from collections.abc import Iterator

import metrics_golden as golden
import numpy as np
from scipy.ndimage import label

from benchmarks.metrics import Region, Scorer, aupro, auroc, auspro, average_precision, f1_max, image_metrics, iou, pro

Row = tuple[str, str, float | None, float | None]


def maps(seed: int, skew: float = 1.0, raised: float = 1.5) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Six maps 64 x 64, two of them good, scores exp(skew * noise) with one wide and one small defect each."""
    rng = np.random.default_rng(seed)
    scores, masks = [], []
    for i in range(6):
        mask = np.zeros((64, 64), bool)
        if i >= 2:
            mask[5:30, 8:40] = True
            mask[50:54, 50:54] = True
        scores.append(np.exp(skew * (rng.standard_normal((64, 64)) + raised * mask)).astype(np.float32))
        masks.append(mask if i >= 2 else None)
    return scores, masks


def pooled(scores: list[np.ndarray], masks: list[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
    truth = [np.zeros(s.shape, bool) if m is None else m for s, m in zip(scores, masks, strict=True)]
    return np.concatenate([t.ravel() for t in truth]), np.concatenate([s.ravel() for s in scores])


def grid_aupro(scores: list[np.ndarray], masks: list[np.ndarray | None], limit: float = 0.3, steps: int = 200) -> float:
    """The widespread way: evenly spaced thresholds, points with FPR below the limit, FPR stretched to [0, 1]."""
    labels, every = pooled(scores, masks)
    fpr, overlap = [], []
    for threshold in np.linspace(every.min(), every.max(), steps):
        shares = []
        for s, m in zip(scores, masks, strict=True):
            numbers, count = label(np.zeros(s.shape) if m is None else m, np.ones((3, 3)))
            shares += [(s[numbers == k + 1] > threshold).mean() for k in range(count)]
        fpr.append((every[~labels] > threshold).mean())
        overlap.append(np.mean(shares))
    x, y = np.array(fpr), np.array(overlap)
    x, y = x[x < limit], y[x < limit]
    x = (x - x.min()) / (x.max() - x.min())
    return float(np.trapezoid(y[::-1], x[::-1]))


def anomalib_rows() -> Iterator[Row]:
    import torch
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max
    from anomalib.post_processing import PostProcessor

    def run(metric, labels, scores):
        metric.update(torch.as_tensor(np.asarray(scores)), torch.as_tensor(np.asarray(labels)).int())
        return float(metric.compute())

    labels, scores = np.array([0, 0, 1, 1]), np.array([50.0, 51.0, 60.0, 70.0], np.float32)
    other = "anomalib 2.7: sigmoid of raw distances"
    yield "image AUROC", f"{other} 50 to 70", auroc(labels, scores), run(_AUROC(), labels, scores)
    yield "image AP", f"{other} 50 to 70", average_precision(labels, scores), run(_AUPR(), labels, scores)
    rng = np.random.default_rng(4)
    truth, many = rng.integers(0, 2, 999), rng.random(999, dtype=np.float32)
    yield "image F1-max", "anomalib 2.7: float32 rates", f1_max(truth, many), run(_F1Max(), truth, many)
    held, masks = maps(0)
    labels, every = pooled(held, masks)
    good = torch.tensor([float(every[~labels].min()), float(every[~labels].max())])
    clamped = PostProcessor._normalize(torch.from_numpy(every), good[0], good[1], good[1]).numpy()
    where = "anomalib 2.7: maps normalised and clamped first, threshold at the good maximum"
    yield "pixel AUROC", where, auroc(labels, every), auroc(labels, clamped)
    close = [1 + 1e-9 * np.log(s.astype(np.float64)) for s in held]
    metric = _AUPRO(fpr_limit=0.3)
    for s, m in zip(close, masks, strict=True):
        mask = torch.zeros(s.shape) if m is None else torch.from_numpy(m)
        metric.update(torch.from_numpy(s)[None], mask[None].int())
    yield "AUPRO@0.3", "anomalib 2.7: float64 maps cut to float32", aupro(close, masks)[0.3], float(metric.compute())


def golden_rows() -> Iterator[Row]:
    for name, key, path in (
        ("ad_01_typical", "aupro@0.3", ("au_pro", "0.3")),
        ("ad_09_no_anomalous_pixel", "aupro@0.3", ("au_pro", "0.3")),
        ("loco_13_ties_16_levels", "image_auroc/mean", ("newer", "image_auroc", "mean")),
        ("loco_01_typical", "auspro@0.05/mean", ("newer", "au_spro", "mean", "0.05")),
        ("loco_01_typical", "auspro@0.01/mean", ("newer", "au_spro", "mean", "0.01")),
    ):
        value = golden.expected(name)["official"]
        for part in path:
            value = value[part]
        shown = key.replace("aupro", "AUPRO").replace("auspro", "AUsPRO").replace("image_auroc/", "LOCO image AUROC, ")
        yield shown, f"official MVTec code, golden case `{name}`", golden.score(name).metrics[key], value


def plain_rows() -> Iterator[Row]:
    for skew, what in ((0.2, "even scores"), (2.0, "skewed scores")):
        held, masks = maps(1, skew)
        where = f"200 thresholds, stretched FPR, {what}"
        yield "AUPRO@0.3", where, aupro(held, masks)[0.3], grid_aupro(held, masks)
    yield "AUPRO@0.05", where, aupro(held, masks)[0.05], grid_aupro(held, masks, 0.05)
    held, masks = maps(2)
    alone = aupro(held[2:], masks[2:])[0.3]
    brighter = [s * (3 if m is None else 1) for s, m in zip(held, masks, strict=True)]
    yield "AUPRO@0.3", "good images left out of the FPR", aupro(brighter, masks)[0.3], alone

    corner = np.zeros((20, 20), bool)
    corner[0:8, 0:8] = corner[8:10, 8:10] = True
    scores = np.where(corner, 1.0, 0.5) - np.arange(400).reshape(20, 20) / 1000
    scores[8:10, 8:10] = 0.2
    numbers, count = label(corner)
    parts = [[Region(numbers == k + 1, 1.0, True, "part") for k in range(count)]]
    four = auspro([scores], parts)[0.3]
    yield "AUPRO@0.3", "4-connected regions (SciPy's default)", aupro([scores], [corner])[0.3], four

    rng = np.random.default_rng(3)
    wide, small = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    wide[2:22, 2:22], small[22:26, 18:24] = True, True
    scores = rng.standard_normal((40, 40)) + 2 * wide - 0.3 * small
    regions = [Region(wide, 100, False, "missing"), Region(small, 1.0, True, "scratch")]
    merged = aupro([scores], [wide | small])[0.05]
    where = "channels merged into one mask, PRO instead of sPRO"
    yield "AUsPRO@0.05", where, auspro([scores], [regions])[0.05], merged

    scorer = Scorer(loco=True)
    kinds = ["good"] * 4 + ["logical_anomalies"] * 2 + ["structural_anomalies"] * 6
    for i, (kind, score) in enumerate(zip(kinds, [1, 2, 3, 4, 2.5, 0.5, 5, 6, 7, 8, 9, 3.5], strict=True)):
        scorer.add(str(i), label=int(kind != "good"), kind=kind, anomaly_map=None, score=score)
    found = scorer.result().metrics
    yield "LOCO image AUROC", "pooled over types", found["image_auroc/mean"], found["image_auroc/pooled"]

    labels, tied = np.array([0, 0, 0, 1]), np.array([0.2, 0.5, 0.5, 0.9])
    found = image_metrics(labels, tied, threshold=0.5)[0]["accuracy"]
    yield "accuracy", "`>=` the greatest good score as threshold", found, float(((tied >= 0.5) == labels).mean())
    anomaly_map, mask = np.array([[0.5, 0.5, 0.9, 0.1]]), np.array([[False, True, True, False]])
    found = pro([anomaly_map], [mask], 0.5)
    yield "PRO at 0.5", "`>=` the threshold", found, float((anomaly_map >= 0.5)[mask].mean())
    both = [anomaly_map, np.array([[0.9, 0.1, 0.1, 0.1]])]
    each = [iou([both[0]], [mask], 0.5), 0.0]
    yield "IoU at 0.5", "mean over images, 0 for a good image with alarms", iou(both, [mask, None], 0.5), np.mean(each)


def line(row: Row) -> str:
    metric, other, found, value = row
    shown = ["undefined" if v is None else f"{v:.5f}" for v in (found, value)]
    apart = "" if None in (found, value) else f"{value - found:+.1e}"
    return f"| {metric} | {other} | {shown[0]} | {shown[1]} | {apart} |"


def rows(anomalib: bool) -> list[Row]:
    return [*(anomalib_rows() if anomalib else ()), *(golden_rows() if golden.cases() else ()), *plain_rows()]


if __name__ == "__main__":
    for row in rows(anomalib=True):
        print(line(row))
