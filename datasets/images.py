"""Pictures and masks as arrays, whatever the file's mode, depth or suffix."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.base import DatasetError, Sample

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff"})  # in any case
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # nothing else is tried: other decoders are no one's need and a risk
DEEP = 65535  # white of 16-bit pictures, unless a dataset sets another level
MAX_PIXELS = 89_000_000  # a larger header is taken for a decompression bomb; Pillow's own bound is just above
PNG = b"\x89PNG\r\n\x1a\n"

# Pillow warns of large pictures and of odd tags; the bound above and the decoding itself decide.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def is_picture(path: Path) -> bool:
    """Whether a folder entry is taken for a picture: a known suffix in any case, not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """The decoded file; `data`: its content, where it has been read already. Raises DatasetError naming it."""
    data = read(path) if data is None else data
    with _named(path):
        _check_png(data)
        image = header(path, data)
        image.load()
        return image


def header(path: Path, data: bytes) -> Image.Image:
    """The file opened, its pixels not decoded yet. Raises DatasetError naming it."""
    with _named(path):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
        if not width * height:
            raise ValueError("no pixels")
        pages = getattr(image, "n_frames", 1) if image.format in ("TIFF", "PNG") else 1
        if pages > 1:
            raise DatasetError(f"{path}: holds {pages} pages or frames; save the one that counts as a file of its own")
        return image


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever a decoder raises, as a DatasetError that names the file."""
    try:
        yield
    except DatasetError:
        raise
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


def decode(path: Path, white_level: int = DEEP) -> np.ndarray:
    """The picture as uint8 [H, W, 3].

    Grey is repeated over three channels; a palette is looked up; alpha is dropped, not blended, since inspection
    pictures carry no meaning in it; an EXIF orientation is left as stored, because masks are. 16 bit is scaled so that
    `white_level` becomes 255: 65535 divides by 257, 4095 suits a camera of 12 bits.
    Raises DatasetError naming the file when it is absent, no picture, damaged, absurdly large, of floats, of several
    pages, or brighter than the white level.
    """
    data = read(path)
    image = open_image(path, data)
    deep = deep_colour(path, data, image) if white_level != DEEP else None
    if deep is not None:
        return _scaled(path, deep, white_level)
    return _rgb(path, image, white_level)


def read(path: Path) -> bytes:
    """The file's content; DatasetError naming it when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error


def _rgb(path: Path, image: Image.Image, white_level: int = DEEP) -> np.ndarray:
    if image.mode.startswith("I"):
        return np.repeat(_scaled(path, deep_grey(path, image), white_level)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DatasetError(f"{path}: holds floats, whose range nobody states; convert it to 8 or 16 bit")
    try:
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"), dtype=np.uint8)
    except Exception as error:
        raise DatasetError(f"{path}: mode {image.mode} cannot be read as RGB ({error}); convert it") from error


def _scaled(path: Path, values: np.ndarray, white_level: int) -> np.ndarray:
    if values.max() > white_level:
        raise DatasetError(f"{path}: value {values.max()} is above the white level {white_level}; set a higher one")
    return np.rint(values * (255 / white_level)).astype(np.uint8) if white_level != DEEP else (
        np.rint(values / 257).astype(np.uint8))


def deep_grey(path: Path, image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bit as int64 [H, W], 0 to 65535."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > DEEP:
        raise DatasetError(f"{path}: values from {values.min()} to {values.max()} do not fit 16 bit; convert it")
    return values


def deep_colour(path: Path, data: bytes, image: Image.Image) -> np.ndarray | None:
    """Colour of 16 bit as uint16 [H, W, 3], of which Pillow keeps the upper byte; None for all other files."""
    tiff = getattr(image, "tag_v2", {}).get(258, ())
    if not (data.startswith(PNG) and data[24] == 16 and data[25] in (2, 4, 6)) and 16 not in tuple(tiff)[:1]:
        return None
    if image.mode.startswith("I"):
        return None
    import cv2

    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DatasetError(f"{path}: 16-bit colour that cannot be read; convert it to an 8- or 16-bit RGB PNG")
    if values.ndim == 2 or values.shape[2] < 3:  # grey with alpha
        values = np.repeat(values.reshape(*values.shape[:2], -1)[..., :1], 3, axis=2)
    return values[..., 2::-1]


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
        sample = self.samples[index]
        return decode(sample.path, sample.white_level)
