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
from datasets.masks import decode_mask
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
