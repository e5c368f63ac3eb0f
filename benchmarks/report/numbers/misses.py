"""How well each picture of a unit is scored, from the per-image scores beside its record."""

from __future__ import annotations

from collections.abc import Sequence
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


def examples(misses: Sequence[Miss]) -> list[tuple[str, Miss]]:
    """('worst' | 'median' | 'best', picture) of each kind, good ones first; a kind of one or two pictures has fewer.

    misses: as `worst` gives them. The best good picture has the lowest score, the best defective one the highest.
    """
    kinds: dict[tuple[int, str], list[Miss]] = {}
    for miss in misses:
        kinds.setdefault((miss.label, miss.kind), []).append(miss)
    found = []
    for (label, _), members in sorted(kinds.items()):
        members.sort(key=lambda m: ((-m.score if label == 0 else m.score), m.name))
        places = {"worst": 0, "best": len(members) - 1}
        if len(members) > 2:
            places["median"] = len(members) // 2
        seen: set[int] = set()
        for word in ("worst", "median", "best"):
            if word in places and places[word] not in seen:
                seen.add(places[word])
                found.append((word, members[places[word]]))
    return found
