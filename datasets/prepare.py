"""Lays out a category from unsorted pictures or from a labelling program's export, in the layout of MVTec AD.

Nothing is guessed: what a folder's name, a mask or an annotation does not say is refused with what to do.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.annotations import Drawn, base_name, draw, read_export
from datasets.base import DatasetError, composed, raise_problems
from datasets.checking import examine, look
from datasets.images import SUFFIXES, decode
from datasets.layouts import GOOD_NAMES, MASK_NAME, folders, scan
from datasets.masks import read_mask

SHEET = 6  # pictures on the sheet of masks
SIDE = 256  # pixels of each of them


@dataclass
class Picture:
    """One picture to lay out; mask: a file, drawn pixels uint8 [H, W], or None for a good one or one without a mask."""

    path: Path
    kind: str
    mask: Path | np.ndarray | None = None


@dataclass
class Prepared:
    """What was laid out: the category's folder, a sheet with some masks, counts by split and kind, remarks."""

    folder: Path
    sheet: Path | None
    counts: Counter[str]
    remarks: list[str] = field(default_factory=list)


def prepare(
    source: Path, target: Path, *, annotations: Path | None = None, unannotated: str = "refuse", test_good: int = 0,
    copy: bool = False,
) -> Prepared:
    """Lay out `source` as the category folder `target`, by links (or copies), and look at it as a run would.

    source: folders good/ and <defect>/ with pictures, masks beside them (`000_mask.png`) or in masks/ (with or without
        a folder for each defect); or, with annotations, any folder that holds the pictures.
    annotations: a COCO or VIA JSON file, a CVAT XML file, or a folder of LabelMe files.
    unannotated: 'refuse' pictures that the annotations do not list, take them as 'good', or 'leave' them out.
    test_good: good pictures for the test, drawn at random from a fixed seed; 0 for a fifth of them.
    Raises DatasetError that says what cannot be told and what to do; nothing is left behind then.
    """
    if target.exists():
        raise DatasetError(f"{target} exists; choose another name, or move it away")
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the one that holds the pictures")
    remarks: list[str] = []
    if annotations is None:
        found = _sorted_folders(source, remarks)
    else:
        found = _annotated(source, annotations, unannotated, remarks)
    good = [p for p in found if p.kind == "good"]
    if len(good) < 2:
        few = "one good picture" if good else "no good picture"
        raise DatasetError(f"{source}: {few}; training needs one at least, and the test another")
    count = test_good or max(len(good) // 5, 1)
    if count >= len(good):
        raise DatasetError(f"{count} good pictures for the test of {len(good)} leave none for training")
    chosen = set(np.random.default_rng(0).permutation(len(good))[:count].tolist())
    tested = {id(good[i]) for i in chosen}
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        counts: Counter[str] = Counter()
        names: set[str] = set()
        for picture in found:
            split = "train" if picture.kind == "good" and id(picture) not in tested else "test"
            _place(folder, split, picture, _unique(picture.path, source, names), copy)
            counts[f"{split}/{picture.kind}"] += 1
        category = scan("prepared", target.name, folder)
        examined = examine(category)
        raise_problems([p.replace(str(folder), str(target)) for p in examined.problems])
        remarks += examined.remarks
        folder.chmod(0o755)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Prepared(target, _sheet(found, target), counts, remarks)


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
                  and not any(part.startswith((".", "@")) for part in p.relative_to(folder).parts))


def _unique(path: Path, source: Path, taken: set[str]) -> str:
    """The file's stem; with its folders where another picture has the same."""
    parts = path.relative_to(source).with_suffix("").parts
    for n in range(1, len(parts) + 1):
        name = composed("_".join(parts[-n:]))
        if name not in taken:
            break
    else:
        name = f"{name}_{len(taken)}"
    taken.add(name)
    return name


def _place(folder: Path, split: str, picture: Picture, name: str, copy: bool) -> None:
    _put(picture.path, folder / split / picture.kind / f"{name}{picture.path.suffix.lower()}", copy)
    if isinstance(picture.mask, Path):
        mask = folder / "ground_truth" / picture.kind / f"{name}_mask{picture.mask.suffix.lower()}"
        _put(picture.mask, mask, copy)
    elif picture.mask is not None:
        mask = folder / "ground_truth" / picture.kind / f"{name}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.mask).save(mask)


def _put(source: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        with suppress(OSError, NotImplementedError):  # a file system without links: a copy
            target.symlink_to(source.resolve())
            return
    shutil.copyfile(source, target)


# ---------------------------------------------------------------- folders


def _sorted_folders(source: Path, remarks: list[str]) -> list[Picture]:
    """good/ and one folder for each defect, with masks beside the pictures or in a folder of their own."""
    kinds, mask_folders = [], []
    for folder in folders(source):
        masks = MASK_NAME.fullmatch(f"x_{folder.name}") and not MASK_NAME.fullmatch(folder.name)
        (mask_folders if masks else kinds).append(folder)
    loose = [p for p in _pictures(source) if p.parent == source]
    if loose or not kinds:
        raise DatasetError(
            f"{(loose or [source])[0]}: nothing says whether it is good; sort the pictures into good/ and a folder for "
            "each kind of defect, or give --annotations"
        )
    masks = {}
    for folder in mask_folders:
        for path in _pictures(folder):
            masks.setdefault(_mask_key(path), []).append(path)
    out: list[Picture] = []
    claimed: dict[Path, Path] = {}
    for folder in kinds:
        held = _pictures(folder)
        stems = {p.stem for p in held}
        kind = "good" if folder.name.lower() in GOOD_NAMES else re.sub(r"[^\w-]+", "_", folder.name)
        for path in held:
            match = MASK_NAME.fullmatch(path.stem)
            if match and match[1] in stems:  # a mask beside its picture
                continue
            beside = [p for p in held if (m := MASK_NAME.fullmatch(p.stem)) and m[1] == path.stem and p != path]
            apart = masks.get(composed(path.stem), [])
            mine = beside + [p for p in apart if p.parent.name == folder.name]
            if not mine and kind != "good":
                mine = [p for p in apart if p.parent in mask_folders]
            if len(mine) > 1:
                raise DatasetError(f"{path}: two masks, {mine[0]} and {mine[1]}; remove one")
            for other in mine:
                if claimed.setdefault(other, path) != path:
                    raise DatasetError(f"{other}: the mask of {claimed[other]} or of {path}? Make a folder for each "
                                       f"kind of defect in {other.parent}")
            mask = mine[0] if mine and kind != "good" else None
            if kind == "good" and mine and read_mask(mine[0]).values.any():
                raise DatasetError(f"{path}: lies in {folder.name}/, but its mask {mine[0]} marks pixels")
            out.append(Picture(path, kind, mask))
    bad = [p for p in out if p.kind != "good"]
    bare = [p for p in bad if p.mask is None]
    if bad and bare and len(bare) < len(bad):
        raise DatasetError(f"{bare[0].path}: has no mask, but others have ({len(bare)} such); add it, or remove all "
                           "masks for image-level figures only")
    unclaimed = [p for paths in masks.values() for p in paths if p not in claimed]
    if unclaimed:
        remarks.append(f"masks of no picture, left out: {len(unclaimed)}, first {unclaimed[0]}")
    if bare:
        remarks.append("no masks: image-level figures only")
    return out


def _mask_key(path: Path) -> str:
    match = MASK_NAME.fullmatch(path.stem)
    return composed(match[1] if match else path.stem)


# ---------------------------------------------------------------- annotations


def _annotated(source: Path, annotations: Path, unannotated: str, remarks: list[str]) -> list[Picture]:
    """Pictures with shapes are of the shapes' label (several: 'combined'), listed ones without shapes are good."""
    program, items = read_export(annotations)
    there = _pictures(source)
    by_name: dict[str, list[Path]] = {}
    for path in there:
        by_name.setdefault(composed(path.name), []).append(path)
    out, problems, seen, boxes = [], [], set(), 0
    for item in items:
        path = _find(source, item, by_name)
        if isinstance(path, str):
            problems.append(path)
            continue
        if path in seen:
            problems.append(f"{path}: listed twice in {annotations}")
        seen.add(path)
        facts = look(path, "picture")
        if "error" in facts:
            problems.append(facts["error"])
            continue
        size = tuple(facts["size"])
        if facts.get("turned", 1) != 1 and item.shapes:
            problems.append(f"{path}: its EXIF orientation {facts['turned']} turns it in {program}, but pictures are "
                            "read as stored; save it upright and export again")
        elif item.size and item.size != size:
            problems.append(f"{path}: is {size[0]}x{size[1]}, but {program} drew on {item.size[0]}x{item.size[1]}")
        elif not item.shapes:
            out.append(Picture(path, "good"))
        else:
            labels = {re.sub(r"[^\w-]+", "_", s.label.strip()) or "defect" for s in item.shapes}
            if labels & GOOD_NAMES:
                problems.append(f"{path}: shapes with the label {(labels & GOOD_NAMES).pop()!r}; annotate defects only")
            mask = draw(item.shapes, size)
            if not mask.any():
                problems.append(f"{path}: its shapes lie outside the picture")
            boxes += sum(s.form == "box" for s in item.shapes)
            out.append(Picture(path, labels.pop() if len(labels) == 1 else "combined", mask))
    rest = [p for p in there if p not in seen]
    if rest and unannotated == "refuse":
        problems.append(f"{rest[0]}: not in {annotations} ({len(rest)} such); give --unannotated good when these are "
                        "good, or --unannotated leave")
    elif rest and unannotated == "good":
        out += [Picture(p, "good") for p in rest]
        remarks.append(f"pictures that the annotations do not list, taken as good: {len(rest)}")
    elif rest:
        remarks.append(f"pictures that the annotations do not list, left out: {len(rest)}, first {rest[0].name}")
    raise_problems(problems)
    if boxes:
        remarks.append(f"{boxes} boxes were filled: pixel figures then measure boxes, not defects")
    return out


def _find(source: Path, item: Drawn, by_name: dict[str, list[Path]]) -> Path | str:
    direct = source / item.name
    if direct.is_file() and direct.resolve().is_relative_to(source.resolve()):
        return direct
    held = by_name.get(composed(base_name(item.name)), [])
    if len(held) == 1:
        return held[0]
    what = f"{len(held)} pictures of that name" if held else "no such picture"
    return f"{item.name}: annotated, but there is {what} in {source}"


# ---------------------------------------------------------------- sheet


def _sheet(found: Sequence[Picture], target: Path) -> Path | None:
    """Some pictures with their masks in red beside the category's folder, to look at; None without masks."""
    masked = [p for p in found if p.mask is not None]
    if not masked:
        return None
    step = max(len(masked) // SHEET, 1)
    tiles = []
    for picture in masked[::step][:SHEET]:
        mask = read_mask(picture.mask).values if isinstance(picture.mask, Path) else picture.mask
        pixels = decode(picture.path).astype(np.float32)
        pixels[mask > 0] = 0.5 * pixels[mask > 0] + 0.5 * np.float32([255, 0, 0])
        tile = Image.fromarray(pixels.astype(np.uint8))
        tile.thumbnail((SIDE, SIDE))
        tiles.append(tile)
    sheet = Image.new("RGB", (SIDE * len(tiles), SIDE), (255, 255, 255))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i * SIDE, 0))
    path = target.with_name(f"{target.name}.masks.png")
    sheet.save(path)
    return path
