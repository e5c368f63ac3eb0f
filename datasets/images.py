"""Pictures and masks as arrays, whatever the file's mode, depth or suffix."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.base import DatasetError, Sample

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # nothing else is tried: other decoders are no one's need and a risk
MAX_PIXELS = 89_000_000  # a larger header is taken for a decompression bomb; Pillow's own bound is just above
PNG = b"\x89PNG\r\n\x1a\n"

# Pillow warns of large pictures and of odd tags; the bound above and the decoding itself decide.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def is_picture(path: Path) -> bool:
    """Whether a folder entry is taken for a picture: a known suffix in any case, not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _open(path: Path) -> Image.Image:
    try:
        data = path.read_bytes()
        _check_png(data)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
        if not width * height:
            raise ValueError("no pixels")
        image.load()
        return image
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (PermissionError, IsADirectoryError) as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path}: refused as too large ({error})") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path}: no PNG, JPEG, BMP or TIFF picture; replace or remove it") from error
    except Exception as error:  # decoders raise many kinds for damaged files
        raise DatasetError(f"{path}: damaged or cut short ({error}); replace or remove it") from error


def _check_png(data: bytes) -> None:
    """The checksum of each chunk of a PNG; Pillow passes over those of the pixels. Other forms have none."""
    at, kind = len(PNG), b"" if data.startswith(PNG) else b"IEND"
    while kind != b"IEND":
        head = data[at : at + 8]
        end = at + 8 + int.from_bytes(head[:4], "big")
        if len(head) < 8 or end + 4 > len(data):
            raise ValueError("truncated")
        kind = head[4:]
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"wrong checksum in chunk {kind!r}")
        at = end + 4


def decode(path: Path) -> np.ndarray:
    """The picture as uint8 [H, W, 3].

    Grey is repeated over three channels; 16 bit is divided by 257; a palette is looked up; alpha is dropped, not
    blended, since inspection pictures carry no meaning in it; an EXIF orientation is left as stored, because masks are.
    Raises DatasetError naming the file when it is absent, no picture, damaged, absurdly large or of floats.
    """
    return _rgb(path, _open(path))


def _rgb(path: Path, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        grey = np.rint(_deep(path, image) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise DatasetError(f"{path}: holds floats, whose range nobody states; convert it to 8 or 16 bit")
    try:
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"), dtype=np.uint8)
    except Exception as error:
        raise DatasetError(f"{path}: mode {image.mode} cannot be read as RGB ({error}); convert it") from error


def _deep(path: Path, image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bit as int64 [H, W], 0 to 65535."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DatasetError(f"{path}: values from {values.min()} to {values.max()} do not fit 16 bit; convert it")
    return values


def decode_mask(path: Path) -> np.ndarray:
    """Mask values as stored, uint8 [H, W].

    16 bit above 255 is divided by 257, a colour mask gives the largest of its channels, and a JPEG, whose values are
    blurred, is cut at half. Of a palette the colours count where they are grey (a tool made a grey file smaller), else
    the indices. Raises DatasetError as `decode` does.
    """
    image = _open(path)
    if image.mode == "L" and image.format != "JPEG":
        return np.array(image)
    if image.mode == "P":
        indices, colours = np.array(image), _rgb(path, image)
        grey = (colours == colours[..., :1]).all()
        return colours[..., 0].copy() if grey else indices
    if image.mode.startswith("I"):
        values = _deep(path, image)
        return (values if values.max() <= 255 else np.rint(values / 257)).astype(np.uint8)
    values = _rgb(path, image).max(axis=2)
    return np.where(values > 127, 255, 0).astype(np.uint8) if image.format == "JPEG" else values


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header; (0, 0) when the file cannot be read, which decoding reports later."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:
        return 0, 0


class Pictures(Sequence[np.ndarray]):
    """The pictures of some samples as uint8 [H, W, 3], decoded on access; satisfies `models.base.Images`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return type(self)(self.samples[index])
        return decode(self.samples[index].path)
