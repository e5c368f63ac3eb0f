"""Predicts the test pictures, brings the maps to the scored size and passes raw float32 to the metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import datasets
from benchmarks.metrics import Region, Scorer
from benchmarks.metrics.regions import components
from datasets.base import Category, Sample
from models.base import Detector, Images, ModelError
from models.nn.memory import in_parts

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
    statistics: dict[str, np.ndarray]  # of each picture, compact: what intervals are made from (`Scores`)
    image_score: str  # 'method' or 'max': which rule made the image score
    sizes: str
    predict_s: float
    metrics_s: float
    read_s: float  # pictures and masks, in neither of the two
    precision_effect: dict[str, float] | None = None  # what a lower precision changes, see `_effect`
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()  # what the figures hang on, counted: tables mark it


def score_test(
    detector: Detector,
    category: Category,
    pictures: Images,
    metric_size: str | int,
    progress: Callable[[int, int], None],
    maps_dir: Path | None = None,
    normal: Images = (),
) -> Scored:
    """Every test picture through the detector and into the metrics, one batch at a time.

    metric_size: 'original' (maps are brought to each picture's own size, a crop is undone), 'model' (masks get the
    network's resize and crop), or N (maps and masks at N x N).
    normal: the category's held-out or validation pictures; thresholds are fixed on them (`_fixed`), after all test
    pictures were predicted, so that these get the scores that they would get alone.
    Raises DatasetError for broken ground truth, MetricError for NaN or infinite scores, ModelError for wrong shapes.
    """
    loco = category.layout == "loco"
    scorer = Scorer(loco=loco, threshold=detector.threshold, curve_points=CURVE_POINTS, statistics=True,
                    unmasked=category.unmasked)
    rows: list[tuple[str, int, str, float, float]] = []
    effect = None
    sizes: set[tuple[int, int]] = set()
    counted = Counter()
    own_score = False
    batch, first = detector.config.batch, 0
    spent = _Spent()
    while first < len(category.test):
        samples = category.test[first : first + batch]
        with spent("read"):
            images = _alike(pictures, first, len(samples), detector.own_sizes)
            samples = samples[: len(images)]
        with spent("predict"):
            found, batch = predicted(detector, images, samples, metric_size, batch, maps_dir is not None)
            maps, scores = found.maps, found.scores
        if effect is None and detector.config.precision != "float32":
            effect = _effect(detector, images, samples, metric_size, maps, scores)
        for i, sample in enumerate(samples):
            if sample.name in category.unscored:
                continue
            size = images[i].shape[:2]
            sizes.add(size)
            anomaly_map = maps[i] if maps is not None else None
            score = float(scores[i]) if scores is not None else None
            own_score = own_score or score is not None
            with spent("read"):
                truth: dict[str, Any] = {}
                if anomaly_map is not None:
                    truth = _truth(category, sample, size, detector, metric_size, counted)
                if anomaly_map is not None and maps_dir is not None:
                    _keep(maps_dir / category.name / "test" / sample.name, anomaly_map, found.panels[i])
            with spent("metrics"):
                scorer.add(
                    sample.name, label=sample.label, kind=sample.kind, anomaly_map=anomaly_map, score=score, **truth
                )
                top = float(anomaly_map.max()) if anomaly_map is not None else float("nan")
                rows.append((sample.name, sample.label, sample.kind, top if score is None else score, top))
        first += len(samples)
        progress(first, len(category.test))
    with spent("thresholds"):
        scorer.fixed = _fixed(detector, normal, category.held_out or category.validation, metric_size, batch)
    with spent("metrics"):
        result = scorer.result()
    names, labels, kinds, scores_, tops = zip(*rows, strict=True) if rows else ((),) * 5
    notes = ()
    if rows and len(set(scores_)) == 1:
        notes = ("every test picture got the same score",)
    remarks = ()
    if counted["vanished"]:
        remarks = (f"{counted['vanished']} of {counted['regions']} ground-truth regions have no pixel left at the "
                   f"metric size {metric_size} and are left out",)
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
        statistics=result.statistics
        | ({} if detector.threshold is None else {"threshold": np.float64(detector.threshold)}),
        image_score="method" if own_score else "max",
        sizes=f"{(s := next(iter(sizes)))[1]}x{s[0]}" if len(sizes) == 1 else "mixed",
        predict_s=spent["predict"], metrics_s=spent["metrics"], read_s=spent["read"], precision_effect=effect,
        notes=notes, remarks=remarks,
    )


def _fixed(
    detector: Detector, pictures: Images, samples: Sequence[Sample], metric_size: str | int, batch: int
) -> dict[str, tuple[float, float | None]]:
    """By rule the thresholds of image scores and of pixels, from normal pictures; nothing of fewer than two.

    'mean3sd': mean and three standard deviations; 'q98': what 98 % of the scores do not exceed (linear interpolation).
    """
    if len(pictures) < 2:
        return {}
    scores: list[float] = []
    maps: list[np.ndarray] = []
    first = 0
    while first < len(pictures):
        images = _alike(pictures, first, min(batch, len(pictures) - first), detector.own_sizes)
        found, batch = predicted(detector, images, samples[first : first + len(images)], metric_size, batch)
        maps += [m.ravel() for m in found.maps or ()]
        scores += found.scores.tolist() if found.scores is not None else [float(m.max()) for m in found.maps or ()]
        first += len(images)
    pixels = np.concatenate(maps) if maps else None
    rules = {
        "mean3sd": lambda v: float(v.mean(dtype=np.float64) + 3 * v.std(dtype=np.float64, ddof=1)),
        "q98": lambda v: float(np.quantile(v, 0.98)),
    }
    images_ = np.array(scores)
    return {name: (rule(images_), None if pixels is None else rule(pixels)) for name, rule in rules.items()}


class _Spent(dict[str, float]):
    """Seconds by name: `with spent("read"): ...` adds to them."""

    def __missing__(self, name: str) -> float:
        return 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - start


class _Found(NamedTuple):
    """Of a batch: maps at the scored size (float32 [H, W] each), image scores float32 [B], and panels as uint8."""

    maps: list[np.ndarray] | None
    scores: np.ndarray | None
    panels: list[dict[str, np.ndarray]]


def predicted(
    detector: Detector, images: Images, samples: Sequence[Sample], metric_size: str | int, batch: int,
    panels: bool = False,
) -> tuple[_Found, int]:
    """As `_predict`, in halves when memory runs out, and the number of pictures that it sufficed for."""
    parts = in_parts(
        lambda part: _predict(detector, *map(list, zip(*part, strict=True)), metric_size, panels),
        list(zip(images, samples, strict=True)), batch, "test pictures are predicted",
    )
    if len(parts) == 1:
        return parts[0], batch
    return _Found(
        [m for part in parts for m in part.maps] if parts[0].maps is not None else None,
        np.concatenate([part.scores for part in parts]) if parts[0].scores is not None else None,
        [p for part in parts for p in part.panels],
    ), len(parts[-2].panels)


def _alike(pictures: Images, first: int, count: int, own_sizes: bool) -> list[np.ndarray]:
    """`count` pictures from `first` on; with `own_sizes` only as far as they have the size of the first one."""
    images: list[np.ndarray] = []
    for i in range(first, first + count):
        image = pictures[i]
        if own_sizes and images and image.shape != images[0].shape:
            break
        images.append(image)
    return images


def _effect(
    detector: Detector, images: Images, samples: Sequence[Sample], metric_size: str | int,
    maps: list[np.ndarray] | None, scores: np.ndarray | None,
) -> dict[str, float]:
    """What the precision changes in one batch: the largest difference to float32, as a share of float32's range."""
    from models.features import precision

    with precision("float32"):
        full32, _ = predicted(detector, images, samples, metric_size, len(images))
    found: dict[str, float] = {"pictures": len(images)}
    for name, low, full in (("map", maps, full32.maps), ("score", scores, full32.scores)):
        if low is None or full is None:
            continue
        pairs = list(zip(low, full, strict=True))
        span = max(float(b.max()) for _, b in pairs) - min(float(b.min()) for _, b in pairs)
        largest = max(float(np.abs(a - b).max()) for a, b in pairs)
        found[f"{name}_change"] = largest / span if span > 0 else largest
    return found


def _predict(
    detector: Detector, images: Images, samples: Sequence[Sample], metric_size: str | int, panels: bool
) -> _Found:
    """What the detector gives for a batch, brought to the scored size; maps or scores may be None."""
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
            else:
                to = None if metric_size == "original" else (int(metric_size), int(metric_size))
                restored = preprocess.restore(maps, [image.shape[:2] for image in images], to)
            restored = [m.float().cpu().numpy() for m in restored]
        shown: list[dict[str, np.ndarray]] = [{} for _ in images]
        for name, values in prediction.panels.items() if panels else ():
            for own, value in zip(shown, values() if callable(values) else values, strict=True):
                own[name] = value.float().mul(255).round().clamp(0, 255).byte().cpu().numpy()
        return _Found(restored, scores.float().cpu().numpy() if scores is not None else None, shown)


def _truth(
    category: Category, sample: Sample, size: tuple[int, int], detector: Detector, metric_size: str | int,
    counted: Counter[str],
) -> dict[str, Any]:
    """The ground truth at the scored size, as the keyword that `Scorer.add` takes.

    counted: 'regions' and those that 'vanished', because no pixel of them is left at the scored size. A region is a
    mask file in LOCO layout, and an 8-connected component of the mask in MVTec layout.
    """
    if sample.label == 0:
        return {}
    truth = datasets.truth(category, sample, size)
    if truth is None:
        return {}
    if isinstance(truth, np.ndarray):
        if metric_size == "original":
            return {"mask": truth}
        numbers, count = components(truth > 0)
        numbers = _scaled(numbers, detector, metric_size)
        counted.update(regions=count, vanished=count - np.count_nonzero(np.unique(numbers)))
        return {"mask": numbers > 0}
    regions = []
    for channel in truth:
        mask, saturation, relative = channel.mask, channel.defect.saturation_threshold, channel.defect.relative
        if metric_size != "original":
            mask = _scaled(mask, detector, metric_size)
            area = int(np.count_nonzero(mask))
            counted.update(regions=1, vanished=int(not area))
            if not area:
                continue
            # An absolute threshold is a count of pixels of the original picture; neither kind falls below one pixel.
            if not relative:
                saturation = max(round(saturation * area / int(np.count_nonzero(channel.mask))), 1)
            elif int(saturation * area) < 1:
                saturation, relative = 1, False
        regions.append(Region(mask, saturation, relative, channel.defect.name))
    return {"regions": regions}


def _scaled(mask: np.ndarray, detector: Detector, metric_size: str | int) -> np.ndarray:
    from models.nn.preprocess import Preprocess

    if metric_size == "model":
        return detector.preprocess.mask(mask)
    return Preprocess((int(metric_size), int(metric_size))).mask(mask)


def _keep(stem: Path, anomaly_map: np.ndarray, panels: Mapping[str, np.ndarray]) -> None:
    """<stem>.tiff for the map, <stem>.<panel>.png for each panel."""
    import tifffile
    from PIL import Image

    stem.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(f"{stem}.tiff", anomaly_map.astype(np.float32), compression="zlib")
    for name, values in panels.items():
        Image.fromarray(values.transpose(1, 2, 0) if values.ndim == 3 else values).save(f"{stem}.{name}.png")
