"""Looks at every file of a category before anything is trained: what is broken, what is worth knowing, a fingerprint.

Each file is read once, and what was seen is remembered by its path, size and times of change.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.base import Category, DatasetError, Sample, composed
from datasets.catalog import OFFICIAL
from datasets.images import DEEP, deep_colour, deep_grey, header, open_image
from datasets.layouts import CONFIG, check_mask, check_value
from datasets.masks import LOSSY, SOFT, read_mask, read_value

VERSION = 2  # raise it when other things are seen in a file: what was remembered is then forgotten
THREADS = min(8, os.cpu_count() or 1)
TURNED = 0x0112  # EXIF tag of the orientation; 1 is upright
Seen = dict[str, Any]


@dataclass(frozen=True)
class Examined:
    """A category's fingerprint (64 hex digits), all problems, and remarks with counts; see `examine`."""

    fingerprint: str
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def examine(category: Category, memory: Path | None = None, *, pictures: bool = True) -> Examined:
    """What the files of a category hold.

    Problems keep it from being used: a file that is no picture, a mask that is missing, empty, of another size than its
    picture, of an unknown pixel value or not to be read without doubt, a marked mask of a good picture, values above
    the white level. Remarks tell what a figure hangs on: pictures and masks turned by EXIF, 16-bit pictures that use
    few levels, blurred and JPEG masks, masks that mark more than half of their picture, and what the scan left out.
    memory: a JSON file that remembers what was seen in each file, so that unchanged ones are not read again; it is read
    and rewritten, and left alone when it cannot be. A file changed within the last two seconds is not remembered: a
    second change could bear the same time.
    pictures: False looks at masks only, where there are no pictures.
    Raises DatasetError for a file that vanished or cannot be read.
    """
    splits = (category.train, category.validation, category.test) if pictures else ()
    samples = [s for split in splits for s in split]
    region = "region" if category.layout == "loco" else "mask"
    files = {s.path: "picture" for s in samples} | {m: region for s in category.test for m in s.masks}
    files |= dict.fromkeys(category.blank, region)
    if category.layout == "loco" and (category.root / CONFIG).exists():
        files[category.root / CONFIG] = "config"
    seen = _see(files, memory)
    problems = [seen[s.path]["error"] for s in samples if "error" in seen[s.path]]
    for sample in category.test:
        problems += _mask_problems(category, sample, seen)
    for path in category.blank:
        if seen[path].get("error") or seen[path].get("marked"):
            problems.append(seen[path].get("error") or f"{path}: marks pixels, but its picture counts as good; move "
                            "both to their kind of defect, or remove the mask")
    for sample in samples:
        if seen[sample.path].get("deep", 0) > sample.white_level:
            problems.append(f"{sample.path}: value {seen[sample.path]['deep']} is above the white level "
                            f"{sample.white_level}; set a higher one")
    masks = [m for s in category.test for m in s.masks]
    return Examined(
        _total(category, files, seen), tuple(dict.fromkeys(problems)),
        (*category.remarks, *_picture_remarks(samples, seen), *_mask_remarks(category, masks, seen)),
    )


def fingerprint(category: Category, memory: Path | None = None) -> str:
    """sha256 over the names and contents of every file of the category; 64 hex digits. memory: see `examine`."""
    return examine(category, memory).fingerprint


def _total(category: Category, files: dict[Path, str], seen: dict[Path, Seen]) -> str:
    total, blank = hashlib.sha256(), set(category.blank)
    for path in files:
        if path not in blank:
            total.update(f"{composed(path.relative_to(category.root).as_posix())}\0{seen[path]['sha256']}\n".encode())
    if any(seen[mask].get("remark") for sample in category.test for mask in sample.masks):
        total.update(b"masks cut at half\n")  # earlier versions read such masks otherwise: their records do not count
    level = category.test[0].white_level
    if level != DEEP:
        total.update(f"white level {level}\n".encode())
    return total.hexdigest()


def _mask_problems(category: Category, sample: Sample, seen: dict[Path, Seen]) -> list[str]:
    picture, out = seen.get(sample.path, {}), []
    for path in sample.masks:
        mask = seen[path]
        try:
            if "error" in mask:
                raise DatasetError(mask["error"])
            if "size" in picture:
                check_mask(sample, path, mask["size"][::-1], picture["size"][::-1], mask["marked"] > 0,
                           picture.get("turned", 1))
            if category.layout == "loco":
                check_value(category, path, mask["value"])
        except DatasetError as error:
            out.append(str(error))
    return out


def _picture_remarks(samples: list[Sample], seen: dict[Path, Seen]) -> list[str]:
    out = []
    turned = [s.path for s in samples if seen[s.path].get("turned", 1) != 1]
    if turned:
        out.append(f"{_count(turned, 'picture')} with an EXIF orientation other than 1, first {_name(turned)}: read as "
                   "stored, as the masks have to be")
    deep = [seen[s.path]["deep"] for s in samples if "deep" in seen[s.path]]
    level = samples[0].white_level if samples else DEEP
    if deep and level == DEEP and max(deep) <= DEEP // 2:
        out.append(f"16-bit pictures use values up to {max(deep)} of {DEEP}: {max(deep) // 257 + 1} grey levels "
                   "remain; a white_level in the dataset's YAML file keeps more")
    return out


def _mask_remarks(category: Category, masks: list[Path], seen: dict[Path, Seen]) -> list[str]:
    out = []
    soft, lossy = ([m for m in masks if seen[m].get("remark") == kind] for kind in (SOFT, LOSSY))
    if soft:
        out.append(f"{_count(soft, 'mask')} with blurred edges or traces of compression, first {_name(soft)}: cut at "
                   "half of the brightest value")
    if lossy:
        out.append(f"{_count(lossy, 'JPEG mask')}, first {_name(lossy)}: cut at half")
    turned = [m for m in masks if seen[m].get("turned", 1) != 1]
    if turned:
        out.append(f"{_count(turned, 'mask')} with an EXIF orientation other than 1, first {_name(turned)}: read as "
                   "stored")
    large = [m for m in masks if 2 * seen[m].get("marked", 0) > np.prod(seen[m].get("size", (0, 0)))]
    if large and category.dataset not in OFFICIAL:
        out.append(f"{_count(large, 'mask')} of {len(masks)} mark more than half of the picture, first {_name(large)}: "
                   "white may be the background")
    return out


def _count(paths: list[Path], what: str) -> str:
    return f"{len(paths)} {what}{'' if len(paths) == 1 else 's'}"


def _name(paths: list[Path]) -> str:
    return "/".join(paths[0].parts[-3:])


# ---------------------------------------------------------------- one file


def look(path: Path, role: str) -> Seen:
    """What one file holds. role: 'picture', 'mask' (MVTec AD), 'region' (LOCO) or 'config'.

    sha256, and for pictures and masks size (width, height), turned (EXIF orientation) and error; for 16-bit pictures
    deep, the largest value; for masks marked, the number of pixels, and remark; for regions the pixel value.
    """
    data = path.read_bytes()
    seen: Seen = {"sha256": hashlib.sha256(data).hexdigest()}
    if role == "config":
        return seen
    try:
        with header(path, data) as image:
            seen["size"] = list(image.size)
            turned = _orientation(image, data)
            if role == "picture" and (image.mode.startswith("I") or _is_deep(image, data)):
                seen["deep"] = _largest(path, data)
        if turned != 1:
            seen["turned"] = turned
        if role == "mask":
            mask = read_mask(path, data)
            seen |= {"marked": int(np.count_nonzero(mask.values))} | ({"remark": mask.remark} if mask.remark else {})
        elif role == "region":
            marked, value = read_value(path, data)
            seen |= {"marked": int(np.count_nonzero(marked)), "value": value}
    except DatasetError as error:
        seen["error"] = str(error)
    return seen


def _orientation(image: Image.Image, data: bytes) -> int:
    # Pillow decodes a whole PNG to look for this: only where the chunk is there
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type" not in data:
        return 1
    try:
        value = image.getexif().get(TURNED, 1)
    except Exception:  # broken metadata turn nothing
        return 1
    return value if value in range(1, 9) else 1


def _is_deep(image: Image.Image, data: bytes) -> bool:
    tiff = tuple(getattr(image, "tag_v2", {}).get(258, ()))
    return (image.format == "PNG" and data[24] == 16) or tiff[:1] == (16,)


def _largest(path: Path, data: bytes) -> int:
    image = open_image(path, data)
    colour = deep_colour(path, data, image)
    return int((deep_grey(path, image) if colour is None else colour).max())


# ---------------------------------------------------------------- memory


def _see(files: dict[Path, str], memory: Path | None) -> dict[Path, Seen]:
    known = _read_memory(memory)
    fresh: dict[str, Any] = {}

    def one(path: Path, role: str) -> Seen:
        try:
            stat = path.stat()
            stamp = [VERSION, role, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            entry = known.get(str(path))
            if _is_whole(entry, stamp):
                return entry[1]
            seen = look(path, role)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
        if max(stamp[3:]) < time.time_ns() - 2_000_000_000:
            fresh[str(path)] = [stamp, seen, _checksum(stamp, seen)]
        return seen

    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(files, pool.map(one, files, files.values()), strict=True))
    if fresh and memory is not None:
        _write_memory(memory, fresh)
    return found


def _is_whole(entry: Any, stamp: list[Any]) -> bool:
    """Whether a remembered entry is of this file as it is now, and as it was written: its checksum holds."""
    if not (isinstance(entry, list) and len(entry) == 3 and entry[0] == stamp):
        return False
    try:
        return entry[2] == _checksum(stamp, entry[1])
    except (TypeError, ValueError, RecursionError):
        return False


def _checksum(stamp: list[Any], seen: Any) -> str:
    return hashlib.sha256(json.dumps([stamp, seen], sort_keys=True).encode()).hexdigest()[:16]


def _read_memory(memory: Path | None) -> dict[str, Any]:
    try:
        data = json.loads(memory.read_text(encoding="utf-8")) if memory else {}
        return data if isinstance(data, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _write_memory(memory: Path, fresh: dict[str, Any]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        # read again: another run may have added its own files meanwhile
        data = _read_memory(memory) | fresh
        handle, name = tempfile.mkstemp(dir=memory.parent, prefix=".", suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump(data, file)
        os.replace(name, memory)
    except OSError:
        return  # only a cache
