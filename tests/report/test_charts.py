"""Charts on the pages of units and `figure`: what is stored is drawn, with its limit, and markup in it stays text."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from benchmarks.metrics import auroc
from benchmarks.report.drawings import charts, drawn
from benchmarks.report.numbers import arrays as stored
from benchmarks.report.numbers.pool import ReportError
from benchmarks.report.pages import html
from tests.report.conftest import make_record
from tests.report.test_html import HOSTILE, store

X = np.linspace(0, 1, 100)


def unit(root: Path, spec: str = "a@x", curves: dict[str, np.ndarray] | None = None, seed: int = 0, loco: bool = False,
         dataset: str = "own", **metrics: float) -> dict:
    """A record with scores beside it, whose kinds have hostile names, and curves."""
    record = store(root, [make_record(spec, "tray", seed, dataset, **metrics)])[0]
    kinds = ["structural_anomalies", "logical_anomalies"] if loco else [HOSTILE, "cut"]
    kind = np.array(["good"] * 10 + [kinds[0]] * 6 + [kinds[1]] * 4)
    rng = np.random.default_rng(seed)
    label = (kind != "good").astype(np.int8)
    np.savez(
        Path(record["path"]).with_suffix(".npz"), name=np.array([f"{k}/{i}" for i, k in enumerate(kind)]), kind=kind,
        label=label, score=(rng.random(20) + 0.5 * label).astype(np.float32),
        **{f"curve.{name}": np.stack([X, y]).astype(np.float32) for name, y in (curves or {}).items()},
    )
    return record


def texts(svg: str) -> list[str]:
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_what_is_stored_is_drawn(tmp_path: Path) -> None:
    record = unit(tmp_path, curves={"pixel": X**0.2, "pro": X**0.5}, image_auroc=0.75, **{"aupro@0.3": 0.4321})
    svg = charts.of(record)
    shown = texts(svg)
    for wanted in ("ROC, images", "75.0 %", "ROC, pixels", "PRO", "43.2 % up to 0.3", "Loss", "Image scores by kind"):
        assert wanted in shown, wanted
    assert "<script" not in svg and any(text.startswith("<script>") for text in shown), "a kind's name is text"
    assert len(svg) < 20_000
    width = charts.WIDTH - charts.LEFT - charts.RIGHT
    assert f'width="{0.3 * width:.1f}"' in svg, "the part up to the limit is shaded"


def test_a_small_limit_is_shown_enlarged(tmp_path: Path) -> None:
    record = unit(tmp_path, curves={"spro/logical": X**0.5, "spro/structural": X}, loco=True,
                  **{"auspro@0.05/logical": 0.5})
    shown = texts(charts.of(record))
    assert "logical 50.0 % up to 0.05" in shown
    assert "structural 2.5 % up to 0.05" in shown, "without a stored figure the area of the curve stands"
    assert "0.2" in shown and "PRO" not in shown


def test_image_curves_come_from_the_scores(tmp_path: Path) -> None:
    held = stored.arrays_of(unit(tmp_path, loco=True))
    curves = stored.image_rocs(held)
    assert set(curves) == {"structural", "logical"}
    for short, kind in (("structural", "structural_anomalies"), ("logical", "logical_anomalies")):
        part = (held["kind"] == kind) | (held["label"] == 0)
        wanted = auroc(held["label"][part].astype(bool), held["score"][part])
        assert stored.area(curves[short]) == pytest.approx(wanted, abs=1e-9)
    only_good = {key: values[:10] for key, values in held.items()}
    assert stored.image_rocs(only_good) == {}


def test_units_without_maps_curves_or_scores(tmp_path: Path) -> None:
    shown = texts(charts.of(unit(tmp_path / "a", image_auroc=0.5)))
    assert "ROC, images" in shown and "ROC, pixels" not in shown and "PRO" not in shown
    bare = unit(tmp_path / "b")
    Path(bare["path"]).with_suffix(".npz").write_bytes(b"PK cut short")
    assert [t for t in texts(charts.of(bare)) if t in ("Loss", "ROC, images")] == ["Loss"]
    assert charts.of({**bare, "training": {}}) == ""
    nan = unit(tmp_path / "c")
    nan["training"] = {"loss": [float("nan")] * 3, "epochs": 3}
    assert "Loss" not in texts(charts.of(nan))


def test_auroc_over_training_says_that_it_looks_at_test_data(tmp_path: Path) -> None:
    record = unit(tmp_path)
    log = {"done": [0.5, 1.0], "image_auroc": [0.62, 0.75], "pixel_auroc": [None, None]}
    record["training"]["watched_on_test"] = log
    shown = texts(charts.of(record))
    assert "AUROC over training" in shown and "looks at test data, for this plot only" in shown
    assert "image_auroc" in shown and "pixel_auroc" not in shown and "0.6" in shown


def test_losses_on_a_logarithmic_scale_and_long_ones_beside_the_record(tmp_path: Path) -> None:
    record = unit(tmp_path)
    record["training"] = {"loss": {"values": 500, "first": 1.0, "last": 0.001}, "epochs": 500}
    path = Path(record["path"]).with_suffix(".npz")
    np.savez(path, **dict(np.load(path)), **{"training.loss": np.geomspace(1, 0.001, 500)})
    shown = texts(charts.of(record))
    assert "Loss, logarithmic" in shown and "500" in shown and "0.001" in shown


def test_many_kinds_take_few_rows() -> None:
    drawing = charts.histogram({f"kind{i:02d}": np.array([float(i)]) for i in range(40)})
    assert drawing.height < 300 and "31 other kinds 31" in drawing.body


def test_pages_link_their_charts(tmp_path: Path) -> None:
    index = html.write(tmp_path / "report", [unit(tmp_path, curves={"pixel": X}, image_auroc=0.5)], results=tmp_path)
    page = next((index.parent / "methods").glob("*.html"))
    assert '<img loading="lazy" src="../charts/0-0.svg"' in page.read_text()
    ElementTree.parse(index.parent / "charts" / "0-0.svg")


def test_figures_of_stored_units(tmp_path: Path) -> None:
    records = [
        unit(tmp_path, spec, {"pixel": X**0.2, "pro": X**0.5}, seed, image_auroc=0.75) for spec in ("a@x", "b@x")
        for seed in (0, 1)
    ]
    records[0]["training"]["watched_on_test"] = {"done": [0.5, 1.0], "image_auroc": [0.5, 0.75]}
    kinds = [kind for kind in drawn.KINDS if kind != "overlay"]
    made = drawn.draw(kinds, records, tmp_path / "out")
    assert sorted(path.name for path in made) == sorted([
        "roc-own-tray.png", "pixel_roc-own-tray.png", "pro-own-tray.png", "heat-own-image_auroc.png",
        "watch-a@x-own-tray-seed0.png",
        *(f"{kind}-{m}-own-tray-seed{s}.png" for kind in ("scores", "loss") for m in ("a@x", "b@x") for s in (0, 1)),
    ])
    assert all(path.stat().st_size > 1000 for path in made)
    before = (tmp_path / "out" / "pro-own-tray.png").read_bytes()
    drawn.draw(["pro"], records, tmp_path / "out", limit=0.1)
    assert (tmp_path / "out" / "pro-own-tray.png").read_bytes() != before
    with pytest.raises(ReportError, match="no record on own has the metric 'f1'"):
        drawn.draw(["heat"], records, tmp_path / "out", metric="f1")
    records[1]["protocol"]["metric_size"] = 256
    with pytest.raises(ReportError, match="protocols"):
        drawn.draw(["roc"], records, tmp_path / "out")


def test_file_names_are_safe_and_tell_names_apart() -> None:
    names = {drawn.file_name("roc", text) for text in ("a/b", "a_b", "a\\b", HOSTILE, "../x", "x" * 300)}
    assert len(names) == 6
    assert not any(set(name) & set('/\\<>"') for name in names) and max(map(len, names)) < 140
