"""Reads a category's folder, in the layout of MVTec AD or of MVTec LOCO AD, and its ground truth."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Category, Channel, DatasetError, Defect, Sample
from datasets.images import decode_mask, is_picture

CONFIG = "defects_config.json"
FOREIGN = frozenset({".webp", ".gif", ".jp2", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".tga", ".dng", ".raw"})
DEFECT_KEYS = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")


def folders(path: Path) -> list[Path]:
    """Visible folders in name order. Raises DatasetError when the folder cannot be listed."""
    return [p for p in _entries(path) if not p.name.startswith(".") and p.name != "__MACOSX" and p.is_dir()]


def pictures(path: Path) -> list[Path]:
    """Pictures directly in a folder, in name order; hidden files, notes and the like are passed over.

    A picture of a kind that is not read is an error: leaving it out would change the counts without a word.
    """
    if not path.is_dir():
        return []
    entries = _entries(path)
    for entry in entries:
        if entry.suffix.lower() in FOREIGN and not entry.name.startswith("."):
            raise DatasetError(f"{entry}: pictures of this kind are not read; convert them to PNG")
    return [p for p in entries if is_picture(p) and p.is_file()]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be listed ({error.strerror})") from error


def is_category(path: Path) -> bool:
    """Whether a folder looks like a category: it has train/good or test."""
    return (path / "train" / "good").is_dir() or (path / "test").is_dir()


def layout_of(root: Path) -> str:
    """'loco' when there is a defects_config.json or a folder of mask files per picture, else 'mvtec'."""
    if (root / CONFIG).exists():
        return "loco"
    truth = root / "ground_truth"
    if truth.is_dir():
        for kind in folders(truth):
            if folders(kind):
                return "loco"
    return "mvtec"


def scan(dataset: str, name: str, root: Path, notes: tuple[str, ...] = ()) -> Category:
    """Read the folder tree of one category (no picture is opened).

    Raises DatasetError when there are no training or no test pictures.
    """
    layout = layout_of(root)
    train = tuple(Sample(p, "good") for p in pictures(root / "train" / "good"))
    if not train:
        raise DatasetError(f"{root / 'train' / 'good'}: no training pictures there; a category needs train/good/*.png")
    validation = tuple(Sample(p, "good") for p in pictures(root / "validation" / "good"))
    test = []
    kinds = folders(root / "test") if (root / "test").is_dir() else []
    for kind in kinds:
        for path in pictures(kind):
            masks = () if kind.name == "good" else _masks(root, layout, kind.name, path)
            test.append(Sample(path, kind.name, masks))
    if not test:
        raise DatasetError(f"{root / 'test'}: no test pictures there; a category needs test/good and test/<defect>")
    names: dict[tuple[str, str], Path] = {}
    for sample in test:
        other = names.setdefault((sample.kind, sample.path.stem), sample.path)
        if other != sample.path:
            raise DatasetError(f"{other} and {sample.path.name} share one name without suffix; rename one")
    return Category(
        dataset=dataset, name=name, root=root, layout=layout, train=train, validation=validation, test=tuple(test),
        defects=_defects(root) if layout == "loco" else (), notes=notes,
    )


def _masks(root: Path, layout: str, kind: str, path: Path) -> tuple[Path, ...]:
    folder = root / "ground_truth" / kind
    if layout == "loco":
        return tuple(pictures(folder / path.stem))
    for stem in (f"{path.stem}_mask", path.stem):
        for suffix in dict.fromkeys((".png", path.suffix, ".PNG", ".bmp", ".tif", ".tiff", ".jpg")):
            candidate = folder / f"{stem}{suffix}"
            if candidate.is_file():
                return (candidate,)
    return ()


def _defects(root: Path) -> tuple[Defect, ...]:
    path = root / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing; a LOCO category needs it for its saturation thresholds") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, list):
        raise DatasetError(f"{path}: must be a list of defects, each with {', '.join(DEFECT_KEYS)}")
    defects = tuple(_defect(path, i, entry) for i, entry in enumerate(raw))
    values = [d.pixel_value for d in defects]
    if len(set(values)) != len(values):
        raise DatasetError(f"{path}: a pixel value is used twice: {sorted(values)}")
    return defects


def _defect(path: Path, index: int, entry: Any) -> Defect:
    if not isinstance(entry, dict) or not set(DEFECT_KEYS) <= set(entry):
        raise DatasetError(f"{path}: entry {index} is broken; each needs {', '.join(DEFECT_KEYS)}")
    name, value, threshold, relative = (entry[key] for key in DEFECT_KEYS)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, threshold))
    if not (isinstance(name, str) and isinstance(relative, bool) and numbers and value in range(1, 256)
            and 0 < threshold <= (1 if relative else 1e18)):
        raise DatasetError(
            f"{path}: entry {index} is broken: {name!r} has pixel value {value!r}, saturation threshold {threshold!r} "
            f"and relative_saturation {relative!r}; values are 1..255, a relative threshold lies in (0, 1], an "
            "absolute one is a number of pixels, and relative_saturation is true or false"
        )
    return Defect(name, int(value), float(threshold), relative)


def truth(category: Category, sample: Sample, size: tuple[int, int]) -> np.ndarray | tuple[Channel, ...]:
    """Ground truth of an anomalous test picture of `size` (height, width).

    MVTec layout: uint8 [H, W] as stored (every value above 0 is anomalous). LOCO layout: one Channel per mask file.
    Raises DatasetError naming the files when a mask is missing, empty, of another size or holds an unknown value.
    """
    if not sample.masks:
        where = category.root / "ground_truth" / sample.kind
        wanted = f"{sample.path.stem}/000.png" if category.layout == "loco" else f"{sample.path.stem}_mask.png"
        raise DatasetError(f"{sample.path}: its mask {where / wanted} is missing")
    if category.layout == "loco":
        return tuple(_channel(category, sample, path, size) for path in sample.masks)
    return _checked(sample, sample.masks[0], size)


def _checked(sample: Sample, path: Path, size: tuple[int, int]) -> np.ndarray:
    mask = decode_mask(path)
    if mask.shape != tuple(size):
        raise DatasetError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, its picture {sample.path.name} is "
            f"{size[1]}x{size[0]}"
        )
    if not mask.any():
        raise DatasetError(f"{path}: the mask is empty, but its picture {sample.name} counts as anomalous")
    return mask


def _channel(category: Category, sample: Sample, path: Path, size: tuple[int, int]) -> Channel:
    mask = _checked(sample, path, size)
    values = np.unique(mask[mask > 0])
    if len(values) != 1:
        raise DatasetError(f"{path}: holds the values {values.tolist()}; a LOCO mask file has 0 and one other value")
    for defect in category.defects:
        if defect.pixel_value == values[0]:
            return Channel(mask > 0, defect)
    known = ", ".join(str(d.pixel_value) for d in category.defects)
    raise DatasetError(f"{path}: pixel value {values[0]} is not in {CONFIG}, which has {known}")


def fingerprint(category: Category, memory: Path | None = None) -> str:
    """sha256 over the names and contents of every file of the category; 64 hex digits.

    memory: a JSON file that remembers content hashes by path, size and times of change, so that unchanged files are not
    read again; it is read and rewritten, and left alone when it cannot be. A file changed within the last two seconds
    is not remembered: a second change could bear the same time.
    """
    files = [s.path for split in (category.train, category.validation, category.test) for s in split]
    files += [mask for s in category.test for mask in s.masks]
    if category.layout == "loco":
        files.append(category.root / CONFIG)
    known = _read_memory(memory)
    fresh: dict[str, Any] = {}

    def content(path: Path) -> str:
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            entry = known.get(str(path))
            if isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp and isinstance(entry[1], str):
                return entry[1]
            value = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
        if max(stamp[1:]) < time.time_ns() - 2_000_000_000:
            fresh[str(path)] = [stamp, value]
        return value

    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(content, files))
    if fresh and memory is not None:
        _write_memory(memory, fresh)
    total = hashlib.sha256()
    for path, value in zip(files, contents, strict=True):
        total.update(f"{path.relative_to(category.root).as_posix()}\0{value}\n".encode())
    return total.hexdigest()


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
