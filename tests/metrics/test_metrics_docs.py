"""The worked cases in docs/metrics.md are those that the script prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import metrics_worked_cases as worked
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def written() -> dict[tuple[str, str], list[str]]:
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {(row[0], row[1]): row[2:4] for row in cells if len(row) == 5}


def test_worked_cases():
    page = written()
    rows = worked.rows(anomalib=importlib.util.find_spec("anomalib") is not None)
    for metric, other, *values in rows:
        for value, shown in zip(values, page[metric, other], strict=True):
            if value is None:
                assert shown == "undefined", (metric, other)
            else:
                assert float(shown) == pytest.approx(value, abs=1e-5), (metric, other)
    assert all(found is None or abs(found - value) > 0 for _, _, found, value in rows), "a case without a difference"
