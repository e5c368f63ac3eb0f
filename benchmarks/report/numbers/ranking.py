"""Who is best on a dataset, by how much, and at what cost: what the report's first page says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.report.numbers.compare import Comparison, spread
from benchmarks.report.numbers.front import unbeaten
from benchmarks.report.numbers.pool import Pool, cost, device_of

COSTS = (("timing", "images_per_s"), ("timing", "training_s"), ("memory", "peak_host_mb"), ("memory", "peak_device_mb"))


@dataclass(frozen=True)
class Ranked:
    """A method over the categories that all ranked methods have; figures in percent, `behind` in points to the best.

    place: equal means share one. others: means of further metrics, None where a category lacks one. costs: medians over
    its units on `device`, by the names of COSTS; a machine's as much as a method's.
    """

    spec: str
    place: int
    mean: float
    sd: float | None
    behind: float
    others: tuple[float | None, ...]
    marks: tuple[str, ...]
    device: str
    costs: dict[str, float | None]


def ranking(made: Sequence[Comparison], found: Pool) -> list[Ranked]:
    """Methods of comparisons of several metrics by the mean of the first one, best first; [] without a common category.

    Further metrics are averaged over the categories of the first one.
    """
    if not made or not made[0].categories:
        return []
    first = made[0]
    means = {m: math.fsum(values) / len(values) for m, values in first.values.items()}
    best = max(means.values())
    rows = []
    for j, spec in enumerate(first.methods):
        device, costs = _costs(spec, found)
        cells = [row[j] for line, row in zip(first.table.rows, first.table.cells, strict=True)
                 if line.key in first.categories]
        rows.append(Ranked(
            spec, 1 + sum(mean > means[spec] for mean in means.values()), means[spec], spread(first, j),
            best - means[spec], tuple(_mean(one, spec, first.categories) for one in made[1:]),
            tuple(dict.fromkeys(mark for cell in cells for mark in cell.marks)), device, costs,
        ))
    return sorted(rows, key=lambda row: (row.place, row.spec))


def frontier(rows: Sequence[Ranked]) -> list[Ranked]:
    """Those with a speed that no other on the same device beats in both mean and speed, slowest first."""
    known = [(row, speed) for row in rows if (speed := row.costs["images_per_s"]) is not None]
    front = unbeaten([(row.device, speed, row.mean) for row, speed in known])
    return [row for row, _ in sorted((k for k, there in zip(known, front, strict=True) if there), key=lambda k: k[1])]


def _mean(one: Comparison, spec: str, categories: Sequence[str]) -> float | None:
    if spec not in one.values or not set(categories) <= set(one.categories):
        return None
    return math.fsum(v for key, v in zip(one.categories, one.values[spec], strict=True) if key in categories
                     ) / len(categories)


def _costs(spec: str, found: Pool) -> tuple[str, dict[str, float | None]]:
    """Of the device on which most of its units ran."""
    by_device: dict[str, list] = {}
    for key, seeds in found.units.items():
        if f"{key[0]}@{key[1]}" == spec:
            for record in seeds.values():
                by_device.setdefault(device_of(record), []).append(record)
    device = max(sorted(by_device), key=lambda name: len(by_device[name]))
    medians = {}
    for part, name in COSTS:
        values = [v for r in by_device[device] if isinstance(v := cost(r, part, name), int | float)]
        medians[name] = float(median(values)) if values else None
    return device, medians
