"""Plots as PNG: curves, histograms, heat tables, losses.

Arrays and paths in, a file out; the same input gives the same bytes. matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report.drawings import canvas
from benchmarks.report.numbers import heat
from benchmarks.report.numbers.over_settings import Curves


def curves(
    items: Sequence[Mapping[str, Any]], path: Path, *, kind: str = "roc", limit: float | None = None, title: str = ""
) -> Path:
    """ROC, PRO or sPRO curves. items: {'label', 'fpr' [n], and 'tpr', 'pro' or 'spro' [n]}.

    limit: false positive rate up to which the area is taken; that part is shaded, and a small one shown enlarged.
    """
    from benchmarks.report.numbers.arrays import reach

    name = {"roc": "tpr", "pro": "pro", "spro": "spro"}[kind]
    figure = canvas.blank(4.8, 4.2)
    axis = figure.subplots()
    for k, item in enumerate(items):
        fpr, rate = np.asarray(item["fpr"], float), np.asarray(item[name], float)
        axis.plot(fpr, rate, color=f"C{k}", label=canvas.plain(item.get("label", "")), linewidth=1.4)
        if limit is not None:
            inside = np.linspace(0, limit, 200)
            axis.fill_between(inside, np.interp(inside, fpr, rate), color=f"C{k}", alpha=0.15, linewidth=0)
    if limit is not None:
        axis.axvline(limit, color=canvas.GREY, linestyle="--", linewidth=1)
        axis.annotate(f"limit {limit:g}", (limit, 0.96), xytext=(4, 0), textcoords="offset points", fontsize=8)
    if kind == "roc":
        axis.plot([0, 1], [0, 1], color=canvas.GREY, linewidth=0.8, linestyle=":")
    axis.set(
        xlim=(0, reach(limit)), ylim=(0, 1.01), xlabel="false positive rate",
        ylabel={"roc": "true positive rate", "pro": "per-region overlap", "spro": "saturated per-region overlap"}[kind],
    )
    if len(items) > 1 or items[0].get("label"):
        axis.legend(fontsize=8, loc="best" if limit else "lower right")
    canvas.title(figure, title)
    return canvas.save(figure, path)


def histogram(scores: Mapping[str, Sequence[float]], path: Path, *, title: str = "") -> Path:
    """Image scores by kind of defect, good first; every kind is scaled to its own number of pictures."""
    kinds = sorted(scores, key=lambda k: (k != "good", k))
    finite = {k: np.asarray(scores[k], float)[np.isfinite(np.asarray(scores[k], float))] for k in kinds}
    everything = np.concatenate([*finite.values(), np.zeros(0)])
    if everything.size == 0:
        raise ValueError("no finite score to show")
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1.0, 31)
    figure = canvas.blank(6.0, 0.7 * len(kinds) + 1.2)
    axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axis, kind in zip(axes, kinds, strict=True):
        values = finite[kind]
        weights = np.full(values.shape, 1 / max(1, values.size))
        axis.hist(values, edges, weights=weights, color="C2" if kind == "good" else "C3", alpha=0.75)
        axis.set_yticks([])
        axis.set_ylabel(f"{canvas.plain(kind)}\n({values.size})", rotation=0, ha="right", va="center", fontsize=8)
    axes[-1].set_xlabel("image score")
    canvas.title(figure, title)
    return canvas.save(figure, path)


def heat_table(values: Mapping[str, Mapping[str, float | None]], path: Path, *, title: str = "") -> Path:
    """Methods x categories as coloured numbers. values: method -> category -> figure; a missing one stays blank."""
    methods = list(values)
    categories = list(dict.fromkeys(c for row in values.values() for c in row))
    numbers = np.array([[_nan(values[m].get(c)) for c in categories] for m in methods], float).reshape(
        len(methods), len(categories)
    )
    figure = canvas.blank(0.62 * len(categories) + 2.6, 0.34 * len(methods) + 1.6)
    axis = figure.subplots()
    levels = np.ma.masked_invalid([[heat.level(v) if math.isfinite(v) else math.nan for v in row] for row in numbers])
    axis.imshow(levels, cmap="YlGnBu", aspect="auto", vmin=0, vmax=len(heat.STEPS) + 4)  # fixed steps, never too dark
    for i, j in np.ndindex(numbers.shape):
        if math.isfinite(numbers[i, j]):
            axis.text(j, i, f"{numbers[i, j]:.1f}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(categories)), [_short(c) for c in categories], rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(methods)), [_short(m) for m in methods], fontsize=8)
    canvas.title(figure, title)
    return canvas.save(figure, path)


def losses(logs: Mapping[str, Sequence[float]], path: Path, *, title: str = "") -> Path:
    """Training curves by name; on a logarithmic scale where all values are positive and span more than a decade.

    A series named 'over_floor' (the error over that of the mean training picture) is drawn beside the others, with the
    line at 1 that a network must come below.
    """
    relative = {name: series for name, series in logs.items() if name.rpartition("/")[2] == "over_floor"}
    parts = [("loss", {name: series for name, series in logs.items() if name not in relative})]
    if relative:
        parts.append(("error / error of the mean picture", relative))
    figure = canvas.blank(5.4 * len(parts), 3.4)
    for axis, (ylabel, shown) in zip(np.ravel(figure.subplots(1, len(parts))), parts, strict=True):
        everything = [v for series in shown.values() for v in series if math.isfinite(v)]
        for name, series in shown.items():
            axis.plot(np.arange(1, len(series) + 1), series, label=canvas.plain(name), linewidth=1.3)
        if everything and min(everything) > 0 and max(everything) / min(everything) > 10:
            axis.set_yscale("log")
        if shown is relative:
            axis.axhline(1, color="C3", linestyle="--", linewidth=1, label="mean picture")
        axis.set(xlabel="epoch", ylabel=ylabel)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    canvas.title(figure, title)
    return canvas.save(figure, path)


def over_training(
    done: np.ndarray, series: Mapping[str, np.ndarray], path: Path, *, title: str = ""
) -> Path:
    """AUROC on test pictures over training, and a line in the picture that says so.

    done: percent of the training [n]. series: fractions [n] by name, NaN where undefined.
    """
    figure = canvas.blank(5.4, 3.6)
    axis = figure.subplots()
    for name, values in series.items():
        axis.plot(done, 100 * np.asarray(values), marker="o", markersize=3, label=canvas.plain(name), linewidth=1.3)
    axis.set(xlabel="training done (%)", ylabel="AUROC (%)", xlim=(0, 101))
    axis.set_title("looks at test data: for this plot only, no choice was made by it", fontsize=8, color="C3")
    axis.legend(fontsize=8)
    canvas.title(figure, title)
    return canvas.save(figure, path)


SETTINGS = {  # setting -> label of its axis, scale of x as shown, logarithmic
    "shots": ("training pictures", 1, True), "contaminated": ("defective training pictures (%)", 100, False),
    "corrupted": ("severity", 1, False), "size": ("pixels of the shorter side", 1, True),
}


def over_settings(shown: Curves, path: Path, *, ylabel: str) -> Path:
    """Curves with bands of 95 % over test pictures; the clean figure of each method is a dashed line.

    One panel for each corruption.
    """
    label, scale, steps = SETTINGS.get(shown.setting, (shown.setting, 1, False))
    count = len(shown.panels)
    across = min(count, 4)
    figure = canvas.blank(3.0 * across + 1.2, 2.6 * math.ceil(count / across) + 0.8)
    axes = np.ravel(figure.subplots(math.ceil(count / across), across, sharey=True, squeeze=False))
    for axis in axes[count:]:
        axis.set_axis_off()
    for k, (axis, (panel, methods)) in enumerate(zip(axes, shown.panels.items(), strict=False)):
        for color, (method, points) in enumerate(methods.items()):
            x = [scale * p.x for p in points]
            axis.plot(x, [p.value for p in points], f"C{color}o-", markersize=3, linewidth=1.4,
                      label=canvas.plain(method))
            if all(p.interval for p in points):
                low, high = np.transpose([p.interval for p in points])
                if len(points) == 1:  # a band has no width there
                    axis.vlines(x, low, high, color=f"C{color}", alpha=0.4, linewidth=4)
                axis.fill_between(x, low, high, color=f"C{color}", alpha=0.15, linewidth=0)
            if method in shown.clean:
                axis.axhline(shown.clean[method].value, color=f"C{color}", linestyle="--", linewidth=1)
        ticks = sorted({scale * p.x for points in methods.values() for p in points})
        if steps:
            axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        axis.minorticks_off()
        axis.tick_params(axis="y", labelsize=8)
        axis.set_title(canvas.plain("these pictures are scored too" if panel == "left" else panel), fontsize=9)
        axis.set_xlabel(label, fontsize=8)
        if k % across == 0:
            axis.set_ylabel(ylabel, fontsize=8)
    axes[0].legend(fontsize=7, title="dashed: clean", title_fontsize=7)
    names = ", ".join(shown.categories)
    canvas.title(figure, f"{shown.dataset}: {names if len(names) < 40 else f'{len(shown.categories)} categories'}")
    return canvas.save(figure, path)


def _short(text: str) -> str:
    """A label beside an axis; a longer one would leave no room for the axis."""
    return canvas.plain(text if len(text) <= 32 else f"{text[:31]}…")


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
