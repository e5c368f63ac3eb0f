"""`python -m benchmarks.metrics` on folders in the layouts of MVTec."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import metrics_golden as golden
import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks.metrics import Scorer
from benchmarks.metrics.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(tmp_path):
    """An AD and a LOCO category with maps as TIFF and NPY; also what `Scorer` says of the same arrays."""
    rng = np.random.default_rng(0)
    maps, data = tmp_path / "maps", tmp_path / "data"
    scorer = Scorer()
    for i, kind in enumerate(["good", "good", "scratch", "scratch", "dent"]):
        shape = (20 + i, 30)
        mask = None if kind == "good" else np.zeros(shape, np.uint8)
        scores = rng.standard_normal(shape).astype(np.float32)
        path = maps / "tile" / "test" / kind / f"{i:03d}(1)"
        path.parent.mkdir(parents=True, exist_ok=True)
        if mask is not None:
            mask[3:9, 4:12] = mask[15:17, 20:] = 255
            scores += mask / 255
            truth = data / "tile" / "ground_truth" / kind / f"{path.name}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).convert("RGB" if kind == "dent" else "L").save(truth)
        tifffile.imwrite(path.with_name(path.name + ".tiff"), scores)
        scorer.add(path.name, label=int(kind != "good"), kind=kind, anomaly_map=scores, score=None, mask=mask)
    (maps / "tile" / "test" / "good" / ".DS_Store").write_bytes(b"x")

    defects = [
        {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 20, "relative_saturation": False},
        {"defect_name": "scratch", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
    ]
    for i, kind in enumerate(["good", "logical_anomalies", "structural_anomalies"]):
        scores = rng.standard_normal((12, 16))
        path = maps / "box" / "test" / kind / f"{i:03d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind != "good":
            truth = data / "box" / "ground_truth" / kind / path.stem
            truth.mkdir(parents=True)
            for n, value in enumerate((255, 254)[: i + 1]):
                mask = np.zeros((12, 16), np.uint8)
                mask[2 + n : 8 + n, 3:9] = value
                Image.fromarray(mask).save(truth / f"{n:03d}.png")
                scores += mask > 0
        np.save(path, scores)
    (data / "box").joinpath("defects_config.json").write_text(json.dumps(defects))
    return maps, data, scorer.result()


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    held = capsys.readouterr()
    return code, held.out, held.err


def test_scores_both_layouts(folders, capsys):
    maps, data, wanted = folders
    code, out, err = run(capsys, maps, data, "--curves", 20)
    assert (code, err) == (0, "")
    found = json.loads(out)["categories"]
    assert found["tile"]["metrics"] == wanted.metrics  # to the last bit
    assert found["tile"]["facts"]["regions"] == 6
    assert found["box"]["metrics"]["auspro@0.05/mean"] is not None
    assert "auspro@0.3/defect:scratch" in found["box"]["metrics"]
    assert len(found["tile"]["curves"]["pro"]["fpr"]) <= 20


def test_runs_as_a_module(folders, tmp_path):
    maps, data, wanted = folders
    command = [sys.executable, "-m", "benchmarks.metrics", maps, data, "--categories", "tile", "--memory-mb", "0"]
    out = tmp_path / "scores.json"
    done = subprocess.run([*command, "--out", out], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert json.loads(out.read_text())["categories"]["tile"]["metrics"] == wanted.metrics


def broken(change):
    def apply(maps: Path, data: Path) -> None:
        change(maps / "tile" / "test", data / "tile" / "ground_truth", data / "box")

    return apply


def other_value(tile, truth, box):
    path = box / "ground_truth" / "logical_anomalies" / "001" / "000.png"
    Image.fromarray(np.full((12, 16), 7, np.uint8)).save(path)


def two_values(tile, truth, box):
    mask = np.full((12, 16), 254, np.uint8)
    mask[0] = 255
    Image.fromarray(mask).save(box / "ground_truth" / "logical_anomalies" / "001" / "000.png")


def coloured(tile, truth, box):
    Image.new("RGB", (30, 22), (255, 0, 0)).save(truth / "scratch" / "002(1)_mask.png")


CASES = {
    "mask of another size": (
        lambda t, g, b: Image.new("L", (5, 5), 1).save(g / "scratch" / "002(1)_mask.png"),
        ["002(1)_mask.png", "5x5", "30x22"],
    ),
    "no mask": (lambda t, g, b: (g / "scratch" / "002(1)_mask.png").unlink(), ["002(1)_mask.png", "is missing"]),
    "mask is no picture": (
        lambda t, g, b: (g / "scratch" / "002(1)_mask.png").write_text("x"),
        ["002(1)_mask.png", "no PNG"],
    ),
    "coloured mask": (coloured, ["002(1)_mask.png", "colours"]),
    "map is no picture": (lambda t, g, b: (t / "good" / "000(1).tiff").write_text("x"), ["000(1).tiff", "cannot"]),
    "map with NaN": (
        lambda t, g, b: tifffile.imwrite(t / "good" / "000(1).tiff", np.full((9, 9), np.nan, np.float32)),
        ["000(1).tiff", "NaN"],
    ),
    "map with colours": (
        lambda t, g, b: np.save(t / "good" / "new.npy", np.zeros((9, 9, 3))),
        ["new.npy", "(9, 9, 3)"],
    ),
    "map of objects": (
        lambda t, g, b: np.save(t / "good" / "new.npy", np.array([[None]]), allow_pickle=True),
        ["new.npy", "cannot be read"],
    ),
    "two maps of one image": (
        lambda t, g, b: np.save(t / "good" / "000(1).npy", np.zeros((9, 9))),
        ["000(1).tiff", "second map"],
    ),
    "unknown pixel value": (other_value, ["000.png", "pixel value 7", "255, 254"]),
    "two pixel values": (two_values, ["000.png", "[254, 255]", "one other value"]),
    "no regions": (
        lambda t, g, b: shutil.rmtree(b / "ground_truth" / "logical_anomalies" / "001"),
        ["001/000.png", "is missing"],
    ),
    "broken defects": (lambda t, g, b: (b / "defects_config.json").write_text("{}}"), ["defects_config.json"]),
    "no category in the data": (lambda t, g, b: shutil.rmtree(b), ["box", "missing"]),
    "no maps": (lambda t, g, b: shutil.rmtree(t / "good"), []),
}


@pytest.mark.parametrize("case", CASES)
def test_unusable_files(folders, capsys, case):
    maps, data, _ = folders
    change, words = CASES[case]
    broken(change)(maps, data)
    code, out, err = run(capsys, maps, data)
    if case == "no maps":  # no good image left: undefined, not wrong
        assert code == 0
        assert json.loads(out)["categories"]["tile"]["metrics"]["image_auroc"] is None
        return
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert out == ""


def test_wrong_folders(folders, tmp_path, capsys):
    maps, data, _ = folders
    for arguments, word in (
        ((tmp_path / "none", data), "no such folder"),
        ((maps / "tile", data), "<category>/test"),
        ((maps, data, "--categories", "cable"), "cable"),
        ((maps, data, "--limits", "0.3", "30"), "limits"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert word in err


def pictures_of(maps: Path, data: Path) -> None:
    """A test picture of its size for each map."""
    for path in (maps / "tile/test").rglob("*.tiff"):
        height, width = tifffile.imread(path).shape
        folder = data / "tile/test" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height)).save(folder / f"{path.stem}.png")


def test_maps_are_held_against_the_pictures(folders, capsys):
    maps, data, wanted = folders
    pictures_of(maps, data)
    code, out, err = run(capsys, maps, data, "--categories", "tile")
    assert (code, err) == (0, "") and json.loads(out)["categories"]["tile"]["metrics"] == wanted.metrics
    extra = maps / "tile/test/good/999.npy"
    np.save(extra, np.zeros((20, 30)))
    code, _, err = run(capsys, maps, data)
    assert code == 2 and f"{extra}: a map of no test picture" in err
    extra.unlink()
    good = maps / "tile/test/good/000(1).tiff"
    tifffile.imwrite(good, tifffile.imread(good)[::2, ::2])
    code, _, err = run(capsys, maps, data)
    assert code == 2 and f"{good}: the map has shape (10, 15), its picture" in err


def test_pictures_without_a_map_are_told(folders, capsys):
    maps, data, _ = folders
    pictures_of(maps, data)
    Image.new("L", (4, 4)).save(data / "tile/test/good/009.png")
    code, out, err = run(capsys, maps, data, "--categories", "tile")
    assert code == 0
    assert "pictures without a map: 1" in err
    assert "009.png" in err
    assert json.loads(out)["categories"]["tile"]["facts"]["pictures_without_map"] == 1


@pytest.mark.skipif(not golden.cases(), reason=f"no golden vectors in {golden.ROOT} (BENCH_GOLDEN)")
@pytest.mark.parametrize("name", ["ad_07_mixed_sizes", "loco_06_overlapping_channels"])
def test_golden_case_from_files(name, tmp_path, capsys):
    """The case laid out as a dataset and as maps of another program."""
    case = golden.ROOT / name
    root = tmp_path / "data" / "thing"
    root.mkdir(parents=True)
    labels = json.loads((case / "labels.json").read_text())["images"]
    if (case / "defects_config.json").exists():
        shutil.copy(case / "defects_config.json", root)
    for entry, scores in zip(labels, golden.maps(case), strict=True):
        stem = f"{entry['index']:03d}"
        if entry["mask"] and (case / entry["mask"]).is_dir():
            shutil.copytree(case / entry["mask"], root / "ground_truth" / entry["type"] / stem)
        elif entry["mask"]:
            folder = root / "ground_truth" / entry["type"]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(case / entry["mask"], folder / f"{stem}_mask.png")
        folder = tmp_path / "maps" / "thing" / "test" / entry["type"]
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{stem}.tiff", scores)
    code, out, _ = run(capsys, tmp_path / "maps", tmp_path / "data")
    assert code == 0
    assert json.loads(out)["categories"]["thing"]["metrics"] == golden.score(name).metrics
