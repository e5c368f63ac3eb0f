"""What the commands show and write: tables and comparisons of records in each format."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.numbers.cells import MARKS
from benchmarks.report.numbers.compare import comparisons
from benchmarks.report.numbers.pool import pool
from benchmarks.report.numbers.tables import Table, generic, suite_tables
from benchmarks.report.pages import fragments
from benchmarks.report.text import comparison as comparison_text
from benchmarks.report.text import csv_text, latex, markdown, terminal

FORMATS = {
    "md": (".md", markdown.markdown), "latex": (".tex", latex.latex), "latex-input": (".input.tex", latex.fragment),
    "csv": (".csv", csv_text.wide), "csv-long": (".long.csv", lambda table: csv_text.long([table])),
    "html": (".html", fragments.table),
}
"""Format -> suffix of its files, and what makes it."""


def render(table: Table, form: str = "md") -> str:
    """The table in one of FORMATS, 'json', or 'screen': styled for a terminal at its width, Markdown where
    there is none.
    """
    if form == "json":
        return json.dumps(as_json(table), indent=1)
    if form == "screen":
        return terminal.terminal(table, width) if (width := screen()) else markdown.markdown(table)
    return FORMATS[form][1](table)


def as_json(table: Table) -> dict[str, Any]:
    """The table as plain values: its figures a line each, as in the CSV, and what must be said beside them."""
    return {
        "table": table.id, "title": table.spec.title, "caption": table.spec.caption,
        "marks": {name: text for name, (_, text) in MARKS.items()}, "notes": list(table.notes),
        "figures": csv_text.long_rows([table]),
    }


def screen() -> int:
    """Columns of the terminal that the output goes to; 0 when it goes elsewhere."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 0


def write(table: Table, folder: Path) -> list[Path]:
    """Write `<folder>/<table>.<suffix>` for each format; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, make in FORMATS.values():
        path = folder / f"{_file_name(table.spec.name)}{suffix}"
        path.write_text(make(table), encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)


def suite_text(
    paper: str, records: Iterable[Any], only: str | None = None, *, quick: bool | None = None, form: str = "md",
    measured: str = "recorded",
) -> str:
    """The tables of a paper, or one of them. quick, measured: see `build`; form: see `render`."""
    made = suite_tables(paper, records, only, quick=quick, measured=measured)
    return "\n".join(render(table, form) for table in made)


def write_suite(
    paper: str, records: Iterable[Any], folder: Path, only: str | None = None, *, quick: bool | None = None,
    measured: str = "recorded",
) -> list[Path]:
    """Write them in every format into `<folder>/<paper>`; returns the paths."""
    return [
        path for table in suite_tables(paper, records, only, quick=quick, measured=measured)
        for path in write(table, folder / paper)
    ]


def overview(
    records: Iterable[Any], absent: Mapping[str, Sequence[str]] | None = None, *, form: str = "md"
) -> str:
    """What a run gave: one table per dataset. absent: dataset -> categories that are not there; form: see `render`."""
    made = generic(records)
    for table in made:
        if names := (absent or {}).get(table.spec.dataset):
            table.notes.append(f"Not under the data root, so neither run nor averaged: {', '.join(names)}.")
    return "\n".join(render(table, form) for table in made)


def comparison(
    records: Iterable[Any], methods: Sequence[str], *, metric: str | None = None, form: str = "md", mixed: bool = False,
    sure: bool = False,
) -> str:
    """Methods against each other; without `metric` by the usual three. csv is the long form, latex the tables alone.

    sure: with intervals over test pictures, of figures and of differences.
    Raises ReportError when no method has a record, or records are of several protocols and `mixed` is False.
    """
    found = pool(records)
    made = comparisons(found, methods, [metric] if metric else None, mixed, sure)
    if form in ("csv", "csv-long"):
        return csv_text.long([one.table for one in made])
    if form == "json":
        return json.dumps([{"metric": one.metric, "ranks": one.ranks, **as_json(one.table)} for one in made], indent=1)
    if form in ("latex", "latex-input"):
        return "\n".join(FORMATS[form][1](one.table) for one in made)
    if form == "screen" and (width := screen()):
        return terminal.comparison(made, comparison_text.cost_table(found, methods, made[0]), width)
    text = fragments.comparison if form == "html" else comparison_text.markdown
    return text(made, comparison_text.cost_table(found, methods, made[0]))
