"""What a mask file marks, whatever its mode, depth or suffix: by its colours, never by palette numbers.

Black and transparent are background. Where a file does not say which of its values are a defect, that is an error
that names it; where it says so less than plainly (blurred edges, a JPEG), it is read and the record gets a note.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.base import DatasetError
from datasets.images import deep_colour, deep_grey, open_image, read

LABELS = 32  # a mask whose values are all this small holds numbers of classes
REACH = 8  # pixels from a defect within which faint values are its blurred edge
SOFT, LOSSY = "soft", "JPEG"


class Mask(NamedTuple):
    """values: uint8 [H, W], 0 is background. remark: '', 'soft' (cut at half of the brightest) or 'JPEG' (likewise)."""

    values: np.ndarray
    remark: str = ""


def decode_mask(path: Path) -> np.ndarray:
    """Where a mask marks its picture: uint8 [H, W], 0 is background. Raises DatasetError as `read_mask` does."""
    return read_mask(path).values


def read_mask(path: Path, data: bytes | None = None) -> Mask:
    """A mask of which every marked pixel is a defect (MVTec AD and most others).

    Marked is what is neither black nor transparent: 255, 1, numbers of classes, any colour. A JPEG and a mask with
    blurred edges are cut at half of their brightest value.
    data: the file's content, where it has been read. Raises DatasetError naming the file where no pixel is background
    although values or colours differ, where faint values may be another class or traces of compression, for floats
    between whole numbers, for several pages, and as `decode` does.
    """
    values, coloured, lossy = _values(path, data)
    top = int(values.max())
    if lossy:
        if 0 < top < 128:
            raise DatasetError(f"{path}: a JPEG whose brightest value is {top}, blurred by its compression; save the "
                               "mask as PNG")
        marked = values > 127
        if marked.all() and coloured:
            raise _no_background(path)
        return Mask(_as_bytes(marked), LOSSY if top else "")
    if values.min() > 0 and (coloured or values.min() != top):
        raise _no_background(path)
    held = np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)
    faint = held[(held > 0) & (held < top / 2)]
    if top <= LABELS or not len(faint) or _are_labels(values, faint, top, len(held)):
        return Mask(values if values.dtype == np.uint8 else _as_bytes(values > 0))
    if not _are_edges(values, faint, top):
        raise DatasetError(
            f"{path}: values {', '.join(map(str, faint[:5]))} beside {top}: numbers of classes, or traces of blur or "
            "compression? Save the defect as 255 and everything else as 0"
        )
    return Mask(_as_bytes(values >= top / 2), SOFT)


def read_value(path: Path, data: bytes | None = None) -> tuple[np.ndarray, int]:
    """A LOCO mask file: bool [H, W], and the pixel value that says which defect it marks; 0 where it marks nothing.

    Raises DatasetError naming the file for a JPEG, whose values are not those that were saved, for colours, for more
    than one value besides 0, and as `read_mask` does.
    """
    values, coloured, lossy = _values(path, data)
    if lossy:
        raise DatasetError(f"{path}: a JPEG changes pixel values, and here they say which defect it is; save it "
                           "as PNG")
    if coloured:
        raise DatasetError(f"{path}: a mask in colours, but the grey value says which defect it is; save it "
                           "as grey PNG")
    if values.max() > 255:
        if (values % 257).any():
            raise DatasetError(f"{path}: 16-bit values up to {values.max()} that are no 8-bit ones; save it "
                               "as grey PNG")
        values = values // 257
    held = np.unique(values[values > 0])
    if len(held) > 1:
        raise DatasetError(f"{path}: holds the values {held.tolist()}; a LOCO mask file has 0 and one other value")
    return values > 0, int(held[0]) if len(held) else 0


def _as_bytes(marked: np.ndarray) -> np.ndarray:
    return marked.astype(np.uint8) * np.uint8(255)


def _no_background(path: Path) -> DatasetError:
    return DatasetError(f"{path}: no pixel is black or transparent, so which of the colours is background cannot be "
                        "told; save the defect as 255 and everything else as 0")


def _values(path: Path, data: bytes | None) -> tuple[np.ndarray, bool, bool]:
    """Whole numbers [H, W] (the largest channel, 0 where transparent); whether it has colours; whether it is lossy."""
    data = read(path) if data is None else data
    image = open_image(path, data)
    lossy = image.format == "JPEG" or getattr(image, "tag_v2", {}).get(259) in (6, 7)  # JPEG within a TIFF
    plain = "transparency" not in image.info
    if image.mode == "L" and plain:
        return np.array(image), False, lossy
    if image.mode == "1" and plain:
        return _as_bytes(np.array(image)), False, lossy
    if image.mode.startswith("I"):
        return deep_grey(path, image), False, lossy
    if image.mode == "F":
        return _whole(path, np.asarray(image)), False, lossy
    alpha = np.array(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
    colours = deep_colour(path, data, image)
    if colours is None:
        try:
            colours = np.array((image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB"))
        except Exception as error:
            raise DatasetError(f"{path}: mode {image.mode} cannot be read as RGB ({error}); convert it") from error
    values = colours.max(axis=2)
    if alpha is not None:
        colours = colours * (alpha > 0)[..., None]
        values = np.rint(values * (alpha / 255)).astype(values.dtype)
    spread = colours.max(axis=2).astype(np.int64) - colours.min(axis=2)
    return values, bool((spread > (32 if lossy else 0)).any()), lossy


def _whole(path: Path, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or values.min() < 0 or values.max() > 65535:
        raise DatasetError(f"{path}: holds floats that are not whole numbers from 0 on; save the mask as 8-bit PNG")
    return values.astype(np.int64)


def _are_labels(values: np.ndarray, faint: np.ndarray, top: int, count: int) -> bool:
    """Whether faint values are classes: few, not near 0, and each fills at least a square of 3 x 3 somewhere."""
    from scipy.ndimage import minimum_filter

    return count <= 16 and bool(faint[0] > top / 8) and all(
        minimum_filter((values == value).view(np.uint8), 3).any() for value in faint
    )


def _are_edges(values: np.ndarray, faint: np.ndarray, top: int) -> bool:
    """Whether faint values are the blurred edge of brighter ones, or the ripples of a compression around them."""
    from scipy.ndimage import maximum_filter, minimum_filter

    near = maximum_filter((values >= top / 2).view(np.uint8), 2 * REACH + 1).view(bool)
    apart = np.where(near, 0, values)
    if (apart >= top / 4).any() or minimum_filter((apart >= top / 8).view(np.uint8), 3).any():
        return False
    if len(faint) > 2:
        return True
    return not any(minimum_filter((values == value).view(np.uint8), 3).any() for value in faint)


