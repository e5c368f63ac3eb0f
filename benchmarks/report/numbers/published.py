"""Published numbers as data: the cells of the papers' tables and figures of other methods, each with its source."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "results" / "published"


@dataclass(frozen=True)
class Published:
    """One printed cell. `text` keeps the printed digits; `value` is None where a dash is printed.

    unit: 'percent', 'fraction' or 'count'.
    """

    text: str
    value: Decimal | None
    unit: str
    note: str = ""
    trust: str = "paper"
    source: str = ""

    @property
    def digits(self) -> int:
        """Printed decimals."""
        return len(self.text.partition(".")[2])


@cache
def papers() -> dict[tuple[str, str, str, str, str], Published]:
    """(paper, table, row, column, metric) -> cell, in printed order."""
    return {
        (r["paper"], r["table"], r["row"], r["column"], r["metric"]): Published(
            r["value"], Decimal(r["value"]) if r["value"] else None, r["unit"], r["note"], source=r["paper"]
        )
        for r in _rows("papers.csv")
    }


@cache
def other_methods() -> dict[tuple[str, str, str, str], Published]:
    """(method, dataset, category or 'mean', metric) -> figure in [0, 1].

    The method is followed by its variant in brackets where the source has several: `anomalib:padim (ResNet-18)`.
    Where a source repeats a figure with fewer digits, the first one counts.
    """
    found: dict[tuple[str, str, str, str], Published] = {}
    for r in _rows("other_methods.csv"):
        name = f"{r['method']} ({r['variant']})" if r["variant"] else r["method"]
        found.setdefault(
            (name, r["dataset"], r["category"], r["metric"]),
            Published(r["value"], Decimal(r["value"]), "fraction", r["note"], r["trust"], r["source"]),
        )
    return found


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
