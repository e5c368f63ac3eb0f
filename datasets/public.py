"""Public datasets that come in layouts of their own: how each says what is normal, what is tested, and where masks are.

VisA (Zou et al., ECCV 2022), MVTec AD 2 (Heckler-Kram et al. 2025), BTAD (Mishra et al. 2021), MVTec 3D-AD (Bergmann et
al. 2022, RGB pictures), KolektorSDD2 (Bozic et al. 2021) and Real-IAD (Wang et al., CVPR 2024). MPDD has the layout of
MVTec AD. A file that a split names and that is not there is an error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from datasets.base import Category, DatasetError, Sample, composed, raise_problems
from datasets.layouts import Findings, folders, is_category, pictures
from datasets.masks import read_mask

KSDD2 = "kolektor_sdd2"
RESOLUTIONS = ("256", "512", "1024", "raw")  # of Real-IAD; the first that is there is read, 256 is its paper's own


class Layout(NamedTuple):
    """place: (root, category) -> the category's folder, whether it is there or not. read: that folder -> its pictures.

    is_there: whether that folder holds the category.
    """

    place: Callable[[Path, str], Path]
    is_there: Callable[[Path], bool]
    read: Callable[[str, str, Path], Category]


def _category(
    dataset: str, name: str, root: Path, train: Iterable[Path], test: Iterable[tuple[Path, str, Path | None]],
    found: Findings, validation: Iterable[Path] = (), blank: Iterable[Path] = (),
) -> Category:
    """test: (picture, kind, mask of an anomalous one). Raises DatasetError that lists what is missing."""
    train = tuple(Sample(p, "good") for p in train)
    samples = []
    for path, kind, mask in test:
        if kind != "good" and (mask is None or not mask.is_file()):
            found.problems.append(f"{path}: its mask {mask or '(none is named)'} is missing")
        samples.append(Sample(path, composed(kind), (mask,) if kind != "good" and mask else ()))
    validation = tuple(Sample(p, "good") for p in validation)
    for sample in (*train, *validation, *samples):
        if not sample.path.is_file():
            found.problems.append(f"{sample.path}: no such file, though its split names it")
    if not found.problems and not (train and samples):
        found.problems.append(f"{root}: no {'test' if train else 'training'} pictures there")
    raise_problems(found.problems)
    return Category(
        dataset=dataset, name=name, root=root, layout="mvtec", train=train, validation=validation, test=tuple(samples),
        remarks=found.remarks(root), blank=tuple(p for p in blank if p.is_file()),
    )


def _by_stem(folder: Path, found: Findings) -> dict[str, Path]:
    return {p.stem: p for p in pictures(folder, found)}


# ---------------------------------------------------------------- VisA


def _visa(dataset: str, name: str, root: Path) -> Category:
    """The one-class split of `split_csv/1cls.csv`: object, split, label (normal, anomaly), image, mask."""
    path, found = root.parent / "split_csv" / "1cls.csv", Findings()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["object"] == name]
        named = [(row["split"], row["label"], root.parent / row["image"],
                  root.parent / row["mask"] if row["mask"] else None) for row in rows]
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing; it comes with the archive and says which pictures are tested") from None
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as a list of object, split, label, image, mask "
                           f"({error!r})") from error
    for split, label, image, mask in named:
        if split not in ("train", "test") or label not in ("normal", "anomaly") or (
            split == "train" and label == "anomaly"):
            raise DatasetError(f"{path}: split {split!r} with label {label!r} for {image.name}")
        for file in (image, mask) if mask else (image,):
            if not file.resolve().is_relative_to(root.resolve()):
                raise DatasetError(f"{path}: {file} lies outside {root}")
    return _category(
        dataset, name, root, [image for split, _, image, _ in named if split == "train"],
        [(image, "good" if label == "normal" else label, mask) for part, label, image, mask in named if part == "test"],
        found,
    )


# ---------------------------------------------------------------- MVTec AD 2, BTAD, MVTec 3D-AD


def _mvtec_ad_2(dataset: str, name: str, root: Path) -> Category:
    """The public test part; the masks of the private ones are on the authors' server only."""
    found = Findings()
    masks = _by_stem(root / "test_public/ground_truth/bad", found)
    test = [(p, "good", None) for p in pictures(root / "test_public/good", found)]
    test += [(p, "bad", masks.get(f"{p.stem}_mask")) for p in pictures(root / "test_public/bad", found)]
    return _category(dataset, name, root, pictures(root / "train/good", found), test, found,
                     pictures(root / "validation/good", found))


def _btad(dataset: str, name: str, root: Path) -> Category:
    """'ok' is good; the masks have the pictures' names, with a suffix of their own."""
    found = Findings()
    masks = _by_stem(root / "ground_truth/ko", found)
    test = [(p, "good", None) for p in pictures(root / "test/ok", found)]
    test += [(p, "ko", masks.get(p.stem)) for p in pictures(root / "test/ko", found)]
    return _category(dataset, name, root, pictures(root / "train/ok", found), test, found)


def _mvtec_3d(dataset: str, name: str, root: Path) -> Category:
    """The RGB pictures; the points (xyz) are not read. Good test pictures have empty masks."""
    found, test, blank = Findings(), [], []
    for kind in folders(root / "test"):
        masks = _by_stem(kind / "gt", found)
        test += [(p, kind.name, masks.get(p.stem)) for p in pictures(kind / "rgb", found)]
        blank += masks.values() if kind.name == "good" else ()
    return _category(dataset, name, root, pictures(root / "train/good/rgb", found), test, found,
                     pictures(root / "validation/good/rgb", found), blank)


# ---------------------------------------------------------------- KolektorSDD2


def _ksdd2(dataset: str, name: str, root: Path) -> Category:
    """Pictures with their masks `<name>_GT.png` in train/ and test/; trained on those of train whose mask is empty.

    One training picture is in the archive twice, as '... (copy)'; the second is not read, as in the paper's counts.
    """
    found, split = Findings(), {}
    for part in ("train", "test"):
        held = {p.stem: p for p in pictures(root / part, found)}
        masks = {stem.removesuffix("_GT"): p for stem, p in held.items() if stem.endswith("_GT")}
        split[part] = [(p, masks.get(stem)) for stem, p in held.items()
                       if not stem.endswith("_GT") and not stem.endswith("(copy)")]
        found.problems += [f"{p}: its mask {p.stem}_GT.png is missing" for p, mask in split[part] if mask is None]
    raise_problems(found.problems)
    train = [p for p, mask in split["train"] if not _marks(mask, mask.stat().st_mtime_ns)]
    test = [(p, "defect" if _marks(mask, mask.stat().st_mtime_ns) else "good", mask) for p, mask in split["test"]]
    return _category(dataset, name, root, train, test, found)


@lru_cache(maxsize=8192)
def _marks(path: Path, mtime_ns: int) -> bool:
    return bool(read_mask(path).values.any())


# ---------------------------------------------------------------- Real-IAD


def _real_iad_place(root: Path, name: str) -> Path:
    there = [root / f"realiad_{r}" for r in RESOLUTIONS if (root / f"realiad_{r}").is_dir()]
    return (there[0] if there else root / f"realiad_{RESOLUTIONS[0]}") / name


def _real_iad(dataset: str, name: str, root: Path) -> Category:
    """The splits of its JSON files: `realiad_jsons/<category>.json` (or one folder deeper, as they are unpacked)."""
    base, found = root.parent.parent / "realiad_jsons", Findings()
    path = next((p for p in (base / f"{name}.json", base / "realiad_jsons" / f"{name}.json") if p.is_file()), None)
    if path is None:
        raise DatasetError(f"{base / f'{name}.json'}: missing; it says which pictures are trained on and tested")
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        splits = {s: [(str(e["anomaly_class"]), _inside(root, e["image_path"]), _inside(root, e["mask_path"])
                       if e.get("mask_path") else None) for e in raw[s]] for s in ("train", "test")}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise DatasetError(f"{path}: no list of train and test pictures with anomaly_class, image_path and mask_path "
                           f"({error!r})") from error
    if any(kind != "OK" for kind, _, _ in splits["train"]):
        raise DatasetError(f"{path}: its training part has defective pictures; take the one-class split "
                           "(realiad_jsons)")
    return _category(dataset, name, root, [image for _, image, _ in splits["train"]],
                     [(image, "good" if kind == "OK" else kind, mask) for kind, image, mask in splits["test"]], found)


def _inside(root: Path, name: str) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name} lies outside {root}")
    return path


def _below(root: Path, name: str) -> Path:
    return root / name


LAYOUTS: dict[str, Layout] = {
    "visa": Layout(_below, lambda f: (f / "Data" / "Images").is_dir(), _visa),
    "mvtec_ad_2": Layout(_below, lambda f: (f / "test_public").is_dir(), _mvtec_ad_2),
    "btad": Layout(_below, lambda f: (f / "train" / "ok").is_dir(), _btad),
    "mvtec_3d": Layout(_below, lambda f: (f / "train" / "good" / "rgb").is_dir(), _mvtec_3d),
    KSDD2: Layout(lambda root, name: root, lambda f: any(f.glob("train/*_GT.png")), _ksdd2),
    "real_iad": Layout(_real_iad_place, lambda f: f.is_dir(), _real_iad),
}


def found_in(dataset: str, root: Path, names: Iterable[str], *, converted: bool = True) -> dict[str, Path]:
    """{category: folder} of a public dataset's categories that a folder holds.

    converted: also those in the layout of MVTec AD, as converters make it.
    """
    found = {}
    for name in names:
        if (own := place(dataset, root, name)) is not None:
            found[name] = own
        elif converted and is_category(root / name):
            found[name] = root / name
    return found


def place(dataset: str, root: Path, name: str) -> Path | None:
    """The folder of a category in its dataset's own layout; None where there is none, or the dataset has none."""
    layout = LAYOUTS.get(dataset)
    folder = layout.place(root, name) if layout else root
    return folder if layout and layout.is_there(folder) else None
