"""Anomaly maps over pictures: the colours, the overlay, and grids as in the papers' figures (PNG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from benchmarks.report.drawings import canvas

PERCEPTUAL = "inferno"
OUTLINE = (0, 255, 200)
"""Colour of a mask's outline: in none of the usual colour maps, and bright on dark and light ground."""


class Example(NamedTuple):
    """One test picture: uint8 [H, W, 3]; mask bool [H, W] or None; anomaly map [h, w] of any real type; a label.

    panels: further columns by name, uint8 [h, w, 3] or [h, w].
    """

    picture: np.ndarray
    mask: np.ndarray | None
    anomaly_map: np.ndarray
    label: str = ""
    panels: Mapping[str, np.ndarray] = MappingProxyType({})


def colour(anomaly_map: np.ndarray, low: float, high: float, colormap: str = PERCEPTUAL) -> np.ndarray:
    """uint8 [H, W, 3] of a map [H, W] scaled so that low and high are the ends of the colours."""
    from matplotlib import colormaps

    scaled = np.clip((np.asarray(anomaly_map, np.float64) - low) / max(high - low, 1e-12), 0, 1)
    table = (np.asarray(colormaps[colormap](np.arange(256)))[:, :3] * 255).round().astype(np.uint8)
    return table[(scaled * 255).round().astype(np.uint8)]


def overlay(
    picture: np.ndarray, anomaly_map: np.ndarray, low: float, high: float, *, colormap: str = PERCEPTUAL,
    strength: float = 0.6,
) -> np.ndarray:
    """The coloured map over the grey picture, uint8 [H, W, 3] at the picture's size."""
    from PIL import Image

    height, width = picture.shape[:2]
    shades = colour(anomaly_map, low, high, colormap)
    if shades.shape[:2] != (height, width):
        shades = np.asarray(Image.fromarray(shades).resize((width, height), Image.Resampling.BILINEAR))
    grey = picture.mean(axis=2, keepdims=True)
    return ((1 - strength) * grey + strength * shades).round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels on both sides of the border of a mask, bool [H, W]; the picture's edge is a border too."""
    inner, outer = mask.copy(), mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            moved = np.roll(mask, step, axis)
            edge = [slice(None), slice(None)]
            edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            moved[tuple(edge)] = False
            inner &= moved
            outer |= moved
    return outer & ~inner


def limits(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """One colour scale for all maps of a category: from the median of the pixels to their highest 0.1 %.

    Finite values only; a constant set gives a scale of width 1.
    """
    values = np.concatenate([np.asarray(m, np.float64).ravel()[:: max(1, m.size // 65536)] for m in maps])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.5, 0.999])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def overlay_grid(
    examples: Sequence[Example], path: Path, *, title: str = "", colormap: str = PERCEPTUAL
) -> Path:
    """Rows of input, panels, anomaly map and ground truth, on one colour scale (see `limits`)."""
    if not examples:
        raise ValueError("no examples to show")
    low, high = limits([e.anomaly_map for e in examples])
    names = ("input", *examples[0].panels, "anomaly map", "ground truth")
    figure = canvas.blank(2.2 * len(names), 2.1 * len(examples) + 0.5)
    axes = figure.subplots(len(examples), len(names), squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        height, width = example.picture.shape[:2]
        truth = np.zeros((height, width), bool) if example.mask is None else example.mask > 0
        row[0].imshow(example.picture)
        for axis, values in zip(row[1:-2], example.panels.values(), strict=True):
            axis.imshow(values, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        row[-2].imshow(overlay(example.picture, example.anomaly_map, low, high, colormap=colormap))
        row[-1].imshow(truth, cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(canvas.plain(example.label), fontsize=8)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    canvas.title(figure, title)
    return canvas.save(figure, path)
