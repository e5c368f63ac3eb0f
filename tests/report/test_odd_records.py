"""Views of records that lack a figure: undefined everywhere, in one category of many, and remarks on the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import views
from benchmarks.report.drawings import drawn
from benchmarks.report.numbers import tables
from benchmarks.report.numbers.compare import comparisons
from benchmarks.report.numbers.pool import ReportError, pool

ONLY_GOOD = {"undefined": {"image_auroc": "no anomalous image"}, "image_auroc": None}


def test_what_is_undefined_everywhere_is_said_with_its_reason(record, tmp_path: Path) -> None:
    records = [record("a@b", c, dataset="own", **ONLY_GOOD) for c in ("nut", "bolt")]
    words = "image_auroc is undefined for every record.*: no anomalous image"
    for metrics in (["image_auroc"], None):
        with pytest.raises(ReportError, match=words):
            comparisons(pool(records), ["a@b"], metrics)
    with pytest.raises(ReportError, match=words):
        drawn.draw(["heat"], records, tmp_path)
    with pytest.raises(ReportError, match="no record has the metric 'speed'"):
        comparisons(pool([*records, record("a@b", "cap", dataset="own", image_auroc=0.9)]), ["a@b"], ["speed"])


def test_an_undefined_category_leaves_a_mean_of_those_present(record) -> None:
    records = [record("a@b", c, dataset="own", image_auroc=v) for c, v in (("nut", 0.9), ("bolt", 0.8))]
    table = tables.generic([*records, record("a@b", "cap", dataset="own", **ONLY_GOOD)])[0]
    text = views.render(table, "md")
    assert "85.00 (2 of 3)" in text and "present only" in text and "no anomalous image" in text
    whole = next(line for line in text.splitlines() if "Mean over 3" in line and "present only" not in line)
    assert "undef." in whole and "85.00" not in whole


def test_remarks_on_the_data_mark_figures_and_stand_below(record) -> None:
    noted = record("a@b", "nut", dataset="own", marks=("noted",), image_auroc=0.9)
    noted["remarks"] = ["3 JPEG masks, first ground_truth/dent/000_mask.jpg: cut at half"]
    text = views.render(tables.generic([noted])[0], "md")
    assert "90.00▽" in text and "own/nut: 3 JPEG masks" in text.replace("\\", "")
