"""The worst scored pictures of a unit, from the per-image scores beside its record."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.report.numbers.arrays import arrays_of
from benchmarks.report.numbers.pool import Record


class Miss(NamedTuple):
    """One picture and how wrong its score is: the share of the pictures of the other label that it is wrong against."""

    name: str
    kind: str
    label: int
    score: float
    wrong: float

    @property
    def text(self) -> str:
        return f"{self.name}: {self.score:.4g} ({100 * self.wrong:.0f} %)"


def worst(record: Record) -> list[Miss]:
    """Every test picture, the most wrongly scored first: defective ones below good ones and the other way round."""
    arrays = arrays_of(record)
    if not arrays:
        return []
    label, score = arrays["label"].astype(int), arrays["score"].astype(float)
    order = {which: np.sort(score[(label == which) & np.isfinite(score)]) for which in (0, 1)}
    misses = []
    for name, kind, mine, value in zip(arrays["name"], arrays["kind"], label, score, strict=True):
        others = order[1 - int(mine)]
        if not np.isfinite(value) or others.size == 0:
            continue
        below = np.searchsorted(others, value, side="right" if mine == 0 else "left")
        wrong = below / others.size if mine == 0 else 1 - below / others.size
        misses.append(Miss(str(name), str(kind), int(mine), float(value), float(wrong)))
    # among equals: a good picture with a high score and a defective one with a low score come first
    return sorted(misses, key=lambda m: (-m.wrong, -m.score if m.label == 0 else m.score, m.name))
