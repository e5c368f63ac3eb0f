"""Predicts the test pictures, brings the maps to the scored size and passes raw float32 to the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import datasets
from benchmarks.metrics import Region, Scorer
from datasets.base import Category, Sample
from models.base import Detector, Images, ModelError

CURVE_POINTS = 200


@dataclass(frozen=True)
class Scored:
    """Metrics of a unit, per-image scores, curves, and the seconds that predicting and measuring took.

    curves: {'curve.pixel': float32 [2, n]} and the like: false positive rate against true positive rate ('pixel'),
        overlap ('pro') or saturated overlap ('spro/logical', 'spro/structural'), thinned to CURVE_POINTS with its area
        kept. The curve of the image scores follows from the scores themselves, which are stored whole.
    """

    metrics: dict[str, float | None]
    undefined: dict[str, str]
    per_image: dict[str, np.ndarray]
    curves: dict[str, np.ndarray]
    image_score: str  # 'method' or 'max': which rule made the image score
    sizes: str
    predict_s: float
    metrics_s: float
    notes: tuple[str, ...] = ()


def score_test(
    detector: Detector,
    category: Category,
    pictures: Images,
    metric_size: str | int,
    progress: Callable[[int, int], None],
    maps_dir: Path | None = None,
) -> Scored:
    """Every test picture through the detector and into the metrics, one batch at a time.

    metric_size: 'original' (maps are brought to each picture's own size, a crop is undone), 'model' (masks get the
    network's resize and crop), or N (maps and masks at N x N).
    Raises DatasetError for broken ground truth, MetricError for NaN or infinite scores, ModelError for wrong shapes.
    """
    loco = category.layout == "loco"
    scorer = Scorer(loco=loco, threshold=detector.threshold, curve_points=CURVE_POINTS)
    rows: list[tuple[str, int, str, float, float]] = []
    predict_s = metrics_s = 0.0
    sizes: set[tuple[int, int]] = set()
    own_score = False
    batch = detector.config.batch
    for first in range(0, len(category.test), batch):
        samples = category.test[first : first + batch]
        images = [pictures[first + i] for i in range(len(samples))]
        start = time.perf_counter()
        maps, scores = _predict(detector, images, samples, metric_size)
        predict_s += time.perf_counter() - start
        start = time.perf_counter()
        for i, sample in enumerate(samples):
            size = images[i].shape[:2]
            sizes.add(size)
            anomaly_map = maps[i] if maps is not None else None
            score = float(scores[i]) if scores is not None else None
            own_score = own_score or score is not None
            truth = _truth(category, sample, size, detector, metric_size) if anomaly_map is not None else {}
            if anomaly_map is not None and maps_dir is not None:
                _keep(maps_dir / category.name / "test" / f"{sample.name}.tiff", anomaly_map)
            scorer.add(
                sample.name, label=sample.label, kind=sample.kind, anomaly_map=anomaly_map, score=score, **truth
            )
            top = float(anomaly_map.max()) if anomaly_map is not None else float("nan")
            rows.append((sample.name, sample.label, sample.kind, top if score is None else score, top))
        metrics_s += time.perf_counter() - start
        progress(first + len(samples), len(category.test))
    start = time.perf_counter()
    result = scorer.result()
    metrics_s += time.perf_counter() - start
    names, labels, kinds, scores_, tops = zip(*rows, strict=True) if rows else ((),) * 5
    notes = ()
    if rows and len(set(scores_)) == 1:
        notes = ("every test picture got the same score",)
    return Scored(
        metrics=result.metrics, undefined=result.undefined,
        per_image={
            "name": np.array(names), "label": np.array(labels, np.int8), "kind": np.array(kinds),
            "score": np.array(scores_, np.float32), "score_max": np.array(tops, np.float32),
        },
        curves={
            f"curve.{name}": np.stack(list(curve.values())).astype(np.float32)
            for name, curve in result.curves.items() if not name.startswith("image")
        },
        image_score="method" if own_score else "max",
        sizes=f"{(s := next(iter(sizes)))[1]}x{s[0]}" if len(sizes) == 1 else "mixed",
        predict_s=predict_s, metrics_s=metrics_s, notes=notes,
    )


def _predict(
    detector: Detector, images: Images, samples: Sequence[Sample], metric_size: str | int
) -> tuple[list[np.ndarray] | None, np.ndarray | None]:
    """Maps at the scored size (float32 [H, W] each) and image scores float32 [B]; either may be None."""
    import torch

    with torch.inference_mode():
        prediction = detector.predict(images)
        maps, scores = prediction.anomaly_map, prediction.score
        if maps is None and scores is None:
            raise ModelError(f"{detector.name} gave neither a map nor a score for {samples[0].name}")
        for what, value in (("anomaly_map", maps), ("score", scores)):
            if value is not None and (len(value) != len(images) or value.ndim != (3 if what == "anomaly_map" else 1)):
                raise ModelError(
                    f"{detector.name}: {what} has shape {list(value.shape)} for {len(images)} pictures; "
                    f"expected {'[B, h, w]' if what == 'anomaly_map' else '[B]'}"
                )
        restored = None
        if maps is not None:
            preprocess = detector.preprocess
            if metric_size == "model":
                height, width = preprocess.output
                restored = list(torch.nn.functional.interpolate(
                    maps.float().unsqueeze(1), (height, width), mode="bilinear", align_corners=False
                )[:, 0])
            elif metric_size == "original":
                restored = preprocess.restore(maps, [image.shape[:2] for image in images])
            else:
                restored = preprocess.restore(maps, [(int(metric_size), int(metric_size))] * len(images))
            restored = [m.float().cpu().numpy() for m in restored]
        return restored, scores.float().cpu().numpy() if scores is not None else None


def _truth(
    category: Category, sample: Sample, size: tuple[int, int], detector: Detector, metric_size: str | int
) -> dict[str, Any]:
    """The ground truth at the scored size, as the keyword that `Scorer.add` takes."""
    if sample.label == 0:
        return {}
    truth = datasets.truth(category, sample, size)
    if isinstance(truth, np.ndarray):
        return {"mask": truth if metric_size == "original" else _scaled(truth > 0, detector, metric_size)}
    regions = []
    for channel in truth:
        mask, saturation = channel.mask, channel.defect.saturation_threshold
        if metric_size != "original":
            mask = _scaled(mask, detector, metric_size)
            if not channel.defect.relative:
                # an absolute threshold is a count of pixels of the original picture
                saturation *= mask.sum() / max(int(channel.mask.sum()), 1)
        if mask.any():
            regions.append(Region(mask, saturation, channel.defect.relative, channel.defect.name))
    return {"regions": regions}


def _scaled(mask: np.ndarray, detector: Detector, metric_size: str | int) -> np.ndarray:
    from models.nn.preprocess import Preprocess

    if metric_size == "model":
        return detector.preprocess.mask(mask)
    return Preprocess((int(metric_size), int(metric_size))).mask(mask)


def _keep(path: Path, anomaly_map: np.ndarray) -> None:
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, anomaly_map.astype(np.float32), compression="zlib")
