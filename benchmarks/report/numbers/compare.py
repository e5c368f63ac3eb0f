"""Methods against each other: per category, means, ranks, wins, a paired test over categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.report.numbers import intervals, significance
from benchmarks.report.numbers.anything import metric_name
from benchmarks.report.numbers.cells import Cell
from benchmarks.report.numbers.pool import Pool, ReportError, check_protocols, why_undefined
from benchmarks.report.numbers.significance import ALPHA, Pair
from benchmarks.report.numbers.suites import Line, TableSpec, mean_label
from benchmarks.report.numbers.tables import Table, assemble

MOST_PAIRS = 28
"""With more, pages and intervals show only the pairs with the best method."""

DEFAULT = ("image_auroc", "pixel_auroc", "aupro@0.3")
DEFAULT_LOCO = ("image_auroc/mean", "auspro@0.05/mean", "pixel_auroc")


@dataclass
class Comparison:
    """One metric. Values in the unit shown; ranks and tests only over `categories`, those that every method ran.

    values: method -> value by category (mean over seeds). left_out: category -> methods that lack it.
    differences: with intervals, for each pair over all categories, then in each.
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
    differences: list[intervals.Difference] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join(part for part in metric_name(self.metric) if part)


def main_presets(found: Pool) -> list[str]:
    """`method@preset` for each method: the preset with records of most categories, then seeds, then fewest marks.

    Ablations, which stand in one column of a paper, are not what a method is compared by, and neither are settings.
    """
    best: dict[str, tuple[tuple, str]] = {}
    presets = {key[:2] for key in found.units}
    for method, preset in sorted({key for key in presets if " " not in key[1]} or presets):
        mine = [seeds for key, seeds in found.units.items() if key[:2] == (method, preset)]
        marks = {mark for seeds in mine for record in seeds.values() for mark in record.get("marks") or ()}
        weight = (len(mine), sum(map(len, mine)), -len(marks))
        if method not in best or weight > best[method][0]:
            best[method] = (weight, f"{method}@{preset}")
    return [spec for _, spec in best.values()]


def on_common_ground(found: Pool, methods: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Those of the methods that can be compared, and for the others the categories that they lack.

    Of the sets of categories that some method ran, the one counts for which categories times methods is greatest: one
    method that ran a single category does not empty the comparison of all others.
    """
    ran = {m: {key[2:] for key in found.units if f"{key[0]}@{key[1]}" == m} for m in methods}
    ground = max(
        ran.values(), key=lambda g: (len(g) * n if (n := sum(g <= other for other in ran.values())) > 1 else 0, len(g)),
        default=set(),
    )
    left = {m: sorted(category for _, category in ground - mine) for m, mine in ran.items() if not ground <= mine}
    return [m for m in methods if m not in left], left


def comparisons(
    found: Pool, methods: Sequence[str], metrics: Sequence[str] | None = None, mixed: bool = False,
    sure: bool = False,
) -> list[Comparison]:
    """One comparison per metric that any of the methods has, with `sure` with intervals over test pictures.

    Raises ReportError when there is none.
    """
    methods = list(dict.fromkeys(methods))
    have = _metrics(found, methods)
    chosen = [
        r for key, seeds in found.units.items() if f"{key[0]}@{key[1]}" in methods for r in seeds.values()
    ]
    for metric in metrics or DEFAULT[:1]:
        if metric not in have and (why := why_undefined(chosen, metric)) and (metrics or not have):
            raise ReportError(f"{metric} is undefined for every record: {why}")
    if not have:
        known = sorted({f"{k[0]}@{k[1]}" for k in found.units})
        raise ReportError(
            f"no record of {', '.join(methods)} on these datasets; there are records of {', '.join(known) or 'nothing'}"
        )
    if metrics is None:
        metrics = [m for m in (DEFAULT_LOCO if DEFAULT_LOCO[0] in have else DEFAULT) if m in have] or sorted(have)[:1]
    elif missing := [m for m in metrics if m not in have]:
        raise ReportError(f"no record has the metric {missing[0]!r}; there are {', '.join(sorted(have))}")
    check_protocols(chosen, mixed)
    made = [_compare(found, methods, metric, mixed) for metric in metrics]
    for one in made if sure else ():
        _add_intervals(one, found)
    return made


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
                f"{dataset}/mean", mean_label(dataset, len(members)), dataset if several else "",
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
        result.ranks, result.pairs = significance.mean_ranks(result.values), significance.pairs(result.values)
        result.friedman = significance.friedman(result.values)
        result.critical_difference = significance.critical_difference(result.values)
    _caveats(result)
    return result


def _add_intervals(result: Comparison, found: Pool) -> None:
    """Intervals of the figures, and of the differences of every two methods on the same pictures.

    With more than MOST_PAIRS pairs only of those with the best method by mean rank.
    """
    intervals.add(result.table)
    if not any(cell.interval for row in result.table.cells for cell in row):
        return
    said: dict[str, None] = {}
    best = min(result.ranks, key=lambda m: result.ranks[m], default="")
    few = len(result.pairs) <= MOST_PAIRS
    for pair in (p for p in result.pairs if few or best in (p.a, p.b)):
        each, more = intervals.differences(found, pair.a, pair.b, result.metric, result.categories)
        result.differences += each
        said |= more
    result.caveats += [line for line in intervals.gathered(said) if line not in result.table.notes]
    if result.differences:
        result.caveats.append(
            "Intervals of differences are over test pictures, the same ones for both methods, each at 95 % by itself; "
            "a method leads where its interval excludes 0. They say nothing of other seeds or other categories."
        )


def _value(cell: Cell) -> float:
    if cell.value is None:
        raise ReportError("a missing figure cannot be compared")
    return cell.value


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


def spread(result: Comparison, j: int) -> float | None:
    """Standard deviation over seeds of the mean over the common categories of the method in column j; None with one
    seed."""
    cells = [
        row[j] for line, row in zip(result.table.rows, result.table.cells, strict=True) if line.key in result.categories
    ]
    seeds = set.intersection(*(set(cell.per_seed) for cell in cells)) if cells else set()
    means = [math.fsum(cell.per_seed[s] for cell in cells) / len(cells) for s in sorted(seeds)]
    if len(means) < 2:
        return None
    middle = math.fsum(means) / len(means)
    return math.sqrt(math.fsum((m - middle) ** 2 for m in means) / (len(means) - 1))
