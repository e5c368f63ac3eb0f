"""Pictures and masks of every mode and suffix, and files that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets.base import DatasetError
from datasets.images import MAX_PIXELS, decode, is_picture, picture_size
from datasets.masks import decode_mask

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
GREY3 = np.repeat(GREY[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".TIFF"])
def test_rgb_and_grey_in_every_lossless_suffix(tmp_path: Path, suffix: str) -> None:
    for array, expected in ((RGB, RGB), (GREY, GREY3)):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(array).save(path)
        out = decode(path)
        assert out.dtype == np.uint8 and out.flags.writeable and np.array_equal(out, expected)
        assert is_picture(path) and picture_size(path) == (5, 7)


def test_jpeg_is_close_in_rgb_and_grey(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
    for name, image in (("a.jpg", Image.fromarray(smooth)), ("b.JPEG", Image.fromarray(smooth).convert("RGB"))):
        image.save(tmp_path / name, quality=95)
        out = decode(tmp_path / name)
        assert out.shape == (48, 64, 3) and np.abs(out.astype(int) - smooth[..., None]).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_blended(tmp_path: Path, mode: str) -> None:
    base = Image.fromarray(RGB if mode == "RGBA" else GREY)
    base.putalpha(Image.fromarray(RNG.integers(0, 256, (7, 5), dtype=np.uint8)))
    assert base.mode == mode
    base.save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), RGB if mode == "RGBA" else GREY3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_divided_by_257_whatever_the_picture_holds(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257], [255, 25700, 65534, 65535]], np.uint16)
    for part in (values, values[:, :1]):  # a dark picture is not stretched
        Image.fromarray(part).save(tmp_path / f"a{suffix}")
        expected = np.rint(part / 257).astype(np.uint8)
        assert np.array_equal(decode(tmp_path / f"a{suffix}"), np.repeat(expected[..., None], 3, axis=2))


def _png(path: Path, width: int, height: int, depth: int, colour: int, raw: bytes) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw))
                     + chunk(b"IEND", b""))


def test_16_bit_colour(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)
    _png(tmp_path / "a.png", 5, 7, 16, 2, rows)
    assert np.array_equal(decode(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_is_looked_up(tmp_path: Path, transparent: bool) -> None:
    image = Image.fromarray((GREY % 4).astype(np.uint8), "P")
    colours = np.array([[255, 0, 0], [0, 200, 0], [9, 8, 7], [1, 2, 250]], np.uint8)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "a.png", **({"transparency": 1} if transparent else {}))
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "P"
    assert np.array_equal(decode(tmp_path / "a.png"), colours[GREY % 4])


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png")[..., 0], (GREY > 127) * 255)
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    flat.save(tmp_path / "a.tif")
    assert np.array_equal(decode(tmp_path / "a.tif"), np.broadcast_to(np.uint8([255, 0, 0]), (16, 16, 3)))
    flat.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decode(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 4


def test_exif_orientation_is_left_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize(("array", "words"), [
    (np.float32([[0.5, 1.0]]), "floats"), (np.int32([[0, 70000]]), "70000"), (np.int32([[-1, 5]]), "-1"),
])
def test_values_of_no_known_range_are_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    Image.fromarray(array).save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match=words) as caught:
        decode(tmp_path / "a.tif")
    assert str(tmp_path / "a.tif") in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_a_file_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError) as caught:
        decode(path)
    assert str(path) in str(caught.value)


def test_one_wrong_byte_among_the_pixels_of_a_png_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, compress_level=0)  # stored as they are: the decoder itself would accept any byte
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="wrong checksum"):
        decode(path)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "no PNG"), (b"hello\n", "no PNG"), (b"\x89PNG\r\n\x1a\n", "damaged"),
    (b"GIF89a" + bytes(100), "no PNG"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no PNG"),
])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (decode, decode_mask):
        with pytest.raises(DatasetError, match=words):
            read(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png") == (0, 0)


def test_absent_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        decode(tmp_path / "a.png")
    with pytest.raises(DatasetError):
        decode(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (MAX_PIXELS // 10 + 1, 10), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    _png(tmp_path / "a.png", width, height, 8, 2, bytes(1000))
    with pytest.raises(DatasetError, match="too large"):
        decode(tmp_path / "a.png")


def test_a_white_level_keeps_the_levels_of_fewer_bits(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert len(np.unique(decode(tmp_path / "a.png"))) == 17
    out = decode(tmp_path / "a.png", 4095)
    assert len(np.unique(out)) == 256 and np.array_equal(out[..., 0], np.rint(values / 4095 * 255))
    with pytest.raises(DatasetError, match="value 4095 is above the white level 4000"):
        decode(tmp_path / "a.png", 4000)
    assert np.array_equal(decode(_grey8(tmp_path / "b.png"), 4095), GREY3)  # 8 bit has no other white


def _grey8(path: Path) -> Path:
    Image.fromarray(GREY).save(path)
    return path


def test_a_white_level_in_16_bit_colour(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 16
    _png(tmp_path / "a.png", 5, 7, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep))
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    for name in ("a.png", "a.tif"):
        assert np.array_equal(decode(tmp_path / name, 4080), RGB)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    first = Image.fromarray(GREY)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[first, first])
    for read in (decode, decode_mask):
        with pytest.raises(DatasetError, match="holds 3 pages"):
            read(tmp_path / "a.tif")
