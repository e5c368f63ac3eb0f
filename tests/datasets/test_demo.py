"""The drawn sets: the same bytes every time, whole or absent, and something for every metric to measure."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets import demo, flat_connector
from datasets.base import Category, Channel
from datasets.images import Pictures
from datasets.layouts import truth


def digest(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    start = time.process_time()
    demo.make(root)
    flat_connector.make(root)
    assert time.process_time() - start < 30
    return root


def test_two_builds_are_the_same_bytes(made: Path, tmp_path: Path) -> None:
    demo.make(tmp_path)
    flat_connector.make(tmp_path)
    assert digest(tmp_path) == digest(made) and len(digest(made)) > 300


def test_a_set_that_is_there_is_left_alone_and_another_version_replaced(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text(str(len(calls)))

    for version, expected in ((1, "1"), (1, "1"), (2, "2")):
        demo.build_once(tmp_path / "set", version, write)
        assert (tmp_path / "set" / "file").read_text() == expected
    assert len(calls) == 2 and [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    real, count = demo.save, iter(range(10))

    def save(path: Path, image: np.ndarray) -> None:
        if next(count) == 9:
            raise error
        real(path, image)

    monkeypatch.setattr(demo, "save", save)
    with pytest.raises(error):
        demo.make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_textures_have_all_that_the_ad_metrics_need(made: Path) -> None:
    assert sorted(datasets.find("demo", made)) == ["brick", "grass", "gravel"]
    for name in datasets.find("demo", made):
        category = datasets.load("demo", name, made)
        assert category.layout == "mvtec" and len(category.train) == 24
        kinds = [s.kind for s in category.test]
        assert {k: kinds.count(k) for k in sorted(set(kinds))} == {"good": 12, "patch": 6, "scratch": 6, "stain": 6}
        for sample, image in zip(category.test, Pictures(category.test), strict=True):
            assert image.shape == (128, 128, 3) and image.std() > 5
            if sample.label:
                mask = truth(category, sample, (128, 128)) > 0
                assert 10 < mask.sum() < mask.size / 4


def channels(category: Category, shape: tuple[int, int]) -> list[tuple[Channel, ...]]:
    return [truth(category, s, shape) for s in category.test if s.label]


def test_tray_has_all_that_the_loco_metrics_need(made: Path) -> None:
    category = datasets.load("demo_loco", "tray", made)
    assert category.layout == "loco" and len(category.train) == 30 and len(category.validation) == 8
    kinds = [s.kind for s in category.test]
    assert (kinds.count("good"), kinds.count("logical_anomalies"), kinds.count("structural_anomalies")) == (14, 15, 12)
    found = channels(category, demo.TRAY)
    assert max(len(c) for c in found) >= 4 and min(len(c) for c in found) == 1
    every = [channel for several in found for channel in several]
    assert {c.defect.name for c in every} == {d.name for d in category.defects}
    # saturation below the region's area, of both kinds, so that sPRO differs from plain overlap
    assert all(c.mask.sum() > c.defect.saturation_threshold for c in every if not c.defect.relative)
    assert any(not c.defect.relative for c in every)
    assert any(c.defect.relative and c.defect.saturation_threshold < 1 for c in every)


def test_part_areas_are_those_of_the_drawn_parts() -> None:
    rng = np.random.default_rng(0)
    for part, area in demo.PART_AREA.items():
        drawn = [(demo._part(rng, part, np.array(demo.CELLS[5]))[0] > 0.5).sum() for _ in range(20)]
        assert abs(np.median(drawn) - area) <= 0.06 * area, part


def test_flat_connector(made: Path) -> None:
    category = datasets.load("demo_flat_connector", "flat_connector", made)
    assert category.layout == "loco" and (len(category.train), len(category.validation)) == (60, 20)
    kinds = [s.kind for s in category.test]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "good": 20, "logical_anomalies": 20, "structural_anomalies": 20}
    structural = {"edge_damage", "cut_corner", "scratch"}
    seen = []
    for sample in (s for s in category.test if s.label):
        several = truth(category, sample, flat_connector.SHAPE)
        seen += [channel.defect.name for channel in several]
        assert all((c.defect.name in structural) == (sample.kind == "structural_anomalies") for c in several)
        assert all(8 < c.mask.sum() < 800 for c in several)
    assert all(seen.count(d.name) >= 6 for d in category.defects) and len(seen) > 40
    missing = next(d for d in category.defects if d.name == "missing_hole")
    assert not missing.relative and missing.saturation_threshold == 113  # pi 6^2


def test_each_defect_of_the_connector_is_where_its_mask_says() -> None:
    """Under a mask: cloth where metal is gone, metal where a hole is closed, another brightness along a scratch."""
    dark = {"additional_hole", "edge_damage", "cut_corner"}
    for name in flat_connector.LOGICAL + flat_connector.STRUCTURAL:
        for seed in range(6):
            image, (mask,) = flat_connector.draw(np.random.default_rng(seed), [name])
            grey = image.mean(2)
            metal, inside = np.median(grey[grey > 0.4]), np.median(grey[mask])
            if name in dark:
                assert inside < 0.2, (name, seed)
            elif name == "missing_hole":
                assert 0.8 * metal < inside and grey[mask].min() > 0.3, (name, seed)
            elif name == "wrong_hole_size":
                assert inside < 0.2 or inside > 0.8 * metal, (name, seed)
            else:
                assert abs(inside - metal) > 0.15, (name, seed)
