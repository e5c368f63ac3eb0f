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


def under(held, setting):
    held["unit"]["setting"] = setting
    return held


def test_the_report_has_intervals_unless_told_otherwise(stored, tmp_path):
    from benchmarks.report.pages import html

    records = [stored(m, "bottle", skill) for m, skill in (("a@x", 2.0), ("b@x", 0.8), ("patchcore@wrn50_1pct", 2.0))]
    low, high = intervals.bootstrap.interval(100 * (d := intervals.drawn(records[0], "image_auroc")).values, *d.size)
    for sure in (True, False):
        text = (html.write(tmp_path / str(sure), records, sure=sure).parent / "compare.html").read_text()
        assert (f"[{low:.2f}, {high:.2f}]" in text) == ("a@x leads" in text) == sure


def test_the_overview_counts_methods_and_settings_apart(stored, tmp_path):
    from benchmarks.report.pages import html

    records = [stored(m, "bottle", 2.0) for m in ("a@x", "b@x")]
    assert "2 finished units of 2 methods on 1 dataset." in html.write(tmp_path / "plain", records).read_text()
    records += [under(stored("a@x", "bottle", 1.0), "shots=4"), under(stored("a@x", "bottle", 1.5), "multi_class")]
    assert "4 finished units of 2 methods under 3 settings on" in html.write(tmp_path / "more", records).read_text()


def test_many_units_without_an_interval_are_told_in_one_line(stored):
    records = [stored(f"{m}@x", "bottle", 2.0, counts=False) for m in "abcde"]
    table = generic(records)[0]
    intervals.add(table)
    told = [note for note in table.notes if note.startswith("No interval")]
    assert len(told) == 1 and told[0].startswith("No interval for 5 units, a@x mvtec_ad/bottle the first: ")


def test_settings_stand_on_lines_of_their_own_and_in_curves(stored, tmp_path):
    from benchmarks.report.drawings import drawn as figures
    from benchmarks.report.numbers import over_settings

    skills = {"": 2.0, "shots=1": 0.6, "shots=4": 1.2, "held_out=0.1": 2.0, "corrupted=blur:1": 1.6,
              "corrupted=blur:3": 0.9, "corrupted=noise:1": 1.4, "corrupted=noise:3": 0.7, "contaminated=0.1": 1.5,
              "contaminated=0.1:left": 1.4, "contaminated=0.2": 1.3}
    records = [
        under(stored("a@x", c, skill), setting) if setting else stored("a@x", c, skill)
        for setting, skill in skills.items() for c in ("bottle", "cable")
    ]
    for i, held in enumerate(records):  # each beside its own arrays
        arrays = Path(held["path"]).with_suffix(".npz").read_bytes()
        path = tmp_path / f"{i}.npz"
        path.write_bytes(arrays)
        held["path"], held["images"]["scores"] = str(path.with_suffix(".json")), path.name
    found = pool(records)
    assert compare.main_presets(found) == ["a@x"]
    labels = {row.label for row in generic(records)[0].rows}
    assert labels == {"a@x", *(f"a@x {setting}" for setting in skills if setting)}
    made = {one.setting: one for one in over_settings.curves(found, ["a@x"], "image_auroc")}
    assert list(made) == ["contaminated", "corrupted", "shots"]  # held_out has one value
    assert {s: {p: [q.x for q in v["a@x"]] for p, v in one.panels.items()} for s, one in made.items()} == {
        "contaminated": {"": [0.1, 0.2], "left": [0.1]}, "corrupted": {"blur": [1, 3], "noise": [1, 3]},
        "shots": {"": [1, 4]},
    }
    clean = [r["metrics"]["image_auroc"] for r in records[:2]]
    assert made["shots"].clean["a@x"].value == pytest.approx(50 * sum(clean))
    low, high = made["shots"].panels[""]["a@x"]
    assert low.value == pytest.approx(50 * sum(r["metrics"]["image_auroc"] for r in records[2:4]))
    assert low.value < high.value < made["shots"].clean["a@x"].value
    assert made["shots"].categories == ("bottle", "cable") and high.interval[0] < high.value < high.interval[1]
    assert all(len(over_settings.curves(pool(records[:-1]), ["a@x"], m)) for m in METRICS)
    written = figures.draw(["setting"], records, tmp_path / "f", metric="aupro@0.3")
    assert [p.name for p in written] == [
        f"setting-mvtec_ad-{s}-aupro@0.3.png" for s in ("contaminated", "corrupted", "shots")]
    assert all(p.stat().st_size > 5000 for p in written)


def test_the_production_tables_show_figures_and_changes(stored):
    from benchmarks.report.numbers import suites, tables

    kept = {c: [stored("padim@resnet18", c, 2.0), under(stored("padim@resnet18", c, 1.0), "shots=4")]
            for c in ("bottle", "transistor", "pill")}
    table = tables.build("production", "shots", [r for pair in kept.values() for r in pair])
    rows = {row.label: cells for row, cells in zip(table.rows, table.cells, strict=True)}
    labels = [(column.group, column.label) for column in table.columns]
    at = labels.index(("PaDiM, ResNet-18", "Image AUROC"))
    means = [100 * sum(pair[i]["metrics"]["image_auroc"] for pair in kept.values()) / 3 for i in (0, 1)]
    assert [rows[label][at].value for label in ("clean", "4 pictures")] == pytest.approx(means)
    assert rows["4 pictures"][at + 1].value == pytest.approx(means[1] - means[0]) and means[1] < means[0]
    assert rows["clean"][at + 1].value == 0 and rows["2 pictures"][at].state == "missing"
    wanted = suites.units("production", "shots")
    assert ("padim@resnet18 shots=4", "mvtec_ad", "pill") in wanted and ("padim@resnet18", "mvtec_ad", "pill") in wanted
    assert not any("clean" in spec for spec, _, _ in wanted)


def test_the_rule_of_the_image_score_is_told_once_for_all_settings_of_a_method(stored):
    from benchmarks.report.numbers import tables

    records = []
    for spec, rule in (("padim@resnet18", "max"), ("patchcore@resnet18", "own")):
        for setting in ("", "shots=4", "shots=8"):
            held = stored(spec, "bottle", 2.0)
            held["protocol"] = {**held["protocol"], "image_score": rule}
            records.append(under(held, setting) if setting else held)
    notes = tables.build("production", "shots", records).notes
    assert "Image score: the method's own for patchcore@resnet18; maximum of the map for padim@resnet18." in notes


def test_one_model_for_all_categories_is_no_other_version_of_the_data(stored):
    from benchmarks.report.numbers import tables

    def notes(*prints):
        records = [stored(f"{method}@resnet18", "bottle", 2.0) for method, _, _ in prints]
        for record, (_, setting, made) in zip(records, prints, strict=True):
            record["unit"] |= {"setting": setting} if setting else {}
            record["dataset_fingerprint"] = made
        return [n for n in tables.build("production", "multi_class", records).notes if "versions of the data" in n]

    joint = ("padim", "multi_class", "b")
    assert not notes(("padim", "", "a"), joint)
    assert len(notes(("padim", "", "a"), ("patchcore", "", "c"))) == 1
    assert len(notes(("padim", "", "a"), joint, ("patchcore", "multi_class", "c"))) == 1
