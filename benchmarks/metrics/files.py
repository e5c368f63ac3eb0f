"""Reads anomaly maps from disk for the stand-alone command, and their ground truth as every run reads it (`datasets`).

Maps: `<maps>/<category>/test/<type>/<name>.tiff|tif|npy`. The dataset: `<dataset>/<category>/ground_truth/...` as MVTec
AD and MVTec LOCO AD ship it; where its test pictures are there too, maps are held against them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import datasets
from benchmarks.metrics.ranks import MetricError
from benchmarks.metrics.regions import Region
from benchmarks.metrics.scorer import Scorer, Scores
from datasets.base import Category, composed, raise_problems
from datasets.images import picture_size
from datasets.layouts import scan, scan_truth
from datasets.public import LAYOUTS, place

MAPS = (".tiff", ".tif", ".npy")


@dataclass(frozen=True)
class Found:
    """Maps in the order of the test pictures, and the pictures that have none.

    category: the test pictures that have a map; without pictures in the dataset, samples named after the maps.
    """

    category: Category
    maps: tuple[Path, ...]
    unscored: tuple[Path, ...]
    pictures: bool  # whether the dataset has its test pictures


def categories(maps: Path, dataset: Path) -> list[str]:
    """Names of the categories that the maps folder holds, each with its folder in the dataset."""
    for path, what in ((maps, "anomaly maps"), (dataset, "the dataset")):
        if not path.is_dir():
            raise MetricError(f"{path}: no such folder for {what}")
    names = sorted(p.name for p in maps.iterdir() if (p / "test").is_dir())
    if not names:
        raise MetricError(f"{maps}: no folder <category>/test below it; give the folder that holds the categories")
    for name in names:
        if not _folder(dataset, name).is_dir() and not place(dataset.name, dataset, name):
            raise MetricError(f"{dataset / name}: missing; the maps hold the category {name!r}, the dataset does not")
    return names


def _folder(dataset: Path, name: str) -> Path:
    """The category's folder, however its name spells an accent."""
    same = (p for p in dataset.iterdir() if composed(p.name) == composed(name))
    return dataset / name if (dataset / name).is_dir() else next(same, dataset / name)


def find(maps: Path, dataset: Path, name: str) -> Found:
    """The maps of a category with their ground truth. Raises MetricError and DatasetError that name the files."""
    root = _folder(dataset, name)
    held = {(composed(kind), composed(path.stem)): path for kind, path in find_maps(maps / name / "test")}
    own = place(dataset.name, dataset, name)
    if own or (root / "test").is_dir():
        category = LAYOUTS[dataset.name].read(dataset.name, name, own) if own else scan(
            dataset.name, name, root, training=False)
        by_name = {(composed(s.kind), composed(s.path.stem)): s for s in category.test}
        foreign = [path for key, path in held.items() if key not in by_name]
        if foreign:
            raise MetricError(f"{foreign[0]}: a map of no test picture of {root} ({len(foreign)} such); remove it")
        chosen = {key: sample for key, sample in by_name.items() if key in held}
        missing = tuple(s.path for key, s in by_name.items() if key not in held)
        test, paths = tuple(chosen.values()), tuple(held[key] for key in chosen)
        return Found(replace(category, test=test), paths, missing, True)
    category = scan_truth(dataset.name, name, root, [(kind, path) for (kind, _), path in held.items()])
    return Found(category, tuple(held.values()), (), False)


def score(found: Found, **options: Any) -> tuple[Scores, tuple[str, ...]]:
    """Scores of one category, and remarks on its files; the image score is the maximum of the map.

    options: see `Scorer`. Raises MetricError and DatasetError that name the file.
    """
    category = found.category
    examined = datasets.examine(category, pictures=found.pictures)
    raise_problems(examined.problems)
    scorer = Scorer(loco=category.layout == "loco", unmasked=category.unmasked, **options)
    for sample, path in zip(category.test, found.maps, strict=True):
        anomaly_map = read_map(path)
        size = picture_size(sample.path)[::-1] if found.pictures else anomaly_map.shape
        if anomaly_map.shape != size:
            raise MetricError(f"{path}: the map has shape {anomaly_map.shape}, its picture {sample.path} {size}; maps "
                              "are scored at the size of their pictures")
        item: dict[str, Any] = {}
        truth = datasets.truth(category, sample, size) if sample.label else None
        if isinstance(truth, np.ndarray):
            item["mask"] = truth
        elif truth is not None:
            item["regions"] = [
                Region(c.mask, c.defect.saturation_threshold, c.defect.relative, c.defect.name) for c in truth
            ]
        name = str(path)  # so that every error says which file
        scorer.add(name, label=sample.label, kind=sample.kind, anomaly_map=anomaly_map, score=None, **item)
    return scorer.result(), examined.remarks


def find_maps(test: Path) -> list[tuple[str, Path]]:
    """(type, file) of every map, in the order of their names."""
    out = []
    for folder in sorted(p for p in test.iterdir() if p.is_dir() and not p.name.startswith(".")):
        held: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in MAPS or path.name.startswith("."):
                continue
            if path.is_symlink() and not path.exists():
                raise MetricError(f"{path}: a link whose target is missing")
            other = held.setdefault(composed(path.stem), path)
            if other != path:
                raise MetricError(f"{path}: a second map for the same image, beside {other.name}")
        out += [(folder.name, path) for path in held.values()]
        nested = [p for p in folder.rglob("*") if p.parent != folder and p.suffix.lower() in MAPS]
        if nested:
            raise MetricError(f"{nested[0]}: a map one folder too deep; expected <type>/<name>{nested[0].suffix}")
    if not out:
        raise MetricError(f"{test}: no maps; expected <type>/<name>.tiff or .npy")
    return out


def read_map(path: Path) -> np.ndarray:
    """[H, W] of any real type."""
    try:
        if path.suffix.lower() == ".npy":
            scores = np.load(path, allow_pickle=False)
        else:
            import tifffile

            scores = tifffile.imread(path)
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise MetricError(f"{path}: cannot be read as an anomaly map: {error}") from error
    scores = np.asarray(scores)
    if scores.ndim == 3 and 1 in (scores.shape[0], scores.shape[2]):  # one channel, first or last
        scores = scores[0] if scores.shape[0] == 1 else scores[..., 0]
    if scores.ndim != 2:
        raise MetricError(f"{path}: an anomaly map of shape {scores.shape}; expected one channel [H, W]")
    return scores
