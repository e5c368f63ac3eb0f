"""Reads a category's folder, in the layout of MVTec AD or of MVTec LOCO AD, and its ground truth.

Nothing is left out without a word: what looks like a picture and cannot be taken for one is a problem, the rest is
counted in the category's remarks.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Category, Channel, DatasetError, Defect, Sample, composed, raise_problems
from datasets.images import SUFFIXES
from datasets.masks import read_mask, read_value

CONFIG = "defects_config.json"
TYPES = ("structural_anomalies", "logical_anomalies")
FOREIGN = frozenset({".webp", ".gif", ".jp2", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".tga", ".dng", ".raw"})
# What lies beside pictures and is none; everything else is counted.
BESIDE = frozenset({
    "", ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg",
    ".db", ".log", ".html", ".htm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".zip", ".py", ".sh", ".sha256", ".md5",
    ".lnk", ".url",
})
SYSTEM = frozenset({  # folders that operating systems and storage devices add, in lower case
    "__macosx", "$recycle.bin", "system volume information", "lost+found", "__pycache__", "@eadir", "@recycle",
    "@recently-snapshot", "@tmp", "#recycle", "#snapshot",
})
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8", b"\0\0\0\x0cjP", b"P5\n", b"P6\n")
GOOD_NAMES = frozenset({"good", "ok", "normal", "anomaly_free", "defect_free", "non_defective", "nominal"})
MASK_NAME = re.compile(r"(.+?)[ _.-]?(mask|gt|ground[ _-]?truth|label|seg|annotation)s?", re.IGNORECASE)
DEFECT_KEYS = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")


@dataclass
class Findings:
    """What a scan meets: problems that keep a category from being used, and what it left out, by kind."""

    problems: list[str] = field(default_factory=list)
    left: dict[str, list[Path]] = field(default_factory=dict)

    def leave(self, what: str, path: Path) -> None:
        """Count a file; what: the remark, with {} for the number."""
        self.left.setdefault(what, []).append(path)

    def remarks(self, root: Path) -> tuple[str, ...]:
        """'left out: 3 files ..., first test/bad/a.xyz', one for each kind."""
        return tuple(
            f"{_number(what, len(paths))}, first {paths[0].relative_to(root)}" for what, paths in self.left.items()
        )


def _number(what: str, count: int) -> str:
    """'1 mask of no picture', '2 masks of no picture'."""
    text = what.format(count)
    if count != 1:
        return text
    return re.sub(r"\b1 (mask|file|picture)s\b", r"1 \1", text).replace(" that are ", " that is ")


def folders(path: Path) -> list[Path]:
    """Visible folders in name order, without those of operating systems. DatasetError when it cannot be listed."""
    return [path / e.name for e in _entries(path) if _is_dir(e)]


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if not _hidden(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be listed ({error.strerror})") from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """False also for links that lead to themselves, which `DirEntry.is_dir` raises for."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def pictures(path: Path, found: Findings | None = None) -> list[Path]:
    """Pictures directly in a folder, in name order; hidden files, notes and the like are passed over.

    What looks like a picture and is none that can be read, here or in folders within, is a problem of `found`:
    leaving it out would change the counts without a word. Without `found`, DatasetError lists the problems.
    """
    own = Findings() if found is None else found
    out, nested, dangling = [], [], []
    for entry in _entries(path) if path.is_dir() else ():
        file, suffix = path / entry.name, os.path.splitext(entry.name)[1].lower()
        if _is_dir(entry):
            inside = next(_nested(file), None)
            nested += [inside] if inside else []
        elif entry.is_symlink() and not os.path.exists(file):
            dangling.append(file)
        elif suffix in FOREIGN:
            own.problems.append(f"{file}: pictures of this kind are not read; convert them to PNG")
        elif suffix in SUFFIXES:
            if entry.is_file():
                out.append(file)
            else:
                own.problems.append(f"{file}: no plain file; remove it")
        elif entry.is_file() and _is_picture_inside(file):
            own.problems.append(f"{file}: a picture by its content, but not by its name; give it its suffix, as .png")
        elif suffix not in BESIDE:
            own.leave("left out: {} files of unknown kind", file)
    if nested:
        own.problems.append(f"{nested[0]}: lies in a folder within {path}, whose pictures are not read; move them up "
                            f"into {path}")
    if dangling:
        own.problems.append(f"{dangling[0]}: a link whose target is missing ({len(dangling)} such in {path}); restore "
                            "what it points to, or remove it")
    if found is None:
        raise_problems(own.problems)
    return out


def _nested(path: Path, depth: int = 4) -> Iterator[Path]:
    """What looks like a picture in a folder or in those within; the depth bounds links that lead back."""
    try:
        entries = _entries(path)
    except DatasetError:
        return
    for entry in entries:
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES | FOREIGN and not _is_dir(entry):
            yield path / entry.name
        elif depth and _is_dir(entry):
            yield from _nested(path / entry.name, depth - 1)


def _is_picture_inside(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # its reserved bytes: other files begin so too
        return True
    return head.startswith(SIGNATURES) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypheic", b"ftypavif", b"ftypmif1")


def is_category(path: Path) -> bool:
    """Whether a folder looks like a category: it has train/good or test."""
    return (path / "train" / "good").is_dir() or (path / "test").is_dir()


def layout_of(root: Path) -> str:
    """'loco' when there is a defects_config.json, or a folder of masks named after a test picture; else 'mvtec'."""
    if (root / CONFIG).exists():
        return "loco"
    truth = root / "ground_truth"
    for kind in folders(truth) if truth.is_dir() else ():
        test = root / "test" / kind.name
        stems = {os.path.splitext(e.name)[0] for e in _entries(test)} if test.is_dir() else set()
        if any(folder.name in stems and any(_nested(folder)) for folder in folders(kind)):
            return "loco"
    return "mvtec"


class Truth:
    """The ground truth files of a category, by kind and picture; what belongs to no picture is counted."""

    def __init__(self, root: Path, layout: str, found: Findings) -> None:
        self.root, self.layout, self._found = root, layout, found
        self._files: dict[str, dict[str, list[Path]]] = {}
        folder = root / "ground_truth"
        kinds = folders(folder) if folder.is_dir() else []
        for entry in _entries(folder) if folder.is_dir() else ():
            if not _is_dir(entry) and os.path.splitext(entry.name)[1].lower() in SUFFIXES | FOREIGN:
                found.problems.append(f"{folder / entry.name}: a mask outside a folder; move it to "
                                      "ground_truth/<defect>")
        for kind in kinds:
            files: dict[str, list[Path]] = {}
            if layout == "loco":
                for inside in folders(kind):
                    held = pictures(inside, found)
                    if held:
                        files[composed(inside.name)] = held
                for entry in _entries(kind):
                    if not _is_dir(entry) and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                        found.leave("left out: {} masks beside the folders of their pictures", kind / entry.name)
            else:
                for path in pictures(kind, found):
                    files.setdefault(composed(path.stem), []).append(path)
            self._files[composed(kind.name)] = files
        self.why = ""  # why there is no mask at all
        if not any(self._files.values()):
            self.why = "no ground truth folder" if not folder.is_dir() else "no mask in the ground truth folder"
        self._unclaimed = {path for files in self._files.values() for paths in files.values() for path in paths}

    def masks(self, kind: str, stem: str) -> tuple[Path, ...]:
        """The masks of a picture: MVTec AD at most one, LOCO one for each region."""
        files, stem = self._files.get(composed(kind), {}), composed(stem)
        if self.layout == "loco":
            held = files.get(stem, [])
        else:
            held = files.get(f"{stem}_mask", []) + files.get(stem, [])
            if len(held) > 1:
                self._found.problems.append(f"{held[0]} and {held[1].name}: two masks of one picture, {kind}/{stem}; "
                                            "remove one")
        self._unclaimed.difference_update(held)
        return tuple(held)

    def count_unclaimed(self) -> None:
        for path in sorted(self._unclaimed):
            self._found.leave("left out: {} masks of no picture", path)

    def missing(self, kind: str, stem: str) -> str:
        """'its mask ... is missing', with a file of the picture's name that is there."""
        folder = self.root / "ground_truth" / kind
        wanted = f"{stem}/000.png" if self.layout == "loco" else f"{stem}_mask.png"
        names = [e.name for e in (_entries(folder) if folder.is_dir() else ())]
        close = [n for n in names if re.fullmatch(rf"{re.escape(stem)}(\W|_|\Z).*", n, re.IGNORECASE)]
        return f"its mask {folder / wanted} is missing" + (f"; there is {close[0]}" if close else "")


def scan(dataset: str, name: str, root: Path, *, white_level: int = 65535, training: bool = True) -> Category:
    """Read the folder tree of one category (no picture is opened).

    training: False reads the test pictures and their masks only.
    Raises DatasetError that lists every problem of the tree: no training or no test pictures, pictures that would be
    left out, masks missing or doubled, masks among the pictures, a broken defects_config.json.
    """
    found = Findings()
    layout = layout_of(root)
    _check_names(root, found)
    train = _good(root, "train", found, white_level) if training else ()
    validation = _good(root, "validation", found, white_level) if training else ()
    if training and not train and not found.problems:
        found.problems.append(f"{root / 'train' / 'good'}: no training pictures there; a category needs "
                              "train/good/*.png")
    truth = Truth(root, layout, found)
    defects: tuple[Defect, ...] = ()
    if layout == "loco":
        try:
            defects = read_defects(root / CONFIG)
        except DatasetError as error:
            found.problems.append(str(error))
    test, blank = _test(root, layout, truth, found, white_level)
    if not test and not found.problems:
        found.problems.append(f"{root / 'test'}: no test pictures there; a category needs test/good and test/<defect>")
    truth.count_unclaimed()
    raise_problems(found.problems)
    return Category(
        dataset=dataset, name=composed(name), root=root, layout=layout, train=train, validation=validation, test=test,
        defects=defects, remarks=found.remarks(root), unmasked=truth.why, blank=blank,
    )


def scan_truth(dataset: str, name: str, root: Path, test: Iterable[tuple[str, Path]]) -> Category:
    """A category of which there is only the ground truth; test: (kind, file of the picture's name) of its pictures.

    Raises DatasetError as `scan` does.
    """
    found = Findings()
    layout = layout_of(root)
    truth = Truth(root, layout, found)
    samples = []
    for kind, path in test:
        masks = truth.masks(kind, path.stem) if kind != "good" else ()
        if kind != "good" and not masks and not truth.why:
            found.problems.append(f"{path}: {truth.missing(kind, path.stem)}")
        if layout == "loco" and kind not in ("good", *TYPES):
            found.problems.append(f"{path.parent}: kind {kind!r} is not one of good, {', '.join(TYPES)}")
        samples.append(Sample(path, kind, masks))
    truth.count_unclaimed()
    raise_problems(found.problems)
    return Category(
        dataset=dataset, name=composed(name), root=root, layout=layout, train=(), validation=(), test=tuple(samples),
        defects=read_defects(root / CONFIG) if layout == "loco" else (), remarks=found.remarks(root),
        unmasked=truth.why,
    )


def limited(category: Category, count: int) -> Category:
    """At most `count` pictures of each split, the same ones every time; of the test, good and anomalous by halves.

    What is left out stands in the notes, so that figures are marked as of reduced data.
    """
    rng = np.random.default_rng(count)

    def some(samples: Sequence[Sample], n: int) -> list[Sample]:
        return [samples[i] for i in sorted(rng.permutation(len(samples))[:n])]

    good = [s for s in category.test if not s.label]
    anomalous = [s for s in category.test if s.label]
    defective = min(max(count // 2, count - len(good)), len(anomalous))
    splits = {
        "train": some(category.train, count), "validation": some(category.validation, count),
        "test": some(good, count - defective) + some(anomalous, defective),
    }
    notes = [f"reduced data: {name} {len(kept)} of {len(getattr(category, name))} (--limit {count})"
             for name, kept in splits.items() if len(kept) < len(getattr(category, name))]
    order = {s: i for i, s in enumerate(category.test)}
    splits["test"].sort(key=order.__getitem__)
    return replace(category, **{name: tuple(kept) for name, kept in splits.items()},
                   notes=(*category.notes, *notes), blank=())


def _good(root: Path, split: str, found: Findings, white_level: int) -> tuple[Sample, ...]:
    """The pictures of train/good or validation/good; other pictures there are counted, or a problem."""
    held = pictures(root / split / "good", found)
    _check_split(held, found, several=True)
    for entry in _entries(root / split) if (root / split).is_dir() else ():
        path = root / split / entry.name
        if _is_dir(entry) and entry.name != "good":
            for picture in _nested(path):
                found.leave(f"left out: {{}} pictures of {split} that are not in {split}/good", picture)
        elif not _is_dir(entry) and os.path.splitext(entry.name)[1].lower() in SUFFIXES | FOREIGN:
            found.problems.append(f"{path}: a picture outside a folder; move it to {root / split / 'good'}")
    return tuple(Sample(p, "good", white_level=white_level) for p in held)


def _test(
    root: Path, layout: str, truth: Truth, found: Findings, white_level: int
) -> tuple[tuple[Sample, ...], tuple[Path, ...]]:
    """The test pictures with their masks, and the masks of good pictures."""
    test: list[Sample] = []
    blank: list[Path] = []
    folder = root / "test"
    entries = _entries(folder) if folder.is_dir() else []
    for entry in entries:
        path = folder / entry.name
        if entry.is_symlink() and not os.path.exists(path):
            found.problems.append(f"{path}: a link whose target is missing; restore it, or remove it")
        elif not _is_dir(entry) and os.path.splitext(entry.name)[1].lower() in SUFFIXES | FOREIGN:
            found.problems.append(f"{path}: a picture outside a folder; move it to test/good or to test/<defect>")
    kinds = [entry.name for entry in entries if _is_dir(entry)]
    for kind in kinds:
        held = pictures(folder / kind, found)
        if not held:
            continue
        why = _wrong_kind(folder, kind, kinds, layout)
        if why:
            found.problems.append(why)
            continue
        _check_split(held, found)
        for path in held:
            masks = truth.masks(kind, path.stem)
            if kind == "good":
                blank += masks
                masks = ()
            elif not masks and not truth.why:
                found.problems.append(f"{path}: {truth.missing(kind, path.stem)}")
            test.append(Sample(path, kind, masks, white_level))
    return tuple(test), tuple(blank)


def _wrong_kind(folder: Path, kind: str, kinds: list[str], layout: str) -> str:
    """Why a folder of test pictures cannot be taken for a kind of defect, or ''."""
    path = folder / kind
    if kind == "good":
        return ""
    if kind.lower().replace("-", "_").replace(" ", "_") in GOOD_NAMES:
        return f"{path}: its name says that the pictures are good; rename the folder to good"
    match = MASK_NAME.fullmatch(f"x_{kind}" if kind.lower() in ("mask", "masks", "gt", "label", "labels") else kind)
    if match and (match[1] in kinds or match[1] == "x"):
        return f"{path}: its name says that it holds masks; move them to ground_truth/<defect>"
    if layout == "loco" and kind not in TYPES:
        return f"{path}: kind {kind!r} is not one of good, {', '.join(TYPES)}, as a category with {CONFIG} has them"
    return ""


def _check_split(held: list[Path], found: Findings, *, several: bool = False) -> None:
    """Names that two pictures share, and masks that lie beside their pictures."""
    stems: dict[str, Path] = {}
    for path in held:
        other = stems.setdefault(composed(path.stem), path)
        if other != path:
            if several:
                found.leave("{} files of a name that another one has, each read as a picture of its own", path)
            else:
                found.problems.append(f"{other} and {path.name} share one name without suffix; rename one")
    for stem, path in stems.items():
        match = MASK_NAME.fullmatch(stem)
        if match and match[1] in stems:
            found.problems.append(f"{path}: a mask beside its picture {stems[match[1]].name}; move it to "
                                  "ground_truth/<defect>")


def _check_names(root: Path, found: Findings) -> None:
    """Folders whose names differ from the layout's in case or signs only; pictures that lie in none of them."""
    known = {"train": "train", "test": "test", "validation": "validation", "groundtruth": "ground_truth"}
    for entry in _entries(root):
        plain = re.sub("[^a-z]", "", entry.name.lower())
        path = root / entry.name
        if _is_dir(entry) and known.get(plain, entry.name) != entry.name:
            found.problems.append(f"{path}: rename it to {known[plain]}, as the layout has it")
        elif _is_dir(entry) and entry.name not in known.values():
            for picture in _nested(path):
                found.leave("left out: {} pictures in other folders", picture)
        elif not _is_dir(entry) and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            found.leave("left out: {} pictures outside train, test and ground_truth", path)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} stands twice in one entry")
    return dict(pairs)


def read_defects(path: Path) -> tuple[Defect, ...]:
    """The entries of a LOCO `defects_config.json`. Raises DatasetError naming the file and the entry."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
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
            and 0 < threshold <= (1 if relative else 1e18) and (relative or threshold == int(threshold))):
        raise DatasetError(
            f"{path}: entry {index} is broken: {name!r} has pixel value {value!r}, saturation threshold {threshold!r} "
            f"and relative_saturation {relative!r}; values are 1..255, a relative threshold lies in (0, 1], an "
            "absolute one is a whole number of pixels, and relative_saturation is true or false"
        )
    return Defect(name, int(value), float(threshold), relative)


def truth(category: Category, sample: Sample, size: tuple[int, int]) -> np.ndarray | tuple[Channel, ...] | None:
    """Ground truth of an anomalous test picture of `size` (height, width).

    MVTec layout: uint8 [H, W] as stored (every value above 0 is anomalous). LOCO layout: one Channel per mask file.
    None in a category without any mask.
    Raises DatasetError naming the files when a mask is missing, empty, of another size or holds an unknown value.
    """
    if category.unmasked:
        return None
    if not sample.masks:
        where = category.root / "ground_truth" / sample.kind
        wanted = f"{sample.path.stem}/000.png" if category.layout == "loco" else f"{sample.path.stem}_mask.png"
        raise DatasetError(f"{sample.path}: its mask {where / wanted} is missing")
    move = category.move or (lambda mask, name: mask)
    if category.layout == "loco":
        channels = (_channel(category, sample, path, size) for path in sample.masks)
        return tuple(Channel(move(channel.mask, sample.name), channel.defect) for channel in channels)
    mask = read_mask(sample.masks[0]).values
    check_mask(sample, sample.masks[0], mask.shape, size, bool(mask.any()))
    return move(mask, sample.name)


def check_mask(
    sample: Sample, path: Path, shape: Sequence[int], size: Sequence[int], marks: bool, turned: int = 1
) -> None:
    """Raises DatasetError for a mask of another size (height, width) than its picture, and for one that marks nothing.

    turned: the EXIF orientation of the picture; viewers swap its sides from 5 on.
    """
    if tuple(shape) != tuple(size):
        exif = f" as stored (its EXIF orientation is {turned}, which viewers turn upright)" if turned != 1 else ""
        raise DatasetError(
            f"{path}: the mask is {shape[1]}x{shape[0]}, its picture {sample.path.name} is {size[1]}x{size[0]}{exif}; "
            "masks have the size of the stored picture"
        )
    if not marks:
        raise DatasetError(f"{path}: the mask is empty, but its picture {sample.name} counts as anomalous")


def check_value(category: Category, path: Path, value: int) -> Defect:
    """The defect that a LOCO mask file's pixel value stands for; DatasetError for an unknown one."""
    for defect in category.defects:
        if defect.pixel_value == value:
            return defect
    known = ", ".join(str(d.pixel_value) for d in category.defects)
    raise DatasetError(f"{path}: pixel value {value} is not in {CONFIG}, which has {known}")


def _channel(category: Category, sample: Sample, path: Path, size: tuple[int, int]) -> Channel:
    mask, value = read_value(path)
    check_mask(sample, path, mask.shape, size, bool(value))
    return Channel(mask, check_value(category, path, value))
