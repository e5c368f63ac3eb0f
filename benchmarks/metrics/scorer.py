"""Scores one unit: images come one at a time with their maps and masks, `result` gives every metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.metrics import ladder
from benchmarks.metrics.image import rank_metrics, threshold_metrics
from benchmarks.metrics.ranks import MetricError, Ranks, exact
from benchmarks.metrics.rates import Rates
from benchmarks.metrics.regions import Region, check_mask, components, saturation_area
from benchmarks.metrics.tensors import TensorRanks, exact_tensor, is_tensor, pick, top

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)

TYPES = {"logical_anomalies": "logical", "structural_anomalies": "structural"}


@dataclass
class Scores:
    """metrics: fractions in [0, 1], None where undefined; undefined: the reason for each None.

    curves: on request, `image` (`image@max`) and `pixel` with arrays `fpr` and `tpr`, `pro` with `fpr` and `pro`, for
        LOCO also `spro/logical` and `spro/structural` with `fpr` and `spro`; those that are undefined are left out.
    facts: counts of images, pixels, regions.
    statistics: on request, what `bootstrap` needs for the pixel metrics; pictures by their place. `ladder.thresholds`
        float64 [K], descending; `ladder.background` uint32 [pictures, K + 1], pixels outside masks by cell (cell k:
        scores from threshold k up to the one before it; K: below all); `ladder.steps` bool [K + 1], cells whose marked
        pixels have one score; for the pictures `ladder.marked` int32 [m] that
        have marked pixels `ladder.hits` uint32 [m, K + 1], those pixels, `ladder.overlap` float32 [m, K + 1], rises of
        the summed overlap of their components, and `ladder.regions` int32 [m], how many those are. LOCO: the same by
        picture and defect name for the saturated overlap, `ladder.spro_picture`, `_name`, `_overlap`, `_regions`.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    curves: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, np.ndarray] = field(default_factory=dict)

    def put(self, key: str, value: float | None, reason: str | None = None) -> None:
        self.metrics[key] = value
        if value is None:
            self.undefined[key] = reason or "undefined"


@dataclass
class _Region:
    name: str
    kind: str
    area: int
    saturation: int
    image: str


class Scorer:
    """Streaming: `add` each image once, then `result`. Maps are not kept, only the sorted scores of their pixels.

    loco: True for MVTec LOCO AD: besides AUPRO (regions are the 8-connected components of an image's masks together),
        AUsPRO (one region per ground-truth file, saturation) and scores by anomaly type.
    limits: false positive rates up to which AUPRO and AUsPRO integrate.
    memory_limit: bytes of pixel scores to keep in memory; what is beyond goes to files in `scratch`.
    curve_points: > 0 for curves thinned to at most so many points.
    threshold: for accuracy, TPR, TNR and F1 of the image scores; a score strictly greater is anomalous.
    pixel_threshold: the same for PRO and IoU of the maps.
    statistics: True for the compact statistics of each picture, from which `bootstrap` makes intervals.
    unmasked: why no image has a ground truth, in words; it then stands as the reason of all pixel metrics.

    fixed: by name thresholds of the image scores and of the pixels (None without maps), to be set before `result`.
    """

    def __init__(
        self,
        *,
        loco: bool = False,
        limits: Sequence[float] = LIMITS,
        memory_limit: int | None = None,
        scratch: Path | None = None,
        curve_points: int = 0,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        statistics: bool = False,
        unmasked: str = "",
    ) -> None:
        if not all(0 < limit <= 1 for limit in limits):
            raise MetricError(f"limits must lie in (0, 1], got {tuple(limits)}")
        self.loco = loco
        self.limits = tuple(float(limit) for limit in limits)
        self.curve_points = curve_points
        self.statistics = statistics
        self.threshold = threshold
        # float64: NumPy would round a Python float to the type of the map before comparing
        self.pixel_threshold = None if pixel_threshold is None else np.float64(pixel_threshold)
        # Background sets: LOCO good, logical, structural. Positive sets: 0 all anomalous pixels, by component;
        # LOCO also 1 logical and 2 structural, the saturating pixels of the regions.
        self._kinds = ("good", *TYPES) if loco else ("all",)
        against = [(0, 1, 2), (0, 1), (0, 2)] if loco else [(0,)]
        self.fixed: dict[str, tuple[float, float | None]] = {}
        self._ranks: Ranks | TensorRanks = Ranks(len(self._kinds), against, memory_limit, scratch)
        self._against = against
        self._regions: list[_Region] = []  # LOCO: one per ground-truth file
        self._areas: list[int] = []  # of the connected components of the images' masks, LOCO: of all files together
        self._owners: list[int] = []  # of each component, the place of its image
        self._parts: list[list[tuple[int, int]]] = [[] for _ in self._kinds]  # by background set: (image, pixels)
        self._images: list[tuple[str, int, str, float | None, float | None]] = []
        self._names: set[str] = set()
        self._unmasked: dict[str, str] = {}
        self._why_unmasked = unmasked
        self._pixels = {"background": 0, "anomalous": 0}
        self._shares: list[float] = []  # at pixel_threshold: hit share by region
        self._confusion = np.zeros(3, np.int64)  # at pixel_threshold: true positive, false positive, false negative

    def add(
        self,
        name: str,
        *,
        label: int,
        kind: str,
        anomaly_map: np.ndarray | None,
        score: float | None,
        mask: np.ndarray | None = None,
        regions: Sequence[Region] | None = None,
    ) -> None:
        """One test image.

        label: 0 good, 1 anomalous. kind: folder name of the image; LOCO: 'good', 'logical_anomalies' or
        'structural_anomalies'. anomaly_map: [H, W], any real type, higher is more anomalous; torch tensors are ranked
        on their device, where memory_limit does not hold. score: image score, or None for the maximum of the map.
        mask: [H, W], > 0 is anomalous (AD). regions: one per ground-truth file (LOCO). An anomalous image has one of
        the two; none of its pixels being marked (regions: ()), as at a reduced size, makes them all background.
        Raises MetricError that names the image.
        """
        self._check(name, label, kind, anomaly_map, score)
        peak = None
        if anomaly_map is not None:
            scores = self._exact(name, anomaly_map)
            if scores.ndim != 2 or 0 in scores.shape:
                shape = tuple(scores.shape)
                raise MetricError(f"{name}: the anomaly map has shape {shape}; expected [H, W] with pixels")
            low, peak = float(scores.min()), float(scores.max())
            if not (math.isfinite(low) and math.isfinite(peak)):
                raise MetricError(f"{name}: the anomaly map holds NaN or infinite scores")
            if self.loco:
                self._add_loco(name, label, kind, scores, regions)
            else:
                self._add_ad(name, label, scores, mask)
        self._names.add(name)
        self._images.append((name, label, kind, None if score is None else float(score), peak))

    def _exact(self, name: str, anomaly_map: Any) -> Any:
        tensor = is_tensor(anomaly_map)
        if tensor and not self._images:
            self._ranks = TensorRanks(len(self._kinds), self._against)
        if tensor != isinstance(self._ranks, TensorRanks):
            raise MetricError(f"{name}: maps are partly NumPy arrays and partly torch tensors")
        what = f"{name}: the anomaly map"
        return exact_tensor(what, anomaly_map) if tensor else exact(what, np.asarray(anomaly_map))

    def _check(self, name: str, label: int, kind: str, anomaly_map: Any, score: float | None) -> None:
        if name in self._names:
            raise MetricError(f"{name}: this image was added before")
        if label not in (0, 1):
            raise MetricError(f"{name}: label {label!r} is neither 0 (good) nor 1 (anomalous)")
        if self.loco and kind not in self._kinds:
            raise MetricError(f"{name}: kind {kind!r} is not one of {', '.join(self._kinds)}")
        if self.loco and (kind == "good") != (label == 0):
            raise MetricError(f"{name}: label {label} does not fit the kind {kind!r}")
        if anomaly_map is None and score is None:
            raise MetricError(f"{name}: neither a map nor a score")
        if score is not None and not math.isfinite(score):
            raise MetricError(f"{name}: the image score is {score}")
        if self._images:
            first = self._images[0]
            for what, now, before in (("a map", anomaly_map, first[4]), ("a score", score, first[3])):
                if (now is None) != (before is None):
                    a, b = (name, first[0]) if before is None else (first[0], name)
                    raise MetricError(f"{a} has {what} and {b} has none; give it for all images or for none")

    def _add_ad(self, name: str, label: int, scores: Any, mask: np.ndarray | None) -> None:
        if mask is None:
            if label:
                self._unmasked.setdefault("all", name)
            truth = None
        else:
            truth = check_mask(name, mask, tuple(scores.shape))
            if not label and truth.any():
                raise MetricError(f"{name}: a good image with a mask that marks pixels")
        if truth is None or not truth.any():
            self._background("all", scores.ravel())
            self._confuse(scores, None)
            return
        hits, ids, areas = self._components(scores, truth)
        for area in areas:
            self._regions.append(_Region("", "all", int(area), int(area), name))
        self._background("all", pick(scores, ~truth))
        if self.pixel_threshold is not None:
            self._shares.extend(np.bincount(ids, weights=self._over(hits), minlength=len(areas)) / areas)
        self._confuse(scores, truth)

    def _add_loco(self, name: str, label: int, kind: str, scores: Any, regions: Sequence[Region] | None) -> None:
        if not label and regions:
            raise MetricError(f"{name}: a good image with regions")
        if label and regions is None:
            self._unmasked.setdefault(kind, name)
        regions = regions or ()
        truths = [check_mask(name, region.mask, tuple(scores.shape)) for region in regions]
        areas = [int(np.count_nonzero(truth)) for truth in truths]
        sizes = [saturation_area(name, region, area) for region, area in zip(regions, areas, strict=True)]
        union = np.zeros(scores.shape, bool)  # from here on nothing may fail: the image would be added in part
        for region, truth, area, size in zip(regions, truths, areas, sizes, strict=True):
            hits = pick(scores, truth)
            if self.pixel_threshold is not None and size:
                self._shares.append(min(np.count_nonzero(self._over(hits)) / size, 1.0))
            self._positive(self._kinds.index(kind), top(hits, size), np.full(size, len(self._regions), np.int32))
            self._regions.append(_Region(region.name, kind, area, size, name))
            union |= truth
        if union.any():
            self._components(scores, union)
        self._background(kind, pick(scores, ~union))
        self._confuse(scores, union)

    def _components(self, scores: Any, truth: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """Add an image's anomalous pixels, by component: their scores, components from 0, and the areas of those."""
        numbers, count = components(truth)
        ids = numbers[truth].astype(np.int32) - 1
        hits = pick(scores, truth)
        areas = np.bincount(ids, minlength=count)
        self._positive(0, hits, ids + np.int32(len(self._areas)))
        self._areas.extend(areas.tolist())
        self._owners.extend([len(self._images)] * count)
        self._pixels["anomalous"] += hits.shape[0]
        return hits, ids, areas

    def _background(self, kind: str, scores: Any) -> None:
        count = scores.shape[0]
        self._pixels["background"] += count
        if count:
            which = self._kinds.index(kind)
            self._parts[which].append((len(self._images), count))
            self._ranks.add_background(which, scores)

    def _positive(self, which: int, scores: Any, regions: np.ndarray) -> None:
        if regions.size:
            self._ranks.add_positive(which, scores, regions)

    def _over(self, scores: Any) -> np.ndarray:
        return (scores.cpu().numpy() if is_tensor(scores) else scores) > self.pixel_threshold

    def _confuse(self, scores: Any, truth: np.ndarray | None) -> None:
        if self.pixel_threshold is None:
            return
        found = self._over(scores)
        true = 0 if truth is None else np.count_nonzero(found & truth)
        marked = 0 if truth is None else np.count_nonzero(truth)
        self._confusion += (true, np.count_nonzero(found) - true, marked - true)

    def result(self) -> Scores:
        """Every metric of the images added. Call once. Raises MetricError without images."""
        if not self._images:
            raise MetricError("no image was added")
        out = Scores()
        self._image_scores(out)
        if self._images[0][4] is not None:
            if self.statistics and not self._unmasked:
                self._put_statistics(out)
            for name, (_, pixel) in self.fixed.items():
                self._put_segf1(out, name, pixel)
            self._pixel_scores(out)
        kinds = [kind for _, _, kind, _, _ in self._images]
        out.facts["images"] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        out.facts["pixels"] = dict(self._pixels)
        out.facts["regions"] = len(self._regions)
        return out

    # Images

    def _image_scores(self, out: Scores) -> None:
        labels = np.array([label for _, label, _, _, _ in self._images])
        kinds = np.array([kind for _, _, kind, _, _ in self._images])
        own = [score for _, _, _, score, _ in self._images]
        peak = [score for _, _, _, _, score in self._images]
        has_own, has_map = own[0] is not None, peak[0] is not None
        rules = [("", own if has_own else peak)] + ([("@max", peak)] if has_own and has_map else [])
        for suffix, values in rules:
            scores = np.array(values, np.float64)
            pooled, why, curve = rank_metrics(labels, scores, curve_points=self.curve_points)
            for key, value in pooled.items():
                out.put(key + suffix, value, why.get(key))
            if curve is not None:
                out.curves[f"image{suffix}"] = curve
            if self.loco:
                self._image_scores_by_type(out, suffix, scores, kinds)
        if self.threshold is not None:
            values, why = threshold_metrics(labels, np.array(rules[0][1], np.float64), self.threshold)
            for key, value in values.items():
                out.put(key, value, why.get(key))
        self._put_fixed(out, labels, np.array(rules[0][1], np.float64))

    def _put_fixed(self, out: Scores, labels: np.ndarray, scores: np.ndarray) -> None:
        """F1, the share of anomalous images missed and that of good ones called anomalous, at each fixed threshold."""
        for name, (image, _) in self.fixed.items():
            values, why = threshold_metrics(labels, scores, image)
            out.put(f"f1@{name}", values["f1"], why.get("f1"))
            for key, rate in (("missed", "tpr"), ("false_alarms", "tnr")):
                out.put(f"{key}@{name}", None if values[rate] is None else 1 - values[rate], why.get(rate))

    def _image_scores_by_type(self, out: Scores, suffix: str, scores: np.ndarray, kinds: np.ndarray) -> None:
        parts = {}
        for kind, short in TYPES.items():
            chosen = (kinds == kind) | (kinds == "good")
            parts[short], why, _ = rank_metrics((kinds == kind)[chosen], scores[chosen])
            for key, value in parts[short].items():
                out.put(f"{key}{suffix}/{short}", value, why.get(key))
        for key in parts["logical"]:
            _put_mean(out, f"{key}{suffix}", parts["logical"][key], parts["structural"][key])
            out.put(f"{key}{suffix}/pooled", out.metrics[key + suffix], out.undefined.get(key + suffix))

    # Pixels

    def _put_segf1(self, out: Scores, name: str, threshold: float | None) -> None:
        """F1 of all pixels of all images together; a score strictly greater than the threshold is anomalous."""
        def above(which: int, positive: bool = False) -> int:
            chunks = self._ranks.chunks(which, positive=positive)
            return sum(int(np.count_nonzero(scores > np.float64(threshold))) for scores, _ in chunks)

        marked = self._pixels["anomalous"]
        why = self._missing(next(iter(self._unmasked.values()))) if self._unmasked else (
            None if marked else "no anomalous pixel")
        hits, alarms = above(0, True), sum(above(which) for which in range(len(self._kinds)))
        out.put(f"segf1@{name}", None if why else 2 * hits / (marked + hits + alarms), why)

    def _pixel_scores(self, out: Scores) -> None:
        kinds = [r.kind for r in self._regions]
        areas = np.array(self._areas, np.int64)
        saturation = np.array([r.saturation for r in self._regions], np.int64)
        rates = [
            Rates(
                self._ranks.background_size(which),
                self._ranks.positive_size(which),
                saturation=saturation if which else areas,
                limits=self.limits,
                regions=kinds.count(self._kinds[which]) if which else len(areas),
                points=self.curve_points,
            )
            for which in range(3 if self.loco else 1)
        ]
        for which, block in self._ranks.blocks():
            rates[which].add(block)
        missing = next(iter(self._unmasked.values()), None)
        why = None if missing is None else self._missing(missing)
        for key, value in rates[0].metrics("pixel").items():
            reason = why or rates[0].why()
            out.put(key, None if reason else value, reason)
        for column, limit in enumerate(self.limits):
            reason = why or rates[0].why()
            out.put(f"aupro@{limit:g}", None if reason else _mean(rates[0].areas[:, column]), reason)
        reasons = list(self._put_auspro(out, rates).values()) if self.loco else []
        if self.curve_points:
            self._put_curves(out, rates, why, reasons)
        if self.pixel_threshold is not None:
            self._put_at_threshold(out, why)

    def _put_statistics(self, out: Scores) -> None:
        """Counts by picture, while the scores are still in the order in which they came."""
        areas = np.array(self._areas, np.int64)
        sizes = [areas] + [np.array([r.saturation for r in self._regions], np.int64)] * (2 if self.loco else 0)
        rungs, steps = ladder.choose(self._ranks, len(self._kinds), sizes, self.limits)
        background = np.zeros((len(self._images), rungs.size + 1), np.int64)
        for which, parts in enumerate(self._parts):
            ladder.background(self._ranks, which, parts, rungs, background)
        marked, rows, counts = np.unique(np.array(self._owners, np.int32), return_inverse=True, return_counts=True)
        hits, overlap = np.zeros((2, marked.size, rungs.size + 1))
        ladder.positive(self._ranks, 0, rows, np.ones(areas.size), rungs, hits)
        ladder.positive(self._ranks, 0, rows, 1 / np.maximum(areas, 1), rungs, overlap)
        out.statistics = {
            "thresholds": rungs, "steps": steps, "background": background.astype(np.uint32), "marked": marked,
            "hits": hits.astype(np.uint32), "overlap": overlap.astype(np.float32), "regions": counts.astype(np.int32),
        }
        if self.loco:
            places = {name: i for i, (name, *_) in enumerate(self._images)}
            keys = sorted({(places[r.image], r.name) for r in self._regions})
            at = {key: row for row, key in enumerate(keys)}
            rows = np.array([at[places[r.image], r.name] for r in self._regions], np.int64)
            overlap = np.zeros((len(keys), rungs.size + 1))
            for which in (1, 2):
                ladder.positive(self._ranks, which, rows, 1 / np.maximum(sizes[1], 1), rungs, overlap)
            out.statistics |= {
                "spro_picture": np.array([place for place, _ in keys], np.int32),
                "spro_name": np.array([name for _, name in keys], np.str_), "spro_overlap": overlap.astype(np.float32),
                "spro_regions": np.bincount(rows, minlength=len(keys)).astype(np.int32),
            }
        out.statistics = {f"ladder.{name}": values for name, values in out.statistics.items()}

    def _put_auspro(self, out: Scores, rates: list[Rates]) -> dict[str, str | None]:
        """Returns by type why it is undefined."""
        reasons: dict[str, str | None] = {}
        kinds: dict[str, str | None] = {}
        for row, (kind, short) in enumerate(TYPES.items(), 1):
            chosen = [i for i, r in enumerate(self._regions) if r.kind == kind]
            kinds[kind] = rates[row].why(f"{short} ")
            if kind in self._unmasked:
                kinds[kind] = self._missing(self._unmasked[kind])
            # without a saturating pixel there are no positives either; the cause says more
            reasons[kind] = self._unsaturated(chosen) or kinds[kind]
            for column, limit in enumerate(self.limits):
                value = None if reasons[kind] else _mean(rates[row].areas[chosen, column])
                out.put(f"auspro@{limit:g}/{short}", value, reasons[kind])
        for limit in self.limits:
            key = f"auspro@{limit:g}"
            _put_mean(out, key, out.metrics[f"{key}/logical"], out.metrics[f"{key}/structural"])
        # A region's area is measured against the background of its own type, so that a type's value is the mean of
        # its defects' values weighted by their regions.
        logical = np.array([r.kind == "logical_anomalies" for r in self._regions], bool)
        areas = np.where(logical[:, None], rates[1].areas, rates[2].areas)
        for name in sorted({r.name for r in self._regions}):
            chosen = [i for i, r in enumerate(self._regions) if r.name == name]
            reason = self._unsaturated(chosen)
            for i in chosen:
                reason = reason or kinds[self._regions[i].kind]
            for column, limit in enumerate(self.limits):
                value = None if reason else _mean(areas[chosen, column])
                out.put(f"auspro@{limit:g}/defect:{name}", value, reason)
        return reasons

    def _missing(self, image: str) -> str:
        return self._why_unmasked or f"no ground truth for the anomalous image {image}"

    def _unsaturated(self, chosen: list[int]) -> str | None:
        """Why the overlap of one of the regions is undefined, or None."""
        empty = next((self._regions[i].image for i in chosen if self._regions[i].saturation == 0), None)
        return None if empty is None else f"a region of {empty} has a saturation area of 0 pixels"

    def _put_curves(self, out: Scores, rates: list[Rates], why: str | None, reasons: list[str | None]) -> None:
        if not why:
            out.curves |= {"pixel" if name == "roc" else name: curve for name, curve in rates[0].curves().items()}
        for short, rate, reason in zip(TYPES.values(), rates[1:], reasons, strict=False):
            if not reason:
                out.curves[f"spro/{short}"] = rate.curves("spro")["pro"]

    def _put_at_threshold(self, out: Scores, why: str | None) -> None:
        key = "pixel_spro" if self.loco else "pixel_pro"
        short = any(r.saturation == 0 for r in self._regions)
        reason = why or (None if self._shares else "no anomalous region") or (
            "a region has a saturation area of 0 pixels" if short else None
        )
        out.put(key, None if reason else _mean(np.array(self._shares)), reason)
        total = int(self._confusion.sum())
        reason = why or (None if total else "no pixel is anomalous or found so")
        out.put("pixel_iou", None if reason else int(self._confusion[0]) / total, reason)


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / len(values)


def _put_mean(out: Scores, key: str, logical: float | None, structural: float | None) -> None:
    missing = [name for name, v in (("logical", logical), ("structural", structural)) if v is None]
    if missing:
        out.put(f"{key}/mean", None, f"the value for {' and '.join(missing)} is undefined")
    else:
        out.put(f"{key}/mean", (logical + structural) / 2)
