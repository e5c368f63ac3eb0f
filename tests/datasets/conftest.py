"""A small category in LOCO layout; the MVTec one is `tests.conftest.make_mvtec`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_mvtec, picture

DEFECTS = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 40, "relative_saturation": False},
    {"defect_name": "extra", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
    {"defect_name": "stain", "pixel_value": 253, "saturation_threshold": 1.0, "relative_saturation": True},
]


def put(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """Category folder `<tmp>/own/nut` in MVTec layout: 6 train, 4 good, 4 spot."""
    return make_mvtec(tmp_path / "own" / "nut")


@pytest.fixture
def loco(tmp_path: Path) -> Path:
    """Category folder `<tmp>/own/tray` of `make_loco`."""
    return make_loco(tmp_path / "own" / "tray")


def make_loco(root: Path) -> Path:
    """A category in LOCO layout; logical picture 000 has two mask files, 254 and 255. Returns `root`."""
    rng = np.random.default_rng(3)
    for folder, count in (("train/good", 3), ("validation/good", 2), ("test/good", 2), ("test/logical_anomalies", 2),
                          ("test/structural_anomalies", 1)):
        for i in range(count):
            put(root / folder / f"{i:03d}.png", picture(rng, (20, 24)))
    for kind, index, values in (("logical_anomalies", 0, (254, 255)), ("logical_anomalies", 1, (255,)),
                                ("structural_anomalies", 0, (253,))):
        for j, value in enumerate(values):
            mask = np.zeros((20, 24), np.uint8)
            mask[4 + j : 12 + j, 3:10] = value
            put(root / f"ground_truth/{kind}/{index:03d}/{j:03d}.png", mask)
    (root / "defects_config.json").write_text(json.dumps(DEFECTS))
    return root
