"""Pictures and masks as arrays, whatever the file's mode, depth or suffix."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.base import DatasetError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 200_000_000  # a larger header is taken for a decompression bomb


def is_picture(path: Path) -> bool:
    """Whether a folder entry is taken for a picture: a known suffix in any case, not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the bound below decides
            image = Image.open(path)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DatasetError(f"{path}: {width} x {height} pixels are more than {MAX_PIXELS}; refused")
            image.load()
            return image
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except DatasetError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: not a picture that can be read ({error}); replace or remove it") from error
    except Exception as error:  # decoders raise many kinds for damaged files
        raise DatasetError(f"{path}: damaged or cut short ({error}); replace or remove it") from error


def decode(path: Path) -> np.ndarray:
    """The picture as uint8 [H, W, 3].

    Grey is repeated over three channels; 16 bit is divided by 257; a palette is looked up; alpha is dropped, not
    blended, since inspection pictures carry no meaning in it; an EXIF orientation is left as stored, because masks are.
    Raises DatasetError naming the file when it is absent, no picture, damaged or absurdly large.
    """
    image = _open(path)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        array = np.asarray(image).astype(np.float64)
        if image.mode == "F" and not np.isfinite(array).all():
            raise DatasetError(f"{path}: holds values that are not finite")
        top = 65535.0 if array.size and array.max() > 255 else 255.0
        grey = np.rint(array.clip(0, top) * (255.0 / top)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def decode_mask(path: Path) -> np.ndarray:
    """Mask values as stored, uint8 [H, W]; a colour mask gives the largest of its channels, 16 bit is scaled."""
    image = _open(path)
    if image.mode in ("1", "L", "P"):
        # palette indices are the values: LOCO stores its pixel values so when a tool made the file smaller
        return np.array(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
    return decode(path).max(axis=2) if image.mode not in ("LA", "RGBA") else np.array(
        image.convert("RGBA"), dtype=np.uint8)[..., :3].max(axis=2)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header; (0, 0) when the file cannot be read, which decoding reports later."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:
        return 0, 0
