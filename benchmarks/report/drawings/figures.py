"""Figures as PNG: overlays, curves, histograms, heat tables, losses, comparisons.

Arrays and paths in, a file out; the same input gives the same bytes. matplotlib is imported when a figure is drawn and
never touches a display or its global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCEPTUAL = "inferno"
LIKENESS = "jet"
"""The colours of the papers' figures; a scale that is not even to the eye."""
GREY = "0.55"


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
    examples: Sequence[Example], path: Path, *, title: str = "", colormap: str = PERCEPTUAL,
    scale: tuple[float, float] | None = None,
) -> Path:
    """Rows of input, panels, anomaly map and ground truth. scale: ends of the map's colours (see `limits`)."""
    if not examples:
        raise ValueError("no examples to show")
    low, high = scale or limits([e.anomaly_map for e in examples])
    names = ("input", *examples[0].panels, "anomaly map", "ground truth")
    figure = _figure(2.2 * len(names), 2.1 * len(examples) + 0.5)
    axes = figure.subplots(len(examples), len(names), squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        height, width = example.picture.shape[:2]
        truth = np.zeros((height, width), bool) if example.mask is None else example.mask > 0
        row[0].imshow(example.picture)
        for axis, values in zip(row[1:-2], example.panels.values(), strict=True):
            axis.imshow(values, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        row[-2].imshow(overlay(example.picture, example.anomaly_map, low, high, colormap=colormap))
        row[-1].imshow(truth, cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(_plain(example.label), fontsize=8)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    _title(figure, title)
    return _save(figure, path)


def curves(
    items: Sequence[Mapping[str, Any]], path: Path, *, kind: str = "roc", limit: float | None = None, title: str = ""
) -> Path:
    """ROC, PRO or sPRO curves. items: {'label', 'fpr' [n], and 'tpr', 'pro' or 'spro' [n]}.

    limit: false positive rate up to which the area is taken; that part is shaded, and a small one shown enlarged.
    """
    from benchmarks.report.numbers.arrays import reach

    name = {"roc": "tpr", "pro": "pro", "spro": "spro"}[kind]
    figure = _figure(4.8, 4.2)
    axis = figure.subplots()
    for k, item in enumerate(items):
        fpr, rate = np.asarray(item["fpr"], float), np.asarray(item[name], float)
        axis.plot(fpr, rate, color=f"C{k}", label=_plain(item.get("label", "")), linewidth=1.4)
        if limit is not None:
            inside = np.linspace(0, limit, 200)
            axis.fill_between(inside, np.interp(inside, fpr, rate), color=f"C{k}", alpha=0.15, linewidth=0)
    if limit is not None:
        axis.axvline(limit, color=GREY, linestyle="--", linewidth=1)
        axis.annotate(f"limit {limit:g}", (limit, 0.96), xytext=(4, 0), textcoords="offset points", fontsize=8)
    if kind == "roc":
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axis.set(
        xlim=(0, reach(limit)), ylim=(0, 1.01), xlabel="false positive rate",
        ylabel={"roc": "true positive rate", "pro": "per-region overlap", "spro": "saturated per-region overlap"}[kind],
    )
    if len(items) > 1 or items[0].get("label"):
        axis.legend(fontsize=8, loc="best" if limit else "lower right")
    _title(figure, title)
    return _save(figure, path)


def histogram(
    scores: Mapping[str, Sequence[float]], path: Path, *, title: str = "", threshold: float | None = None
) -> Path:
    """Image scores by kind of defect, good first; every kind is scaled to its own number of pictures."""
    kinds = sorted(scores, key=lambda k: (k != "good", k))
    finite = {k: np.asarray(scores[k], float)[np.isfinite(np.asarray(scores[k], float))] for k in kinds}
    everything = np.concatenate([*finite.values(), np.zeros(0)])
    if everything.size == 0:
        raise ValueError("no finite score to show")
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1.0, 31)
    figure = _figure(6.0, 0.7 * len(kinds) + 1.2)
    axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axis, kind in zip(axes, kinds, strict=True):
        values = finite[kind]
        weights = np.full(values.shape, 1 / max(1, values.size))
        axis.hist(values, edges, weights=weights, color="C2" if kind == "good" else "C3", alpha=0.75)
        axis.set_yticks([])
        axis.set_ylabel(f"{_plain(kind)}\n({values.size})", rotation=0, ha="right", va="center", fontsize=8)
        if threshold is not None:
            axis.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
    axes[-1].set_xlabel("image score")
    _title(figure, title)
    return _save(figure, path)


def heat_table(
    values: Mapping[str, Mapping[str, float | None]], path: Path, *, title: str = "", digits: int = 1
) -> Path:
    """Methods x categories as coloured numbers. values: method -> category -> figure; a missing one stays blank."""
    methods = list(values)
    categories = list(dict.fromkeys(c for row in values.values() for c in row))
    numbers = np.array([[_nan(values[m].get(c)) for c in categories] for m in methods], float).reshape(
        len(methods), len(categories)
    )
    figure = _figure(0.62 * len(categories) + 2.6, 0.34 * len(methods) + 1.6)
    axis = figure.subplots()
    shown = np.ma.masked_invalid(numbers)
    image = axis.imshow(shown, cmap="viridis", aspect="auto")
    low, high = image.get_clim()
    for i, j in np.ndindex(numbers.shape):
        if math.isfinite(numbers[i, j]):
            dark = (numbers[i, j] - low) < 0.6 * max(high - low, 1e-12)
            axis.text(j, i, f"{numbers[i, j]:.{digits}f}", ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")
    axis.set_xticks(range(len(categories)), [_short(c) for c in categories], rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(methods)), [_short(m) for m in methods], fontsize=8)
    _title(figure, title)
    return _save(figure, path)


def losses(logs: Mapping[str, Sequence[float]], path: Path, *, title: str = "", xlabel: str = "epoch") -> Path:
    """Training curves by name; on a logarithmic scale where all values are positive and span more than a decade."""
    figure = _figure(5.4, 3.4)
    axis = figure.subplots()
    everything = [v for series in logs.values() for v in series if math.isfinite(v)]
    for name, series in logs.items():
        axis.plot(np.arange(1, len(series) + 1), series, label=_plain(name), linewidth=1.3)
    if everything and min(everything) > 0 and max(everything) / min(everything) > 10:
        axis.set_yscale("log")
    axis.set(xlabel=xlabel, ylabel="loss")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8)
    _title(figure, title)
    return _save(figure, path)


def over_training(
    done: np.ndarray, series: Mapping[str, np.ndarray], path: Path, *, title: str = ""
) -> Path:
    """AUROC on test pictures over training, and a line in the picture that says so.

    done: percent of the training [n]. series: fractions [n] by name, NaN where undefined.
    """
    figure = _figure(5.4, 3.6)
    axis = figure.subplots()
    for name, values in series.items():
        axis.plot(done, 100 * np.asarray(values), marker="o", markersize=3, label=_plain(name), linewidth=1.3)
    axis.set(xlabel="training done (%)", ylabel="AUROC (%)", xlim=(0, 101))
    axis.set_title("looks at test data: for this plot only, no choice was made by it", fontsize=8, color="C3")
    axis.legend(fontsize=8)
    _title(figure, title)
    return _save(figure, path)


def bars(
    means: Mapping[str, float], path: Path, *, ylabel: str = "", spread: Mapping[str, float | None] | None = None,
    title: str = "",
) -> Path:
    """One bar per method, best first, with the standard deviation over seeds where known; a cut axis says so."""
    order = sorted(means, key=lambda m: -means[m])
    figure = _figure(max(3.2, 0.8 * len(order) + 1.6), 3.6)
    axis = figure.subplots()
    errors = [(spread or {}).get(m) or 0.0 for m in order]
    heights = [means[m] for m in order]
    axis.bar(range(len(order)), heights, yerr=errors if any(errors) else None, capsize=3, color="C0")
    low = min(heights) if heights else 0.0
    floor = max(0.0, math.floor((low - 5) / 10) * 10)
    axis.set_ylim(floor, 100 if max(heights, default=1) > 1 else None)
    for i, height in enumerate(heights):
        axis.text(i, height, f"{height:.1f}", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(order)), [_plain(m) for m in order], rotation=30, ha="right", fontsize=8)
    axis.set_ylabel(f"{ylabel}, axis from {floor:g}" if floor else ylabel)
    _title(figure, title)
    return _save(figure, path)


def critical_difference(ranks: Mapping[str, float], difference: float, path: Path, *, title: str = "") -> Path:
    """Mean ranks on a line, best on the left; methods joined by a bar differ by less than the critical difference."""
    order = sorted(ranks, key=lambda m: ranks[m])
    k = len(order)
    rows = (k + 1) // 2
    figure = _figure(7.6, 0.26 * rows + 1.5)
    axis = figure.subplots()
    axis.set_axis_off()
    wide = 0.45 * (k - 1) + 0.4  # room for the names beside the line
    axis.set_xlim(1 - wide, k + wide)
    axis.set_ylim(0.55 * rows + 1.2, -1.3)
    axis.plot([1, k], [0, 0], color="black", linewidth=1)
    for tick in range(1, k + 1):
        axis.plot([tick, tick], [-0.12, 0.12], color="black", linewidth=1)
        axis.text(tick, -0.2, str(tick), ha="center", va="bottom", fontsize=8)
    for i, method in enumerate(order):
        left = i < rows
        y = 1.2 + 0.55 * (i if left else k - 1 - i)
        end = 0.95 if left else k + 0.05
        axis.plot([ranks[method], ranks[method], end], [0, y, y], color=GREY, linewidth=0.8)
        axis.annotate(f"{_plain(method)} ({ranks[method]:.2f})", (end, y), xytext=(-3 if left else 3, 0), va="center",
                      textcoords="offset points", ha="right" if left else "left", fontsize=8)
    level = 0.25
    reach = 0.0
    for i, method in enumerate(order):
        group = [m for m in order[i:] if ranks[m] - ranks[method] < difference]
        end_rank = ranks[group[-1]]
        if len(group) > 1 and end_rank > reach:
            axis.plot([ranks[method] - 0.03, end_rank + 0.03], [level, level], color="black", linewidth=3)
            level += 0.18
            reach = end_rank
    axis.plot([1, 1 + difference], [-0.85, -0.85], color="C3", linewidth=2)
    axis.text(1 + difference / 2, -0.9, f"critical difference {difference:.2f}", ha="center", va="bottom", fontsize=8)
    _title(figure, title)
    return _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, text: str) -> None:
    if text:
        figure.suptitle(_plain(text), fontsize=10)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return str(text).replace("$", r"\$")


def _short(text: str) -> str:
    """A label beside an axis; a longer one would leave no room for the axis."""
    return _plain(text if len(text) <= 32 else f"{text[:31]}…")


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _save(figure: Figure, path: Path) -> Path:
    """Write the PNG without version or date in it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
