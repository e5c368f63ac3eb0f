"""Slow, plain definitions to test against, and random cases. Nothing here is shared with the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.metrics import LIMITS, Region


def partial_area(x: list[float], y: list[float], limit: float) -> float:
    """Area below the polygon from x = 0 to the limit, divided by the limit."""
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y1 if x1 <= limit else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def overlap_areas(
    background: np.ndarray, regions: list[tuple[np.ndarray, int]], limits: tuple[float, ...] = LIMITS
) -> dict[float, float]:
    """AUsPRO from every distinct score as a threshold. regions: the scores of each region, and its saturation area."""
    every = np.unique(np.concatenate([background, *[scores for scores, _ in regions]]).astype(np.float64))[::-1]
    x, y = [0.0], [0.0]
    for threshold in every:
        x.append(np.count_nonzero(background >= threshold) / background.size)
        y.append(float(np.mean([min(np.count_nonzero(s >= threshold) / area, 1.0) for s, area in regions])))
    return {limit: partial_area(x, y, limit) for limit in limits}


def f1_max(labels: np.ndarray, scores: np.ndarray) -> float:
    best = 0.0
    for threshold in np.unique(scores):
        found = scores >= threshold
        best = max(best, 2 * np.count_nonzero(found & labels) / (np.count_nonzero(found) + np.count_nonzero(labels)))
    return best


def random_scores(rng: np.random.Generator, shape: tuple[int, ...], flavour: str) -> np.ndarray:
    """Scores with ties, extremes, neighbours of float32, denormals, other types."""
    normal = rng.standard_normal(shape)
    if flavour == "ties":
        return rng.integers(-2, 3, shape).astype(np.float32)
    if flavour == "constant":
        return np.full(shape, 0.25, np.float32)
    if flavour == "extreme":
        return (normal * rng.choice([1e-30, 1.0, 1e30], shape)).astype(np.float32)
    if flavour == "denormal":
        return (rng.integers(-5, 6, shape) * np.float32(1e-45)).astype(np.float32)
    if flavour == "neighbours":
        start = np.float32(rng.choice([1.0, 1e6, -3.0]))
        return (np.array(start).view(np.int32) + rng.integers(0, 20, shape, dtype=np.int32)).view(np.float32)
    if flavour == "zeros":
        return rng.choice(np.array([-0.0, 0.0, 1e-45, -1e-45], np.float32), shape)
    if flavour == "float16":
        return normal.astype(np.float16)
    if flavour == "float64":
        return normal
    if flavour == "close64":
        return 1 + rng.integers(0, 20, shape) * np.finfo(np.float64).eps
    if flavour in ("int8", "uint8", "int32", "int64", "uint16"):
        return rng.integers(0, 9, shape).astype(flavour)
    return normal.astype(np.float32)


FLAVOURS = (
    "float32", "ties", "constant", "extreme", "denormal", "neighbours", "zeros", "float16", "float64", "close64",
    "int8", "uint8", "int32", "int64", "uint16",
)  # fmt: skip


@dataclass
class Case:
    """Arguments of `Scorer.add`, image by image."""

    loco: bool
    images: list[dict[str, Any]]

    @property
    def background(self) -> dict[str, np.ndarray]:
        """Scores outside all masks by kind."""
        out: dict[str, list[np.ndarray]] = {}
        for image in self.images:
            out.setdefault(image["kind"], []).append(image["anomaly_map"][~truth(image)].astype(np.float64))
        return {kind: np.concatenate(held) for kind, held in out.items()}


def truth(image: dict[str, Any]) -> np.ndarray:
    out = np.zeros(image["anomaly_map"].shape, bool)
    if image.get("mask") is not None:
        out |= image["mask"] > 0
    for region in image.get("regions", ()):
        out |= region.mask
    return out


def random_case(seed: int, loco: bool) -> Case:
    """Up to eight small images, of one size or several, of one type of score or several."""
    rng = np.random.default_rng(seed)
    flavours = rng.choice(FLAVOURS, 2 if rng.random() < 0.2 else 1)
    images = []
    size = rng.integers(1, 14, 2)
    mixed = rng.random() < 0.3
    for i in range(int(rng.integers(1, 9))):
        shape = tuple(int(n) for n in (rng.integers(1, 14, 2) if mixed else size))
        kind = str(rng.choice(["good", "logical_anomalies", "structural_anomalies"] if loco else ["good", "bad"]))
        image: dict[str, Any] = {"name": f"image {i}", "label": int(kind != "good"), "kind": kind, "score": None}
        image["anomaly_map"] = random_scores(rng, shape, str(rng.choice(flavours)))
        if kind != "good" and not loco:
            image["mask"] = (rng.random(shape) < rng.choice([0.05, 0.3, 0.9])).astype(np.uint8) * 200
        elif kind != "good":
            image["regions"] = [_random_region(rng, shape) for _ in range(int(rng.integers(1, 4)))]
        images.append(image)
    return Case(loco, images)


def _random_region(rng: np.random.Generator, shape: tuple[int, int]) -> Region:
    mask = rng.random(shape) < rng.choice([0.1, 0.5])
    mask[rng.integers(shape[0]), rng.integers(shape[1])] = True
    name = str(rng.choice(["scratch", "missing"]))
    if rng.random() < 0.5:
        return Region(mask, float(rng.integers(1, 30)), False, name)
    return Region(mask, float(rng.choice([1.0, 0.5, 0.7])), True, name)


def saturation(region: Region) -> int:
    area = int(region.mask.sum())
    return int(region.saturation * area) if region.relative else int(min(region.saturation, area))


def expected(case: Case) -> dict[str, float | None]:
    """Pixel metrics of a case by definition, AUROC and AP from scikit-learn."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    out: dict[str, float | None] = {}
    labels = np.concatenate([truth(image).ravel() for image in case.images])
    scores = np.concatenate([image["anomaly_map"].ravel().astype(np.float64) for image in case.images])
    both = labels.any() and not labels.all()
    # scikit-learn takes scores that are closer than it likes for equal ones, so it gets their ranks
    ranks = np.unique(scores, return_inverse=True)[1]
    out["pixel_auroc"] = float(roc_auc_score(labels, ranks)) if both else None
    out["pixel_ap"] = float(average_precision_score(labels, ranks)) if both else None
    out["pixel_f1max"] = f1_max(labels, scores) if both else None
    background = case.background
    components = []
    for image in case.images:
        numbers, count = ndimage.label(truth(image), np.ones((3, 3)))
        parts = [image["anomaly_map"][numbers == k + 1].astype(np.float64) for k in range(count)]
        components += [(scores, scores.size) for scores in parts]
    areas = overlap_areas(np.concatenate(list(background.values())), components) if both else {}
    out |= {f"aupro@{limit:g}": areas.get(limit) for limit in LIMITS}
    if not case.loco:
        return out
    empty = np.empty(0)
    for kind in ("logical_anomalies", "structural_anomalies"):
        regions = [
            (image["anomaly_map"][region.mask].astype(np.float64), saturation(region))
            for image in case.images
            if image["kind"] == kind
            for region in image["regions"]
        ]
        held = np.concatenate([background.get("good", empty), background.get(kind, empty)])
        usable = regions and held.size and all(area for _, area in regions)
        areas = overlap_areas(held, regions) if usable else {}
        out |= {f"auspro@{limit:g}/{kind.split('_')[0]}": areas.get(limit) for limit in LIMITS}
    for limit in LIMITS:
        parts = [out[f"auspro@{limit:g}/{kind}"] for kind in ("logical", "structural")]
        out[f"auspro@{limit:g}/mean"] = None if None in parts else sum(parts) / 2
    return out
