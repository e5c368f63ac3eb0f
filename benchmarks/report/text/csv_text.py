"""Tables as CSV, unrounded: one line per figure, or the printed shape."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from benchmarks.report.numbers.tables import Table
from benchmarks.report.text.grid import grid

LONG = (
    "paper", "table", "row_group", "row", "column_group", "column", "source", "state", "value", "sd", "seeds", "unit",
    "metric", "method", "dataset", "categories", "present", "of", "rank", "marks", "protocol", "note",
)


def long(tables: Sequence[Table]) -> str:
    """One line per figure, unrounded: published and measured of every cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(LONG)
    for table in tables:
        for row, cells in zip(table.rows, table.cells, strict=True):
            for column, cell in zip(table.columns, cells, strict=True):
                need = cell.need
                where = [table.spec.paper, table.spec.name, row.group, row.label, column.group, column.label]
                what = [need.unit, " ".join(need.metrics)]
                place = [need.dataset, " ".join(need.categories)]
                if cell.printed is not None:
                    p = cell.printed
                    state = "value" if p.text else "missing"
                    writer.writerow([
                        *where, "published", state, p.text, "", "", *what, "", *place, "", "",
                        cell.printed_rank or "", " ".join(cell.printed_marks), "", p.note,
                    ])
                if cell.state:
                    writer.writerow([
                        *where, "measured", cell.state, _raw(cell.value), _raw(cell.sd), cell.n or "", *what,
                        need.method, *place, cell.present, cell.of, cell.rank or "", " ".join(cell.marks),
                        cell.protocol, cell.reason,
                    ])
    return out.getvalue()


def wide(table: Table) -> str:
    """The printed shape, unrounded; each measured column is followed by its standard deviation, seeds and marks."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    laid = grid(table)
    heads = ["group", "row"]
    for j, kind in laid.leaves:
        column = table.columns[j]
        name = f"{column.group}: {column.label}" if column.group else column.label
        heads += [f"{name} {kind}"]
        if kind == "measured":
            heads += [f"{name} {extra}" for extra in ("sd", "seeds", "marks")]
    writer.writerow(heads)
    for row, cells in zip(table.rows, table.cells, strict=True):
        line: list[object] = [row.group, row.label]
        for j, kind in laid.leaves:
            cell = cells[j]
            if kind == "measured":
                shown = cell.printed.text if cell.printed and not cell.state else _raw(cell.value) or cell.state
                if cell.value is not None and cell.present < cell.of:
                    shown = f"{shown} ({cell.present} of {cell.of})"
                line += [shown, _raw(cell.sd), cell.n or "", " ".join(cell.marks)]
            elif kind == "published":
                line.append(cell.printed.text if cell.printed else "")
            else:
                line.append(_raw(cell.difference))
        writer.writerow(line)
    return out.getvalue()


def _raw(value: float | None) -> str:
    return "" if value is None else repr(round(value, 10))
