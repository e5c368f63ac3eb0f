"""Figures: the same input gives the same bytes, and what must be visible is in the pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.report.drawings import comparison, overlays, plots


def _example(peak: float) -> overlays.Example:
    rng = np.random.default_rng(0)
    anomaly = rng.random((32, 40)) * 0.1
    anomaly[8:16, 10:20] = peak
    mask = np.zeros((64, 80), bool)
    mask[16:32, 20:40] = True
    return overlays.Example(rng.integers(0, 255, (64, 80, 3)).astype(np.uint8), mask, anomaly, "cut $x$ <b>")


def test_one_colour_scale_for_all_maps() -> None:
    strong, weak = _example(1.0), _example(0.3)
    low, high = overlays.limits([strong.anomaly_map, weak.anomaly_map])
    assert low < 0.1 and high == pytest.approx(1.0)
    bright = overlays.colour(strong.anomaly_map, low, high)[10, 12].astype(int).sum()
    assert bright > overlays.colour(weak.anomaly_map, low, high)[10, 12].astype(int).sum()


def test_colour_scale_survives_odd_maps() -> None:
    assert overlays.limits([np.full((4, 4), 3.0)]) == (3.0, 4.0)
    assert overlays.limits([np.full((4, 4), np.nan)]) == (0.0, 1.0)


def test_overlay_has_the_size_of_the_picture_and_marks_the_defect() -> None:
    example = _example(1.0)
    shown = overlays.overlay(np.zeros_like(example.picture), example.anomaly_map, 0.0, 1.0)
    assert shown.shape == example.picture.shape and shown.dtype == np.uint8
    inside, outside = shown[24, 30].astype(int).sum(), shown[50, 5].astype(int).sum()
    assert inside > outside + 100


def test_jet_differs_from_the_default() -> None:
    example = _example(1.0)
    a = overlays.overlay(example.picture, example.anomaly_map, 0, 1)
    b = overlays.overlay(example.picture, example.anomaly_map, 0, 1, colormap="jet")
    assert (a != b).any()


def _draw_all(folder: Path) -> list[Path]:
    fpr = np.linspace(0, 1, 50)
    ranks = {"a@x": 1.2, "b@x": 2.0, "c@x": 2.8}
    return [
        overlays.overlay_grid([_example(1.0), _example(0.3)], folder / "grid.png", title="wood"),
        plots.curves([{"label": "a", "fpr": fpr, "tpr": fpr**0.2}], folder / "roc.png"),
        plots.curves([{"label": "a", "fpr": fpr, "pro": fpr**0.3}], folder / "pro.png", kind="pro", limit=0.3),
        plots.curves([{"label": "a", "fpr": fpr, "spro": fpr**0.3}], folder / "spro.png", kind="spro", limit=0.05),
        plots.histogram({"good": [0.1, 0.2], "cut": [0.5, 0.9, float("nan")]}, folder / "hist.png"),
        plots.heat_table({"a": {"x": 90.0, "y": None}, "b": {"x": 80.0, "y": 70.0}}, folder / "heat.png"),
        plots.losses({"total": [1.0, 0.1, 0.01]}, folder / "loss.png"),
        comparison.bars({"a": 91.0, "b": 85.0}, folder / "bars.png", spread={"a": 1.0, "b": None}, ylabel="AUROC (%)"),
        comparison.critical_difference(ranks, 1.0, folder / "cd.png", title="AUROC"),
    ]


def test_the_error_over_the_mean_pictures_has_its_own_axes_with_a_line_at_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(plots.canvas, "save", lambda figure, path: seen.append(figure) or path)
    plots.losses({"loss": [0.9, 0.1], "over_floor": [30.0, 0.8]}, tmp_path / "loss.png")
    plots.losses({"loss": [0.9, 0.1]}, tmp_path / "loss.png")
    both, alone = (figure.axes for figure in seen)
    assert len(alone) == 1 and [len(axis.lines) for axis in both] == [1, 2]
    assert list(both[1].lines[0].get_ydata()) == [30.0, 0.8] and both[1].get_yscale() == "log"
    assert list(both[1].lines[1].get_ydata()) == [1, 1] and "mean picture" in both[1].get_ylabel()


def test_panels_are_columns_between_input_and_map(tmp_path: Path) -> None:
    plain = _example(1.0)
    green = np.zeros((16, 20, 3), np.uint8)
    green[..., 1] = 255
    shown = plain._replace(panels={"reconstruction": green, "predicted mask": np.full((16, 20), 255, np.uint8)})
    without, grid = (np.asarray(Image.open(overlays.overlay_grid([e], tmp_path / "grid.png")).convert("RGB"))
                     for e in (plain, shown))
    assert grid.shape[1] > 1.5 * without.shape[1]
    where = np.argwhere((grid == (0, 255, 0)).all(2))[:, 1] / grid.shape[1]
    assert len(where) > 1000 and where.min() > 0.15 and where.max() < 0.45  # the second of five columns


def test_figures_are_deterministic(tmp_path: Path) -> None:
    first, second = _draw_all(tmp_path / "a"), _draw_all(tmp_path / "b")
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
        with Image.open(a) as picture:
            assert picture.width > 200 and len(set(picture.convert("L").getdata())) > 10, a.name


def test_limit_is_drawn(tmp_path: Path) -> None:
    fpr = np.linspace(0, 1, 50)
    item = [{"label": "", "fpr": fpr, "pro": fpr**0.3}]
    with_limit = plots.curves(item, tmp_path / "a.png", kind="pro", limit=0.3).read_bytes()
    assert with_limit != plots.curves(item, tmp_path / "b.png", kind="pro").read_bytes()
    assert with_limit != plots.curves(item, tmp_path / "c.png", kind="pro", limit=0.1).read_bytes()


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no examples"):
        overlays.overlay_grid([], tmp_path / "x.png")
    with pytest.raises(ValueError, match="no finite score"):
        plots.histogram({"good": [float("nan")]}, tmp_path / "x.png")


def test_imports_are_lazy() -> None:
    code = (
        "import sys, benchmarks.report.numbers.tables, benchmarks.report.numbers.suites; "
        "import benchmarks.report.drawings.plots, benchmarks.report.drawings.overlays, benchmarks.report.views; "
        "benchmarks.report.numbers.suites.all(); "
        "bad = {'torch', 'matplotlib', 'scipy', 'models', 'datasets'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 0, done.stderr
