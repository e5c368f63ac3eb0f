"""A metric over the values of a setting: few pictures, a spoilt set, corruptions, with intervals over test pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.metrics import bootstrap
from benchmarks.report.numbers.intervals import drawn
from benchmarks.report.numbers.pool import Pool


@dataclass(frozen=True)
class Point:
    """A mean over categories (and seeds) in percent. x: the value of the setting; interval: 95 %, None without one."""

    x: float
    value: float
    interval: tuple[float, float] | None


@dataclass
class Curves:
    """One setting. panels: name -> method -> points in order of x; clean: panel -> method -> the clean point, where it
    has all of these categories."""

    setting: str
    dataset: str
    categories: tuple[str, ...]
    panels: dict[str, dict[str, list[Point]]] = field(default_factory=dict)
    clean: dict[str, Point] = field(default_factory=dict)


def curves(found: Pool, methods: Sequence[str], metric: str) -> list[Curves]:
    """Of each dataset each setting that has two values or more, over the categories that all its units have.

    methods: `method@preset`. Settings of one value, such as held_out, make no curve.
    """
    made = []
    for dataset in sorted({key[2] for key in found.units}):
        units = {  # (method, preset with its setting, category)
            (key[0], key[1], key[3]): seeds for key, seeds in found.units.items()
            if key[2] == dataset and f"{key[0]}@{key[1].partition(' ')[0]}" in methods
            and all(record["metrics"].get(metric) is not None for record in seeds.values())
        }
        places: dict[str, dict[tuple[str, float, str], set[str]]] = {}
        for method, preset, category in units:
            plain, _, text = preset.partition(" ")
            if text and (where := _place(text)) is not None:
                setting, panel, x = where
                spot = (panel, x, f"{method}@{plain}")
                places.setdefault(setting, {}).setdefault(spot, set()).add(category)
        for setting, spots in sorted(places.items()):
            if len({x for _, x, _ in spots}) < 2:
                continue
            common = tuple(sorted(set.intersection(*spots.values())))
            if not common:
                continue
            one = Curves(setting, dataset, common)
            for panel, x, spec in sorted(spots):
                text = _text(setting, panel, x)
                points = one.panels.setdefault(panel, {}).setdefault(spec, [])
                points.append(_point(found, f"{spec} {text}", dataset, common, metric, x))
            for spec in sorted({spec for _, _, spec in spots}):
                if all(found.get(spec, dataset, category) for category in common):
                    one.clean[spec] = _point(found, spec, dataset, common, metric, math.nan)
            made.append(one)
    return made


def _place(text: str) -> tuple[str, str, float] | None:
    """'corrupted=blur:3' -> ('corrupted', 'blur', 3.0); 'contaminated=0.1:left' -> ('contaminated', 'left', 0.1)."""
    setting, _, value = text.partition("=")
    first, _, second = value.partition(":")
    panel, number = (first, second) if setting == "corrupted" else (second, first)
    try:
        return setting, panel, float(number)
    except ValueError:
        return None


def _text(setting: str, panel: str, x: float) -> str:
    if setting == "corrupted":
        return f"{setting}={panel}:{x:g}"
    return f"{setting}={x:g}" + (f":{panel}" if panel else "")


def _point(
    found: Pool, spec: str, dataset: str, categories: Sequence[str], metric: str, x: float
) -> Point:
    values, draws, sizes = [], [], []
    for category in categories:
        seeds = list(found.get(spec, dataset, category).values())
        values.append(100 * math.fsum(r["metrics"][metric] for r in seeds) / len(seeds))
        each = [drawn(record, metric) for record in seeds]
        if not any(isinstance(one, str) for one in each):
            draws.append(100 * np.mean([one.values for one in each], axis=0))
            sizes.append(each[0].size)
    whole = len(draws) == len(categories)
    interval = bootstrap.interval(np.mean(draws, axis=0), *sum(sizes)) if whole else None
    return Point(x, math.fsum(values) / len(values), interval)
