"""Broken inputs by the hundred, from a fixed seed: a valid picture or a DatasetError, nothing else and no hang."""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets.base import DatasetError
from datasets.images import decode, picture_size
from datasets.layouts import scan
from datasets.masks import decode_mask, read_mask
from tests.datasets.conftest import DEFECTS

COUNT = 150  # broken files of each form
LIMIT_S = 5.0  # for one of them


def broken(original: bytes, seed: int, count: int = COUNT) -> Iterator[bytes]:
    """Flipped bits, changed bytes, cuts, repeats and inserted bytes, one to many at once."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(original)
        for _ in range(int(rng.choice([1, 2, 8, 40]))):
            if not data:
                break
            # half of the damage goes to the header, where it matters most
            at = int(rng.integers(min(64, len(data)) if rng.random() < 0.5 else len(data)))
            match rng.integers(5):
                case 0:
                    data[at] ^= 1 << int(rng.integers(8))
                case 1:
                    data[at] = int(rng.choice([0, 1, 127, 255, int(rng.integers(256))]))
                case 2:
                    data[at : at + int(rng.integers(1, 16))] = b""
                case 3:
                    data[at:at] = rng.bytes(int(rng.integers(1, 8)))
                case 4:
                    if rng.random() < 0.2:
                        del data[at:]
        yield bytes(data)


def encoded(form: str, **options: object) -> bytes:
    rng = np.random.default_rng(1)
    image = Image.fromarray((np.add.outer(np.arange(24), np.arange(32))[..., None] * [3, 2, 1]).astype(np.uint8))
    if form == "palette":
        image, form = image.quantize(16), "PNG"
    elif form == "16 bit":
        image, form = Image.fromarray(rng.integers(0, 65536, (24, 32), dtype=np.uint16)), "PNG"
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("form", "options"), [
    ("PNG", {}), ("palette", {}), ("16 bit", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("BMP", {}),
    ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"}),
])
def test_broken_pictures(tmp_path: Path, form: str, options: dict) -> None:
    original = encoded(form, **options)
    path = tmp_path / "a.png"
    path.write_bytes(original)
    assert decode(path).shape == (24, 32, 3)
    refused = read = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, data in enumerate(broken(original, seed=7)):
            path.write_bytes(data)
            start = time.perf_counter()
            picture_size(path)
            for function, dimensions in ((decode, 3), (decode_mask, 2)):
                try:
                    array = function(path)
                except DatasetError as error:
                    assert str(path) in str(error), i
                    refused += 1
                else:
                    assert array.dtype == np.uint8 and array.ndim == dimensions and array.size, i
                    read += 1
            assert time.perf_counter() - start < LIMIT_S, i
    assert refused > COUNT / 5 and refused + read == 2 * COUNT


def test_broken_defect_lists(loco: Path) -> None:
    path, refused = loco / "defects_config.json", 0
    original = json.dumps(DEFECTS).encode()
    for i, data in enumerate(broken(original, seed=8, count=3 * COUNT)):
        path.write_bytes(data)
        try:
            category = scan("own", "tray", loco)
        except DatasetError as error:
            assert str(path) in str(error), i
            refused += 1
        else:
            assert all(1 <= d.pixel_value <= 255 and d.saturation_threshold > 0 for d in category.defects), i
    assert refused > COUNT


def test_broken_dataset_files(mvtec: Path, tmp_path: Path) -> None:
    path, refused = tmp_path / "set.yaml", 0
    original = b"name: button\nroot: own\ncategories:\n  - nut\n"
    for i, data in enumerate(broken(original, seed=9, count=3 * COUNT)):
        path.write_bytes(data)
        try:
            found = datasets.find(str(path), tmp_path)
        except DatasetError as error:
            assert str(path) in str(error), i
            refused += 1
        else:
            assert list(found) == ["nut"], i
    assert refused > COUNT


FORMS = ("L", "1", "P", "PA", "RGB", "RGBA", "LA", "I;16", "F", "CMYK", "jpeg")


def drawn(rng: np.random.Generator, form: str, marked: np.ndarray) -> tuple[Image.Image, bool | None]:
    """A mask of a random form, and whether it says for sure what it marks; None where it may be read or refused."""
    value, background = int(rng.integers(1, 256)), (0, 0, 0)
    colour = tuple(int(v) for v in rng.integers(0, 256, 3))
    if max(colour) < 1:
        colour = (1, 0, 0)
    white_ground = bool(rng.random() < 0.25)
    if white_ground:
        background = (255, 255, 255)
    if form in ("L", "I;16", "F"):
        scale = {"L": 1, "I;16": int(rng.choice([1, 16, 257])), "F": 1}[form]
        kind = {"L": np.uint8, "I;16": np.uint16, "F": np.float32}[form]
        values = np.where(marked, value, value // 2 if white_ground else 0) * scale
        return Image.fromarray(values.astype(kind)), None if white_ground and value > 1 else True
    if form == "1":
        return Image.fromarray(marked), True
    if form in ("P", "PA"):
        order = rng.permutation(256).astype(np.uint8)
        image = Image.fromarray(np.where(marked, order[0], order[1]), "P")
        table = rng.integers(0, 256, (256, 3), dtype=np.uint8)
        table[order[0]], table[order[1]] = colour, background
        image.putpalette(table.tobytes())
        if form == "PA":
            image.info["transparency"] = int(order[1])  # then the background is told whatever its colour
            return image, True
        return image, None if white_ground else True
    if form in ("RGBA", "LA"):
        pixels = np.empty((*marked.shape, 4), np.uint8)
        pixels[..., :3] = np.where(marked[..., None], colour, rng.integers(0, 256, 3))
        pixels[..., 3] = marked * 255
        image = Image.fromarray(pixels)
        if form == "LA":
            grey = Image.merge("LA", [Image.fromarray(marked * np.uint8(value)), Image.fromarray(pixels[..., 3])])
            return grey, True
        return image, True
    pixels = np.where(marked[..., None], colour, background).astype(np.uint8)
    if form == "CMYK":
        return Image.fromarray(pixels).convert("CMYK"), None if white_ground else True
    if form == "jpeg":
        return Image.fromarray((marked * 255).astype(np.uint8)), True
    return Image.fromarray(pixels), None if white_ground else True


@pytest.mark.parametrize("form", FORMS)
def test_random_masks_are_read_right_or_refused(tmp_path: Path, form: str) -> None:
    """Blocks in random places, sizes, colours, depths: what is marked comes out, or an error; never another region."""
    rng, right, refused = np.random.default_rng(FORMS.index(form)), 0, 0
    suffix = {"F": ".tif", "CMYK": ".tif", "jpeg": ".jpg"}.get(form, ".png")
    for i in range(COUNT):
        height, width = (int(v) for v in rng.integers(24, 90, 2))
        marked = np.zeros((height, width), bool)
        for _ in range(int(rng.integers(1, 4))):
            top, left = int(rng.integers(0, height - 8)), int(rng.integers(0, width - 8))
            marked[top : top + int(rng.integers(3, 12)), left : left + int(rng.integers(3, 12))] = True
        image, sure = drawn(rng, form, marked)
        path = tmp_path / f"{i}{suffix}"
        image.save(path, **({"quality": 95} if form == "jpeg" else {}), **(
            {"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
        try:
            mask = read_mask(path)
        except DatasetError as error:
            assert str(path) in str(error) and not sure, (i, error)
            refused += 1
            continue
        assert mask.values.dtype == np.uint8 and mask.values.shape == marked.shape, i
        wrong = np.count_nonzero((mask.values > 0) != marked)
        # a JPEG may round a corner; a mask that is marked everywhere gets a remark
        assert wrong == 0 or (form == "jpeg" and wrong <= 0.02 * marked.size) or (mask.values > 0).all(), (i, wrong)
        right += wrong == 0
    assert right + refused >= COUNT * 0.95 and right > COUNT / 2
