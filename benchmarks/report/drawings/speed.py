"""Accuracy against speed of the methods of one device as a small SVG; a number is a method's place in the ranking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.report.drawings.charts import STYLE
from benchmarks.report.numbers.ranking import Ranked, frontier

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 460, 260, 46, 12, 14, 38


def speed(rows: Sequence[Ranked], metric: str) -> str:
    """Points with known speed; those that none beats in both are filled and joined. '' for fewer than two."""
    shown = [row for row in rows if row.costs["images_per_s"]]
    if len(shown) < 2:
        return ""
    x = [math.log10(row.costs["images_per_s"] or 1.0) for row in shown]
    y = [row.mean for row in shown]
    left, right = min(x) - 0.15, max(x) + 0.15
    pad = max(0.5, 0.12 * (max(y) - min(y)))
    low, high = min(y) - pad, max(y) + pad

    def at(a: float, b: float) -> tuple[float, float]:
        return (LEFT + (a - left) / (right - left) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (b - low) / (high - low) * (HEIGHT - TOP - BOTTOM))

    best = frontier(shown)
    parts = [f'<rect class="b" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>']
    for value in _ticks(left, right):
        px, _ = at(math.log10(value), low)
        parts.append(f'<text class="q" x="{px:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:g}</text>'
                     f'<path class="g" d="M{px:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for value in (min(y), max(y)):
        _, py = at(left, value)
        parts.append(f'<text class="q" x="{LEFT - 4}" y="{py + 3:.1f}" text-anchor="end">{value:.1f}</text>')
    if len(best) > 1:
        points = " ".join("{:.1f},{:.1f}".format(*at(math.log10(r.costs["images_per_s"] or 1.0), r.mean)) for r in best)
        parts.append(f'<polyline class="c c0" points="{points}"/>')
    for row, a, b in zip(shown, x, y, strict=True):
        px, py = at(a, b)
        kind = "d" if row in best else "o"
        parts.append(f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="8"/>'
                     f'<text class="n{kind}" x="{px:.1f}" y="{py + 3.5:.1f}" text-anchor="middle">{row.place}</text>')
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    parts.append(f'<text class="q" x="{LEFT + (WIDTH - LEFT - RIGHT) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">'
                 "test pictures per second</text>"
                 f'<text class="q" transform="translate(12,{middle:g}) rotate(-90)" text-anchor="middle">'
                 f"{escape(metric)}, %</text>")
    style = STYLE + (".d{fill:#0b57a4}.nd{fill:#fff;font-weight:600}.o{fill:#fff;stroke:#5b6068}"
                     "@media(prefers-color-scheme:dark){.d{fill:#8ab8f0}.nd{fill:#16181b}.o{fill:#16181b;stroke:#a2a9b2}}")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
            f"<style>{style}</style>{''.join(parts)}</svg>\n")


def _ticks(left: float, right: float) -> list[float]:
    steps = [m * 10.0**e for e in range(math.floor(left), math.ceil(right) + 1) for m in (1, 2, 5)]
    inside = [step for step in steps if left <= math.log10(step) <= right]
    return inside if len(inside) <= 6 else [step for step in inside if f"{step:e}"[0] == "1"]
