"""The sheet that every PNG is drawn on: no display, no global state, no date in the file, no formula in a label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "0.55"


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
    """Write the PNG without version or date in it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
