"""A comparison in words and tables, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.numbers.compare import Comparison
from benchmarks.report.numbers.front import places
from benchmarks.report.numbers.pool import Pool, cost, device_of
from benchmarks.report.numbers.significance import Pair
from benchmarks.report.text import markdown as tables
from benchmarks.report.text.grid import number


@dataclass(frozen=True)
class Plain:
    """A table of ready text: title, heads, rows."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


COSTS = (
    ("timing", "training_s", "training (s)", 1), ("timing", "images_per_s", "test pictures per second", 1),
    ("timing", "total_s", "unit in all (s)", 1), ("timing", "latency_p50_s", "one picture, median (s)", 4),
    ("timing", "latency_p95_s", "one picture, 95 % (s)", 4), ("memory", "model_mb", "model (MiB)", 1),
    ("memory", "peak_host_mb", "peak host memory (MiB)", 0),
    ("memory", "peak_device_mb", "peak device memory (MiB)", 0),
)


def cost_table(found: Pool, methods: Sequence[str], best: Comparison | None = None) -> Plain:
    """Median over the units of each method, per device: time and memory of different machines are not comparable.

    best: with which methods are on the front of its metric against the latency of one picture.
    """
    rows = []
    spots = {(p.method, p.device): p.front for p in places(best, found)} if best else {}
    several = len({method for method, _ in spots}) > 1
    for method in dict.fromkeys(methods):
        by_device: dict[str, list] = {}
        for key, seeds in found.units.items():
            if f"{key[0]}@{key[1]}" == method:
                for record in seeds.values():
                    by_device.setdefault(device_of(record), []).append(record)
        for device, records in sorted(by_device.items()):
            shown = []
            for part, name, _, digits in COSTS:
                values = [v for r in records if isinstance(v := cost(r, part, name), int | float)]
                shown.append(number(_median(values), digits) if values else "—")
            if several:
                shown.append({True: "yes", False: "no", None: "—"}[spots.get((method, device))])
            rows.append((method, device, str(len(records)), *shown))
    title = "Time and memory, medians over units; as if each unit had run alone"
    front = [f"on the front of {best.name} and one picture's time"] if several and best else []
    return Plain(title, ("method", "device", "units", *(c[2] for c in COSTS), *front), rows)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def summaries(result: Comparison, most: int | None = None) -> list[Plain]:
    """Means and ranks over the common categories, and the pairs: with more than `most` those with the best method."""
    if not result.ranks:
        return []
    n = len(result.categories)
    wins: dict[str, list[int]] = {m: [0, 0, 0] for m in result.methods}
    for pair in result.pairs:
        for method, counts in ((pair.a, (pair.wins, pair.ties, pair.losses)),
                               (pair.b, (pair.losses, pair.ties, pair.wins))):
            wins[method] = [x + y for x, y in zip(wins[method], counts, strict=True)]
    order = sorted(result.methods, key=lambda m: result.ranks[m])
    ranks = Plain(
        f"{result.name} over the {n} categories that all methods ran",
        ("method", "mean (%)", "mean rank", "wins", "ties", "losses"),
        [
            (m, f"{math.fsum(result.values[m]) / n:.2f}", f"{result.ranks[m]:.2f}", *map(str, wins[m])) for m in order
        ],
    )
    all_pairs = most is None or len(result.pairs) <= most
    shown = [p for p in result.pairs if all_pairs or order[0] in (p.a, p.b)]
    pairs = Plain(
        f"{result.name}, pairs" + ("" if all_pairs else f" with {order[0]}, the best by mean rank"),
        ("first", "second", "wins", "ties", "losses", "mean difference", "p (Wilcoxon)", "p (Holm)"),
        [
            (p.a, p.b, str(p.wins), str(p.ties), str(p.losses), number(p.difference, 2, sign=True),
             _p(p.p), _p(p.adjusted))
            for p in shown
        ],
    )
    return [ranks, pairs, *_differences(result, shown)]


def _differences(result: Comparison, shown: Sequence[Pair]) -> list[Plain]:
    """With intervals: the differences of the pairs shown, over all categories and in each."""
    pairs = {(p.a, p.b) for p in shown}
    rows = [
        (
            d.a, d.b, d.place or f"all {len(result.categories)}", number(d.value, 2, sign=True),
            " to ".join(number(end, 2, sign=True) for end in d.interval or ()) or "—", d.verdict or "—",
        )
        for d in result.differences if (d.a, d.b) in pairs and (d.place or len(result.categories) > 1)
    ]
    heads = ("first", "second", "category", "difference", "95 % interval over pictures", "verdict")
    return [Plain(f"{result.name}, differences on the same pictures (points)", heads, rows)] if rows else []


def _p(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def tests(result: Comparison) -> list[str]:
    """Sentences on the tests over all methods, then the caveats."""
    lines = []
    if result.friedman is not None:
        lines.append(f"Friedman's test over all {len(result.methods)} methods: p = {_p(result.friedman)}.")
    if result.critical_difference is not None:
        lines.append(
            f"Mean ranks that differ by less than {result.critical_difference:.2f} (Nemenyi, 0.05) do not differ "
            "significantly."
        )
    return lines + result.caveats


def markdown(made: Sequence[Comparison], cost: Plain) -> str:
    """Everything, for the screen or a file."""
    parts = []
    for result in made:
        parts.append(tables.markdown(result.table))
        parts += [_markdown(plain) for plain in summaries(result)]
        if lines := tests(result):
            parts.append("\n".join(f"- {tables.escape(line)}" for line in lines) + "\n")
    return "\n".join([*parts, _markdown(cost)])


def _markdown(plain: Plain) -> str:
    from tabulate import tabulate

    rows = [[tables.escape(text) for text in row] for row in plain.rows]
    heads = [tables.escape(head) for head in plain.heads]
    body = tabulate(rows, heads, tablefmt="pipe", disable_numparse=True)
    return f"### {tables.escape(plain.title)}\n\n{body}\n"
