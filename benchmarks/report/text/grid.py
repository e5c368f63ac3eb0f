"""A table laid out for the eye: what stands in each place, in sub-columns, below which heads. The formats set it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from benchmarks.report.numbers.cells import Cell
from benchmarks.report.numbers.notes import symbol
from benchmarks.report.numbers.published import Published
from benchmarks.report.numbers.tables import Table

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


def text_of(cell: Cell, kind: str, alone: bool) -> Text:
    """What a cell shows in a sub-column. alone: the column has one sub-column for both kinds of figures."""
    need = cell.need
    if kind == "difference":
        change = cell.difference
        if change is None:
            return Text()
        text = number(change, need.digits, sign=True)
        if cell.interval and cell.printed_value is not None:
            low, high = cell.interval
            text += " inside" if low <= cell.printed_value <= high else " outside"
        return Text(text, value=change, cell=cell)
    if kind == "published" or (alone and cell.printed is not None and not cell.state):
        if cell.printed is None:
            return Text()
        return Text(
            _printed(cell.printed, need.digits) or "—", "".join(map(symbol, cell.printed_marks)), cell.printed_rank,
            italic=kind != "published", value=cell.printed_value, cell=cell, kind="published",
        )
    if cell.state != "value" or cell.value is None:
        return Text(MEASURE[cell.state], cell=cell, kind="measured")
    text = number(cell.value, need.digits)
    if cell.sd is not None:
        text += f" ± {number(cell.sd, need.digits)}"
    if cell.interval:
        text += f" [{number(cell.interval[0], need.digits)}, {number(cell.interval[1], need.digits)}]"
    if cell.present < cell.of:
        text += f" ({cell.present} of {cell.of})"
    marks = "".join(map(symbol, cell.marks)) + (f"[{cell.protocol}]" if cell.protocol else "")
    return Text(text, marks, cell.rank, value=cell.value, cell=cell, kind="measured")


def _printed(shown: Published, digits: int) -> str:
    """A paper's printed digits; another source's figure rounded where it has more than the table (CSV keeps all)."""
    if shown.value is None or shown.trust == "paper" or shown.digits <= digits:
        return shown.text
    return f"{shown.value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):f}"


def number(value: float, digits: int, sign: bool = False) -> str:
    """Fixed decimals, without a sign on zero."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text


def title(table: Table) -> str:
    """The table's title, with its id where it is a paper's."""
    paper = "" if table.spec.paper == "runs" else f"{table.id}: "
    return f"{paper}{table.spec.title}"
