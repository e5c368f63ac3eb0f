"""Accuracy against latency: which methods no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.report.numbers.compare import Comparison
from benchmarks.report.numbers.pool import Pool, cost, device_of, spec_of


@dataclass(frozen=True)
class Place:
    """A method on a device. latency: median over its units of the median seconds of one picture; value: mean over the
    common categories in the unit shown; front: no other method there is as good and as fast, and better in one."""

    method: str
    device: str
    latency: float
    value: float
    front: bool


def places(result: Comparison, found: Pool) -> list[Place]:
    """By device and latency; methods without a common category or without a latency are left out."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for seeds in found.units.values():
        for record in seeds.values():
            value = cost(record, "timing", "latency_p50_s")
            if spec_of(record) in result.values and isinstance(value, int | float):
                seconds.setdefault((device_of(record), spec_of(record)), []).append(float(value))
    spots = {
        (device, method): (median(values), math.fsum(result.values[method]) / len(result.values[method]))
        for (device, method), values in seconds.items()
    }
    front = unbeaten([(device, -latency, value) for (device, _), (latency, value) in spots.items()])
    made = [Place(method, device, *spot, there)
            for ((device, method), spot), there in zip(spots.items(), front, strict=True)]
    return sorted(made, key=lambda p: (p.device, p.latency, -p.value))


def unbeaten(points: Sequence[tuple[str, float, float]]) -> list[bool]:
    """For each (device, speed, value) whether no other one on its device is as good in both and better in one."""
    return [
        not any(there == device and s >= speed and v >= value and (s, v) != (speed, value) for there, s, v in points)
        for device, speed, value in points
    ]
