"""What a mask marks, in every mode that drawing programs and converters make of the same two squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from datasets.base import DatasetError
from datasets.masks import decode_mask, read_mask, read_value

MARKED = np.zeros((40, 48), bool)
MARKED[9:23, 5:17] = True
MARKED[30:36, 30:44] = True
WHITE = (MARKED * 255).astype(np.uint8)
GREY = Image.fromarray(WHITE)


def palette(colours: list[tuple[int, ...]], marked: int, **options: object) -> Image.Image:
    """Two colours by index; `marked` is the index of the defect."""
    image = Image.fromarray(np.where(MARKED, marked, 1 - marked).astype(np.uint8), "P")
    image.putpalette([v for colour in colours for v in colour])
    return image


def alpha(colour: tuple[int, ...], opacity: np.ndarray) -> Image.Image:
    pixels = np.empty((*MARKED.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, opacity
    return Image.fromarray(pixels)


def paint(colour: tuple[int, ...], background: tuple[int, ...] = (0, 0, 0)) -> Image.Image:
    return Image.fromarray(np.where(MARKED[..., None], colour, background).astype(np.uint8))


def grey_alpha(values: np.ndarray, opacity: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(values), Image.fromarray(opacity)])


def with_values(values: np.ndarray, more: dict[int, object]) -> Image.Image:
    values = values.copy()
    for value, place in more.items():
        values[place] = value
    return Image.fromarray(values)


FULL = np.full(MARKED.shape, 255, np.uint8)
READ = {
    "grey": (GREY, ".png", {}),
    "ones": (Image.fromarray(MARKED.astype(np.uint8)), ".png", {}),
    "one bit": (Image.fromarray(MARKED), ".png", {}),
    "one bit TIFF, white is 0": (Image.fromarray(MARKED), ".tif", {"compression": "group4"}),
    "BMP": (GREY, ".bmp", {}),
    "colour": (paint((255, 0, 0)), ".png", {}),
    "dark colour": (paint((0, 0, 40)), ".bmp", {}),
    "palette, defect first": (palette([(255, 0, 0), (0, 0, 0)], 0), ".png", {}),
    "palette, grey, defect first": (palette([(255, 255, 255), (0, 0, 0)], 0), ".png", {}),
    "palette, background first": (palette([(0, 0, 0), (90, 20, 0)], 1), ".png", {}),
    "palette, transparent background": (palette([(255, 255, 255), (255, 255, 255)], 1), ".png", {"transparency": 0}),
    "palette, half of it black": (palette([(0, 0, 0), (0, 0, 9)], 1), ".bmp", {}),
    "transparent white": (alpha((255, 255, 255), WHITE), ".png", {}),
    "transparent red": (alpha((255, 0, 0), WHITE), ".tif", {}),
    "opaque RGBA": (GREY.convert("RGBA"), ".png", {}),
    "grey with alpha": (grey_alpha(FULL, WHITE), ".png", {}),
    "opaque grey with alpha": (grey_alpha(WHITE, FULL), ".png", {}),
    "grey with a transparent value": (Image.fromarray(np.where(MARKED, 255, 90).astype(np.uint8)), ".png",
                                      {"transparency": 90}),
    "16 bit": (Image.fromarray(WHITE.astype(np.uint16) * 257), ".png", {}),
    "16 bit of few levels": (Image.fromarray(MARKED.astype(np.uint16)), ".png", {}),
    "12 bit": (Image.fromarray(MARKED.astype(np.uint16) * 4095), ".tif", {}),
    "floats 0 and 1": (Image.fromarray(MARKED.astype(np.float32)), ".tif", {}),
    "CMYK": (paint((255, 0, 0)).convert("CMYK"), ".tif", {}),
    "JPEG": (GREY, ".jpg", {"quality": 75}),
    "JPEG, upper case": (GREY, ".JPEG", {"quality": 95}),
    "JPEG in TIFF": (GREY.convert("RGB"), ".tif", {"compression": "jpeg"}),
    "253 to 255": (Image.fromarray(MARKED * (253 + np.indices(MARKED.shape)[1] % 3).astype(np.uint8)), ".png", {}),
}


@pytest.mark.parametrize("case", READ)
def test_the_same_squares_in_every_mode(tmp_path: Path, case: str) -> None:
    image, suffix, options = READ[case]
    image.save(tmp_path / f"a{suffix}", **options)
    assert np.array_equal(decode_mask(tmp_path / f"a{suffix}") > 0, MARKED)


def test_16_bit_colour_of_small_values(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.repeat(MARKED[..., None].astype(np.uint16) * 3, 3, 2), photometric="rgb")
    assert np.array_equal(decode_mask(tmp_path / "a.tif") > 0, MARKED)  # Pillow would keep the upper byte, which is 0


def test_classes_are_all_marked(tmp_path: Path) -> None:
    classes = np.zeros((40, 60), np.uint8)
    for i in range(5):
        classes[4:12, 4 + 11 * i : 12 + 11 * i] = i + 1
    two = (classes == 1) * np.uint8(100) + (classes == 2) * np.uint8(255)
    thin = (classes == 2) * np.uint8(9)
    thin[30, 5:50] = 1  # a scratch of the first class, one pixel wide
    for name, values in {
        "numbers": classes, "greys": classes * np.uint8(50), "two greys": two, "numbers, thin": thin
    }.items():
        Image.fromarray(values).save(tmp_path / "a.png")
        mask = read_mask(tmp_path / "a.png")
        assert mask.remark == "" and np.array_equal(mask.values > 0, values > 0), name


SOFT = {
    "bilinear": Image.fromarray(WHITE).resize((96, 80), Image.Resampling.BILINEAR),
    "antialiased alpha": alpha((255, 255, 255), np.asarray(GREY.filter(ImageFilter.GaussianBlur(1)))),
    "wide blur": Image.fromarray(gaussian_filter(WHITE, 2.5)),
}


@pytest.mark.parametrize("case", SOFT)
def test_blurred_edges_are_cut_at_half_with_a_remark(tmp_path: Path, case: str) -> None:
    SOFT[case].save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png")
    wanted = np.kron(MARKED, np.ones((2, 2), bool)) if case == "bilinear" else MARKED
    away = np.abs(mask.values.astype(int) - wanted * 255) > 0  # corners are rounded
    assert mask.remark == "soft" and away.mean() < 0.02 and set(np.unique(mask.values)) == {0, 255}


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_traces_of_jpeg_in_a_png_are_no_defect(tmp_path: Path, quality: int) -> None:
    GREY.save(tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as blurred:
        blurred.save(tmp_path / "a.png")
    assert (np.array(Image.open(tmp_path / "a.png")) > 0).sum() > MARKED.sum()  # the file itself holds ripples
    mask = read_mask(tmp_path / "a.png")
    assert np.array_equal(mask.values > 0, MARKED) and mask.remark in ("soft", "")
    assert read_mask(tmp_path / "a.jpg").remark == "JPEG"


REFUSED = {
    "white background": (paint((255, 0, 0), (255, 255, 255)), ".png", "no pixel is black or transparent"),
    "white background, JPEG": (paint((255, 0, 0), (255, 255, 255)), ".jpg", "no pixel is black or transparent"),
    "palette on white": (palette([(255, 255, 255), (0, 0, 255)], 1), ".png", "no pixel is black or transparent"),
    "classes from 1": (Image.fromarray(MARKED.astype(np.uint8) + 1), ".png", "no pixel is black or transparent"),
    "a class and 'ignore'": (with_values(WHITE, {1: np.s_[0:4, 40:44]}), ".png", "values 1 beside 255"),
    "probabilities": (Image.fromarray(gaussian_filter(WHITE.astype(np.float32), 2) / 255), ".tif", "floats"),
    "dark JPEG": (Image.fromarray(MARKED.astype(np.uint8) * 9), ".jpg", "brightest value is"),
    "a faint scratch far away": (with_values(WHITE, {90: np.s_[2, 20:46]}), ".png", "values 90 beside 255"),
    "faint classes far away": (with_values(WHITE, {i: np.s_[i % 5 * 5 :, 36 + i % 3] for i in range(40, 60)}), ".png",
                               "beside 255"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused(tmp_path: Path, case: str) -> None:
    image, suffix, words = REFUSED[case]
    image.save(tmp_path / f"a{suffix}", quality=95)
    with pytest.raises(DatasetError, match=words) as caught:
        read_mask(tmp_path / f"a{suffix}")
    assert str(tmp_path / f"a{suffix}") in str(caught.value)


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(20, 250, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="no pixel is black"):
        read_mask(tmp_path / "a.png")


# ---------------------------------------------------------------- LOCO


@pytest.mark.parametrize(("image", "suffix"), [
    (Image.fromarray(MARKED * np.uint8(252)), ".png"), (Image.fromarray(MARKED * np.uint8(252)), ".bmp"),
    (palette([(252, 252, 252), (0, 0, 0)], 0), ".png"), (alpha((252, 252, 252), WHITE), ".png"),
    (Image.fromarray(MARKED * np.uint16(252)), ".png"), (Image.fromarray(MARKED * np.uint16(252 * 257)), ".tif"),
    (Image.fromarray(MARKED * np.uint8(252)).convert("RGB"), ".png"),
    (Image.fromarray(MARKED * np.float32(252)), ".tif"), (grey_alpha(MARKED * np.uint8(252), FULL), ".png"),
])
def test_a_region_keeps_its_value(tmp_path: Path, image: Image.Image, suffix: str) -> None:
    image.save(tmp_path / f"a{suffix}")
    marked, value = read_value(tmp_path / f"a{suffix}")
    assert marked.dtype == bool and np.array_equal(marked, MARKED) and value == 252


@pytest.mark.parametrize(("image", "suffix", "words"), [
    (Image.fromarray(MARKED * np.uint8(252)), ".jpg", "a JPEG changes pixel values"),
    (Image.fromarray(MARKED * np.uint8(252)).convert("RGB"), ".tif", "a JPEG changes pixel values"),
    (palette([(0, 0, 0), (252, 0, 0)], 1), ".png", "in colours"),
    (paint((252, 252, 0)), ".png", "in colours"),
    (Image.fromarray(MARKED * np.uint16(1000)), ".png", "16-bit values up to 1000"),
    (with_values(MARKED * np.uint8(252), {255: np.s_[0, 0]}), ".png", r"values \[252, 255\]"),
    (Image.fromarray(MARKED * np.float32(0.5)), ".tif", "floats"),
])
def test_a_region_whose_value_is_not_sure_is_refused(
    tmp_path: Path, image: Image.Image, suffix: str, words: str
) -> None:
    image.save(tmp_path / f"a{suffix}", **({"compression": "jpeg"} if "JPEG" in words and suffix == ".tif" else {}))
    with pytest.raises(DatasetError, match=words):
        read_value(tmp_path / f"a{suffix}")
