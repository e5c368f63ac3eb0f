"""A comparison as PNG: a critical-difference diagram, or bars of the means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report.drawings import canvas
from benchmarks.report.numbers import compare
from benchmarks.report.numbers.compare import Comparison
from benchmarks.report.numbers.front import Place


def plot(result: Comparison, path: Path) -> Path:
    """A critical-difference diagram from three methods and two common categories on, else bars of the means."""
    if result.critical_difference is not None:
        return critical_difference(
            result.ranks, result.critical_difference, path, title=f"{result.name}, {len(result.categories)} categories"
        )
    means = {m: math.fsum(v) / len(v) for m, v in result.values.items()}
    spread = {m: compare.spread(result, j) for j, m in enumerate(result.methods)}
    return bars(means, path, ylabel=f"{result.name} (%)", spread=spread)


def latency(shown: Sequence[Place], path: Path, *, ylabel: str) -> Path:
    """A metric against the time of one picture, methods of one device; those on the front are joined."""
    figure = canvas.blank(6.4, 4.2)
    axis = figure.subplots()
    for place in shown:
        axis.plot(1000 * place.latency, place.value, "o", color="C0" if place.front else canvas.GREY, markersize=5)
        axis.annotate(canvas.plain(place.method), (1000 * place.latency, place.value), xytext=(5, 3),
                      textcoords="offset points", fontsize=7)
    front = [place for place in shown if place.front]
    axis.step([1000 * p.latency for p in front], [p.value for p in front], where="post", color="C0", linewidth=1)
    axis.set_xscale("log")
    axis.margins(x=0.25)
    axis.set_xlabel("one picture, median (ms)", fontsize=8)
    axis.set_ylabel(ylabel, fontsize=8)
    axis.tick_params(labelsize=8)
    canvas.title(figure, f"{shown[0].device}; blue: no other is both as good and as fast")
    return canvas.save(figure, path)


def bars(
    means: Mapping[str, float], path: Path, *, ylabel: str, spread: Mapping[str, float | None]
) -> Path:
    """One bar per method, best first, with the standard deviation over seeds where known; a cut axis says so."""
    order = sorted(means, key=lambda m: -means[m])
    figure = canvas.blank(6.4, 0.32 * len(order) + 1.0)
    axis = figure.subplots()
    errors = [spread[m] or 0.0 for m in order]
    lengths = [means[m] for m in order]
    axis.barh(range(len(order)), lengths, xerr=errors if any(errors) else None, capsize=3, color="C0")
    floor = max(0.0, math.floor((min(lengths, default=0.0) - 5) / 10) * 10)
    end = 100.0 if max(lengths, default=1) > 1 else max(lengths, default=1)
    axis.set_xlim(floor, end + 0.12 * (end - floor))  # room for the number behind the longest bar
    for i, (length, error) in enumerate(zip(lengths, errors, strict=True)):
        axis.annotate(f"{length:.1f}", (length + error, i), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axis.set_yticks(range(len(order)), [canvas.plain(m) for m in order], fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel(f"{ylabel}, axis from {floor:g}" if floor else ylabel, fontsize=8)
    return canvas.save(figure, path)


def critical_difference(ranks: Mapping[str, float], difference: float, path: Path, *, title: str = "") -> Path:
    """Mean ranks on a line, best on the left; methods joined by a bar differ by less than the critical difference."""
    order = sorted(ranks, key=lambda m: ranks[m])
    k = len(order)
    rows = (k + 1) // 2
    figure = canvas.blank(7.6, 0.26 * rows + 1.5)
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
        axis.plot([ranks[method], ranks[method], end], [0, y, y], color=canvas.GREY, linewidth=0.8)
        axis.annotate(
            f"{canvas.plain(method)} ({ranks[method]:.2f})", (end, y), xytext=(-3 if left else 3, 0), fontsize=8,
            textcoords="offset points", ha="right" if left else "left", va="center",
        )
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
    canvas.title(figure, title)
    return canvas.save(figure, path)
