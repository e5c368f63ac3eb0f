"""Tables as CSV, unrounded: one line per figure, or the printed shape. Records likewise: one line per metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from benchmarks.report.numbers.pool import Pool, cost, device_of
from benchmarks.report.numbers.tables import Table
from benchmarks.report.text.grid import grid

LONG = (
    "paper", "table", "row_group", "row", "column_group", "column", "source", "state", "value", "sd", "low", "high",
    "seeds", "unit", "metric", "method", "dataset", "categories", "present", "of", "rank", "marks", "protocol", "note",
)


def long(tables: Sequence[Table]) -> str:
    """One line per figure: published and measured of every cell, the published ones with the digits printed."""
    rows = long_rows(tables)
    return _csv(LONG, [row | {"value": row["printed"]} if row["printed"] is not None else row for row in rows])


def long_rows(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The same as values by the names of LONG; `printed` besides is the text of a published figure."""
    rows = []
    for table in tables:
        for row, cells in zip(table.rows, table.cells, strict=True):
            for column, cell in zip(table.columns, cells, strict=True):
                need, p = cell.need, cell.printed
                about = dict.fromkeys(LONG) | {
                    "paper": table.spec.paper, "table": table.spec.name, "row_group": row.group, "row": row.label,
                    "column_group": column.group, "column": column.label, "unit": need.unit,
                    "metric": " ".join(need.metrics), "dataset": need.dataset, "categories": " ".join(need.categories),
                    "printed": None,
                }
                if p is not None:
                    rows.append(about | {
                        "source": "published", "state": "value" if p.text else "missing", "value": cell.printed_value,
                        "printed": p.text, "rank": cell.printed_rank or None, "marks": " ".join(cell.printed_marks),
                        "note": p.note,
                    })
                if cell.state:
                    low, high = cell.interval or (None, None)
                    rows.append(about | {
                        "source": "measured", "state": cell.state, "value": _round(cell.value),
                        "sd": _round(cell.sd), "low": _round(low), "high": _round(high),
                        "seeds": cell.n or None, "method": need.method, "present": cell.present, "of": cell.of,
                        "rank": cell.rank or None, "marks": " ".join(cell.marks), "protocol": cell.protocol,
                        "note": cell.reason,
                    })
    return rows


TIDY = (
    "method", "preset", "dataset", "category", "seed", "metric", "value", "undefined", "marks", "metric_version",
    "metric_size", "image_score", "training_s", "images_per_s", "total_s", "peak_host_mb", "peak_device_mb", "device",
    "weights", "config_hash", "dataset_fingerprint", "git_commit", "finished",
    "setting", "latency_p50_s", "latency_p95_s", "model_mb",
)


def tidy(found: Pool) -> str:
    """One line for each metric of each unit, as fractions, for pandas, R or a spreadsheet; costs as `cost` has them."""
    return _csv(TIDY, tidy_rows(found))


def tidy_rows(found: Pool) -> list[dict[str, Any]]:
    """The same as values by the names of TIDY."""
    rows = []
    for key in sorted(found.units):
        for _, record in sorted(found.units[key].items()):
            environment, undefined = record.get("environment") or {}, record.get("undefined") or {}
            about = {
                **{k: record["unit"][k] for k in TIDY[:5]}, "marks": " ".join(record.get("marks") or ()),
                **{k: record["protocol"].get(k) for k in TIDY[9:12]},
                **{k: cost(record, "timing", k) for k in TIDY[12:15]},
                **{k: cost(record, "memory", k) for k in TIDY[15:17]},
                "device": device_of(record), "weights": " ".join(sorted(record.get("weights") or ())),
                **{k: record.get(k) for k in ("config_hash", "dataset_fingerprint")},
                **{k: environment.get(k) for k in ("git_commit", "finished")},
                "setting": record["unit"].get("setting", ""),
                **{k: cost(record, "timing", k) for k in TIDY[24:26]}, "model_mb": cost(record, "memory", "model_mb"),
            }
            rows += [
                about | {"metric": metric, "value": value, "undefined": undefined.get(metric, "")}
                for metric, value in record["metrics"].items()
            ]
    return rows


def _csv(fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows([row[field] for field in fields] for row in rows)
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


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 10)  # 99.84000000000001 is noise of the arithmetic


def _raw(value: float | None) -> str:
    return "" if value is None else repr(_round(value))
