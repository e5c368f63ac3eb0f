"""Reads a category's folder, in the layout of MVTec AD or of MVTec LOCO AD, and its ground truth."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Category, Channel, DatasetError, Defect, Sample
from datasets.images import decode_mask, is_picture

CONFIG = "defects_config.json"


def folders(path: Path) -> list[Path]:
    """Visible folders in name order."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def pictures(path: Path) -> list[Path]:
    """Pictures directly in a folder, in name order; hidden and foreign files are passed over."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if is_picture(p) and p.is_file())


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
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing; a LOCO category needs it for its saturation thresholds") from None
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error})") from error
    defects = []
    try:
        for entry in raw:
            name, value, threshold = entry["defect_name"], entry["pixel_value"], entry["saturation_threshold"]
            defects += [Defect(str(name), int(value), float(threshold), bool(entry["relative_saturation"]))]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: entry {len(defects)} is broken ({type(error).__name__}: {error}); each needs defect_name, "
            "pixel_value, saturation_threshold, relative_saturation"
        ) from error
    for defect in defects:
        top = 1.0 if defect.relative else float("inf")
        if not (0 < defect.pixel_value <= 255 and 0 < defect.saturation_threshold <= top):
            raise DatasetError(
                f"{path}: {defect.name!r} has pixel value {defect.pixel_value} and saturation threshold "
                f"{defect.saturation_threshold}; values are 1..255, a relative threshold lies in (0, 1]"
            )
    values = [d.pixel_value for d in defects]
    if len(set(values)) != len(values):
        raise DatasetError(f"{path}: a pixel value is used twice: {sorted(values)}")
    return tuple(defects)


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

    memory: a JSON file that remembers content hashes by path, size and time of change, so that unchanged files are not
    read again; it is read and rewritten, and left alone when it cannot be.
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
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            entry = known.get(str(path))
            if entry and entry[0] == stamp:
                return entry[1]
            value = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
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
    except (OSError, ValueError):
        return {}


def _write_memory(memory: Path, fresh: dict[str, Any]) -> None:
    import os
    import tempfile

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
