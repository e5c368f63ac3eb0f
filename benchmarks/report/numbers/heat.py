"""Method by category at a glance: means over seeds, and over all categories of a dataset that any method ran."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping

from benchmarks.report.numbers.pool import Pool, Record

Key = tuple[str, str, str, str]
"""(method, preset, dataset, category)."""


PLAIN = ("image_auroc", "pixel_auroc", "aupro@0.3")
LOCO = ("image_auroc/mean", "image_auroc/structural", "image_auroc/logical", "auspro@0.05/mean", "pixel_auroc")

STEPS = (50.0, 60.0, 70.0, 80.0, 85.0, 90.0, 95.0, 98.0, 99.5)
"""Where the next colour of the heat table begins, in percent. Fixed, so that a colour means the same on every page and
0.2 points between good methods do not look like the way from bad to good; finer near 100, where methods differ in what
they miss."""


def level(value: float) -> int:
    """0 to 9: the colour of a figure in percent."""
    return bisect_right(STEPS, value)


def units_of(found: Pool, dataset: str) -> dict[Key, dict[int, Record]]:
    """The records of one dataset by unit, then by seed."""
    return {key: seeds for key, seeds in found.units.items() if key[2] == dataset}


def have(units: Mapping[Key, Mapping[int, Record]]) -> set[str]:
    """Every metric that a record names."""
    return {name for seeds in units.values() for record in seeds.values() for name in record["metrics"]}


def main_metrics(units: Mapping[Key, Mapping[int, Record]]) -> list[str]:
    """What is shown of them first, image AUROC before pixels and regions; with LOCO's kinds where records have them."""
    known = have(units)
    return [m for m in (LOCO if LOCO[0] in known else PLAIN) if m in known] or sorted(known)[:1] or [PLAIN[0]]


def over_seeds(seeds: Mapping[int, Record], metric: str) -> float | None:
    """Mean in percent; None when one of them has no figure."""
    values = [record["metrics"].get(metric) for record in seeds.values()]
    return 100 * math.fsum(values) / len(values) if values and None not in values else None


def table(units: Mapping[Key, Mapping[int, Record]], metric: str) -> dict[str, dict[str, float | None]]:
    """`method@preset` -> category -> mean over seeds; a category that only others ran is not there."""
    found: dict[str, dict[str, float | None]] = {}
    for key, seeds in sorted(units.items()):
        found.setdefault(f"{key[0]}@{key[1]}", {})[key[3]] = over_seeds(seeds, metric)
    return found


def over_categories(row: Mapping[str, float | None], categories: Iterable[str]) -> tuple[float | None, int]:
    """Mean of a row of `table` over those of these categories that have a figure, and how many they are."""
    values = [value for category in categories if (value := row.get(category)) is not None]
    return (math.fsum(values) / len(values) if values else None), len(values)
