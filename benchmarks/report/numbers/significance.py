"""Whether methods differ over categories: mean ranks, paired tests, Friedman's test, Nemenyi's critical difference.

values: method -> its figure on each category, the same categories in the same order for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

ALPHA = 0.05

Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Pair:
    """Method a against b over the categories that both ran. p: two-sided Wilcoxon; adjusted: Holm over all pairs."""

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    difference: float
    p: float | None = None
    adjusted: float | None = None


def mean_ranks(values: Values) -> dict[str, float]:
    """1 is best; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    ranks = [rankdata([-v for v in row]) for row in zip(*values.values(), strict=True)]
    return {m: float(sum(r[i] for r in ranks) / len(ranks)) for i, m in enumerate(values)}


def pairs(values: Values) -> list[Pair]:
    """Every two methods: wins, mean difference and the Wilcoxon signed-rank test, with Holm's correction."""
    from scipy import stats

    found = []
    for a, b in combinations(values, 2):
        change = [x - y for x, y in zip(values[a], values[b], strict=True)]
        p = None
        if len(change) > 1:
            p = 1.0 if not any(change) else float(stats.wilcoxon(change, zero_method="wilcox").pvalue)
        found.append(Pair(
            a, b, sum(d > 0 for d in change), sum(d == 0 for d in change), sum(d < 0 for d in change),
            math.fsum(change) / len(change), p,
        ))
    return _holm(found)


def _holm(pairs: list[Pair]) -> list[Pair]:
    order = sorted((i for i, pair in enumerate(pairs) if pair.p is not None), key=lambda i: pairs[i].p)
    worst = 0.0
    adjusted = list(pairs)
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - place) * pairs[i].p))
        adjusted[i] = replace(pairs[i], adjusted=worst)
    return adjusted


def friedman(values: Values) -> float | None:
    """p of Friedman's test over all methods, from three methods and two categories on; None where it has none."""
    if not _several(values):
        return None
    from scipy import stats

    p = float(stats.friedmanchisquare(*values.values()).pvalue)
    return None if math.isnan(p) else p


def critical_difference(values: Values) -> float | None:
    """Mean ranks that lie closer do not differ at ALPHA (Nemenyi; Demsar 2006, section 3.2.2); None as above."""
    if not _several(values):
        return None
    from scipy import stats

    k, n = len(values), len(next(iter(values.values())))
    q = stats.studentized_range.ppf(1 - ALPHA, k, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(k * (k + 1) / (6 * n)))


def _several(values: Values) -> bool:
    return len(values) >= 3 and len(next(iter(values.values()))) >= 2
