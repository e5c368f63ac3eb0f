"""`table`, `compare`, `report`, `figure` on results that are empty, mixed, cut short, without maps or oddly named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.report.conftest import make_record
from tests.report.test_html import HOSTILE, store

VIEWS = {
    "table": ("table", "rb_ae/II"),
    "compare": ("compare", "rb_ae@paper", "padim@wrn50", "--datasets", "mvtec_ad"),
    "report": ("report",),
    "figure": ("figure", "rb_ae@paper", "padim@wrn50", "--datasets", "mvtec_ad", "--kinds", "roc", "scores", "heat"),
}


def view(cli: Cli, name: str, results: Path, *more: str):
    out = ("--out", results.parent / "figures") if name == "figure" else ()
    return cli(*VIEWS[name], "--results", results, "--data-root", results.parent / "none", *out, *more)


def records(**changes) -> list[dict]:
    values = {"rb_ae@paper": 0.9, "padim@wrn50": 0.8}
    return [
        make_record(m, c, image_auroc=v, pixel_auroc=v, **{"aupro@0.3": v}, **changes)
        for m, v in values.items() for c in ("carpet", "wood")
    ]


@pytest.mark.parametrize("name", VIEWS)
def test_no_records(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    done = view(cli, name, tmp_path / "empty")
    if name == "table":  # the published figures stand without any record
        assert done.returncode == 0 and "Nothing measured yet." in done.stdout and "99.82" in done.stdout
    else:
        assert done.returncode == 2 and "no record" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("change", [{"size": 256}, {"version": 2}])
@pytest.mark.parametrize("name", VIEWS)
def test_two_protocols_are_refused_unless_told(cli: Cli, tmp_path: Path, name: str, change: dict) -> None:
    mixed = records()
    mixed[-1] = make_record("padim@wrn50", "wood", image_auroc=0.7, pixel_auroc=0.7, **{"aupro@0.3": 0.7}, **change)
    store(tmp_path / "r", mixed)
    if name == "table":  # of RB-AE's tables only IV shows both methods
        both = ("table", "rb_ae/IV", "--results", tmp_path / "r", "--data-root", tmp_path / "none")
        refused, told = cli(*both), cli(*both, "--mixed")
    else:
        refused, told = view(cli, name, tmp_path / "r"), view(cli, name, tmp_path / "r", "--mixed")
    assert refused.returncode == 2 and "2 protocols" in refused.stderr
    assert told.returncode == 0, told.stderr
    said = "256 x 256" if "size" in change else "version 2"
    text = (tmp_path / "r" / "report" / "index.html").read_text() if name == "report" else told.stdout
    assert name == "figure" or said in text


@pytest.mark.parametrize("name", VIEWS)
def test_a_record_cut_short_is_named_and_left_out(cli: Cli, tmp_path: Path, name: str) -> None:
    placed = store(tmp_path / "r", records())
    cut = Path(placed[1]["path"])
    cut.write_text(cut.read_text()[:200])
    done = view(cli, name, tmp_path / "r")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "r" / "report" / "index.html").read_text() if name == "report" else done.stderr
    assert cut.name in text and "not a whole JSON file" in text
    if name == "table":
        wood = next(line for line in done.stdout.splitlines() if line.startswith("| Wood"))
        assert "90.00" not in wood and "—" in wood


@pytest.mark.parametrize("name", VIEWS)
def test_a_method_without_maps(cli: Cli, tmp_path: Path, name: str) -> None:
    placed = records()
    for record in placed[2:]:
        record["metrics"] = {"image_auroc": 0.8}
    store(tmp_path / "r", placed)
    done = view(cli, name, tmp_path / "r")
    assert done.returncode == 0, done.stderr
    if name == "table":
        text = cli("table", "rb_ae/IV", "--results", tmp_path / "r", "--data-root", tmp_path / "none").stdout
        assert "n/a" in text and "the method does not give this figure" in text
    if name == "compare":
        assert "Image AUROC" in done.stdout and "0.80" not in done.stdout


@pytest.mark.parametrize("name", VIEWS)
def test_markup_in_names(cli: Cli, tmp_path: Path, name: str) -> None:
    """In a category and a method; in file names by `store`. Shown as text in every view and format."""
    odd = HOSTILE.replace("/", "|")
    placed = [
        make_record(method, category, image_auroc=value, marks=(odd,))
        for method, value in (("rb_ae@paper", 0.9), ("padim@wrn50", 0.8)) for category in (odd, "wood")
    ]
    placed.append(make_record(odd, "wood", image_auroc=0.5))
    store(tmp_path / "r", placed)
    done = view(cli, name, tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "<script" not in done.stdout or name == "figure"
    if name == "compare":
        page = view(cli, name, tmp_path / "r", "--format", "html").stdout
        assert "&lt;script&gt;" in page and "<script" not in page
    if name == "report":
        for page in (tmp_path / "r" / "report").rglob("*.html"):
            assert not re.search(r"<script(?! src=\"[./]*assets/report.js\")", page.read_text()), page
        for drawing in (tmp_path / "r" / "report").rglob("*.svg"):
            assert "<script" not in drawing.read_text()
    if name == "figure":
        made = [Path(line) for line in done.stdout.splitlines()]
        assert len(made) == 7 and all(p.parent == tmp_path / "figures" and "<" not in p.name for p in made)


def test_export_is_tidy(cli: Cli, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    placed = records()
    placed[0]["metrics"]["image_ap"], placed[0]["undefined"] = None, {"image_ap": "no anomalous image"}
    placed[1]["marks"] = ["reduced", "short"]
    placed[1]["features"] = {"saved_s": 5.0, "lent_fit_s": 0.0, "lent_predict_s": 5.0}
    store(tmp_path / "r", placed)
    done = cli("export", "--results", tmp_path / "r", "--out", tmp_path / "all.csv")
    assert done.returncode == 0 and "13 lines of 4 units" in done.stderr, done.stderr
    frame = pandas.read_csv(tmp_path / "all.csv")
    assert len(frame) == 13 and frame.groupby(["method", "category"]).ngroups == 4
    means = frame[frame.metric == "image_auroc"].groupby("method").value.mean()
    assert means["rb_ae"] == pytest.approx(0.9) and means["padim"] == pytest.approx(0.8)
    wood = frame[(frame.method == "rb_ae") & (frame.category == "wood")].iloc[0]
    assert wood.marks == "reduced short" and wood.images_per_s == pytest.approx(6.0) and wood.device == "cpu: test"
    none = frame[frame.metric == "image_ap"].iloc[0]
    assert pandas.isna(none.value) and none.undefined == "no anomalous image"
    assert cli("export", "--results", tmp_path / "none", "--out", tmp_path / "x.csv").returncode == 2


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_figures_for_papers_name_their_area_and_are_the_same_twice(cli: Cli, tmp_path: Path, form: str) -> None:
    placed = records()
    placed[0]["metrics"]["image_auroc"] = 0.98765
    store(tmp_path / "r", placed)
    made = []
    for name in ("a", "b"):
        done = cli(*VIEWS["figure"], "--results", tmp_path / "r", "--out", tmp_path / name, "--format", form)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1] and len(made[0]) == 7 and all(name.endswith(f".{form}") for name in made[0])
    start = {"svg": b"<?xml", "pdf": b"%PDF"}[form]
    assert all(data.startswith(start) for data in made[0].values())
    if form == "svg":  # matplotlib keeps each text beside its outlines
        assert b"rb_ae@paper: 98.77" in made[0]["roc-mvtec_ad-carpet.svg"]
