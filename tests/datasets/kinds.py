"""Faults of each kind that data sets come with: what is done to a sound category, and what must become of it.

`same`: the figures of the sound category; `remark`: they may stand with a counted remark; `error`: named before work.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.datasets.conftest import DEFECTS


class Kind(NamedTuple):
    """change: of the category's folder. same: the masks mean what they meant. remark, error: patterns."""

    change: Callable[[Path], object]
    same: bool = True
    remark: str = ""
    error: str = ""
    layout: str = "mvtec"
    metrics: bool = True  # the command on maps says the same; it does not look at training pictures


def masks(root: Path) -> list[Path]:
    return sorted((root / "ground_truth").rglob("*.png"))


def resave(
    change: Callable[[np.ndarray], Image.Image], suffix: str = ".png", **options: object
) -> Callable[[Path], None]:
    """Every mask in another form."""

    def apply(root: Path) -> None:
        for path in masks(root):
            values = np.array(Image.open(path))
            path.unlink()
            change(values).save(path.with_suffix(suffix), **options)

    return apply


def palette(*colours: tuple[int, ...]) -> Callable[[np.ndarray], Image.Image]:
    """The first colour for the background, the second for the defect, whose index is 0."""

    def make(values: np.ndarray) -> Image.Image:
        image = Image.fromarray((values == 0).astype(np.uint8), "P")
        image.putpalette([*colours[1], *colours[0]])
        return image

    return make


def layered(values: np.ndarray) -> Image.Image:
    pixels = np.full((*values.shape, 4), 255, np.uint8)
    pixels[..., 3] = values
    return Image.fromarray(pixels)


def white_with_red(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(values[..., None] > 0, (255, 0, 0), (255, 255, 255)).astype(np.uint8))


def nest(folder: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        paths = sorted((root / folder).glob("*.png"))[1:]
        (root / folder / "batch").mkdir()
        for path in paths:
            path.rename(path.parent / "batch" / path.name)

    return apply


def copy(source: str, target: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)

    return apply


def write(name: str, text: bytes | np.ndarray) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            Image.fromarray(text).save(path)

    return apply


def rename(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: (root / source).rename(root / target)


def link(name: str, target: str = "/nowhere/000.png") -> Callable[[Path], None]:
    return lambda root: os.symlink(target, root / name)


def composed_pictures_decomposed_masks(root: Path) -> None:
    for form, path in (("NFC", root / "test/spot/000.png"), ("NFD", root / "ground_truth/spot/000_mask.png")):
        path.rename(path.with_name(unicodedata.normalize(form, path.name.replace("000", "000 ä"))))


def links_everywhere(root: Path) -> None:
    for path in [*masks(root), *(root / "train/good").glob("*.png")]:
        store = root.parent / ".store" / root.name / path.relative_to(root)
        store.parent.mkdir(parents=True, exist_ok=True)
        path.rename(store)
        path.symlink_to(store)


def thumbnails(root: Path) -> None:
    for folder in ("train/good", "test/spot", "ground_truth/spot", "ground_truth"):
        write(f"{folder}/@eaDir/000.png/SYNOPHOTO_THUMB_M.png", np.zeros((4, 4), np.uint8))(root)
        write(f"{folder}/@eaDir/000/thumb.png", np.zeros((4, 4), np.uint8))(root)


def config(**values: object) -> Callable[[Path], object]:
    return lambda root: (root / "defects_config.json").write_text(json.dumps([DEFECTS[0] | values, *DEFECTS[1:]]))


def upper(root: Path) -> None:
    for path in [*masks(root), *root.glob("test/*/*.png")]:
        path.rename(path.with_suffix(".PNG"))


def gone(folder: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / folder)


BLACK = np.zeros((40, 48), np.uint8)

KINDS: dict[str, Kind] = {
    # what a mask means
    "control": Kind(lambda root: None),
    "ones": Kind(resave(lambda v: Image.fromarray(v // 255))),
    "one bit": Kind(resave(lambda v: Image.fromarray(v > 0))),
    "16 bit": Kind(resave(lambda v: Image.fromarray(v.astype(np.uint16) * 257))),
    "floats": Kind(resave(lambda v: Image.fromarray(v.astype(np.float32)), ".tif")),
    "CMYK": Kind(resave(lambda v: Image.fromarray(v).convert("RGB").convert("CMYK"), ".tiff")),
    "jpeg": Kind(resave(lambda v: Image.fromarray(v), ".jpeg", quality=90), remark="4 JPEG masks, first"),
    "JPG": Kind(resave(lambda v: Image.fromarray(v), ".JPG", quality=90), remark="cut at half"),
    "jfif": Kind(resave(lambda v: Image.fromarray(v), ".jfif", format="JPEG", quality=90), remark="JPEG masks"),
    "BMP": Kind(resave(lambda v: Image.fromarray(v), ".BMP")),
    "grey palette": Kind(resave(palette((0, 0, 0), (255, 255, 255)))),
    "colour palette": Kind(resave(palette((0, 0, 0), (10, 200, 30)))),
    "transparent palette": Kind(resave(palette((255, 255, 255), (255, 255, 255)), transparency=1)),
    "transparent white": Kind(resave(layered)),
    "colours": Kind(resave(lambda v: Image.fromarray(np.stack([v, v * 0, v * 0], 2)))),
    "white background, grey": Kind(
        resave(lambda v: Image.fromarray(255 - v)), same=False, remark="4 masks of 4 mark more than half of the picture"
    ),
    "white background, colour": Kind(resave(white_with_red), error="000_mask.png: no pixel is black or transparent"),
    "palette on white": Kind(resave(palette((255, 255, 255), (255, 0, 0))), error="no pixel is black or transparent"),
    "classes from 1": Kind(resave(lambda v: Image.fromarray(v // 255 + np.uint8(1))), error="no pixel is black"),
    "black mask": Kind(write("ground_truth/spot/002_mask.png", BLACK), error="002_mask.png: the mask is empty"),
    "other size": Kind(write("ground_truth/spot/002_mask.png", BLACK[:20] + np.uint8(255)), error="the mask is 48x20"),
    "mask of a good picture": Kind(
        copy("ground_truth/spot/000_mask.png", "ground_truth/good/000_mask.png"),
        error="marks pixels, but its picture counts as good",
    ),
    "black mask of a good picture": Kind(write("ground_truth/good/000_mask.png", BLACK)),
    # what would be left out
    "nested test": Kind(nest("test/spot"), error="test/spot/batch/001.png: lies in a folder within"),
    "nested training": Kind(nest("train/good"), error="train/good/batch/001.png: lies in a folder", metrics=False),
    "nested masks": Kind(nest("ground_truth/spot"), error="ground_truth/spot/batch/001_mask.png: lies in a folder"),
    "dangling training": Kind(link("train/good/9.png"), error="9.png: a link whose target is missing", metrics=False),
    "dangling test": Kind(link("test/good/9.png"), error="9.png: a link whose target is missing"),
    "dangling mask": Kind(link("ground_truth/spot/9_mask.png"), error="9_mask.png: a link whose target is missing"),
    "dangling kind": Kind(link("test/dent", "/nowhere"), error="test/dent: a link whose target is missing"),
    "a link to itself": Kind(link("test/good/9.png", "9.png"), error="9.png: a link whose target is missing"),
    "sound links": Kind(links_everywhere),
    "loose test": Kind(copy("test/good/000.png", "test/9.png"), error="test/9.png: a picture outside a folder"),
    "loose training": Kind(copy("train/good/000.png", "train/9.png"), error="train/9.png: a picture", metrics=False),
    "loose masks": Kind(copy("ground_truth/spot/000_mask.png", "ground_truth/9_mask.png"), error="a mask outside"),
    "webp": Kind(write("test/good/9.webp", b"x"), error="9.webp: pictures of this kind are not read"),
    "no suffix": Kind(copy("test/good/000.png", "test/good/9"), error="good/9: a picture by its content"),
    "strange suffix": Kind(copy("test/good/000.png", "test/good/9.image"), error="9.image: a picture by its content"),
    "strange file": Kind(
        write("test/good/9.xyz", b"1 2 3"), remark="left out: 1 file of unknown kind, first test/good/9.xyz"
    ),
    "notes": Kind(write("test/good/notes.txt", b"BM: my notes")),
    "defects in training": Kind(
        copy("test/spot/000.png", "train/spot/000.png"),
        metrics=False,
        remark="left out: 1 picture of train that is not in train/good",
    ),
    "another folder": Kind(
        copy("test/spot/000.png", "new/000.png"), remark="1 picture in other folders, first new/000.png"
    ),
    "mask of no picture": Kind(
        copy("ground_truth/spot/000_mask.png", "ground_truth/spot/9_mask.png"),
        remark="1 mask of no picture, first ground_truth/spot/9_mask.png",
    ),
    "a mask of no picture beside a missing one": Kind(
        rename("ground_truth/spot/000_mask.png", "ground_truth/spot/0_mask.png"),
        error="000.png: its mask .*spot/000_mask.png is missing",
    ),
    "masks beside pictures": Kind(
        copy("ground_truth/spot/000_mask.png", "test/spot/000_mask.png"),
        error="test/spot/000_mask.png: a mask beside its picture 000.png",
    ),
    "GT beside pictures": Kind(
        copy("ground_truth/spot/000_mask.png", "test/spot/000_GT.png"), error="000_GT.png: a mask beside"
    ),
    "a folder of masks in test": Kind(
        copy("ground_truth/spot/000_mask.png", "test/spot_mask/000.png"), error="holds masks"
    ),
    "two masks": Kind(
        copy("ground_truth/spot/000_mask.png", "ground_truth/spot/000.png"), error="two masks of one picture"
    ),
    "two pictures": Kind(lambda root: Image.fromarray(BLACK).save(root / "test/spot/000.bmp"), error="share one name"),
    "Good": Kind(rename("test/good", "test/Good"), error="test/Good: its name says that the pictures are good"),
    "Ground_Truth": Kind(rename("ground_truth", "Ground_Truth"), error="Ground_Truth: rename it to ground_truth"),
    # names
    "upper case": Kind(upper),
    "two spellings of an accent": Kind(composed_pictures_decomposed_masks),
    "thumbnails of a disk station": Kind(thumbnails),
    # no ground truth
    "no ground truth": Kind(gone("ground_truth"), same=False),
    "an empty ground truth": Kind(lambda root: [p.unlink() for p in masks(root)], same=False),
    # LOCO
    "loco": Kind(lambda root: None, layout="loco"),
    "loco with a mark and CRLF": Kind(
        lambda root: (root / "defects_config.json").write_bytes(
            b"\xef\xbb\xbf" + json.dumps(DEFECTS, indent=1).replace("\n", "\r\n").encode()
        ),
        layout="loco",
    ),
    "loco in JPEG": Kind(
        resave(lambda v: Image.fromarray(v), ".jpg"), error="a JPEG changes pixel values", layout="loco"
    ),
    "loco in colours": Kind(
        resave(lambda v: Image.fromarray(np.stack([v, v * 0, v * 0], 2))), error="a mask in colours", layout="loco"
    ),
    "loco with half a pixel": Kind(
        config(saturation_threshold=40.5), error="defects_config.json: entry 0 .* whole number", layout="loco"
    ),
    "loco without a value": Kind(
        lambda root: (root / "defects_config.json").write_text(json.dumps(DEFECTS[:2])),
        error="pixel value 253 is not in defects_config.json",
        layout="loco",
    ),
    "loco with a value twice": Kind(config(pixel_value=254), error="a pixel value is used twice", layout="loco"),
    "loco with a text": Kind(config(pixel_value="255"), error="entry 0 is broken", layout="loco"),
    "loco with a key twice": Kind(
        lambda root: (root / "defects_config.json").write_text(
            json.dumps(DEFECTS).replace('"pixel_value": 255', '"pixel_value": 9, "pixel_value": 255')
        ),
        error="'pixel_value' stands twice",
        layout="loco",
    ),
    "loco with another kind": Kind(
        copy("test/good/000.png", "test/scratch/000.png"), error="test/scratch: kind 'scratch'", layout="loco"
    ),
    "loco without a folder": Kind(
        gone("ground_truth/logical_anomalies/001"), error="001/000.png is missing", layout="loco"
    ),
    "loco with a stray mask": Kind(
        copy("ground_truth/logical_anomalies/001/000.png", "ground_truth/logical_anomalies/9.png"),
        remark="1 mask beside the folders of their pictures",
        layout="loco",
    ),
    "mvtec with a list of defects": Kind(
        lambda root: (root / "defects_config.json").write_text(json.dumps(DEFECTS)),
        error="test/spot: kind 'spot' is not one of good",
    ),
}
