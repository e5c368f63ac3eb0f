"""What is seen in files before anything is trained: orientations, grey levels, white levels, and what is remembered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import datasets
from datasets import checking
from datasets.checking import examine
from datasets.images import Pictures
from datasets.layouts import scan
from tests.conftest import make_mvtec
from tests.datasets.conftest import put


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


def test_pictures_that_viewers_turn_are_counted(mvtec: Path) -> None:
    assert examine(scan("own", "nut", mvtec)).remarks == ()
    turned(mvtec / "train/good/000.png", 1)
    turned(mvtec / "test/spot/000.png", 3)
    turned(mvtec / "test/spot/001.png", 6)
    turned(mvtec / "ground_truth/spot/002_mask.png", 3)
    first, second = examine(scan("own", "nut", mvtec)).remarks
    assert first.startswith("2 pictures with an EXIF orientation other than 1, first test/spot/000.png")
    assert second.startswith("1 mask with an EXIF orientation other than 1, first ground_truth/spot/002_mask.png")


def test_a_mask_drawn_on_the_turned_picture_names_the_orientation(mvtec: Path) -> None:
    turned(mvtec / "test/spot/000.png", 6)
    put(mvtec / "ground_truth/spot/000_mask.png", np.full((48, 40), 255, np.uint8))
    (problem,) = examine(scan("own", "nut", mvtec)).problems
    assert "the mask is 40x48, its picture 000.png is 48x40 as stored (its EXIF orientation is 6" in problem


@pytest.mark.parametrize("colour", [False, True])
def test_few_levels_of_16_bit_and_the_white_level_that_keeps_them(tmp_path: Path, colour: bool) -> None:
    root = make_mvtec(tmp_path / "elsewhere/nut")
    for path in [*root.glob("train/good/*.png"), *root.glob("test/*/*.png")]:
        values = np.array(Image.open(path)).astype(np.uint16) * 16  # 12 bits
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), values if colour else values[..., 0],
                         photometric="rgb" if colour else "minisblack")
    plain, set_ = tmp_path / "plain.yaml", tmp_path / "set.yaml"
    plain.write_text("name: own\nroot: elsewhere\n")
    set_.write_text("name: own\nroot: elsewhere\nwhite_level: 4080\n")
    before, after = (datasets.load(str(p), "nut", tmp_path) for p in (plain, set_))
    (remark,) = examine(before).remarks
    top = max(int(tifffile.imread(s.path).max()) for s in (*before.train, *before.test))
    assert remark.startswith(f"16-bit pictures use values up to {top} of 65535: {top // 257 + 1} grey levels remain")
    assert len(np.unique(Pictures(before.train)[0])) <= 17
    seen = examine(after)
    assert seen.remarks == () and seen.fingerprint != examine(before).fingerprint
    array = tifffile.imread(after.train[0].path) // 16
    assert np.array_equal(Pictures(after.train)[0], array if colour else np.repeat(array[..., None], 3, 2))
    set_.write_text("name: own\nroot: elsewhere\nwhite_level: 1023\n")
    problems = examine(datasets.load(str(set_), "nut", tmp_path)).problems
    assert len(problems) == 14 and "is above the white level 1023; set a higher one" in problems[0]


def test_what_was_seen_is_remembered_with_problems_and_remarks(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned(mvtec / "test/good/000.png", 3)
    put(mvtec / "ground_truth/spot/000_mask.png", np.zeros((40, 48), np.uint8))
    (mvtec / "test/good/001.png").write_text("no picture")
    now = checking.time.time_ns
    monkeypatch.setattr(checking.time, "time_ns", lambda: now() + 10**10)
    looked = []
    real = checking.look
    monkeypatch.setattr(checking, "look", lambda path, role: looked.append(path) or real(path, role))
    memory = tmp_path / "memory.json"
    cold = examine(scan("own", "nut", mvtec), memory)
    assert len(cold.problems) == 2 and len(cold.remarks) == 1 and len(looked) == 18
    looked.clear()
    assert examine(scan("own", "nut", mvtec), memory) == cold and looked == []
    put(mvtec / "ground_truth/spot/000_mask.png", np.full((40, 48), 255, np.uint8))
    warm = examine(scan("own", "nut", mvtec), memory)
    assert [p.name for p in looked] == ["000_mask.png"] and len(warm.problems) == 1
    assert warm.remarks[1].startswith("1 mask of 4 mark more than half of the picture")
