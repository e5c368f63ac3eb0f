"""Tables with published and measured figures side by side, from records and published numbers.

`build(paper, table, records)` gives a table of a paper, `generic(records)` tables of whatever was run. Marks and means
come from unrounded numbers. A mean over fewer categories than its row asks for is missing, and stands on a line of its
own that says over how many it goes. `benchmarks.report.views` writes them in each format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.report.numbers import anything, notes, suites
from benchmarks.report.numbers.cells import Cell, make
from benchmarks.report.numbers.pool import Pool, ReportError, check_protocols, key_of, pool, protocol_of, size_text
from benchmarks.report.numbers.suites import ANY, WHATEVER, Line, TableSpec


@dataclass
class Table:
    """rows x columns of cells, with what stands below: a legend of the marks used and notes."""

    spec: TableSpec
    rows: list[Line]
    columns: list[Line]
    cells: list[list[Cell]]
    legend: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """'rb_ae/II'."""
        return f"{self.spec.paper}/{self.spec.name}"

    def sub_columns(self, j: int) -> tuple[str, ...]:
        """What column j shows: 'published', 'measured', 'difference'; one of the first two where nothing has both.

        Beside the published figures of a method the others stand where it has records; with `measured: all` also
        where it has none yet.
        """
        cells = [row[j] for row in self.cells]
        always = self.spec.methods_in == "rows" or self.spec.measured == "all"
        there = always or any(c.records for c in cells)
        if any(c.printed is not None and c.state for c in cells):
            return ("published", "measured", "difference") if there else ("published",)
        return ("measured",) if any(c.state for c in cells) else ("published",)


def build(
    paper: str,
    table: str,
    records: Iterable[Any],
    *,
    mixed: bool = False,
    quick: bool | None = None,
    measured: str = "recorded",
) -> Table:
    """A table of a paper from whatever records there are; cells without a record are missing.

    quick: True measures with the suite's small presets, False with the paper's, None with the paper's where there is a
    record of it and else with the small one (marked). mixed: allow records of several protocols and label them.
    measured: whose measured figures stand beside the published ones, one of suites.MEASURED.
    Raises ReportError, or SuiteError for an unknown table.
    """
    suite = suites.load(paper)
    return assemble(suite.only(suite.table(table), measured), pool(records), mixed, suite.quick, quick)


def generic(records: Iterable[Any]) -> list[Table]:
    """One table per dataset: rows are the methods of each category, columns the metrics; a last group has the means.

    LOCO datasets get image AUROC and AUsPRO@0.05 for structural, logical and their mean. A mean is over all categories
    that any method ran; a method that lacks one has none. Raises ReportError as `build` does.
    """
    found = pool(records)
    tables = [assemble(spec, found) for spec in anything.specs(found)]
    if not tables:
        why = "".join(f"; left out: {name}: {reason}" for name, reason in found.left_out)
        raise ReportError(f"no record to show{why}. Run some units first, or name another results directory")
    return tables


def suite_tables(
    paper: str, records: Iterable[Any], only: str | None = None, *, quick: bool | None = None,
    measured: str = "recorded",
) -> list[Table]:
    """Every table of a paper, or one; quick and measured as in `build`."""
    suite = suites.load(paper)
    found = pool(records)
    specs = suite.tables if only is None else [suite.table(only)]
    return [assemble(suite.only(spec, measured), found, False, suite.quick, quick) for spec in specs]


def assemble(
    spec: TableSpec, found: Pool, mixed: bool = False, small: dict[str, str | None] | None = None,
    quick: bool | None = False,
) -> Table:
    """Fill a table's cells from a pool of records."""
    spec = _expand(spec, found)
    chosen = _presets(spec, found, small or {}, quick)
    rows, columns = list(spec.rows), list(spec.columns)
    cells = [[make(spec, row, column, found, chosen) for column in columns] for row in rows]
    table = _with_partial_lines(Table(spec, rows, columns, cells), found, chosen)
    table.left_out = list(found.left_out)
    _label_protocols(table, found, mixed)
    _mark_seeds(table)
    _rank(table)
    _mark_presets(table, chosen)
    _explain(table, found, chosen)
    return table


def _expand(spec: TableSpec, found: Pool) -> TableSpec:
    """Rows for whatever method become one row for each method that has records on their dataset."""
    rows: list[Line] = []
    for row in spec.rows:
        if row.method != WHATEVER:
            rows.append(row)
            continue
        dataset = row.dataset or spec.dataset
        names = sorted({f"{k[0]}@{k[1]}" for k in (*found.units, *found.failed) if k[2] == dataset})
        rows += [replace(row, key=name, label=name, method=name) for name in names]
    return replace(spec, rows=tuple(rows))


def _presets(
    spec: TableSpec, found: Pool, small: dict[str, str | None], quick: bool | None
) -> dict[str, str]:
    """Preset asked for -> preset measured."""
    places: dict[str, set[tuple[str, str]]] = {}
    for row in spec.rows:
        for column in spec.columns:
            for need in suites.needs(spec, row, column):
                if need.method:
                    places.setdefault(need.method, set()).update((need.dataset, c) for c in need.categories)

    def has(method: str) -> bool:
        return any(found.get(method, *place) for place in places[asked])

    chosen = {}
    for asked in places:
        other = small.get(asked)
        use = other is not None and (quick or (quick is None and not has(asked) and has(other)))
        chosen[asked] = other if use else asked
    return chosen


def _with_partial_lines(table: Table, found: Pool, chosen: dict[str, str]) -> Table:
    """Below each line of means that lacks categories, one that averages over those present."""

    def lacks(cells: Iterable[Cell]) -> bool:
        return any(
            c.state in ("missing", "undefined") and 0 < c.present < c.of and c.need.method != ANY for c in cells
        )

    def part(line: Line) -> Line:
        return replace(line, label=f"{line.label}, present only", partial=True, rank=False, reference=None)

    rows: list[Line] = []
    for i, row in enumerate(table.rows):
        rows.append(row)
        if row.categories and len(row.categories) > 1 and lacks(table.cells[i]):
            rows.append(part(row))
    columns: list[Line] = []
    for j, column in enumerate(table.columns):
        columns.append(column)
        if column.categories and len(column.categories) > 1 and lacks(row[j] for row in table.cells):
            columns.append(part(column))
    cells = [[make(table.spec, row, column, found, chosen) for column in columns] for row in rows]
    return Table(table.spec, rows, columns, cells)


def _label_protocols(table: Table, found: Pool, mixed: bool) -> None:
    used = [cell for row in table.cells for cell in row if cell.records and cell.need.unit != "count"]
    keys = {key_of(record) for cell in used for record in cell.records}
    protocols = check_protocols([record for key in keys for record in found.rivals[key]], mixed)
    shown = {protocol_of(record) for cell in used for record in cell.records}
    protocols = [p for p in protocols if p in shown]
    names = {p: chr(ord("A") + i) for i, p in enumerate(protocols)} if len(protocols) > 1 else {}
    for protocol in protocols:
        prefix = f"[{names[protocol]}] " if names else ""
        table.notes.append(
            f"{prefix}Measured figures: maps and masks compared at {size_text(protocol[1])}; metric version "
            f"{protocol[0]}."
        )
    for cell in used:
        cell.protocol = "".join(sorted({names.get(protocol_of(r), "") for r in cell.records}))


def _mark_seeds(table: Table) -> None:
    cells = [cell for row in table.cells for cell in row if cell.state == "value" and cell.need.method != ANY]
    wanted = max([table.spec.seeds, *(cell.n for cell in cells)])
    for cell in cells:
        if cell.n < wanted and "seeds" not in cell.marks:
            cell.marks += ("seeds",)


def _rank(table: Table) -> None:
    rows, columns, cells = table.rows, table.columns, table.cells
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(columns)) if rows[i].rank and columns[j].rank]
    scope = {
        "row": lambda i, j: i, "column": lambda i, j: j, "group": lambda i, j: (rows[i].group, j),
    }.get(table.spec.best)
    if scope is None:
        return
    groups: dict[Any, list[Cell]] = {}
    for i, j in pairs:
        groups.setdefault(scope(i, j), []).append(cells[i][j])
    for members in groups.values():
        if len({device for c in members if c.value is not None and c.is_cost for device in c.devices}) > 1:
            continue  # time and memory of different machines say nothing of the methods
        sign = -1 if members[0].need.lower else 1
        measured = {id(c): sign * c.value for c in members if c.value is not None}
        printed = {id(c): sign * c.printed.value for c in members if c.printed and c.printed.value is not None}
        for cell in members:
            cell.rank = _place(measured, id(cell))
            cell.printed_rank = _place(printed, id(cell))


def _place(values: dict[int, Any], key: int) -> int:
    """1 for the highest, 2 for the next lower value; 0 otherwise or with nothing to compare."""
    if key not in values or len(values) < 2:
        return 0
    order = sorted(set(values.values()), reverse=True)
    place = order.index(values[key]) + 1
    return place if place <= 2 else 0


def _mark_presets(table: Table, chosen: dict[str, str]) -> None:
    """Mark what was measured with another preset than the one asked for."""
    for cell in (cell for row in table.cells for cell in row if cell.records):
        if any(used == cell.need.method != asked for asked, used in chosen.items()):
            cell.marks = (*cell.marks, "preset")


def _explain(table: Table, found: Pool, chosen: dict[str, str]) -> None:
    """Legend of what is used, and notes."""
    places = [
        (row, column, cell)
        for row, cells in zip(table.rows, table.cells, strict=True)
        for column, cell in zip(table.columns, cells, strict=True)
    ]
    cells = [cell for _, _, cell in places]
    table.legend = notes.legend((*table.rows, *table.columns), cells)
    table.notes += [
        *table.spec.notes, *notes.measured(cells),
        *(f"Measured with {b} in place of {a}." for a, b in chosen.items() if a != b),
        *notes.gaps(cells, found), *notes.published(places),
        *(f"Left out: {name}: {why}." for name, why in table.left_out),
    ]
