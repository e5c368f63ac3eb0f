"""Other sizes than the pictures': thresholds in pixels stay whole, regions that vanish are counted in both layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.store import Store
from tests.conftest import Cli, picture

SIDE = 64


def category(root: Path, layout: str, defects: list[dict]) -> None:
    """Three anomalous pictures of each kind with a square of 16 pixels, a fourth with a single pixel."""
    rng = np.random.default_rng(0)
    kinds = ("spot",) if layout == "mvtec" else ("structural_anomalies", "logical_anomalies")
    for folder, count in (("train/good", 4), ("test/good", 3), *((f"test/{k}", 4) for k in kinds)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            image = picture(rng, (SIDE, SIDE))
            if folder not in ("train/good", "test/good"):
                mask = np.zeros((SIDE, SIDE), np.uint8)
                if i < 3:
                    mask[8 * i : 8 * i + 16, 20:36] = 255
                else:
                    mask[12, 18] = 255
                image[mask > 0] = 255
                name = f"{i:03d}_mask.png" if layout == "mvtec" else f"{i:03d}/000.png"
                path = root / "ground_truth" / folder.removeprefix("test/") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
            Image.fromarray(image).save(root / folder / f"{i:03d}.png")
    if layout == "loco":
        (root / "defects_config.json").write_text(json.dumps(defects))


def defect(threshold: float, relative: bool) -> list[dict]:
    return [
        {"defect_name": "d", "pixel_value": 255, "saturation_threshold": threshold, "relative_saturation": relative}
    ]


@pytest.mark.parametrize("size", ["16", "50", "100", "model"])
def test_every_metric_stays_defined(cli: Cli, tmp_path: Path, size: str) -> None:
    category(tmp_path / "own/absolute", "loco", defect(40, False))
    category(tmp_path / "own/relative", "loco", defect(0.3, True))  # 0.3 of a region of 1 pixel is less than a pixel
    category(tmp_path / "own/plain", "mvtec", [])
    done = cli("run", "--methods", "fake", "--datasets", "own", "--data-root", tmp_path, "--results", tmp_path / "r",
               "--device", "cpu", "--quiet", "--metric-size", size)
    assert done.returncode == 0, done.stderr
    records = {r["unit"]["category"]: r for r in Store(tmp_path / "r").records()}
    lost = {"16": 1, "model": 1}.get(size, 0)  # the fake method sees 32 pixels a side
    for name, record in records.items():
        assert not record["undefined"], (name, record["undefined"])
        kinds = 1 if name == "plain" else 2
        notes = [note for note in record["notes"] if "ground-truth regions" in note]
        wanted = f"{lost * kinds} of {4 * kinds} ground-truth regions have no pixel left at the metric size {size}"
        assert notes == ([f"{wanted} and are left out"] if lost else []), notes
        assert ("noted" in record["marks"]) == bool(lost)
    assert "auspro@0.05/mean" in records["absolute"]["metrics"]
    if lost:
        assert "regions have no pixel left" in done.stdout
