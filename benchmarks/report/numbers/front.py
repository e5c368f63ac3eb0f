"""Accuracy against latency: which methods no other one beats in both."""

from __future__ import annotations

import math
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
    made = []
    for (device, method), (latency, value) in spots.items():
        beaten = any(
            there == device and t <= latency and v >= value and (t, v) != (latency, value)
            for (there, _), (t, v) in spots.items()
        )
        made.append(Place(method, device, latency, value, not beaten))
    return sorted(made, key=lambda p: (p.device, p.latency, -p.value))
