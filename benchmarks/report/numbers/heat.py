"""Method by category at a glance: means over seeds, and over all categories of a dataset that any method ran."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.report.numbers.pool import Pool, Record

Key = tuple[str, str, str, str]
"""(method, preset, dataset, category)."""


def units_of(found: Pool, dataset: str) -> dict[Key, dict[int, Record]]:
    """The records of one dataset by unit, then by seed."""
    return {key: seeds for key, seeds in found.units.items() if key[2] == dataset}


def have(units: Mapping[Key, Mapping[int, Record]]) -> set[str]:
    """Every metric that a record names."""
    return {name for seeds in units.values() for record in seeds.values() for name in record["metrics"]}


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


def over_categories(row: Mapping[str, float | None], categories: Iterable[str]) -> float | None:
    """Mean of a row of `table` over these categories; None when it lacks one."""
    values: Sequence[float | None] = [row.get(category) for category in categories]
    return math.fsum(v for v in values if v is not None) / len(values) if values and None not in values else None
