"""Tables as Markdown, LaTeX, CSV and HTML. Everything that comes from a record or a file name is escaped."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.numbers.tables import Cell, Table, symbol
from benchmarks.report.text.latex import latex

FORMATS = {"md": ".md", "latex": ".tex", "csv": ".csv", "csv-long": ".long.csv", "html": ".html"}
KINDS = {"published": "published", "measured": "measured", "difference": "Δ"}
MEASURE = {"missing": "—", "undefined": "undef.", "absent": "n/a", "": ""}


@dataclass(frozen=True)
class Text:
    """What stands in one place: text, marks that follow it raised, and how it is set. value: unrounded, for sorting."""

    text: str = ""
    marks: str = ""
    rank: int = 0
    italic: bool = False
    value: float | None = None
    cell: Cell | None = None
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """A table laid out: leaves are (column, kind), heads are (text, span); side is the number of row heads."""

    side: int
    side_names: tuple[str, ...]
    leaves: list[tuple[int, str]]
    groups: list[tuple[str, int]]
    labels: list[tuple[str, int]]
    kinds: list[str]
    ticks: list[tuple[str, list[bool]]]
    body: list[tuple[list[str], list[Text]]]
    group_starts: set[int]


def render(table: Table, form: str = "md", link: Callable[[Cell], str | None] | None = None) -> str:
    """The table in one of FORMATS. link: href for a measured cell (HTML)."""
    if form == "md":
        return markdown(table)
    if form in ("latex", "tex"):
        return latex(table, grid(table))
    if form == "csv":
        return csv_wide(table)
    if form == "csv-long":
        return csv_long([table])
    if form == "html":
        return html(table, link)
    raise ValueError(f"unknown format {form!r}; there are {', '.join(FORMATS)}")


def write(table: Table, folder: Path, forms: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write `<folder>/<table>.<suffix>` for each format; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for form in forms:
        path = folder / f"{_file_name(table.spec.name)}{FORMATS[form]}"
        path.write_text(render(table, form), encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)


def number(value: float, digits: int, sign: bool = False) -> str:
    """Fixed decimals, without a sign on zero."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text


def text_of(cell: Cell, kind: str, alone: bool) -> Text:
    """What a cell shows in a sub-column. alone: the column has one sub-column for both kinds of figures."""
    need = cell.need
    if kind == "difference":
        change = cell.difference
        return Text() if change is None else Text(number(change, need.digits, sign=True), value=change, cell=cell)
    if kind == "published" or (alone and cell.printed is not None and not cell.state):
        if cell.printed is None:
            return Text()
        return Text(
            cell.printed.text or "—", "".join(map(symbol, cell.printed_marks)), cell.printed_rank,
            italic=kind != "published", value=cell.printed_value, cell=cell, kind="published",
        )
    if cell.state != "value" or cell.value is None:
        return Text(MEASURE[cell.state], cell=cell, kind="measured")
    text = number(cell.value, need.digits)
    if cell.sd is not None:
        text += f" ± {number(cell.sd, need.digits)}"
    if cell.present < cell.of:
        text += f" ({cell.present} of {cell.of})"
    marks = "".join(map(symbol, cell.marks)) + (f"[{cell.protocol}]" if cell.protocol else "")
    return Text(text, marks, cell.rank, value=cell.value, cell=cell, kind="measured")


def grid(table: Table) -> Grid:
    """Lay the table out in leaves (sub-columns), heads and body."""
    subs = [table.sub_columns(j) for j in range(len(table.columns))]
    leaves = [(j, kind) for j, kinds in enumerate(subs) for kind in kinds]
    row_ticks = list(dict.fromkeys(t for row in table.rows for t in row.ticks))
    grouped = any(row.group for row in table.rows)
    groups: list[tuple[str, int]] = []
    for j, column in enumerate(table.columns):
        if groups and j and column.group == table.columns[j - 1].group:
            groups[-1] = (column.group, groups[-1][1] + len(subs[j]))
        else:
            groups.append((column.group, len(subs[j])))
    body, starts = [], set()
    for i, row in enumerate(table.rows):
        if i and row.group != table.rows[i - 1].group:
            starts.add(i)
        ticks = ["✓" if row.ticks.get(t) else "" for t in row_ticks]
        side = [*([row.group] if grouped else []), row.label, *ticks]
        body.append((side, [text_of(table.cells[i][j], kind, len(subs[j]) == 1) for j, kind in leaves]))
    names = [*([""] if grouped else []), "", *row_ticks]
    return Grid(
        side=len(names), side_names=tuple(names), leaves=leaves,
        groups=groups if any(name for name, _ in groups) else [],
        labels=[(column.label, len(subs[j])) for j, column in enumerate(table.columns)],
        kinds=[KINDS[kind] for _, kind in leaves] if any(len(s) > 1 for s in subs) else [],
        ticks=[
            (t, [bool(table.columns[j].ticks.get(t)) for j, _ in leaves])
            for t in dict.fromkeys(t for column in table.columns for t in column.ticks)
        ],
        body=body, group_starts=starts,
    )


# Markdown


def escape_markdown(text: str) -> str:
    """Text that GitHub shows as it is: no markup, no HTML, no end of cell."""
    out = []
    for i, c in enumerate(text):
        if c in "\\|*`[]~":
            out.append("\\" + c)
        elif c == "_" and not (0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()):
            out.append("\\_")
        else:
            out.append({"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " ", "\t": " "}.get(c, c))
    return "".join(out)


def markdown(table: Table) -> str:
    """GitHub Markdown: title, caption, table, legend, notes."""
    from tabulate import tabulate

    laid = grid(table)
    labels = [column.label for column in table.columns]
    unique = len(set(labels)) == len(labels)
    heads = []
    subs = [table.sub_columns(j) for j in range(len(table.columns))]
    for j, kind in laid.leaves:
        column = table.columns[j]
        label = column.label if unique or not column.group else f"{column.group} {column.label}"
        if len(subs[j]) > 1 and kind != "published":
            label = f"{label} {KINDS[kind]}"
        heads.append(escape_markdown(label))
    rows: list[list[str]] = []
    if laid.groups and unique:
        names: list[str] = []
        for name, span in laid.groups:
            names += [f"*{escape_markdown(name)}*" if name else "", *[""] * (span - 1)]
        rows.append([""] * laid.side + names)
    for name, flags in laid.ticks:
        rows.append(["", escape_markdown(name)][-laid.side:] + ["✓" if flag else "" for flag in flags])
    before = None
    for side, texts in laid.body:
        side = [escape_markdown(s) for s in side]
        shown = side
        if laid.side > 1 and any(row.group for row in table.rows):
            shown = ["" if side[0] == before else f"**{side[0]}**" if side[0] else "", *side[1:]]
            before = side[0]
        rows.append([*shown, *map(_markdown_text, texts)])
    lines = [f"### {escape_markdown(_title(table))}", ""]
    if table.spec.caption:
        lines += [escape_markdown(table.spec.caption), ""]
    lines.append(tabulate(
        rows, [*map(escape_markdown, laid.side_names), *heads], tablefmt="pipe", disable_numparse=True,
        colalign=["left"] * laid.side + ["right"] * len(heads),
    ))
    below = [f"{escape_markdown(sign)}: {escape_markdown(text)}" for sign, text in table.legend]
    below += [escape_markdown(note) for note in table.notes]
    if below:
        lines += ["", *[f"- {line}" for line in below]]
    return "\n".join(lines) + "\n"


def _markdown_text(item: Text) -> str:
    text = escape_markdown(item.text)
    if item.rank == 1:
        text = f"**{text}**"
    elif item.rank == 2:
        text = f"<u>{text}</u>"
    if item.italic and text:
        text = f"*{text}*"
    return text + escape_markdown(item.marks)


def _title(table: Table) -> str:
    paper = "" if table.spec.paper == "runs" else f"{table.id}: "
    return f"{paper}{table.spec.title}"


# CSV

LONG = (
    "paper", "table", "row_group", "row", "column_group", "column", "source", "state", "value", "sd", "seeds", "unit",
    "metric", "method", "dataset", "categories", "present", "of", "rank", "marks", "protocol", "note",
)


def csv_long(tables: Sequence[Table]) -> str:
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


def csv_wide(table: Table) -> str:
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


# HTML


def html(table: Table, link: Callable[[Cell], str | None] | None = None) -> str:
    """A fragment: <figure> with caption, table, legend and notes; classes only, no style."""
    from benchmarks.report.templating import environment

    return environment().get_template("table.html").render(
        table=table, title=_title(table), grid=grid(table), link=link or (lambda cell: None)
    )
