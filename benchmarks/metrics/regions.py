"""Ground truth as regions: connected components of a mask, and the saturation area of a LOCO ground-truth file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.metrics.ranks import MetricError


@dataclass(frozen=True)
class Region:
    """One LOCO ground-truth file.

    mask: bool [H, W]. saturation: threshold of `defects_config.json`, in pixels, or as a share of the area if
    `relative`. name: defect name.
    """

    mask: np.ndarray
    saturation: float
    relative: bool
    name: str


def check_mask(name: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mask as bool [H, W], true where its value is above 0."""
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise MetricError(f"{name}: the mask has shape {mask.shape}, the anomaly map {shape}")
    if mask.dtype.kind not in "biuf":
        raise MetricError(f"{name}: the mask has type {mask.dtype}; expected bool or numbers")
    return mask if mask.dtype == np.bool_ else mask > 0


def components(truth: np.ndarray) -> tuple[np.ndarray, int]:
    """8-connected regions (pixels that touch at a corner are connected) of bool [H, W]: int32 [H, W], and their
    number; 0 is outside."""
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    numbers = np.zeros(truth.shape, np.int32)
    if rows.size == 0:
        return numbers, 0
    from scipy import ndimage

    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # labelling is the slow part, so only there
    numbers[box], count = ndimage.label(truth[box], np.ones((3, 3), np.int8))
    return numbers, count


def saturation_area(name: str, region: Region, area: int) -> int:
    """Pixels of a region that must be found for its full overlap (MVTec LOCO AD, Bergmann et al. 2022, sec. 5).

    Absolute: the smaller of threshold and area. Relative: the truncated share of the area.
    """
    threshold = float(region.saturation)
    if region.relative:
        if not 0 < threshold <= 1:
            raise MetricError(f"{name}: relative saturation {threshold} of {region.name!r} is not in (0, 1]")
        return int(threshold * area)
    if threshold < 0 or threshold != int(threshold):
        raise MetricError(f"{name}: saturation threshold {threshold} of {region.name!r} is not a number of pixels")
    return min(int(threshold), area)
