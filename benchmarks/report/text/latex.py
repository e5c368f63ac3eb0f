"""LaTeX with booktabs, set by plain pdflatex: a document of its own, or tables for `\\input` in a paper."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.report.numbers.tables import Table
from benchmarks.report.text.grid import Grid, Text, grid

ROWS_PER_PAGE = 38
LEAVES_PER_PART = 12
"""Sub-columns that a portrait page takes beside one head of rows."""
SHORT = {"published": "publ.", "measured": "meas."}

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''{}", "[": "{[}", "]": "{]}", "±": r"\,$\pm$\,", "—": "---", "–": "--",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}", "¶": r"\P{}", "‖": r"$\Vert$", "◊": r"$\diamond$",
    "△": r"$\triangle$", "⊥": r"$\bot$", "○": r"$\circ$", "▽": r"$\bigtriangledown$",
    "°": r"$^\circ$", "Δ": r"$\Delta$", "✓": r"$\surd$", "×": r"$\times$", "≤": r"$\leq$", "\n": " ", "\r": " ",
    "-": "{-}", "'": "{'}", "`": r"\textasciigrave{}",
}

HEAD = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage{textcomp,graphicx,booktabs}
\usepackage[a4paper,landscape,margin=12mm]{geometry}
\setlength{\parindent}{0pt}
\pagestyle{empty}
\newsavebox{\tablebox}
\newcommand{\fittable}{\ifdim\wd\tablebox>\textwidth
  \resizebox{\textwidth}{!}{\usebox{\tablebox}}\else\usebox{\tablebox}\fi}
\begin{document}
"""


def escape(text: str) -> str:
    """Text that pdflatex sets as it is; a letter it has no glyph for becomes its code point."""
    return "".join(_letter(c) for c in text)


def _letter(c: str) -> str:
    if c in SPECIAL:
        return SPECIAL[c]
    if c.isprintable() and ord(c) < 128:
        return c
    # a letter with an accent is composed by the default fonts; all else may be missing from them
    if ord(c) < 0x100 and unicodedata.category(c).startswith("L") and unicodedata.decomposition(c)[:1].isdigit():
        return c
    return rf"\texttt{{U+{ord(c):04X}}}"


def latex(table: Table) -> str:
    """A whole document; a long table goes on over pages at the start of a row group where there is one."""
    laid = grid(table)
    parts = [HEAD]
    for k, chunk in enumerate(_chunks(laid)):
        title = escape(f"{table.id}: {table.spec.title}" + (" (continued)" if k else ""))
        caption = "" if k else escape(table.spec.caption)
        parts.append((r"\newpage" "\n" if k else "") + rf"\textbf{{{title}}} {caption}\par\medskip" + "\n")
        parts.append("\\begin{lrbox}{\\tablebox}%\n" + _tabular(laid, chunk) + "\\end{lrbox}\\fittable\\par\\medskip\n")
    parts += [rf"{{\footnotesize {_raised(sign)}: {escape(text)}\par}}" + "\n" for sign, text in table.legend]
    parts += [rf"{{\footnotesize {escape(note)}\par}}" + "\n" for note in table.notes]
    return "".join(parts) + "\\end{document}\n"


FRAGMENT = r"""% \usepackage{booktabs,graphicx,textcomp} in the preamble; refer to it by \ref{LABEL}
"""

FIT = r"""\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"""


def fragment(table: Table) -> str:
    """Floats for `\\input`, with caption, label and the marks as notes below; a long table goes on in another float.

    A wide one is broken at columns into parts below each other, so that its letters stay readable on a portrait page.
    """
    parts = [grid(_columns(table, columns)) for columns in _column_chunks(table)]
    label = "tab:" + "".join(c if c.isalnum() else "-" for c in table.id)
    out = [FRAGMENT.replace("LABEL", label)]
    chunks = _chunks(parts[0], max(12, ROWS_PER_PAGE // len(parts)))
    for k, rows in enumerate(chunks):
        title = f"{table.spec.title}. {table.spec.caption}".strip() if not k else f"{table.spec.title} (continued)."
        out.append("\\begin{table}[tbp]\n\\centering\n" rf"\caption{{{escape(title)}}}" "\n"
                   rf"\label{{{label}{f'-{k + 1}' if k else ''}}}" "\n")
        out += ["\\sbox0{%\n" + _tabular(laid, rows).rstrip("\n") + "}%\n" + FIT + "\\par\\medskip\n"
                for laid in parts]
        if k == len(chunks) - 1:
            notes = [f"{_raised(sign)}: {escape(text)}" for sign, text in table.legend] + list(map(escape, table.notes))
            out += ["\\begin{minipage}{\\linewidth}\\footnotesize\n", *(f"{note}\\par\n" for note in notes),
                    "\\end{minipage}\n"] if notes else []
        out.append("\\end{table}\n")
    return "".join(out)


def _column_chunks(table: Table) -> list[range]:
    """Columns for each part: as many as a portrait page takes beside the heads of rows."""
    most = LEAVES_PER_PART + 1 - grid(table).side
    widths = [len(table.sub_columns(j)) for j in range(len(table.columns))]
    cuts = [0]
    for j in range(1, len(widths)):
        if sum(widths[cuts[-1] : j + 1]) > most:
            cuts.append(j)
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], len(widths)], strict=True)]


def _columns(table: Table, columns: range) -> Table:
    return replace(table, columns=[table.columns[j] for j in columns],
                   cells=[[row[j] for j in columns] for row in table.cells])


def _chunks(laid: Grid, most: int = ROWS_PER_PAGE) -> list[range]:
    total = len(laid.body)
    cuts = [0]
    while total - cuts[-1] > most:
        fits = [i for i in laid.group_starts if cuts[-1] < i <= cuts[-1] + most]
        cuts.append(max(fits, default=cuts[-1] + most))
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], total], strict=True)]


def _tabular(laid: Grid, rows: Sequence[int]) -> str:
    lines = [rf"\begin{{tabular}}{{{'l' * laid.side}{'r' * len(laid.leaves)}}}", r"\toprule"]
    gap = ["" for _ in range(laid.side)]
    if laid.groups:
        lines += _spanning(laid.groups, gap, laid.side)
    if laid.kinds:
        lines += _spanning(laid.labels, gap, laid.side)
        heads = [SHORT.get(kind, kind) for kind in laid.kinds]
    else:
        heads = [name for name, _ in laid.labels]
    lines.append(_row([escape(n) for n in laid.side_names] + [_stacked(h) for h in heads]))
    for name, flags in laid.ticks:
        lines.append(_row([escape(name), *gap[1:], *[escape("✓") if flag else "" for flag in flags]]))
    lines.append(r"\midrule")
    grouped = laid.side > 1 and laid.side_names[:2] == ("", "")
    for i in rows:
        side, texts = laid.body[i]
        if i in laid.group_starts and i != rows[0]:
            lines.append(r"\midrule")
        first = i == rows[0] or i in laid.group_starts
        shown = [escape(s) if first or k or not grouped else "" for k, s in enumerate(side)]
        lines.append(_row([*shown, *map(_set, texts)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _stacked(text: str) -> str:
    """A head above one column, broken at spaces: a long one would make the column wide and the whole table small."""
    lines = textwrap.wrap(text, 11, break_long_words=False, break_on_hyphens=False) or [""]
    if len(lines) == 1:
        return escape(lines[0])
    return r"\shortstack[r]{" + r"\\".join(map(escape, lines)) + "}"


def _spanning(names: Sequence[tuple[str, int]], gap: list[str], side: int) -> list[str]:
    cells, rules, at = list(gap), [], side + 1
    for name, span in names:
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(name)}}}")
        if name and span > 1:
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
        at += span
    return [_row(cells), *(["".join(rules)] if rules else [])]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _raised(marks: str) -> str:
    return escape(marks)


def _set(item: Text) -> str:
    text = escape(item.text)
    if item.value is not None and text.startswith("{-}"):
        text = "$-$" + text.removeprefix("{-}")
    if item.rank == 1:
        text = rf"\textbf{{{text}}}"
    elif item.rank == 2:
        text = rf"\underline{{{text}}}"
    if item.italic and text:
        text = rf"\textit{{{text}}}"
    return text + (rf"\textsuperscript{{{escape(item.marks)}}}" if item.marks else "")
