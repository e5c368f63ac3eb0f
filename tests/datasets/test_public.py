"""Public datasets in layouts of their own, each on a small made-up copy of its real folders."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

import datasets
from benchmarks.metrics.__main__ import main
from datasets.base import DatasetError
from datasets.catalog import ABOUT, OFFICIAL
from datasets.checking import examine
from tests.datasets.conftest import put

PICTURE = np.full((12, 16, 3), 90, np.uint8)
MARK = np.zeros((12, 16), np.uint8)
MARK[3:6, 4:9] = 255
NONE = MARK * 0


def visa(root: Path) -> None:
    """Numbers of classes in the masks, pictures as JPG, one split file for all objects; another object is not there."""
    rows = [("object", "split", "label", "image", "mask")]
    for i in range(6):
        name = f"candle/Data/Images/Normal/{i:04d}.JPG"
        put(root / name, PICTURE)
        rows.append(("candle", "train" if i < 4 else "test", "normal", name, ""))
    for i in range(2):
        name, mask = f"candle/Data/Images/Anomaly/{i:03d}.JPG", f"candle/Data/Masks/Anomaly/{i:03d}.png"
        put(root / name, PICTURE)
        put(root / mask, MARK // 255 * np.uint8(i + 1))
        rows.append(("candle", "test", "anomaly", name, mask))
    rows.append(("pcb1", "train", "normal", "pcb1/Data/Images/Normal/0000.JPG", ""))
    (root / "split_csv").mkdir()
    with (root / "split_csv/1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def mvtec_ad_2(root: Path) -> None:
    for folder, count in (("train/good", 4), ("validation/good", 2), ("test_public/good", 2), ("test_public/bad", 2),
                          ("test_private", 3), ("test_private_mixed", 3)):
        for i in range(count):
            put(root / f"can/{folder}/{i:03d}_regular.png", PICTURE)
    for i in range(2):
        put(root / f"can/test_public/ground_truth/bad/{i:03d}_regular_mask.png", MARK)


def btad(root: Path) -> None:
    for folder, count in (("train/ok", 4), ("test/ok", 2), ("test/ko", 2)):
        for i in range(count):
            put(root / f"03/{folder}/{i:04d}.bmp", PICTURE)
    put(root / "03/ground_truth/ko/0000.bmp", MARK)
    put(root / "03/ground_truth/ko/0001.png", MARK)


def mpdd(root: Path) -> None:
    for folder, count in (("train/good", 4), ("test/good", 2), ("test/hole", 2)):
        for i in range(count):
            put(root / f"tubes/{folder}/{i:03d}.png", PICTURE)
    for i in range(2):
        put(root / f"tubes/ground_truth/hole/{i:03d}_mask.png", MARK)


def mvtec_3d(root: Path) -> None:
    for folder, count in (("train/good", 4), ("validation/good", 2), ("test/good", 2), ("test/hole", 2)):
        for i in range(count):
            put(root / f"bagel/{folder}/rgb/{i:03d}.png", PICTURE)
            if "test" in folder:
                put(root / f"bagel/{folder}/gt/{i:03d}.png", MARK if "hole" in folder else NONE)
            points = root / f"bagel/{folder}/xyz/{i:03d}.tiff"
            points.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(points, np.zeros((12, 16, 3), np.float32))


def kolektor_sdd2(root: Path) -> None:
    for part, count, defective in (("train", 7, 3), ("test", 4, 2)):
        for i in range(count):
            put(root / f"{part}/{10000 + i}.png", PICTURE)
            put(root / f"{part}/{10000 + i}_GT.png", MARK if i < defective else NONE)
    put(root / "train/10006 (copy).png", PICTURE)
    put(root / "train/10006_GT (copy).png", NONE)


def real_iad(root: Path) -> None:
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for kind, part, count in (("OK", "train", 4), ("OK", "test", 2), ("AK", "test", 2)):
        for i in range(count):
            name = f"{'OK' if kind == 'OK' else f'NG/{kind}'}/S{i:04d}/toy_{part}_{i:04d}_{kind}_C1"
            put(root / f"realiad_256/toy/{name}.jpg", PICTURE)
            mask = None if kind == "OK" else f"{name}.png"
            if mask:
                put(root / "realiad_256/toy" / mask, MARK)
            splits[part].append({"anomaly_class": kind, "image_path": f"{name}.jpg", "mask_path": mask})
    path = root / "realiad_jsons/realiad_jsons/toy.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"meta": {"normal_class": "OK"}, **splits}))


# dataset: how it is made, category, defect's name, validation pictures
MADE: dict[str, tuple[Callable[[Path], None], str, str, int]] = {
    "visa": (visa, "candle", "anomaly", 0), "mvtec_ad_2": (mvtec_ad_2, "can", "bad", 2), "btad": (btad, "03", "ko", 0),
    "mpdd": (mpdd, "tubes", "hole", 0), "mvtec_3d": (mvtec_3d, "bagel", "hole", 2),
    "kolektor_sdd2": (kolektor_sdd2, "surface", "defect", 0), "real_iad": (real_iad, "toy", "AK", 0),
}


@pytest.fixture(params=MADE)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    (tmp_path / request.param).mkdir()
    MADE[request.param][0](tmp_path / request.param)
    return request.param, tmp_path


def test_pictures_kinds_and_masks(made: tuple[str, Path], tmp_path: Path) -> None:
    name, root = made
    _, category, kind, validation = MADE[name]
    assert datasets.find(name, root).keys() == {category} == datasets.find(name, root / name).keys()
    found = datasets.load(name, category, root)
    assert (len(found.train), len(found.validation)) == (4, validation)
    assert Counter(s.kind for s in found.test) == {"good": 2, kind: 2}
    for sample in found.test:
        if sample.label:
            assert np.array_equal(datasets.truth(found, sample, (12, 16)) > 0, MARK > 0)
    seen = examine(found)
    assert seen.problems == () == seen.remarks
    stated = OFFICIAL[name][category].train
    assert bool(found.notes) == (stated is not None)  # a made-up copy is smaller than what is stated
    if stated:
        assert f"reduced data: train 4 of {stated}" in found.notes
    moved = root.rename(tmp_path.parent / f"{tmp_path.name} moved")
    assert examine(datasets.load(name, category, moved)).fingerprint == seen.fingerprint


def test_a_missing_mask_is_named(made: tuple[str, Path]) -> None:
    name, root = made
    category, kind = MADE[name][1:3]
    mask = next(s for s in datasets.load(name, category, root).test if s.kind == kind).masks[0]
    mask.unlink()
    with pytest.raises(DatasetError, match=r"its mask .*is missing"):
        datasets.load(name, category, root)


def test_the_metrics_command_reads_the_same_masks(made: tuple[str, Path], capsys: pytest.CaptureFixture) -> None:
    name, root = made
    category = MADE[name][1]
    for i, sample in enumerate(datasets.load(name, category, root).test):
        path = root / f"maps/{category}/test/{sample.name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, MARK * sample.label / 255 + i * 1e-3)
    assert main([str(root / "maps"), str(root / name)]) == 0
    found = json.loads(capsys.readouterr().out)["categories"][category]
    assert found["metrics"]["pixel_auroc"] == found["metrics"]["image_auroc"] == 1 and found["facts"]["regions"] == 2


def test_counts_add_up_to_what_is_stated() -> None:
    def totals(name: str) -> tuple[int, int, int]:
        held = OFFICIAL[name].values()
        return (sum(o.train for o in held), sum(o.test.get("good", 0) for o in held),
                sum(o.test.get("defective", 0) + o.test.get("all", 0) for o in held))

    assert totals("visa") == (8659, 962, 1200) and sum(totals("visa")) == 10_821
    assert totals("mpdd") == (888, 176, 282) and sum(totals("mpdd")) == 1346
    assert sum(totals("btad")) == 2540
    assert totals("mvtec_3d") == (2656, 0, 1197)
    assert totals("kolektor_sdd2") == (2085, 894, 110)
    assert {n: len(OFFICIAL[n]) for n in ("visa", "mvtec_ad_2", "real_iad")} == {
        "visa": 12, "mvtec_ad_2": 8, "real_iad": 30}
    assert set(ABOUT) == set(OFFICIAL) == set(datasets.PUBLIC)


def test_private_parts_are_refused_with_the_reason(tmp_path: Path) -> None:
    for name in ("mvtec_ad_2_private", "mvtec_ad_2_private_mixed"):
        with pytest.raises(DatasetError, match=r"ground truth is not published.*The public part is mvtec_ad_2"):
            datasets.find(name, tmp_path)


def test_a_split_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    for name in ("visa", "real_iad"):
        (tmp_path / name).mkdir()
        MADE[name][0](tmp_path / name)
    csv_file = tmp_path / "visa/split_csv/1cls.csv"
    json_file = tmp_path / "real_iad/realiad_jsons/realiad_jsons/toy.json"
    whole = csv_file.read_text(), json_file.read_text()
    for change, words in (
        (lambda t: t.replace("object,", "item,"), "cannot be read as a list"),
        (lambda t: t.replace("0004.JPG", "9999.JPG"), "no such file, though its split names it"),
        (lambda t: t.replace("candle/Data/Images/Normal/0004.JPG", "../0004.JPG"), "lies outside"),
        (lambda t: t.replace("candle,test,anomaly", "candle,train,anomaly"), "split 'train' with label 'anomaly'"),
    ):
        csv_file.write_text(change(whole[0]))
        with pytest.raises(DatasetError, match=words):
            datasets.load("visa", "candle", tmp_path)
    for change, words in (
        (lambda t: t[:-9], "no list of train"), (lambda t: t.replace("anomaly_class", "kind"), "no list"),
        (lambda t: t.replace("OK/S0000", "../../S"), "outside"),
        (lambda t: t.replace('"OK"', '"AK"', 3), "take the one-class split"),
    ):
        json_file.write_text(change(whole[1]))
        with pytest.raises(DatasetError, match=words):
            datasets.load("real_iad", "toy", tmp_path)
    csv_file.unlink()
    with pytest.raises(DatasetError, match=r"1cls\.csv: missing; it comes with the archive"):
        datasets.load("visa", "candle", tmp_path)


def test_visa_converted_to_the_layout_of_mvtec_is_read_too(tmp_path: Path) -> None:
    mpdd(tmp_path)
    shutil.move(tmp_path / "tubes", tmp_path / "visa/candle")
    assert len(datasets.load("visa", "candle", tmp_path).train) == 4
    shutil.move(tmp_path / "visa/candle", tmp_path / "toothbrush")  # of MVTec AD, though Real-IAD has one of that name
    assert list(datasets.find("mvtec_ad", tmp_path)) == ["toothbrush"]
    with pytest.raises(DatasetError, match="real_iad is not under"):
        datasets.find("real_iad", tmp_path)
