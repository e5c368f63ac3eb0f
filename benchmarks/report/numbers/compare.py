"""Methods against each other: per category, means, ranks, wins, a paired test over categories, time and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.report.numbers.anything import metric_name
from benchmarks.report.numbers.cells import Cell
from benchmarks.report.numbers.pool import Pool, ReportError, check_protocols, pool
from benchmarks.report.numbers.suites import Line, TableSpec
from benchmarks.report.numbers.tables import Table, assemble

DEFAULT = ("image_auroc", "pixel_auroc", "aupro@0.3")
DEFAULT_LOCO = ("image_auroc/mean", "auspro@0.05/mean", "pixel_auroc")
ALPHA = 0.05


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


@dataclass
class Comparison:
    """One metric. Values in the unit shown; ranks and tests only over `categories`, those that every method ran.

    values: method -> value by category (mean over seeds). left_out: category -> methods that lack it.
    """

    metric: str
    methods: list[str]
    table: Table
    categories: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    friedman: float | None = None
    critical_difference: float | None = None
    caveats: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join(part for part in metric_name(self.metric) if part)


def compare(
    records: Iterable[Any], methods: Sequence[str], *, metric: str | None = None, fmt: str = "md", mixed: bool = False
) -> str:
    """The comparison as text; without `metric` for the usual three. csv is the long form, latex the tables alone.

    Raises ReportError when no method has a record, or records are of several protocols and `mixed` is False.
    """
    from benchmarks.report.text import render
    from benchmarks.report.text.comparison_text import cost_table, html, markdown

    found = pool(records)
    made = comparisons(found, methods, [metric] if metric else None, mixed)
    if fmt == "md":
        return markdown(made, cost_table(found, methods))
    if fmt == "html":
        return html(made, cost_table(found, methods))
    if fmt == "csv":
        return render.csv_long([c.table for c in made])
    return "\n".join(render.render(c.table, fmt) for c in made)


def comparisons(
    found: Pool, methods: Sequence[str], metrics: Sequence[str] | None = None, mixed: bool = False
) -> list[Comparison]:
    """One comparison per metric that any of the methods has. Raises ReportError when there is none."""
    methods = list(dict.fromkeys(methods))
    have = _metrics(found, methods)
    if not have:
        known = sorted({f"{k[0]}@{k[1]}" for k in found.units})
        raise ReportError(
            f"no record of {', '.join(methods)} on these datasets; there are records of {', '.join(known) or 'nothing'}"
        )
    if metrics is None:
        metrics = [m for m in (DEFAULT_LOCO if DEFAULT_LOCO[0] in have else DEFAULT) if m in have] or sorted(have)[:1]
    elif missing := [m for m in metrics if m not in have]:
        raise ReportError(f"no record has the metric {missing[0]!r}; there are {', '.join(sorted(have))}")
    chosen = [
        r for key, seeds in found.units.items() if f"{key[0]}@{key[1]}" in methods for r in seeds.values()
    ]
    check_protocols(chosen, mixed)
    return [_compare(found, methods, metric, mixed) for metric in metrics]


def _metrics(found: Pool, methods: Sequence[str]) -> set[str]:
    return {
        name for key, seeds in found.units.items() if f"{key[0]}@{key[1]}" in methods
        for record in seeds.values() for name, value in record["metrics"].items() if value is not None
    }


def _compare(found: Pool, methods: list[str], metric: str, mixed: bool) -> Comparison:
    places = sorted({key[2:] for key in found.units if f"{key[0]}@{key[1]}" in methods})
    several = len({dataset for dataset, _ in places}) > 1
    rows = [
        Line(f"{dataset}/{category}", category, dataset if several else "", categories=(category,), dataset=dataset)
        for dataset, category in places
    ]
    for dataset in dict.fromkeys(d for d, _ in places):
        members = tuple(c for d, c in places if d == dataset)
        if len(members) > 1:
            rows.append(Line(
                f"{dataset}/mean", f"Mean over {len(members)} categories", dataset if several else "",
                categories=members, dataset=dataset,
            ))
    rows.sort(key=lambda line: line.group)
    name = " ".join(part for part in metric_name(metric) if part)
    spec = TableSpec(
        paper="runs", name=f"compare {metric}", title=f"{name} (%)", caption="", rows=tuple(rows),
        columns=tuple(Line(m, m, method=m) for m in methods), metric=metric, digits=2,
    )
    table = assemble(spec, found, mixed)
    result = Comparison(metric, methods, table)
    for row, cells in zip(table.rows, table.cells, strict=True):
        if row.categories is None or len(row.categories) > 1:
            continue
        lacking = [m for m, cell in zip(methods, cells, strict=True) if cell.value is None]
        if lacking:
            result.left_out[row.key] = lacking
        else:
            result.categories.append(row.key)
            for method, cell in zip(methods, cells, strict=True):
                result.values.setdefault(method, []).append(_value(cell))
    if result.categories and len(methods) > 1:
        _rank(result)
        _test(result)
    _caveats(result)
    return result


def _value(cell: Cell) -> float:
    if cell.value is None:
        raise ReportError("a missing figure cannot be compared")
    return cell.value


def _rank(result: Comparison) -> None:
    """Mean rank, 1 is best; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    rows = list(zip(*(result.values[m] for m in result.methods), strict=True))
    ranks = [rankdata([-v for v in row]) for row in rows]
    result.ranks = {m: float(sum(r[i] for r in ranks) / len(ranks)) for i, m in enumerate(result.methods)}


def _test(result: Comparison) -> None:
    """Wilcoxon signed-rank for each pair with Holm's correction; from three methods on Friedman's and Nemenyi's too."""
    from scipy import stats

    pairs = []
    for a, b in combinations(result.methods, 2):
        change = [x - y for x, y in zip(result.values[a], result.values[b], strict=True)]
        p = None
        if len(change) > 1:
            p = 1.0 if not any(change) else float(stats.wilcoxon(change, zero_method="wilcox").pvalue)
        pairs.append(Pair(
            a, b, sum(d > 0 for d in change), sum(d == 0 for d in change), sum(d < 0 for d in change),
            math.fsum(change) / len(change), p,
        ))
    result.pairs = _holm(pairs)
    k, n = len(result.methods), len(result.categories)
    if k >= 3 and n >= 2:
        columns = [result.values[m] for m in result.methods]
        value = float(stats.friedmanchisquare(*columns).pvalue)
        result.friedman = None if math.isnan(value) else value
        q = stats.studentized_range.ppf(1 - ALPHA, k, math.inf) / math.sqrt(2)
        result.critical_difference = float(q * math.sqrt(k * (k + 1) / (6 * n)))


def _holm(pairs: list[Pair]) -> list[Pair]:
    from dataclasses import replace

    order = sorted((i for i, pair in enumerate(pairs) if pair.p is not None), key=lambda i: pairs[i].p)
    worst = 0.0
    adjusted = list(pairs)
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - place) * pairs[i].p))
        adjusted[i] = replace(pairs[i], adjusted=worst)
    return adjusted


def _caveats(result: Comparison) -> None:
    """What a reader must know before trusting the test, in words."""
    n = len(result.categories)
    say = result.caveats.append
    for category, methods in result.left_out.items():
        say(f"{category} is left out of ranks and tests: no figure of {', '.join(methods)}.")
    if len(result.methods) < 2:
        say("One method alone: nothing to compare.")
        return
    if n == 0:
        say("No category was run by all methods: no ranks, no tests.")
        return
    smallest = 2.0 ** (1 - n)
    if n == 1:
        say("One category: a difference there says nothing about others, so there is no test.")
    elif smallest > ALPHA:
        say(
            f"With {n} categories the smallest p that the Wilcoxon test can give is {smallest:.3g}: it cannot show a "
            f"difference at {ALPHA:g}, however large it is. Six categories are the least."
        )
    if n > 1:
        say(
            "The test takes categories for independent draws and asks whether one method is better on categories like "
            "these; it does not see the spread over seeds, nor how many test pictures a category has."
        )
    seeds = {cell.n for row in result.table.cells for cell in row if cell.value is not None}
    if seeds == {1}:
        say("One seed per unit: a difference smaller than the spread over seeds, unknown here, may be chance.")
    elif len(seeds) > 1:
        say(f"Units have between {min(seeds)} and {max(seeds)} seeds.")
    if any(pair.ties for pair in result.pairs):
        say("Equal figures (often both 100) carry no weight in the test.")
    if len(result.pairs) > 1:
        say(f"p is also given with Holm's correction for {len(result.pairs)} pairs; judge by that one.")
    marked = sorted({mark for row in result.table.cells for cell in row for mark in cell.marks if mark != "seeds"})
    if marked:
        say(f"Some figures are marked ({', '.join(marked)}): compare like with like.")


def plot(result: Comparison, path: Path) -> Path:
    """A critical-difference diagram from three methods and two common categories on, else bars of the means."""
    from benchmarks.report.drawings import figures

    if result.critical_difference is not None:
        return figures.critical_difference(
            result.ranks, result.critical_difference, path, title=f"{result.name}, {len(result.categories)} categories"
        )
    means = {m: math.fsum(v) / len(v) for m, v in result.values.items()}
    spread = {m: _spread(result, j) for j, m in enumerate(result.methods)}
    return figures.bars(means, path, ylabel=f"{result.name} (%)", spread=spread)


def _spread(result: Comparison, j: int) -> float | None:
    """Standard deviation over seeds of the mean over the common categories; None with one seed."""
    cells = [
        row[j] for line, row in zip(result.table.rows, result.table.cells, strict=True) if line.key in result.categories
    ]
    seeds = set.intersection(*(set(cell.per_seed) for cell in cells)) if cells else set()
    means = [math.fsum(cell.per_seed[s] for cell in cells) / len(cells) for s in sorted(seeds)]
    if len(means) < 2:
        return None
    middle = math.fsum(means) / len(means)
    return math.sqrt(math.fsum((m - middle) ** 2 for m in means) / (len(means) - 1))


__all__ = ["Comparison", "Pair", "compare", "comparisons", "plot"]
