"""Published numbers: complete, equal to their source, and their printed averages recomputed."""

from __future__ import annotations

import csv
import os
from collections import Counter
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from benchmarks.report.numbers import published, suites, tables

CELLS = {
    ("gen_encdec", "I"): 108, ("gen_encdec", "II"): 90, ("gen_encdec", "III"): 4, ("dae_cae", "1"): 90,
    ("dae_cae", "2"): 90, ("tsdn", "1"): 27, ("tsdn", "2"): 119, ("tsdn", "3"): 28, ("tsdn", "4"): 36,
    ("rb_ae", "I"): 20, ("rb_ae", "II"): 66, ("rb_ae", "III"): 66, ("rb_ae", "IV"): 66, ("rb_ae", "V"): 12,
}
GOOD_BAD = {"hazelnut": (40, 70), "bottle": (20, 63), "pill": (26, 141), "screw": (41, 119), "tile": (33, 84)}

# printed averages that do not follow from their own rows: (paper, table, row, column) -> recomputed
INCONSISTENT = {
    ("gen_encdec", "II", "mean", "Ganomaly"): "76.13",
    ("tsdn", "1", "mean", "GAN"): "75.77",
    ("tsdn", "2", "mean_texture", "TSDN"): "96.62",
    ("tsdn", "2", "mean_object", "TSDN"): "90.68",
    ("tsdn", "2", "mean_object", "AE_S"): "91.20",
    ("tsdn", "2", "mean_object", "VAE"): "88.80",
    ("rb_ae", "II", "mean", "AE_SSIM"): "63.40",
    ("rb_ae", "II", "mean", "AnoGAN"): "54.20",
    ("rb_ae", "III", "mean", "RIAD"): "93.88",
    ("dae_cae", "1", "overall_hazelnut", "DAE(SSIM)"): "0.742",
    ("dae_cae", "1", "overall_hazelnut", "DAE-VGG16(MSE)"): "0.655",
    ("dae_cae", "1", "overall_pill", "DAE-VGG16(MSE)"): "0.768",
    ("dae_cae", "1", "overall_screw", "DAE-VGG16(MSE)"): "0.710",
    ("dae_cae", "1", "overall_tile", "DAE(SSIM)"): "0.703",
    ("dae_cae", "1", "overall_tile", "DAE-VGG16(MSE)"): "0.732",
    ("dae_cae", "2", "overall_pill", "CAE-VGG16(MSE)"): "0.814",
    ("dae_cae", "2", "overall_tile", "CAE-ResNet(MSE)"): "0.591",
}
# averages of other_methods.csv, as printed and as their own categories give
OFF = {
    ("CDO (2025 code)", "aupro"): ("0.943", "0.9459"),
    ("anomalib:reverse_distillation (Wide ResNet-50)", "pixel_auroc"): ("0.969", "0.9735"),
    ("anomalib:uninet", "image_auroc"): ("0.956", "0.9625"),
    ("anomalib:uninet", "pixel_auroc"): ("0.976", "0.9778"),
}
# printed with fewer digits than shown, or cut instead of rounded, or from inputs that were rounded before
COARSE = {
    ("gen_encdec", "I", "mean_object", "KDAD"), ("gen_encdec", "II", "mean", "KDAD"),
    ("tsdn", "2", "mean_object", "PNET"), ("tsdn", "2", "mean_texture", "RIAD"),
    ("tsdn", "1", "mean", "PSVDD"), ("tsdn", "1", "mean", "RIAD"),
    ("rb_ae", "III", "mean", "AE_SSIM"), ("rb_ae", "III", "mean", "AnoGAN"), ("rb_ae", "IV", "mean", "ST"),
}


def _mean(values: list[Decimal]) -> Decimal:
    return sum(values, Decimal(0)) / len(values)


def _recomputed() -> dict[tuple[str, str, str, str], tuple[published.Published, Decimal]]:
    """Every printed average with what its own table gives for it."""
    cells = published.papers()
    found = {}
    for (paper, table, row, column, metric), printed in cells.items():
        if printed.value is None:
            continue
        if row.startswith("overall_"):
            category = row.removeprefix("overall_")
            good, bad = GOOD_BAD[category]
            tnr, tpr = (cells[paper, table, category, column, m].value for m in ("tnr", "tpr"))
            found[paper, table, row, column] = printed, (tnr * good + tpr * bad) / (good + bad)
        elif (paper, table) == ("tsdn", "1") and row == "mean":
            texture, objects = (cells[paper, table, r, column, metric].value for r in ("mean_texture", "mean_object"))
            if texture is not None:
                found[paper, table, row, column] = printed, (texture * 5 + objects * 10) / 15
        elif row.startswith("mean") and (paper, table) != ("tsdn", "1"):
            members = next(
                line.categories for line in suites.load(paper).table(table).rows if line.key == row
            )
            values = [cells[paper, table, c, column, metric].value for c in members]
            found[paper, table, row, column] = printed, _mean(values)
    return found


def test_every_cell_is_there_once() -> None:
    counts = Counter((paper, table) for paper, table, *_ in published.papers())
    assert counts == CELLS
    assert sum(counts.values()) == 822
    dashes = [key for key, cell in published.papers().items() if cell.value is None]
    assert [(k[0], k[1], k[3]) for k in dashes] == [("tsdn", "1", "SPADE")] * 2


def test_printed_averages() -> None:
    wrong, coarse = {}, set()
    for key, (printed, value) in _recomputed().items():
        digits = Decimal(1).scaleb(-printed.digits)
        fraction = printed.unit == "fraction"
        # two ratios of two digits each give the accuracy to within a hundredth
        if fraction and abs(value - printed.value) <= Decimal("0.01"):
            continue
        if not fraction and value.quantize(digits, ROUND_HALF_UP) == printed.value:
            continue
        if key in COARSE:
            coarse.add(key)
            cut = {value.quantize(d, rule) for d in (digits, Decimal("0.1"), Decimal(1)) for rule in
                   (ROUND_DOWN, ROUND_HALF_UP)}
            assert printed.value in cut or abs(value - printed.value) < Decimal("0.1"), key
            continue
        shown = Decimal(INCONSISTENT.get(key, "-1"))
        wrong[key] = str(value.quantize(shown)) if key in INCONSISTENT else str(value)
    assert wrong == INCONSISTENT
    assert coarse == COARSE


def test_notes_name_the_inconsistent_cells() -> None:
    noted = {key[:4] for key, cell in published.papers().items() if "MISMATCH" in cell.note}
    assert noted == set(INCONSISTENT)


def test_equal_to_the_transcription() -> None:
    folder = Path(os.environ.get("BENCH_PAPERS", Path(__file__).resolve().parents[3] / "shared" / "papers"))
    path = folder / "published.csv"
    if not path.exists():
        pytest.skip(f"no {path}: set BENCH_PAPERS to the folder of published.csv")
    with path.open(newline="", encoding="utf-8") as file:
        given = {
            tuple(r[k] for k in ("paper", "table", "row", "column", "metric")): (r["value"], r["unit"])
            for r in csv.DictReader(file)
        }
    assert {key: (cell.text, cell.unit) for key, cell in published.papers().items()} == given


@pytest.mark.parametrize("paper, name", list(CELLS))
def test_tables_show_every_published_cell(paper: str, name: str) -> None:
    """The published column of a table holds the cells of the data, each once, none left over."""
    table = tables.build(paper, name, [])
    shown: Counter[str] = Counter()
    for cells in table.cells:
        for cell in cells:
            assert cell.printed is not None
            shown[cell.printed.text] += 1
    assert shown == Counter(c.text for k, c in published.papers().items() if k[:2] == (paper, name))
    assert sum(shown.values()) == CELLS[paper, name]


def test_placement_of_some_cells() -> None:
    """Row and column are not swapped: figures looked up by hand."""
    def at(paper: str, name: str, row: str, column: str) -> str:
        table = tables.build(paper, name, [])
        i = next(i for i, line in enumerate(table.rows) if line.key == row)
        j = next(j for j, line in enumerate(table.columns) if line.key == column)
        return table.cells[i][j].printed.text

    assert at("rb_ae", "IV", "tile", "RB-AE") == "97.39"
    assert at("gen_encdec", "II", "mean_object", "OUR") == "91.4"
    assert at("tsdn", "3", "C", "carpet") == "92.0"
    assert at("rb_ae", "I", "training_normal", "grid") == "264"
    assert at("dae_cae", "1", "overall_hazelnut", "DAE(SSIM)") == "0.76"
    table = tables.build("rb_ae", "V", [])
    assert [row[3].printed.text for row in table.cells] == ["97.06", "84.35"]


def test_other_methods_are_fractions_with_a_source() -> None:
    found = published.other_methods()
    assert len(found) > 2000
    for key, cell in found.items():
        assert 0 <= cell.value <= 1, key
        assert cell.source and cell.trust, key
    assert not any("ADer" in key[0] for key in found)
    assert {key[2] for key in found if "IM-IAD" in key[0]} == {"mean"}
    second = [key for key, cell in found.items() if cell.trust == "second_hand"]
    assert {key[0] for key in second} == {"GCAD", "AST (paper)"}
    authors = "PatchCore[IM224_WR50_L2-3_P01_D1024-1024_PS-3_AN-1]"
    assert found[authors, "mvtec_ad", "bottle", "pixel_auroc"].text == "0.984839"


def test_averages_of_other_methods() -> None:
    """Averages that others print agree with their categories within a tenth of a point, but for those listed."""
    groups: dict[tuple[str, str], dict[str, Decimal]] = {}
    for (method, dataset, category, metric), cell in published.other_methods().items():
        if dataset == "mvtec_ad":
            groups.setdefault((method, metric), {})[category] = cell.value
    off = {}
    for key, values in groups.items():
        if len(values) == 16 and not key[1].endswith("_std"):
            printed, value = values["mean"], _mean([v for c, v in values.items() if c != "mean"])
            if abs(value - printed) > Decimal("0.001"):
                off[key] = str(printed), str(value.quantize(Decimal("0.0001")))
    assert off == OFF


def test_means_of_other_methods_stand_in_their_own_column_only() -> None:
    """The repository of PatchCore's authors prints a mean over all 15 categories, and none over objects or textures."""
    table = tables.build("ensemble_thesis", "E2_image_auroc", [])
    row = next(i for i, line in enumerate(table.rows) if line.key == "authors")
    shown = {column.key: cell.printed and cell.printed.text for column, cell in
             zip(table.columns, table.cells[row], strict=True)}
    assert shown["all_15"] == "99.1635"
    assert shown["mean_object"] is None and shown["mean_texture"] is None
    assert sum(text is not None for text in shown.values()) == 16
