"""Categories on disk: both layouts, their ground truth, what is wrong with them, and their fingerprint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import checking as examining
from datasets.base import DatasetError
from datasets.checking import examine, fingerprint
from datasets.images import Pictures
from datasets.layouts import layout_of, scan, truth
from tests.datasets.conftest import DEFECTS, put


def test_mvtec_layout(mvtec: Path) -> None:
    category = scan("own", "nut", mvtec)
    assert (category.layout, len(category.train), category.validation, category.defects) == ("mvtec", 6, (), ())
    assert [s.name for s in category.test] == [f"{k}/{i:03d}" for k in ("good", "spot") for i in range(4)]
    assert [s.label for s in category.test] == [0] * 4 + [1] * 4
    mask = truth(category, category.test[4], (40, 48))
    assert mask.dtype == np.uint8 and mask.shape == (40, 48) and (mask > 0).sum() == 81
    pictures = Pictures(category.train)
    assert len(pictures) == 6 and len(pictures[2:]) == 4 and pictures[1:][0].shape == (40, 48, 3)
    assert np.array_equal(pictures[-1], np.array(Image.open(mvtec / "train/good/005.png")))


def test_loco_layout_keeps_every_mask_file_apart(loco: Path) -> None:
    category = scan("own", "tray", loco)
    assert category.layout == "loco" and len(category.train) == 3 and len(category.validation) == 2
    assert [(d.name, d.pixel_value, d.saturation_threshold, d.relative) for d in category.defects] == [
        ("missing", 255, 40.0, False), ("extra", 254, 0.5, True), ("stain", 253, 1.0, True)]
    first = next(s for s in category.test if s.name == "logical_anomalies/000")
    extra, missing = truth(category, first, (20, 24))
    assert (extra.defect.name, missing.defect.name) == ("extra", "missing")
    assert extra.mask.dtype == bool and extra.mask[4].any() and not missing.mask[4].any()


def test_loco_is_known_by_its_folders_when_the_config_is_gone(loco: Path) -> None:
    (loco / "defects_config.json").unlink()
    assert layout_of(loco) == "loco"
    with pytest.raises(DatasetError, match=r"defects_config.json: missing; .* saturation"):
        scan("own", "tray", loco)


def test_foreign_and_hidden_files_are_passed_over_and_copies_kept(mvtec: Path) -> None:
    for name in (".DS_Store", "._000.png", "Thumbs.db", "notes.txt"):
        (mvtec / "train/good" / name).write_text("x")
        (mvtec / "test/spot" / name).write_text("x")
        (mvtec / "test" / name).write_text("x")
    (mvtec / "test/.hidden").mkdir()
    (mvtec / "train/good/folder.png").mkdir()
    shutil.copy(mvtec / "test/spot/000.png", mvtec / "test/spot/000(1).png")
    shutil.copy(mvtec / "ground_truth/spot/000_mask.png", mvtec / "ground_truth/spot/000(1)_mask.png")
    category = scan("own", "nut", mvtec)
    assert len(category.train) == 6 and len(category.test) == 9
    copy = next(s for s in category.test if s.name == "spot/000(1)")
    assert copy.masks[0].name == "000(1)_mask.png" and truth(category, copy, (40, 48)).any()


def test_a_picture_of_a_kind_that_is_not_read_is_named(mvtec: Path) -> None:
    (mvtec / "test/good/9.webp").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"9\.webp: pictures of this kind are not read; convert"):
        scan("own", "nut", mvtec)


def test_a_byte_order_mark_before_the_defect_list(loco: Path) -> None:
    path = loco / "defects_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(scan("own", "tray", loco).defects) == 3


def test_sizes_and_suffixes_may_be_mixed(mvtec: Path) -> None:
    put(mvtec / "test/spot/100.JPG", np.full((30, 33, 3), 90, np.uint8))
    mask = np.zeros((30, 33), np.uint8)
    mask[3:5, 6:9] = 255
    put(mvtec / "ground_truth/spot/100.bmp", mask)  # without the _mask suffix, another format
    category = scan("own", "nut", mvtec)
    assert {p.shape for p in Pictures(category.test)} == {(40, 48, 3), (30, 33, 3)}
    assert np.array_equal(truth(category, category.test[-1], (30, 33)), mask)


def test_two_pictures_of_one_name_are_refused(mvtec: Path) -> None:
    put(mvtec / "test/spot/000.bmp", np.zeros((40, 48), np.uint8))
    with pytest.raises(DatasetError, match=r"000\.bmp and 000\.png share one name"):
        scan("own", "nut", mvtec)


@pytest.mark.parametrize(("folder", "words"), [
    ("train", "no training pictures"), ("test", "no test pictures"), ("train/good", "no training pictures"),
])
def test_missing_splits(mvtec: Path, folder: str, words: str) -> None:
    shutil.rmtree(mvtec / folder)
    with pytest.raises(DatasetError, match=words) as caught:
        scan("own", "nut", mvtec)
    assert str(mvtec / folder) in str(caught.value)


def test_a_category_of_good_or_of_anomalous_pictures_only_is_read(mvtec: Path) -> None:
    shutil.rmtree(mvtec / "test/good")
    assert all(s.label for s in scan("own", "nut", mvtec).test)


@pytest.mark.parametrize(("value", "words"), [
    (np.zeros((40, 48), np.uint8), "the mask is empty"),
    (np.full((20, 24), 255, np.uint8), "the mask is 24x20, its picture 000.png is 48x40"),
])
def test_broken_masks_in_mvtec_layout(mvtec: Path, value: np.ndarray, words: str) -> None:
    path = put(mvtec / "ground_truth/spot/000_mask.png", value)
    category = scan("own", "nut", mvtec)
    with pytest.raises(DatasetError, match=words) as caught:
        truth(category, category.test[4], (40, 48))
    assert str(path) in str(caught.value)
    assert examine(category).problems == (str(caught.value),)  # known before anything is trained


def test_missing_masks_are_listed_together_with_the_nearest_name(mvtec: Path) -> None:
    folder = mvtec / "ground_truth/spot"
    (folder / "000_mask.png").rename(folder / "000_Mask.png")
    (folder / "002_mask.png").unlink()
    with pytest.raises(DatasetError) as caught:
        scan("own", "nut", mvtec)
    first, second = str(caught.value).splitlines()
    assert "spot/000.png: its mask" in first and first.endswith("000_mask.png is missing; there is 000_Mask.png")
    assert "spot/002.png: its mask" in second


def test_a_mask_that_is_no_picture(mvtec: Path) -> None:
    (mvtec / "ground_truth/spot/000_mask.png").write_bytes(b"no picture")
    category = scan("own", "nut", mvtec)
    with pytest.raises(DatasetError, match=r"000_mask\.png"):
        truth(category, category.test[4], (40, 48))


def _loco_mask(values: list[int]) -> np.ndarray:
    mask = np.zeros((20, 24), np.uint8)
    for i, value in enumerate(values):
        mask[2 + 4 * i : 5 + 4 * i, 2:9] = value
    return mask


@pytest.mark.parametrize(("mask", "words"), [
    (_loco_mask([7]), "pixel value 7 is not in defects_config.json, which has 255, 254, 253"),
    (_loco_mask([254, 255]), r"holds the values \[254, 255\]"),
    (_loco_mask([]), "the mask is empty"),
    (np.full((10, 24), 255, np.uint8), "the mask is 24x10"),
])
def test_broken_masks_in_loco_layout(loco: Path, mask: np.ndarray, words: str) -> None:
    put(loco / "ground_truth/logical_anomalies/001/000.png", mask)
    category = scan("own", "tray", loco)
    with pytest.raises(DatasetError, match=words) as caught:
        truth(category, next(s for s in category.test if s.name == "logical_anomalies/001"), (20, 24))
    assert "logical_anomalies/001/000.png" in str(caught.value)


def test_a_loco_picture_without_mask_files(loco: Path) -> None:
    shutil.rmtree(loco / "ground_truth/logical_anomalies/001")
    with pytest.raises(DatasetError, match=r"001/000.png is missing"):
        scan("own", "tray", loco)


def _changed(**values: object) -> str:
    return json.dumps([DEFECTS[0] | values])


@pytest.mark.parametrize("text", [
    "", "{", "null", "3", "{}", '["missing"]', "[[]]", "[" * 100_000, '[{"defect_name": "a"}]', "\xff\xfe",
    _changed(pixel_value=0), _changed(pixel_value=256), _changed(pixel_value=1.5), _changed(pixel_value="255"),
    _changed(pixel_value=True), _changed(pixel_value=None), _changed(saturation_threshold=0),
    _changed(saturation_threshold=float("nan")), _changed(saturation_threshold=float("inf")),
    _changed(saturation_threshold=-1), _changed(saturation_threshold=[1]),
    _changed(relative_saturation="false", saturation_threshold=0.5),
    _changed(relative_saturation=True), _changed(defect_name=3), json.dumps([DEFECTS[0], DEFECTS[0]]),
])
def test_broken_defect_lists(loco: Path, text: str) -> None:
    (loco / "defects_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError) as caught:
        scan("own", "tray", loco)
    assert str(loco / "defects_config.json") in str(caught.value)


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_follows_content_not_time_or_place(loco: Path, tmp_path: Path) -> None:
    before = fingerprint(scan("own", "tray", loco))
    assert len(before) == 64 and before == fingerprint(scan("own", "tray", loco))
    for path in loco.rglob("*.png"):
        os.utime(path, (1, 1))
    assert fingerprint(scan("own", "tray", loco)) == before
    moved = loco.rename(tmp_path / "elsewhere")
    assert fingerprint(scan("other", "name", moved)) == before


@pytest.mark.parametrize("file", [
    "train/good/001.png", "validation/good/000.png", "test/good/001.png", "test/structural_anomalies/000.png",
    "ground_truth/logical_anomalies/000/001.png", "defects_config.json",
])
def test_one_changed_pixel_or_byte_changes_the_fingerprint(loco: Path, file: str) -> None:
    before = fingerprint(scan("own", "tray", loco))
    path = loco / file
    if path.suffix == ".json":
        path.write_text(path.read_text().replace("40", "41"))
    else:
        array = np.array(Image.open(path))
        array.flat[100] ^= 1
        put(path, array)
    assert fingerprint(scan("own", "tray", loco)) != before


def test_files_that_come_go_or_swap_names_change_the_fingerprint(mvtec: Path) -> None:
    before = fingerprint(scan("own", "nut", mvtec))
    first, second, spare = (mvtec / f"train/good/{n}.png" for n in ("000", "001", "spare"))
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    swapped = fingerprint(scan("own", "nut", mvtec))
    second.unlink()
    assert len({before, swapped, fingerprint(scan("own", "nut", mvtec))}) == 3


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files just made count as old, so that they are remembered."""
    now = examining.time.time_ns
    monkeypatch.setattr(examining.time, "time_ns", lambda: now() + 10**10)


def test_memory_spares_reading_and_sees_changes(
    loco: Path, tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "deep" / "memory.json"
    before = fingerprint(scan("own", "tray", loco), memory)
    assert before == fingerprint(scan("own", "tray", loco)) and memory.is_file()
    read = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or real(path))
    assert fingerprint(scan("own", "tray", loco), memory) == before and read == []
    path = loco / "test/good/000.png"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[60] ^= 1  # as many bytes as before
    path.write_bytes(data)
    read.clear()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of change that users can set is put back
    assert fingerprint(scan("own", "tray", loco), memory) != before and read == ["000.png"]
    assert len(list(memory.parent.iterdir())) == 1


def test_a_file_just_changed_is_not_remembered(mvtec: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    for path in mvtec.rglob("*.png"):
        path.touch()
    fingerprint(scan("own", "nut", mvtec), memory)
    assert not memory.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null", "\xff", "entries"])
def test_a_corrupt_memory_is_ignored(mvtec: Path, tmp_path: Path, later: None, text: str) -> None:
    memory = tmp_path / "memory.json"
    category = scan("own", "nut", mvtec)
    if text == "entries":  # right keys, wrong values
        values = (3, None, [1], "x", [1, 2], {})
        text = json.dumps({str(s.path): value for s, value in zip(category.train, values, strict=True)})
    memory.write_bytes(text.encode("latin-1"))
    assert fingerprint(category, memory) == fingerprint(category)
    assert json.loads(memory.read_text())


def test_a_memory_that_cannot_be_written_is_left_alone(mvtec: Path, tmp_path: Path, later: None) -> None:
    (tmp_path / "file").write_text("x")
    category = scan("own", "nut", mvtec)
    assert fingerprint(category, tmp_path / "file" / "memory.json") == fingerprint(category)


def test_a_file_that_vanished_is_named(mvtec: Path) -> None:
    category = scan("own", "nut", mvtec)
    (mvtec / "train/good/002.png").unlink()
    with pytest.raises(DatasetError, match=r"002\.png: cannot be read"):
        fingerprint(category)


@pytest.mark.real
def test_real_bottle_and_juice_bottle(real: Path) -> None:
    bottle = datasets.load("mvtec_ad", "bottle", real)
    assert bottle.layout == "mvtec" and len(bottle.train) == 209 and len(bottle.test) == 83
    juice = datasets.load("mvtec_loco", "juice_bottle", real)
    assert juice.layout == "loco" and juice.defects and any("of 800x1600" in n for n in juice.notes)
    for category in (bottle, juice):
        height, width = Pictures(category.test)[0].shape[:2]
        for sample in category.test:
            if sample.label:
                assert len(datasets.truth(category, sample, (height, width)))
