"""Tables for a terminal, at its width: best bold, second underlined; a table too wide is broken by columns."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.report.numbers.compare import Comparison
from benchmarks.report.numbers.tables import Table
from benchmarks.report.text.comparison import Plain, summaries, tests
from benchmarks.report.text.grid import Grid, Text, grid, title

if TYPE_CHECKING:
    from rich.console import Console

SHORT = {"published": "publ.", "measured": "meas."}
GAP = 2


def terminal(table: Table, width: int) -> str:
    """Title, caption, table, legend and notes in at most `width` columns, with the styles of a terminal."""
    laid, (console, out) = grid(table), _console(width)
    _say(console, title(table), "bold")
    if table.spec.caption:
        _say(console, table.spec.caption)
    grouped = any(row.group for row in table.rows)
    sides = [
        [*(["  "] if grouped else []), *(side[1:] if grouped else side)] for side, _ in laid.body
    ]
    side_names = [*([""] if grouped else []), *laid.side_names[grouped:]]
    side_wide = [max([len(name), *(len(side[k]) for side in sides)]) for k, name in enumerate(side_names)]
    chunks = _chunks(laid, sum(side_wide) + GAP * len(side_wide), width)
    for n, (leaves, wide) in enumerate(chunks):
        if n:
            console.print()
        lead = sum(side_wide) + GAP * len(side_wide)
        for heads, joined in ((laid.groups, True), (laid.labels, False)):
            names = [name for name, span in heads for _ in range(span)]
            if names:
                columns = [laid.leaves[j][0] for j in leaves]
                console.print(_spans([names[j] for j in leaves], columns, wide, lead, joined))
        if laid.kinds:
            kinds = [SHORT.get(laid.kinds[j], laid.kinds[j]) for j in leaves]
            console.print(_row(side_names, side_wide, [_plain(kind, "dim") for kind in kinds], wide))
        console.print(_plain("─" * min(width, lead + sum(wide) + GAP * len(wide)), "dim"))
        for name, flags in laid.ticks:
            marks = [_plain("✓" if flags[j] else "") for j in leaves]
            console.print(_row([*([""] if grouped else []), name, *[""] * (len(side_names) - 1 - grouped)], side_wide,
                               marks, wide))
        for i, (side, texts) in enumerate(laid.body):
            if grouped and (i == 0 or i in laid.group_starts) and side[0]:
                console.print(_plain(side[0], "bold"))
            console.print(_row(sides[i], side_wide, [_set(texts[j]) for j in leaves], wide))
    console.print()
    for sign, text in table.legend:
        _say(console, f"{sign}: {text}", "dim")
    for note in table.notes:
        _say(console, note, "dim")
    return out.getvalue()


def _chunks(laid: Grid, lead: int, width: int) -> list[tuple[list[int], list[int]]]:
    """(leaves, their widths) that stand side by side; the leaves of one column stay together."""
    columns: dict[int, list[int]] = {}
    for j, (column, _) in enumerate(laid.leaves):
        columns.setdefault(column, []).append(j)
    groups = [name for name, span in laid.groups for _ in range(span)] or [""] * len(laid.leaves)
    chunks: list[tuple[list[int], list[int]]] = [([], [])]
    for column, leaves in columns.items():
        wide = [max(
            [len(texts[j].text) + len(texts[j].marks) for _, texts in laid.body]
            + ([len(SHORT.get(laid.kinds[j], laid.kinds[j]))] if laid.kinds else [1])
        ) for j in leaves]
        new_group = not chunks[-1][0] or groups[chunks[-1][0][-1]] != groups[leaves[0]]
        head = max(len(laid.labels[column][0]), len(groups[leaves[0]]) if new_group else 0)
        wide[-1] += max(0, head - sum(wide) - GAP * (len(wide) - 1))
        if chunks[-1][0] and lead + sum(chunks[-1][1]) + sum(wide) + GAP * (len(chunks[-1][1]) + len(wide)) > width:
            chunks.append(([], []))
            wide[-1] += max(0, len(groups[leaves[0]]) - sum(wide) - GAP * (len(wide) - 1))
        chunks[-1][0].extend(leaves)
        chunks[-1][1].extend(wide)
    return chunks


def _spans(names: Sequence[str], columns: Sequence[int], wide: Sequence[int], lead: int, joined: bool) -> Any:
    """A line of heads, each in the middle of its columns; a group's name stands once over all of them."""
    line, at = " " * lead, 0
    while at < len(names):
        end = at + 1
        while end < len(names) and names[end] == names[at] and (joined or columns[end] == columns[at]):
            end += 1
        room = sum(wide[at:end]) + GAP * (end - at - 1)
        line += names[at].center(room) if end - at > 1 else names[at].rjust(room)
        line += " " * GAP
        at = end
    return _plain(line.rstrip(), "bold")


def _row(side: Sequence[str], side_wide: Sequence[int], cells: Sequence[Any], wide: Sequence[int]) -> Any:
    line = _plain("".join(name.ljust(w + GAP) for name, w in zip(side, side_wide, strict=True)))
    for cell, w in zip(cells, wide, strict=True):
        line += _plain(" " * (w - len(cell))) + cell + _plain(" " * GAP)
    return line


def comparison(made: Sequence[Comparison], cost: Plain, width: int) -> str:
    """What `text.comparison.markdown` says."""
    parts = []
    for result in made:
        parts.append(terminal(result.table, width))
        parts += [plain(one, width) for one in summaries(result)]
        console, out = _console(width)
        for line in tests(result):
            _say(console, line, "dim")
        parts.append(out.getvalue())
    return "\n".join([*parts, plain(cost, width)])


def plain(table: Plain, width: int) -> str:
    """A table of ready text; words are broken where it is too wide."""
    from rich import box
    from rich.table import Table as Rich

    console, out = _console(width)
    _say(console, table.title, "bold")
    shown = Rich(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for j, head in enumerate(table.heads):
        shown.add_column(_plain(head), justify="right" if j else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(_plain, row))
    console.print(shown)
    return out.getvalue()


def _console(width: int) -> tuple[Console, io.StringIO]:
    from rich.console import Console

    out = io.StringIO()
    styled = os.environ.get("TERM", "") not in ("", "dumb")
    return Console(file=out, width=width, force_terminal=styled, highlight=False, emoji=False, markup=False), out


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_plain(text, style))


def _plain(text: str, style: str = "") -> Any:
    """Text as it is: a control sequence in a file's name does nothing."""
    from rich.text import Text as Styled

    return Styled("".join(c if c.isprintable() or c == "\n" else "?" for c in text), style)


def _set(item: Text) -> Any:
    style = {1: "bold", 2: "underline"}.get(item.rank, "italic" if item.italic else "")
    return _plain(item.text, style) + _plain(item.marks, "dim")
