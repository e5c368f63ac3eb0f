"""Tables and comparisons as HTML fragments: classes only, no style, everything escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.report.numbers.cells import Cell
from benchmarks.report.numbers.compare import MOST_PAIRS, Comparison
from benchmarks.report.numbers.tables import Table
from benchmarks.report.pages.templating import environment
from benchmarks.report.text.comparison import Plain, summaries, tests
from benchmarks.report.text.grid import grid, title


def table(shown: Table, link: Callable[[Cell], str | None] | None = None) -> str:
    """<figure> with caption, table, legend and notes. link: href for a measured cell."""
    return environment().get_template("table.html").render(
        table=shown, title=title(shown), grid=grid(shown), link=link or (lambda cell: None)
    )


def plain(shown: Plain) -> str:
    """A table of ready text."""
    return environment().get_template("comparison.html").render(parts=[], cost=shown)


def comparison(made: Sequence[Comparison], cost: Plain | None) -> str:
    """What `text.comparison.markdown` says, as HTML."""
    from markupsafe import Markup

    parts = [
        {"table": Markup(table(one.table)), "summaries": summaries(one, MOST_PAIRS), "lines": tests(one)}
        for one in made
    ]
    return environment().get_template("comparison.html").render(parts=parts, cost=cost)
