"""`prepare`: one export of each labelling program, sorted folders, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets.annotations import read_export
from datasets.base import DatasetError
from datasets.prepare import prepare
from tests.conftest import Cli
from tests.datasets.conftest import put

WIDTH, HEIGHT = 40, 30
BLOCK = np.zeros((HEIGHT, WIDTH), bool)
BLOCK[5:15, 10:25] = True  # x from 10 to 24, y from 5 to 14
DISC = np.hypot(*(np.indices((HEIGHT, WIDTH)) - np.array([15, 20])[:, None, None])) <= 6
CORNERS = [[10, 5], [24, 5], [24, 14], [10, 14]]
GOOD = [f"g{i}.png" for i in range(6)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six good pictures, one with a block and one with a block and a disc, in two folders without any order."""
    for i, name in enumerate([*GOOD, "block.png", "both.png"]):
        put(tmp_path / "in" / ("a" if i % 2 else "b") / name, np.full((HEIGHT, WIDTH, 3), 90 + i, np.uint8))
    return tmp_path / "in"


def coco(folder: Path) -> Path:
    names = [*GOOD, "block.png", "both.png"]
    runs = np.flatnonzero(np.diff(np.concatenate([[0], DISC.T.ravel().astype(int), [0]]))).tolist()
    counts = np.diff([0, *runs, DISC.size]).tolist()
    flat = [v for corner in CORNERS for v in corner]
    return write(folder / "coco.json", {
        "images": [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names)],
        "categories": [{"id": 1, "name": "dent"}, {"id": 2, "name": "hole"}],
        "annotations": [
            {"image_id": 6, "category_id": 1, "segmentation": [flat]},
            {"image_id": 7, "category_id": 1, "segmentation": [flat]},
            {"image_id": 7, "category_id": 2, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
        ],
    })


def labelme(folder: Path) -> Path:
    block = {"label": "dent", "points": CORNERS, "shape_type": "polygon"}
    disc = {"label": "hole", "points": [[20, 15], [26, 15]], "shape_type": "circle"}
    for name in (*GOOD, "block.png", "both.png"):
        shapes = {"block.png": [block], "both.png": [block, disc]}.get(name, [])
        write(folder / f"labels/{Path(name).stem}.json", {
            "imagePath": f"..\\pictures\\{name}", "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": shapes})
    return folder / "labels"


def via(folder: Path) -> Path:
    block = {"shape_attributes": {"name": "polygon", "all_points_x": [c[0] for c in CORNERS],
                                  "all_points_y": [c[1] for c in CORNERS]}, "region_attributes": {"kind": "dent"}}
    disc = {"shape_attributes": {"name": "circle", "cx": 20, "cy": 15, "r": 6}, "region_attributes": {"kind": "hole"}}
    regions = {"block.png": [block], "both.png": [block, disc]}
    entries = {f"{n}123": {"filename": n, "size": 123, "regions": regions.get(n, [])} for n in (*GOOD, *regions)}
    return write(folder / "via.json", {"_via_img_metadata": entries})


def cvat(folder: Path) -> Path:
    polygon = '<polygon label="dent" points="' + ";".join(f"{x},{y}" for x, y in CORNERS) + '" z_order="0"/>'
    box = DISC[9:22, 14:27]
    runs = np.flatnonzero(np.diff(np.concatenate([[0], box.ravel().astype(int), [0]]))).tolist()
    counts = np.diff([0, *runs, box.size]).tolist()
    mask = f'<mask label="hole" rle="{", ".join(map(str, counts))}" left="14" top="9" width="13" height="13"/>'
    shapes = {"block.png": polygon, "both.png": polygon + mask}
    path = folder / "cvat.xml"
    path.write_text('<?xml version="1.0" encoding="utf-8"?><annotations>' + "".join(
        f'<image id="{i}" name="{n}" width="{WIDTH}" height="{HEIGHT}">{shapes.get(n, "")}</image>'
        for i, n in enumerate((*GOOD, "block.png", "both.png"))) + "</annotations>")
    return path


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


EXPORTS: dict[str, Callable[[Path], Path]] = {"COCO": coco, "LabelMe": labelme, "VIA": via, "CVAT": cvat}


@pytest.mark.parametrize("program", EXPORTS)
def test_an_export_of_each_program(source: Path, tmp_path: Path, program: str) -> None:
    annotations = EXPORTS[program](tmp_path)
    assert read_export(annotations)[0] == program
    made = prepare(source, tmp_path / "data/own/plate", annotations=annotations, test_good=2)
    assert made.counts == {"train/good": 4, "test/good": 2, "test/dent": 1, "test/combined": 1} and not made.remarks
    category = datasets.load("own", "plate", tmp_path / "data")
    assert Counter(s.kind for s in category.test) == {"good": 2, "dent": 1, "combined": 1}
    found = {s.kind: datasets.truth(category, s, (HEIGHT, WIDTH)) > 0 for s in category.test if s.label}
    assert np.array_equal(found["dent"], BLOCK)
    exact = BLOCK | DISC
    assert (found["combined"] != exact).mean() < (0.02 if program in ("LabelMe", "VIA") else 1e-9)  # a drawn circle
    assert all(s.path.is_symlink() for s in category.train)
    with Image.open(made.sheet) as sheet:
        assert sheet.size == (2 * 256, 256)


def test_sorted_folders_with_masks_beside_apart_or_nowhere(tmp_path: Path) -> None:
    for way in ("beside", "apart", "by kind", "nowhere"):
        root = tmp_path / way
        for i in range(5):
            put(root / f"OK/{i}.jpg", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        for i in range(2):
            put(root / f"deep scratch/{10 + i}.jpg", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
            mask = {"beside": f"deep scratch/{10 + i}_mask.png", "apart": f"masks/{10 + i}.png",
                    "by kind": f"ground_truth/deep scratch/{10 + i}_mask.png"}.get(way)
            if mask:
                put(root / mask, (BLOCK * 255).astype(np.uint8))
        made = prepare(root, tmp_path / "data/own" / way, copy=True)
        assert made.counts == {"train/good": 4, "test/good": 1, "test/deep_scratch": 2}, way
        category = datasets.load("own", way, tmp_path / "data")
        assert not any(s.path.is_symlink() for s in category.test)
        if way == "nowhere":
            assert made.remarks == ["no masks: image-level figures only"] and category.unmasked and made.sheet is None
        else:
            assert np.array_equal(datasets.truth(category, category.test[0], (HEIGHT, WIDTH)) > 0, BLOCK), way


def changed(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = coco(folder)
        raw = json.loads(path.read_text())
        change(raw)
        return write(path, raw)

    return make


@pytest.mark.parametrize(("make", "words"), [
    (changed(lambda raw: raw["images"].pop(0)), r"g0\.png: not in .*--unannotated good"),
    (changed(lambda raw: raw["images"][0].update(file_name="gone.png")), "gone.png: annotated, but there is no such"),
    (changed(lambda raw: raw["images"][6].update(width=80)), "is 40x30, but COCO drew on 80x30"),
    (changed(lambda raw: raw["annotations"][0].update(segmentation=[])), "a box is no mask"),
    (changed(lambda raw: raw["annotations"][2]["segmentation"].update(counts="abc")), "a compressed mask"),
    (changed(lambda raw: raw["annotations"][2]["segmentation"].update(counts=[3])), "not as its program writes it"),
    (changed(lambda raw: raw["annotations"][0].update(segmentation=[[90, 90, 99, 90, 99, 99]])), "outside the picture"),
    (changed(lambda raw: raw["annotations"][0].update(image_id=99)), "not as its program writes it"),
    (changed(lambda raw: raw["categories"][0].update(name="good")), "annotate defects only"),
    (lambda folder: write(folder / "x.json", {"a": 1}), "neither COCO, LabelMe nor VIA"),
    (lambda folder: write(folder / "x.json", []), "neither COCO, LabelMe nor VIA"),
])
def test_what_cannot_be_told_is_refused_and_leaves_nothing(source: Path, tmp_path: Path, make, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        prepare(source, tmp_path / "data/own/plate", annotations=make(tmp_path))
    assert not (tmp_path / "data/own").exists() or not list((tmp_path / "data/own").iterdir())


def test_folders_that_say_too_little_are_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "data/own/plate"
    with pytest.raises(DatasetError, match="no good picture;"):
        prepare(source, target)
    with pytest.raises(DatasetError, match="nothing says whether it is good"):
        prepare(source / "a", target)
    for name in ("good/0.png", "good/1.png", "dent/0.png", "hole/0.png"):
        put(tmp_path / "two" / name, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    put(tmp_path / "two/masks/0.png", (BLOCK * 255).astype(np.uint8))
    with pytest.raises(DatasetError, match="Make a folder for each kind of defect"):
        prepare(tmp_path / "two", target)
    (tmp_path / "two/hole/0.png").rename(tmp_path / "two/hole/9.png")
    with pytest.raises(DatasetError, match=r"hole/9\.png: has no mask, but others have"):
        prepare(tmp_path / "two", target)
    target.mkdir(parents=True)
    with pytest.raises(DatasetError, match="exists; choose another name"):
        prepare(tmp_path / "two", target)


def test_pictures_that_viewers_turn_are_refused(source: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 3
    Image.open(source / "b/block.png").save(source / "b/block.png", exif=exif)
    with pytest.raises(DatasetError, match=r"EXIF orientation 3 turns it in COCO"):
        prepare(source, tmp_path / "data/own/plate", annotations=coco(tmp_path))


def test_the_command_says_what_it_did(source: Path, tmp_path: Path, cli: Cli) -> None:
    (source / "a/extra.png").write_bytes((source / "b/g0.png").read_bytes())
    call = ("prepare", source, "--as", "own/plate", "--annotations", coco(tmp_path), "--data-root", tmp_path / "data")
    assert cli(*call).returncode == 2
    done = cli(*call, "--unannotated", "leave")
    assert done.returncode == 0, done.stderr
    for words in ("train/good: 5", "test/good: 1", "test/dent: 1", "left out: 1, first extra.png", "plate.masks.png",
                  "run --methods patchcore --datasets own --categories plate --data-root"):
        assert words in done.stdout
    assert "write DATASET/CATEGORY" in cli("prepare", source, "--as", "own").stderr
