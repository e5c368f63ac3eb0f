"""Reads anomaly maps and MVTec ground truth from disk, for the stand-alone command.

Maps: `<maps>/<category>/test/<type>/<name>.tiff|tif|npy`. Ground truth: MVTec AD
`<dataset>/<category>/ground_truth/<type>/<name>_mask.png`, or, where the category has a `defects_config.json`, MVTec
LOCO AD `<dataset>/<category>/ground_truth/<type>/<name>/*.png`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.metrics.ranks import MetricError
from benchmarks.metrics.regions import Region
from benchmarks.metrics.scorer import TYPES, Scorer, Scores

MAPS = (".tiff", ".tif", ".npy")
MASKS = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Defect:
    name: str
    saturation: float
    relative: bool


def categories(maps: Path, dataset: Path) -> list[str]:
    """Names of the categories that the maps folder holds, each with its folder in the dataset."""
    for path, what in ((maps, "anomaly maps"), (dataset, "the dataset")):
        if not path.is_dir():
            raise MetricError(f"{path}: no such folder for {what}")
    names = sorted(p.name for p in maps.iterdir() if (p / "test").is_dir())
    if not names:
        raise MetricError(f"{maps}: no folder <category>/test below it; give the folder that holds the categories")
    for name in names:
        if not (dataset / name).is_dir():
            raise MetricError(f"{dataset / name}: missing; the maps hold the category {name!r}, the dataset does not")
    return names


def score(maps: Path, dataset: Path, category: str, **options: Any) -> Scores:
    """Scores of one category; the image score is the maximum of the map. options: see `Scorer`."""
    root = dataset / category
    config = root / "defects_config.json"
    defects = read_defects(config) if config.is_file() else None
    scorer = Scorer(loco=defects is not None, **options)
    for kind, path in find_maps(maps / category / "test"):
        anomaly_map = read_map(path)
        item: dict[str, Any] = {}
        truth = root / "ground_truth" / kind
        if kind != "good" and defects is None:
            item["mask"] = read_mask(find_mask(truth, path.stem))
        elif kind != "good":
            item["regions"] = read_regions(truth / path.stem, defects)
        name = str(path)  # so that every error says which file
        scorer.add(name, label=int(kind != "good"), kind=kind, anomaly_map=anomaly_map, score=None, **item)
    return scorer.result()


def find_maps(test: Path) -> list[tuple[str, Path]]:
    """(type, file) of every map, in the order of their names."""
    out = []
    for folder in sorted(p for p in test.iterdir() if p.is_dir() and not p.name.startswith(".")):
        held: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in MAPS or path.name.startswith("."):
                continue
            if path.stem in held:
                raise MetricError(f"{path}: a second map for the same image, beside {held[path.stem].name}")
            held[path.stem] = path
        out += [(folder.name, path) for path in held.values()]
    if not out:
        raise MetricError(f"{test}: no maps; expected <type>/<name>.tiff or .npy")
    return out


def unscored(maps: Path, dataset: Path, category: str) -> list[Path]:
    """Test pictures of the dataset, if it has them, without a map."""
    held = {(kind, path.stem) for kind, path in find_maps(maps / category / "test")}
    pictures = sorted(p for p in (dataset / category / "test").glob("*/*") if p.suffix.lower() in MASKS)
    return [p for p in pictures if (p.parent.name, p.stem) not in held and not p.name.startswith(".")]


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


def find_mask(folder: Path, stem: str) -> Path:
    for suffix in MASKS:
        for name in (f"{stem}_mask{suffix}", f"{stem}{suffix}"):
            if (folder / name).is_file():
                return folder / name
    raise MetricError(f"{folder / (stem + '_mask.png')}: no ground truth for the map {folder.name}/{stem}")


def read_mask(path: Path) -> np.ndarray:
    """[H, W] of numbers."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except Exception as error:
        raise MetricError(f"{path}: cannot be read as a mask: {error}") from error
    if pixels.ndim == 3:  # saved with colours or opacity: all colour channels say the same
        colours = pixels[..., : 1 if pixels.shape[2] == 2 else 3]
        if (colours != colours[..., :1]).any():
            raise MetricError(f"{path}: a mask with colours; expected one channel")
        pixels = colours[..., 0]
    return pixels


def read_defects(path: Path) -> dict[int, Defect]:
    """What each pixel value of the ground truth means."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        defects = {
            int(e["pixel_value"]): Defect(
                str(e["defect_name"]), float(e["saturation_threshold"]), bool(e["relative_saturation"])
            )
            for e in entries
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MetricError(f"{path}: not a list of defects ({type(error).__name__}: {error})") from error
    if len(defects) != len(entries):
        raise MetricError(f"{path}: a pixel value has two entries")
    return defects


def read_regions(folder: Path, defects: dict[int, Defect]) -> list[Region]:
    """One region per file of a LOCO ground truth folder."""
    if folder.parent.name not in TYPES:
        raise MetricError(f"{folder.parent.name}: not a type of MVTec LOCO AD; expected good, {', '.join(TYPES)}")
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in MASKS) if folder.is_dir() else []
    if not paths:
        raise MetricError(f"{folder}: no ground truth files")
    regions = []
    for path in paths:
        pixels = read_mask(path)
        values = [int(v) for v in np.unique(pixels) if v]
        if len(values) != 1 or values[0] not in defects:
            raise MetricError(
                f"{path}: pixel values {values or [0]}; expected exactly one of {sorted(defects)} besides 0"
            )
        defect = defects[values[0]]
        regions.append(Region(pixels > 0, defect.saturation, defect.relative, defect.name))
    return regions
