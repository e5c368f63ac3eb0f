"""Small charts of one unit as one SVG: quick enough for a thousand units, light and dark, no script in it.

`plots` draws the same things as PNG for papers, several methods in one picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from benchmarks.metrics.curves import thin
from benchmarks.report.numbers.arrays import (
    area,
    arrays_of,
    cut,
    image_rocs,
    losses,
    map_curves,
    reach,
    scores_by_kind,
    watched,
)
from benchmarks.report.numbers.pool import Record

WIDTH, PLOT = 270, 150
LEFT, TOP, RIGHT = 40, 22, 12
POINTS = 60
PRO, SPRO = 0.3, 0.05
KINDS = 10
"""Rows of a histogram; further kinds are taken together."""

STYLE = """
text{font:10px system-ui,sans-serif;fill:#1c1e21}.t{font-weight:600;font-size:11px}.q{fill:#5b6068}
.b{fill:none;stroke:#aab}.g{stroke:#aab;stroke-dasharray:2 3;fill:none}.l{stroke:#8a3b00;stroke-dasharray:4 3}
.s{fill:#8a3b00;opacity:.1}.c{fill:none;stroke-width:1.6;stroke-linejoin:round}
.c0{stroke:#0b57a4}.c1{stroke:#c2410c}.c2{stroke:#15803d}.c3{stroke:#7e22ce}.k0{fill:#15803d}.k1{fill:#c2410c}
@media(prefers-color-scheme:dark){text{fill:#e4e6ea}.q{fill:#a2a9b2}.b,.g{stroke:#5a626c}.l{stroke:#ffb27a}
.s{fill:#ffb27a}.c0{stroke:#8ab8f0}.c1{stroke:#fb9a6b}.c2{stroke:#74d39a}.c3{stroke:#cda1f5}
.k0{fill:#74d39a}.k1{fill:#fb9a6b}}""".replace("\n", "")


@dataclass(frozen=True)
class Drawn:
    """A chart without its place: its height and the elements inside."""

    height: int
    body: str


def panel(charts: Sequence[Drawn]) -> str:
    """An SVG with the charts in two columns, each put where there is more room."""
    heights = [0, 0]
    parts = []
    for chart in charts:
        column = heights.index(min(heights))
        parts.append(f'<g transform="translate({column * WIDTH},{heights[column]})">{chart.body}</g>')
        heights[column] += chart.height
    width = WIDTH * (2 if heights[1] else 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{max(heights)}" '
        f'viewBox="0 0 {width} {max(heights)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def of(record: Record) -> str:
    """The SVG of one unit: ROC, PRO or sPRO up to their limit, losses, scores by kind. '' when nothing is stored."""
    arrays = arrays_of(record)
    metrics, maps = record["metrics"], map_curves(arrays)
    drawn = []
    if images := image_rocs(arrays):
        values = {name: metrics.get(f"image_auroc/{name}" if name else "image_auroc") for name in images}
        drawn.append(rates("ROC, images", images, "true positive rate", values))
    if "pixel" in maps:
        drawn.append(rates("ROC, pixels", {"": maps["pixel"]}, "true positive rate", {"": metrics.get("pixel_auroc")}))
    if "pro" in maps:
        value = metrics.get(f"aupro@{PRO:g}")
        drawn.append(rates("PRO", {"": maps["pro"]}, "overlap per region", {"": value}, PRO))
    if spro := {name.partition("/")[2]: curve for name, curve in maps.items() if name.startswith("spro/")}:
        values = {name: metrics.get(f"auspro@{SPRO:g}/{name}") for name in spro}
        drawn.append(rates("sPRO", spro, "saturated overlap", values, SPRO))
    if series := losses(record, arrays):
        drawn.append(loss(series))
    if (log := watched(record)) is not None:
        drawn.append(over_training(*log))
    if scores := scores_by_kind(arrays):
        drawn.append(histogram(scores))
    return panel(drawn) if drawn else ""


def rates(
    title: str, curves: Mapping[str, np.ndarray], ylabel: str, values: Mapping[str, float | None],
    limit: float | None = None,
) -> Drawn:
    """Curves [2, n] of rates in [0, 1] by label, each with its area from `values`.

    limit: false positive rate where the area ends; it is shaded up to there, and a small one is shown enlarged.
    """
    end = reach(limit)
    bottom, wide = TOP + PLOT, WIDTH - LEFT - RIGHT
    parts = [_title(title), _frame(wide)]
    if limit is None and ylabel == "true positive rate":
        parts.append(f'<path class="g" d="M{LEFT} {bottom}L{LEFT + wide} {TOP}"/>')
    if limit is not None and limit < 1:
        x = LEFT + limit / end * wide
        parts.append(f'<rect class="s" x="{LEFT}" y="{TOP}" width="{x - LEFT:.1f}" height="{PLOT}"/>')
        parts.append(f'<path class="l" d="M{x:.1f} {TOP}V{bottom}"/>')
    texts = []
    for i, (label, curve) in enumerate(curves.items()):
        points = thin(cut(curve, end), POINTS)
        parts.append(_line(LEFT + points[0] / end * wide, bottom - points[1] * PLOT, i))
        value = values.get(label)
        value = area(curve, limit or 1.0) if value is None else value
        text = f"{100 * value:.1f} %" + (f" up to {limit:g}" if limit is not None else "")
        texts.append(f"{label} {text}" if label else text)
    for i, text in enumerate(texts):
        y = bottom - 8 - 13 * (len(texts) - 1 - i)
        parts.append(_swatch(LEFT + wide - 8, y, i, text))
    parts += [_text(LEFT - 4, TOP + 8, "1", "end"), _text(LEFT - 4, bottom, "0", "end")]
    parts += [_text(LEFT, bottom + 12, "0"), _text(LEFT + wide, bottom + 12, f"{end:g}", "end")]
    parts += [_text(LEFT + wide / 2, bottom + 12, "false positive rate", "middle"), _upright(ylabel)]
    return Drawn(bottom + 22, "".join(parts))


def loss(series: Mapping[str, np.ndarray]) -> Drawn:
    """Training losses by epoch; on a logarithmic scale where all are positive and span more than a decade."""
    shown = dict(list(series.items())[:4])
    values = np.concatenate([v[np.isfinite(v)] for v in shown.values()])
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high > 10 * low
    longest = max(v.size for v in shown.values())
    bottom, wide = TOP + PLOT, WIDTH - LEFT - RIGHT
    span = (math.log(high / low) if log else high - low) or 1.0
    parts = [_title("Loss" + (", logarithmic" if log else "")), _frame(wide)]
    for i, values in enumerate(shown.values()):
        chosen = np.unique(np.linspace(0, values.size - 1, min(values.size, 2 * POINTS)).round().astype(int))
        chosen = chosen[np.isfinite(values[chosen])]
        part = np.log(values[chosen] / low) if log else values[chosen] - low
        parts.append(_line(LEFT + chosen / max(longest - 1, 1) * wide, bottom - part / span * PLOT, i))
    for i, name in enumerate(shown):
        parts.append(_swatch(LEFT + wide - 8, TOP + 13 + 13 * i, i, name))
    parts += [_text(LEFT - 4, TOP + 8, f"{high:.3g}", "end"), _text(LEFT - 4, bottom, f"{low:.3g}", "end")]
    parts += [_text(LEFT, bottom + 12, "1"), _text(LEFT + wide, bottom + 12, str(longest), "end")]
    parts.append(_text(LEFT + wide / 2, bottom + 12, "epoch", "middle"))
    return Drawn(bottom + 22, "".join(parts))


def over_training(done: np.ndarray, series: Mapping[str, np.ndarray]) -> Drawn:
    """AUROC over the course of a training, with a line that says whose pictures it was measured on."""
    bottom, wide = TOP + PLOT, WIDTH - LEFT - RIGHT
    low = math.floor(10 * min(float(np.nanmin(values)) for values in series.values())) / 10
    low = min(low, 0.9)
    parts = [_title("AUROC over training"), _frame(wide)]
    for i, (name, values) in enumerate(series.items()):
        seen = np.isfinite(values)
        y = bottom - (values[seen] - low) / (1 - low) * PLOT
        parts.append(_line(LEFT + done[seen] * wide, y, i))
        parts.append(_swatch(LEFT + wide - 8, bottom - 8 - 13 * i, i, name))
    parts += [_text(LEFT - 4, TOP + 8, "1", "end"), _text(LEFT - 4, bottom, f"{low:g}", "end")]
    parts.append(_text(LEFT + wide / 2, bottom + 12, "looks at test data, for this plot only", "middle"))
    return Drawn(bottom + 22, "".join(parts))


def histogram(scores: Mapping[str, np.ndarray]) -> Drawn:
    """Image scores by kind, a row each on one scale; rows are as high as their fullest bin."""
    rows = list(scores.items())
    if len(rows) > KINDS:
        rest = rows[KINDS - 1 :]
        rows = [*rows[: KINDS - 1], (f"{len(rest)} other kinds", np.concatenate([v for _, v in rest]))]
    everything = np.concatenate([values for _, values in rows])
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1.0, 31)
    left, step = 96, 24
    wide = WIDTH - left - RIGHT
    parts = [_title("Image scores by kind")]
    for i, (kind, values) in enumerate(rows):
        base = TOP + step * (i + 1)
        counts = np.histogram(values, edges)[0]
        bars = "".join(
            f"M{left + k * wide / 30:.1f} {base}v-{18 * count / counts.max():.1f}h{wide / 30:.1f}V{base}"
            for k, count in enumerate(counts) if count
        )
        parts.append(f'<path class="k{int(kind != "good")}" d="{bars}"/><path class="b" d="M{left} {base}h{wide}"/>')
        name = kind if len(kind) <= 14 else f"{kind[:13]}…"
        parts.append(_text(left - 4, base - 5, f"{name} {values.size}", "end"))
    end = TOP + step * len(rows)
    parts += [_text(left, end + 12, f"{low:.3g}"), _text(left + wide, end + 12, f"{high:.3g}", "end")]
    return Drawn(end + 22, "".join(parts))


def _title(text: str) -> str:
    return f'<text class="t" x="{LEFT}" y="14">{escape(text)}</text>'


def _frame(wide: float) -> str:
    return f'<rect class="b" x="{LEFT}" y="{TOP}" width="{wide}" height="{PLOT}"/>'


def _line(x: np.ndarray, y: np.ndarray, number: int) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="c c{number % 4}" points="{points}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="q" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _upright(text: str) -> str:
    at = TOP + PLOT / 2
    return f'<text class="q" transform="translate(14,{at:g}) rotate(-90)" text-anchor="middle">{escape(text)}</text>'


def _swatch(right: float, y: float, number: int, text: str) -> str:
    """A label that ends at `right`, and the line it stands for behind it."""
    label = f'<text x="{right - 18:g}" y="{y:g}" text-anchor="end">{escape(text)}</text>'
    return label + f'<path class="c c{number % 4}" d="M{right - 14:g} {y - 3.5:g}h14"/>'
