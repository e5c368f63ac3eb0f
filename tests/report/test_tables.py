"""Tables: what is averaged, marked, missing, undefined, refused; and what each format makes of hostile names."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.report import views
from benchmarks.report.numbers import suites, tables
from benchmarks.report.numbers.cells import MARKS, Cell
from benchmarks.report.numbers.pool import ReportError
from benchmarks.report.numbers.tables import Table
from benchmarks.report.text.grid import grid

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


def cell_of(table: Table, row: str, column: str, group: str | None = None) -> Cell:
    i = next(i for i, r in enumerate(table.rows) if r.label == row and group in (None, r.group))
    j = next(j for j, c in enumerate(table.columns) if c.label == column)
    return table.cells[i][j]


def test_measured_beside_published(record) -> None:
    table = tables.build("rb_ae", "II", [record(category="wood", image_auroc=0.9712)])
    cell = cell_of(table, "Wood", "RB-AE")
    assert cell.printed.text == "99.82"
    assert cell.value == pytest.approx(97.12)
    assert cell.difference == pytest.approx(97.12 - 99.82)
    text = views.render(table, "md")
    wood = next(line for line in text.splitlines() if line.startswith("| Wood"))
    assert "97.12" in wood and "-2.70" in wood


def test_measured_figures_stand_where_asked_for(record) -> None:
    """By default beside every column that has records; those of the paper's own method, all, or none on demand."""
    some = [record(category="wood", image_auroc=0.97), record("spade@k5", "wood", image_auroc=0.9)]
    three, one = ("published", "measured", "difference"), ("published",)
    for measured, wide in (
        ("recorded", {"RB-AE", "SPADE"}), ("ours", {"RB-AE"}), ("none", set()),
        ("all", {"AE_SSIM", "f-AnoGAN", "GANomaly", "VAE", "RIAD", "MKD", "SPADE", "Patch SVDD", "RB-AE"}),
    ):
        table = tables.build("rb_ae", "II", some, measured=measured)
        found = {column.label: table.sub_columns(j) for j, column in enumerate(table.columns)}
        assert {label for label, kinds in found.items() if kinds == three} == wide
        assert all(kinds == one for label, kinds in found.items() if label not in wide)
        text = views.render(table, "csv")
        assert ("90" in text.split("Wood")[1].splitlines()[0]) == ("SPADE" in wide)
    with pytest.raises(suites.SuiteError, match="recorded, all, ours, none"):
        tables.build("rb_ae", "II", some, measured="both")
    counted = tables.build("rb_ae", "I", [], measured="none")  # pictures on disk are no method's
    assert counted.sub_columns(0) == three


def test_mean_is_missing_unless_every_category_is_there(record) -> None:
    some = [record(category=c, image_auroc=v) for c, v in (("carpet", 0.9), ("wood", 0.8))]
    table = tables.build("rb_ae", "II", some)
    assert cell_of(table, "Mean", "RB-AE").state == "missing"
    assert cell_of(table, "Mean", "RB-AE").value is None
    part = cell_of(table, "Mean, present only", "RB-AE")
    assert (part.value, part.present, part.of) == (pytest.approx(85.0), 2, 5)
    assert part.printed is None and part.difference is None
    text = views.render(table, "md")
    assert "85.00 (2 of 5)" in text
    assert "No record of rb_ae@paper on mvtec_ad: grid, leather, tile" in text

    full = [record(category=c, image_auroc=0.9 + i / 100) for i, c in enumerate(TEXTURES)]
    table = tables.build("rb_ae", "II", full)
    assert cell_of(table, "Mean", "RB-AE").value == pytest.approx(92.0)
    assert not any(line.partial for line in table.rows)


def test_no_table_averages_over_missing_categories(record) -> None:
    """Every cell of every suite with several categories is missing when one of them has no record."""
    records = []
    for suite in suites.all():
        for method, dataset, category in suites.units(suite.paper):
            if category not in ("bottle", "carpet", "juice_bottle"):
                records.append(record(method, category, dataset=dataset, image_auroc=0.9, pixel_auroc=0.9, tnr=0.5,
                                      tpr=0.5, accuracy=0.5, **{"aupro@0.3": 0.9}))
    checked = 0
    for suite in suites.all():
        for table in tables.suite_tables(suite.paper, records):
            for row, cells in zip(table.rows, table.cells, strict=True):
                for column, cell in zip(table.columns, cells, strict=True):
                    lacks = {"bottle", "carpet", "juice_bottle"} & set(cell.need.categories)
                    if not cell.state or not lacks or len(cell.need.categories) == 1:
                        continue
                    checked += 1
                    if row.partial or column.partial:
                        assert cell.value is None or cell.present < cell.of
                    else:
                        assert cell.value is None, (table.id, row.label, column.label)
    assert checked > 100


def test_spread_over_seeds(record) -> None:
    values = (0.90, 0.92, 0.97)
    table = tables.build("rb_ae", "II", [record(seed=s, image_auroc=v) for s, v in enumerate(values)])
    cell = cell_of(table, "Wood", "RB-AE")
    mean = sum(values) / 3
    assert cell.n == 3
    assert cell.value == pytest.approx(100 * mean)
    assert cell.sd == pytest.approx(100 * math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    assert "93.00 ± 3.61" in views.render(table, "md")


def test_fewer_seeds_are_marked(record) -> None:
    runs = [record(seed=s, category=c, image_auroc=0.9) for s, c in ((0, "wood"), (1, "wood"), (0, "tile"))]
    table = tables.build("rb_ae", "II", runs)
    assert "seeds" in cell_of(table, "Tile", "RB-AE").marks
    assert "seeds" not in cell_of(table, "Wood", "RB-AE").marks
    assert any(sign == "‖" for sign, _ in table.legend)


def test_mean_over_seeds_and_categories(record) -> None:
    """The spread of a mean is that of the mean over categories, seed by seed."""
    runs = [
        record(category=c, seed=s, image_auroc=0.5 + 0.1 * s * (1 if c == "wood" else -1))
        for c in TEXTURES for s in (0, 1)
    ]
    cell = cell_of(tables.build("rb_ae", "II", runs), "Mean", "RB-AE")
    seed1 = (0.6 + 4 * 0.4) / 5
    assert cell.per_seed == {0: pytest.approx(50.0), 1: pytest.approx(100 * seed1)}
    assert cell.value == pytest.approx(100 * (0.5 + seed1) / 2)


@pytest.mark.parametrize("mark, sign", [(m, s) for m, (s, _) in MARKS.items() if m not in ("seeds", "preset")])
def test_marks_are_shown_with_a_legend(record, mark: str, sign: str) -> None:
    table = tables.build("rb_ae", "II", [record(image_auroc=0.9, marks=(mark,))])
    for form in ("md", "html"):
        text = views.render(table, form)
        assert f"90.00{sign}" in text or f"<sup>{sign}</sup>" in text
    assert [s for s, _ in table.legend].count(sign) == 1
    assert sign not in [s for s, _ in tables.build("rb_ae", "II", [record(image_auroc=0.9)]).legend]


def test_quick_preset_stands_in_and_says_so(record) -> None:
    quick = record("rb_ae@quick", image_auroc=0.7, marks=("short",))
    table = tables.build("rb_ae", "II", [quick])
    cell = cell_of(table, "Wood", "RB-AE")
    assert cell.value == pytest.approx(70.0)
    assert set(cell.marks) == {"short", "preset"}
    assert any("rb_ae@quick in place of rb_ae@paper" in note for note in table.notes)
    both = tables.build("rb_ae", "II", [quick, record(image_auroc=0.9)])
    assert cell_of(both, "Wood", "RB-AE").value == pytest.approx(90.0)
    assert cell_of(tables.build("rb_ae", "II", [quick], quick=False), "Wood", "RB-AE").state == "missing"


def test_best_and_second_of_published_numbers() -> None:
    """II leather: RIAD and RB-AE share the best; the underline goes to the next lower value."""
    table = tables.build("rb_ae", "II", [])
    row = table.cells[TEXTURES.index("leather")]
    best = [c.label for c, cell in zip(table.columns, row, strict=True) if cell.printed_rank == 1]
    second = [cell.printed.value for cell in row if cell.printed_rank == 2]
    assert best == ["RIAD", "RB-AE"]
    values = sorted({cell.printed.value for cell in row}, reverse=True)
    assert second and set(second) == {values[1]}


def test_marks_come_from_unrounded_numbers(record) -> None:
    """Two figures that print alike: only the higher one is best."""
    runs = [record("a@x", image_auroc=0.912341), record("b@x", image_auroc=0.912342), record("c@x", image_auroc=0.5)]
    table = tables.generic(runs)[0]
    ranks = {row.label: cells[0].rank for row, cells in zip(table.rows, table.cells, strict=True)}
    assert ranks == {"a@x": 2, "b@x": 1, "c@x": 0}
    text = views.render(table, "md")
    assert "<u>91.23</u>" in text and "**91.23**" in text


def test_mixed_protocols_are_refused_unless_told(record) -> None:
    runs = [record(category="wood", image_auroc=0.9), record(category="tile", image_auroc=0.8, size=256)]
    with pytest.raises(ReportError, match="2 protocols"):
        tables.build("rb_ae", "II", runs)
    with pytest.raises(ReportError):
        tables.build("rb_ae", "II", [record(image_auroc=0.9), record(image_auroc=0.9, size=256)])
    with pytest.raises(ReportError):
        tables.build("rb_ae", "II", [record(image_auroc=0.9), record(category="tile", image_auroc=0.9, version=2)])
    table = tables.build("rb_ae", "II", runs, mixed=True)
    assert {cell_of(table, r, "RB-AE").protocol for r in ("Wood", "Tile")} == {"A", "B"}
    text = views.render(table, "md")
    assert "90.00\\[A\\]" in text or "90.00\\[B\\]" in text
    assert "256 x 256 pixels" in text and "original size" in text


def test_undefined_is_not_a_number(record) -> None:
    runs = [record(category=c, image_auroc=0.9) for c in TEXTURES[:-1]]
    runs.append(record(category="wood", image_auroc=None, undefined={"image_auroc": "no good picture in the test set"}))
    table = tables.build("rb_ae", "II", runs)
    assert cell_of(table, "Wood", "RB-AE").state == "undefined"
    assert cell_of(table, "Mean", "RB-AE").value is None
    assert ("undef.", "no good picture in the test set") in table.legend
    assert "undef." in views.render(table, "md")


def test_method_without_a_map(record) -> None:
    table = tables.build("rb_ae", "IV", [record("padim@wrn50", image_auroc=0.9)])
    assert cell_of(table, "Wood", "PaDiM").state == "absent"
    assert "n/a" in views.render(table, "md")


def test_broken_records_are_named_and_left_out(record) -> None:
    good = record(image_auroc=0.9)
    cut = {"unit": good["unit"], "path": "runs/wood/cut.json"}
    text = record(category="tile", image_auroc=0.9)
    text["metrics"]["image_auroc"] = "0.9"
    table = tables.build("rb_ae", "II", [cut, good, "x", text])
    assert next(name for name, _ in table.left_out) == "runs/wood/cut.json"
    assert len(table.left_out) == 3
    assert cell_of(table, "Wood", "RB-AE").value == pytest.approx(90.0)
    assert cell_of(table, "Tile", "RB-AE").state == "missing"
    assert "runs/wood/cut.json" in views.render(table, "md")


def test_failed_unit_is_missing_with_its_reason(record) -> None:
    table = tables.build("rb_ae", "II", [record(status="failed")])
    assert cell_of(table, "Wood", "RB-AE").state == "missing"
    assert any("NaN scores" in note for note in table.notes)


def test_newest_of_the_least_marked_records_counts(record) -> None:
    runs = [
        record(image_auroc=0.1, finished="2026-01-01"), record(image_auroc=0.2, finished="2026-03-01"),
        record(image_auroc=0.3, finished="2026-04-01", marks=("modified",)),
    ]
    for order in (runs, runs[::-1]):
        assert cell_of(tables.build("rb_ae", "II", order), "Wood", "RB-AE").value == pytest.approx(20.0)


def test_no_records() -> None:
    with pytest.raises(ReportError, match="no record"):
        tables.generic([])
    table = tables.build("rb_ae", "II", [])
    assert "Nothing measured yet." in table.notes


def test_counts_come_from_any_record(record) -> None:
    table = tables.build("rb_ae", "I", [record("padim@x", "carpet", image_auroc=0.9)])
    i = next(i for i, r in enumerate(table.rows) if r.key == "testing_abnormal")
    assert table.cells[i][0].value == 40
    assert table.cells[i][0].difference == pytest.approx(40 - 88)


def test_drop_between_datasets(record) -> None:
    spec = suites.load("ensemble_thesis").table("E3")
    runs = [
        record("patchcore@wrn50_10pct", c, **{"image_auroc": 0.95, "pixel_auroc": 0.9, "aupro@0.3": 0.9})
        for c in spec.columns[0].categories
    ]
    loco = suites.load("ensemble_thesis").table("E1_image_auroc").columns[-1].categories
    values = {"image_auroc": 0.7, "pixel_auroc": 0.6, "image_auroc/mean": 0.8, "aupro@0.3": 0.5}
    runs += [record("patchcore@wrn50_10pct", c, dataset="mvtec_loco", **values) for c in loco]
    table = tables.build("ensemble_thesis", "E3", runs)
    assert cell_of(table, "PatchCore", "Image AUROC").value == pytest.approx(15.0)
    assert cell_of(table, "PatchCore", "Pixel AUROC").value == pytest.approx(30.0)
    assert cell_of(table, "PatchCore", "AUPRO@0.3").value == pytest.approx(40.0)
    table = tables.build("ensemble_thesis", "E3", runs[:-1])
    assert cell_of(table, "PatchCore", "Image AUROC").value is None


def test_loco_table_from_any_run(record) -> None:
    kinds = {"image_auroc/structural": 0.9, "image_auroc/logical": 0.7, "image_auroc/mean": 0.8}
    runs = [record(m, c, dataset="mvtec_loco", **kinds) for m in ("a@x", "b@x") for c in ("pushpins", "screw_bag")]
    runs.append(record("c@x", "pushpins", dataset="mvtec_loco", **kinds))
    table = tables.generic(runs)[0]
    assert [c.label for c in table.columns][:3] == ["structural", "logical", "mean"]
    assert cell_of(table, "a@x", "mean", "Mean over 2 of 5 categories").value == pytest.approx(80.0)
    assert cell_of(table, "c@x", "mean", "Mean over 2 of 5 categories").state == "missing"


def test_demo_tables_show_any_method(record) -> None:
    runs = [record("my_new@default", c, dataset="demo", image_auroc=0.9) for c in ("brick", "grass", "gravel")]
    table = tables.build("demo", "demo", runs)
    assert {row.label for row in table.rows} == {"my_new@default"}
    assert cell_of(table, "my_new@default", "Image AUROC", "Mean").value == pytest.approx(90.0)


HOSTILE = [
    "<script>alert(1)</script>", "a|b", "50%_&$#{x}\\^~", "**bold** `code` [l](u)", "日本語 é\n\"q\" 'z'", "_u_ __i__",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(record, name: str) -> None:
    runs = [record(f"{name}@{name}", name, dataset="own", image_auroc=0.9)]
    table = tables.generic(runs)[0]
    md = views.render(table, "md")
    assert "<script" not in md
    body = [line for line in md.splitlines() if line.startswith("|")]
    columns = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in body}
    assert len(columns) == 1, "a name ended a Markdown cell"
    assert "<script" not in views.render(table, "html")
    rows = list(csv.DictReader(io.StringIO(views.render(table, "csv-long"))))
    assert {r["row_group"] for r in rows} == {name}


def test_csv_long_is_unrounded(record) -> None:
    table = tables.build("rb_ae", "II", [record(image_auroc=0.912345678)])
    rows = list(csv.DictReader(io.StringIO(views.render(table, "csv-long"))))
    mine = next(r for r in rows if r["row"] == "Wood" and r["column"] == "RB-AE" and r["source"] == "measured")
    assert float(mine["value"]) == pytest.approx(91.2345678, abs=1e-9)
    printed = [r for r in rows if r["source"] == "published"]
    assert len(printed) == 66
    wide = list(csv.reader(io.StringIO(views.render(table, "csv"))))
    assert len({len(r) for r in wide}) == 1


def test_written_files(record, tmp_path: Path) -> None:
    paths = views.write_suite("rb_ae", [record(image_auroc=0.9)], tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in paths} == {
        f"rb_ae/{t}{s}" for t in ("I", "II", "III", "IV", "V")
        for s in (".md", ".tex", ".input.tex", ".csv", ".long.csv", ".html")
    }


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(record, tmp_path: Path) -> None:
    """Hostile names, all marks, a table longer than a page, and a wide one with ticks."""
    runs = [
        record(f"{m}@p", f"{i:02d} {name}", dataset="own", image_auroc=0.9 + i / 1000, marks=tuple(MARKS))
        for i, name in enumerate(HOSTILE * 3) for m in ("a", "b", "c")
    ]
    made = [tables.generic(runs)[0], tables.build("tsdn", "4", []), tables.build("rb_ae", "V", [])]
    for k, table in enumerate(made):
        (tmp_path / f"t{k}.tex").write_text(views.render(table, "latex"), encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", f"t{k}.tex"], cwd=tmp_path, capture_output=True,
            timeout=120, check=False,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "t0.pdf").read_bytes().count(b"/Type /Page\n") != 1


def test_latex_for_input_has_caption_label_notes_and_parts(record) -> None:
    runs = [record("rb_ae@paper", c, marks=("untrained",), image_auroc=0.9) for c in ("wood", "tile")]
    text = views.render(tables.build("rb_ae", "II", runs, measured="all"), "latex-input")
    assert "documentclass" not in text and text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert text.count(r"\label{tab:rb-ae-II}") == 1 and r"\caption{" in text
    heads = re.findall(r"\\begin\{tabular\}\{l(r+)\}", text)
    leaves = len(grid(tables.build("rb_ae", "II", runs, measured="all")).leaves)
    assert len(heads) >= 3 and sum(map(len, heads)) == leaves > 24 and max(map(len, heads)) <= 12
    assert text.count("Wood &") == len(heads), "each part has its row heads"
    assert text.count(r"90.00\textsuperscript{$\dagger$}") == 2
    assert text.index(r"$\dagger$: a network") > text.rindex(r"\end{tabular}")
    long = views.render(tables.generic([record("a@p", f"c{i:02d}", dataset="own", image_auroc=0.9)
                                        for i in range(45)])[0], "latex-input")
    assert long.count(r"\begin{table}") == 2 and r"\label{tab:runs-own-2}" in long and "(continued)" in long


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_for_input_compiles_within_the_margins(record, tmp_path: Path) -> None:
    runs = [record(f"{m}@p", f"{i:02d} {name}", dataset="own", image_auroc=0.9, marks=tuple(MARKS))
            for i, name in enumerate(HOSTILE) for m in ("a", "b")]
    made = [tables.generic(runs)[0], tables.build("tsdn", "4", []), tables.build("rb_ae", "III", [])]
    for k, table in enumerate(made):
        (tmp_path / f"t{k}.tex").write_text(views.render(table, "latex-input"), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs,graphicx,textcomp}\n"
        "\\begin{document}See \\ref{tab:rb-ae-III}.\n" + "".join(f"\\input{{t{k}}}\n" for k in range(3))
        + "\\end{document}\n"
    )
    done = subprocess.run(["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"], cwd=tmp_path,
                          capture_output=True, timeout=120, check=False)
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", said)]
    assert all(points < 2 for points in wide), said


def test_published_figures_of_other_sources_have_the_digits_of_the_table() -> None:
    """The authors' 99.6814 of cable beside a measured 98.6 ± 0.2 is 99.7; the CSV keeps what they print."""
    table = tables.build("ensemble_thesis", "E2_image_auroc", [])
    text = views.render(table, "md")
    assert "99.6814" not in text and "99.7" in text and "99.6814" in views.render(table, "csv-long")


def test_a_remark_on_a_published_figure_names_its_metric() -> None:
    notes = tables.build("ensemble_thesis", "E1_auspro", []).notes
    of_gcad = [note for note in notes if "GCAD" in note and note.startswith("Published")]
    assert of_gcad and all("AUsPRO@0.05" in note for note in of_gcad)


def test_every_preset_of_a_suite_is_registered() -> None:
    """What a table asks for can be built; a preset that is gone would leave its column empty for ever."""
    from models import registry
    from models.base import ModelError

    wrong = []
    for suite in suites.all():
        wanted = {m for m, _, _ in suites.units(suite.paper)} | {m for m in suite.quick.values() if m}
        for spec in sorted(wanted):
            try:
                registry.parse(spec.partition(" ")[0])  # a setting may follow
            except ModelError as error:
                wrong.append(f"{suite.paper}: {error}")
    assert not wrong
