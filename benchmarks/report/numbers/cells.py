"""One place of a table: what was published, what was measured, and what must be said beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from benchmarks.report.numbers import published, suites
from benchmarks.report.numbers.pool import Pool, Record, cost, device_of
from benchmarks.report.numbers.suites import ANY, Line, Need, TableSpec

MARKS = {
    "untrained": ("†", "a network in it ran with random instead of pretrained weights"),
    "other_weights": ("△", "a network in it ran with other pretrained weights than the preset names"),
    "reduced": ("‡", "the data differ from the full public set"),
    "noted": ("▽", "the data were read with a remark, which stands below"),
    "short": ("§", "trained on a shortened schedule"),
    "floor": ("⊥", "no better than a trivial predictor (the mean picture, a guess)"),
    "code": ("○", "its dense code is hardly used: one code for all pictures reconstructs nearly as well"),
    "modified": ("¶", "settings differ from the preset"),
    "seeds": ("‖", "fewer seeds than the table asks for, or than its other figures have"),
    "preset": ("◊", "measured with a smaller preset than the one that the table asks for"),
}


@dataclass
class Cell:
    """One place in a table; numbers unrounded and in the unit shown.

    state: '' nothing to measure, 'value', 'missing' (no record), 'undefined' (the metric has no value; see reason),
    'absent' (the method does not give this). present, of: categories that went in and that were asked for.
    ranks: 1 best, 2 second, 0 neither; protocol: label in a mixed table.
    """

    need: Need
    state: str = ""
    value: float | None = None
    sd: float | None = None
    interval: tuple[float, float] | None = None  # over test pictures, where asked for (`intervals`)
    n: int = 0
    per_seed: dict[int, float] = field(default_factory=dict)
    present: int = 0
    of: int = 0
    marks: tuple[str, ...] = ()
    reason: str = ""
    absent_from: tuple[str, ...] = ()
    records: list[Record] = field(default_factory=list)
    printed: published.Published | None = None
    printed_marks: tuple[str, ...] = ()
    rank: int = 0
    printed_rank: int = 0
    protocol: str = ""

    @property
    def is_cost(self) -> bool:
        """Whether it shows time or memory, which are a machine's as much as a method's."""
        return any(metric.startswith(("timing/", "memory/")) for metric in self.need.metrics)

    @property
    def devices(self) -> list[str]:
        """Where its records were made."""
        return sorted({device_of(record) for record in self.records})

    @property
    def printed_value(self) -> float | None:
        """The published figure in the unit shown."""
        return None if self.printed is None or self.printed.value is None else float(self.printed.value)

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        if self.value is None or self.printed_value is None or self.present < self.of:
            return None
        return self.value - self.printed_value


def make(
    spec: TableSpec, row: Line, column: Line, found: Pool, chosen: Mapping[str, str]
) -> Cell:
    """The cell of a row and a column. chosen: preset asked for -> preset measured."""
    partial = row.partial or column.partial
    needs = suites.needs(spec, row, column)
    made = _measure(needs[0], found, chosen, partial)
    if len(needs) == 2:
        made = _subtract(made, _measure(needs[1], found, chosen, partial))
    if partial:
        return made
    made.printed = _published(spec, row, column, needs[0])
    if made.printed is not None:
        made.printed_marks = tuple(
            name for name, holds in (
                ("mismatch", "MISMATCH" in made.printed.note), ("second_hand", made.printed.trust == "second_hand"),
            ) if holds
        )
    return made


def _published(spec: TableSpec, row: Line, column: Line, need: Need) -> published.Published | None:
    reference = row.reference or column.reference
    if reference:
        if len(need.categories) not in (1, suites.WHOLE.get(need.dataset)):
            return None  # a printed mean is over all categories; one over objects or textures alone is not printed
        category = need.categories[0] if len(need.categories) == 1 else "mean"
        found = published.other_methods().get((reference, need.dataset, category, need.metrics[0]))
        if found is None or found.value is None or need.unit != "percent":
            return found
        value = found.value * Decimal(100)
        return replace(found, value=value, text=f"{value.normalize():f}", unit="percent")
    line, method = (row, column) if spec.methods_in == "columns" else (column, row)
    metric = "count" if need.unit == "count" else need.metrics[0].partition("@")[0] if need.metrics else ""
    return published.papers().get((spec.paper, spec.name, line.key, method.key, metric))


def _measure(need: Need, found: Pool, chosen: Mapping[str, str], partial: bool) -> Cell:
    """Mean over categories (and metrics) of the mean over seeds; standard deviation over the seeds of that mean."""
    if need.method is None:
        return Cell(need)
    need = replace(need, method=chosen[need.method])
    cell = Cell(need, "value", of=len(need.categories) * max(1, len(need.metrics)))
    parts: list[dict[int, float]] = []
    faults: list[tuple[str, str]] = []
    missing = []
    for category in need.categories:
        runs = (
            found.any(need.dataset, category) if need.method == ANY else found.get(need.method, need.dataset, category)
        )
        if not runs:
            missing.append(category)
            continue
        for metric in need.metrics:
            values, fault = _values(runs, metric)
            if fault:
                faults.append((fault[0], f"{category}: {fault[1]}" if len(need.categories) > 1 else fault[1]))
            else:
                parts.append(values)
        cell.records += runs.values()
    cell.present, cell.absent_from = len(parts), tuple(missing)
    if need.unit != "count":  # how a method was trained says nothing of a number of pictures
        cell.marks = marks_of(cell.records)
    if missing and not partial:
        cell.state = "missing"
    elif faults and not (partial and parts):
        cell.state = "undefined" if any(kind == "undefined" for kind, _ in faults) else "absent"
        cell.reason = "; ".join(dict.fromkeys(text for _, text in faults))
    elif not parts:
        cell.state = "missing"
    if cell.state != "value":
        return cell
    scale = 100.0 if need.unit == "percent" else 1.0
    seeds = sorted(set.intersection(*(set(part) for part in parts)))
    cell.per_seed = {seed: scale * _mean([part[seed] for part in parts]) for seed in seeds}
    cell.value = scale * _mean([_mean(list(part.values())) for part in parts])
    cell.n = len(seeds) or min(len(part) for part in parts)
    cell.sd = _sd(list(cell.per_seed.values()))
    if any(len(part) != cell.n for part in parts):
        cell.marks += ("seeds",)
    return cell


def _values(runs: dict[int, Record], metric: str) -> tuple[dict[int, float], tuple[str, str] | None]:
    """A metric by seed, or why there is none: ('undefined' | 'absent', reason)."""
    part, _, key = metric.partition("/")
    other = part in ("images", "timing", "memory")
    values = {}
    for seed, record in runs.items():
        value = cost(record, part, key) if other else record["metrics"].get(metric)
        if value is None:
            reason = (record.get("undefined") or {}).get(metric)
            if reason or (not other and metric in record["metrics"]):
                return {}, ("undefined", reason or "no reason recorded")
            return {}, ("absent", f"{record['unit']['method']} gives no {metric}")
        if not math.isfinite(value):
            return {}, ("undefined", f"the record holds {value}")
        values[seed] = float(value)
    return values, None


def _subtract(a: Cell, b: Cell) -> Cell:
    """a - b where both are there."""
    a.records += b.records
    a.marks = tuple(dict.fromkeys((*a.marks, *b.marks)))
    a.absent_from += b.absent_from
    a.present, a.of = a.present + b.present, a.of + b.of
    if b.state != "value" or a.state != "value":
        if a.state == "value":
            a.state, a.reason = b.state, b.reason
        a.value = a.sd = None
        return a
    a.value -= b.value
    a.per_seed = {seed: a.per_seed[seed] - b.per_seed[seed] for seed in a.per_seed if seed in b.per_seed}
    a.sd, a.n = _sd(list(a.per_seed.values())), min(a.n, b.n)
    return a


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def marks_of(records: Iterable[Record]) -> tuple[str, ...]:
    """The marks of any of the records, in the order in which every table and page shows them."""
    return tuple(sorted({str(m) for r in records for m in r.get("marks") or ()}, key=_mark_order))


def _mark_order(mark: str) -> tuple[int, str]:
    return (list(MARKS).index(mark) if mark in MARKS else len(MARKS), mark)
