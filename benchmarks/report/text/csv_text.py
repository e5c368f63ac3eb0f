"""Tables as CSV, unrounded: one line per figure, or the printed shape. Records likewise: one line per metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from benchmarks.report.numbers.pool import Pool, cost, device_of
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


TIDY = (
    "method", "preset", "dataset", "category", "seed", "metric", "value", "undefined", "marks", "metric_version",
    "metric_size", "image_score", "training_s", "images_per_s", "total_s", "peak_host_mb", "peak_device_mb", "device",
    "weights", "config_hash", "dataset_fingerprint", "git_commit", "finished",
)


def tidy(found: Pool) -> str:
    """One line for each metric of each unit, as fractions, for pandas, R or a spreadsheet; costs as `cost` has them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(TIDY)
    for key in sorted(found.units):
        for _, record in sorted(found.units[key].items()):
            unit, environment = record["unit"], record.get("environment") or {}
            protocol, undefined = record["protocol"], record.get("undefined") or {}
            about = [
                " ".join(record.get("marks") or ()), *(protocol.get(k) for k in TIDY[9:12]),
                *(_raw(cost(record, "timing", k)) for k in TIDY[12:15]),
                *(_raw(cost(record, "memory", k)) for k in TIDY[15:17]), device_of(record),
                " ".join(sorted(record.get("weights") or ())), record.get("config_hash"),
                record.get("dataset_fingerprint"), environment.get("git_commit"), environment.get("finished"),
            ]
            for metric, value in record["metrics"].items():
                writer.writerow([
                    *(unit[k] for k in TIDY[:5]), metric, "" if value is None else repr(value),
                    undefined.get(metric, ""), *about,
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
