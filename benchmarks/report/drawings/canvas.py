"""The sheet that every figure is drawn on: no display, no global state, no date in the file, no formula in a label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "0.55"
UNSAID = {
    "png": ("Software",), "svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate", "Creator", "Producer"),
}
"""Forms of a figure, and what is left out of the file: the same input gives the same bytes."""


def blank(width: float, height: float) -> Figure:
    """A figure of this many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def title(figure: Figure, text: str) -> None:
    """The heading, where there is one."""
    if text:
        figure.suptitle(plain(text), fontsize=10)


def plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return str(text).replace("$", r"\$")


def save(figure: Figure, path: Path) -> Path:
    """Write it as its suffix says (PNG, SVG, PDF), without version or date; letters in a PDF stay TrueType, as
    publishers ask."""
    from matplotlib import rc_context

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix.removeprefix(".")
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "figure"}):
        figure.savefig(path, format=form, metadata=dict.fromkeys(UNSAID[form]))
    return path
