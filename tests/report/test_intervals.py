"""Intervals in tables and comparisons: from what lies beside records, with words where there is nothing."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.metrics import Scorer, bootstrap
from benchmarks.report import views
from benchmarks.report.numbers import compare, intervals
from benchmarks.report.numbers.pool import pool
from benchmarks.report.numbers.published import Published
from benchmarks.report.numbers.tables import generic
from benchmarks.report.text.grid import text_of

METRICS = ("image_auroc", "aupro@0.3")


@pytest.fixture
def stored(record, tmp_path):
    """A record of a simulated unit with its arrays beside it; `skill` is the contrast of its defects."""

    def make(spec, category, skill, seed=0, good=25, bad=30, counts=True):
        rng = np.random.default_rng(sum(map(ord, category)))
        scorer, rows = Scorer(statistics=True), []
        for i in range(good + bad):
            kind = "good" if i < good else f"kind{i % 2}"
            scores = rng.standard_normal((12, 12)) + 0.5 * rng.standard_normal()
            mask = np.zeros((12, 12), bool)
            mask[2 : 4 + i % 6, 3 : 6 + i % 4] = kind != "good"
            scores = (scores + skill * mask + 0.2 * np.random.default_rng([seed, i]).standard_normal()).astype("f4")
            rows.append((f"{i:03}", int(kind != "good"), kind, scores.max(), scores.max()))
            scorer.add(f"{i:03}", label=rows[-1][1], kind=kind, anomaly_map=scores, score=None, mask=mask)
        result = scorer.result()
        held = record(spec, category, seed, **{key: result.metrics[key] for key in METRICS})
        path = tmp_path / f"{spec}-{category}-{seed}.npz"
        arrays = dict(zip(("name", "label", "kind", "score", "score_max"), map(np.array, zip(*rows, strict=True)),
                          strict=True))
        np.savez_compressed(path, **arrays, **(result.statistics if counts else {}))
        held["images"]["scores"], held["path"] = path.name, str(path.with_suffix(".json"))
        return held

    return make


def test_cells_get_the_interval_of_their_mean(stored):
    records = [stored("a@x", c, 2.0, seed) for c in ("bottle", "cable") for seed in (0, 1)]
    table = generic(records)[0]
    intervals.add(table)
    cells = {(row.label, row.group): cells for row, cells in zip(table.rows, table.cells, strict=True)}
    every = [c for row in cells.values() for c in row if c.state == "value"]
    assert len(every) == 6
    for cell in every:
        low, high = cell.interval
        assert low < cell.value < high
    one, both = every[0], every[-2]
    assert one.present == 1 and both.present == 2
    assert both.interval[1] - both.interval[0] < one.interval[1] - one.interval[0]
    text = views.render(table)
    assert f"\\[{one.interval[0]:.2f}, {one.interval[1]:.2f}\\]" in text and "spread over seeds is not in it" in text
    # by hand, from one record: exact for the image metric
    arrays = dict(np.load(Path(records[0]["path"]).with_suffix(".npz")))
    drawn = intervals.drawn(records[0], "image_auroc").values
    tail = stats.norm.sf(stats.t.ppf(0.975, 52) * np.sqrt(55 / 52))
    single = bootstrap.interval(drawn, 55, 3)
    assert single == (pytest.approx(np.quantile(drawn, tail)), pytest.approx(np.quantile(drawn, 1 - tail)))
    assert single[0] < np.quantile(drawn, 0.025)
    assert drawn.mean() == pytest.approx(records[0]["metrics"]["image_auroc"], abs=0.01)
    assert arrays["ladder.background"].shape[0] == 55


def test_a_method_leads_only_where_the_interval_excludes_0(stored):
    places = ("bottle", "cable")
    records = [stored(m, c, skill) for m, skill in (("a@x", 2.0), ("b@x", 0.8), ("c@x", 2.01)) for c in places]
    made = compare.comparisons(pool(records), ["a@x", "b@x", "c@x"], METRICS, sure=True)
    for result in made:
        found = {(d.a, d.b, d.place): d for d in result.differences}
        assert len(found) == 9
        over = found["a@x", "b@x", ""]
        assert over.verdict == "a@x leads" and 0 < over.interval[0] < over.value < over.interval[1]
        assert found["b@x", "c@x", ""].verdict == "c@x leads"
        assert found["a@x", "c@x", "mvtec_ad/bottle"].verdict == "open" or result.metric == "aupro@0.3"
        pair = next(p for p in result.pairs if (p.a, p.b) == ("a@x", "b@x"))
        assert over.value == pytest.approx(pair.difference)
        # paired: far narrower than if both methods had drawn their own pictures
        apart = sum(np.var(intervals.drawn(r, result.metric).values) for r in (records[0], records[4]))
        near = found["a@x", "c@x", "mvtec_ad/bottle"].interval
        assert near is None or near[1] - near[0] < 100 * 2 * np.sqrt(apart)
    text = views.comparison(records, ["a@x", "b@x", "c@x"], sure=True)
    assert "a@x leads" in text and "95 % interval over pictures" in text and "open" in text
    assert "leads" not in views.comparison(records, ["a@x", "b@x", "c@x"])
    assert "a@x leads" in views.comparison(records, ["a@x", "b@x", "c@x"], sure=True, form="html")


def test_a_published_figure_lies_inside_or_outside(stored):
    cell = generic([stored("a@x", "bottle", 2.0)])[0].cells[0][0]
    cell.interval = (90.0, 92.0)
    for value, said in (("91", "inside"), ("93.5", "outside")):
        cell.printed = Published(value, Decimal(value), "percent")
        assert text_of(cell, "difference", False).text.endswith(said)
    cell.interval = None
    assert "side" not in text_of(cell, "difference", False).text


def test_records_of_before_and_few_anomalies_are_said(stored):
    old = [stored(m, "bottle", 2.0, counts=False) for m in ("a@x", "b@x")]
    found = compare.comparisons(pool(old), ["a@x", "b@x"], ["aupro@0.3"], sure=True)[0]
    assert all(d.interval is None and not d.verdict for d in found.differences)
    assert any("--force" in line for line in (*found.table.notes, *found.caveats))
    image = compare.comparisons(pool(old), ["a@x", "b@x"], ["image_auroc"], sure=True)[0]
    assert image.table.cells[0][0].interval is not None  # scores suffice for these
    few = stored("a@x", "cable", 1.0, bad=4)
    table = generic([few])[0]
    intervals.add(table)
    assert any("4 anomalous pictures" in note for note in table.notes)
    bare = {k: v for k, v in few.items() if k != "path"}
    table = generic([bare])[0]
    intervals.add(table)
    assert table.cells[0][0].interval is None and any("no scores beside" in note for note in table.notes)


def test_other_pictures_are_not_paired(stored):
    records = [stored("a@x", "bottle", 2.0), stored("b@x", "bottle", 1.0, bad=31)]
    found = compare.comparisons(pool(records), ["a@x", "b@x"], ["image_auroc"], sure=True)[0]
    assert found.differences[0].interval is None
    assert any("not scored on the same pictures" in line for line in found.caveats)
