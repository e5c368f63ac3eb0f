"""Tables as GitHub Markdown. Everything that comes from a record or a file name is escaped."""

from __future__ import annotations

from benchmarks.report.numbers.tables import Table
from benchmarks.report.text.grid import KINDS, Text, grid, title


def escape(text: str) -> str:
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
        heads.append(escape(label))
    rows: list[list[str]] = []
    if laid.groups and unique:
        names: list[str] = []
        for name, span in laid.groups:
            names += [f"*{escape(name)}*" if name else "", *[""] * (span - 1)]
        rows.append([""] * laid.side + names)
    for name, flags in laid.ticks:
        rows.append(["", escape(name)][-laid.side:] + ["✓" if flag else "" for flag in flags])
    before = None
    for side, texts in laid.body:
        side = [escape(s) for s in side]
        shown = side
        if laid.side > 1 and any(row.group for row in table.rows):
            shown = ["" if side[0] == before else f"**{side[0]}**" if side[0] else "", *side[1:]]
            before = side[0]
        rows.append([*shown, *map(_set, texts)])
    lines = [f"### {escape(title(table))}", ""]
    if table.spec.caption:
        lines += [escape(table.spec.caption), ""]
    lines.append(tabulate(
        rows, [*map(escape, laid.side_names), *heads], tablefmt="pipe", disable_numparse=True,
        colalign=["left"] * laid.side + ["right"] * len(heads),
    ))
    below = [f"{escape(sign)}: {escape(text)}" for sign, text in table.legend]
    below += [escape(note) for note in table.notes]
    if below:
        lines += ["", *[f"- {line}" for line in below]]
    return "\n".join(lines) + "\n"


def _set(item: Text) -> str:
    text = escape(item.text)
    if item.rank == 1:
        text = f"**{text}**"
    elif item.rank == 2:
        text = f"<u>{text}</u>"
    if item.italic and text:
        text = f"*{text}*"
    return text + escape(item.marks)
