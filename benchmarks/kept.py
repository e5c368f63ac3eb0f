"""What `--keep-maps` wrote, beside the pictures of the data root: grids as in the papers' figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import datasets
from benchmarks.report.drawings import drawn
from benchmarks.report.drawings.overlays import PERCEPTUAL, Example, overlay_grid
from benchmarks.report.numbers.pool import Record, spec_of
from benchmarks.report.pages.pictures import Samples
from benchmarks.store import Store
from datasets.base import DatasetError
from datasets.images import decode
from datasets.masks import decode_mask


def samples(dataset: str, category: str, roots: Iterable[Path]) -> dict[str, tuple[Path, tuple[Path, ...]]]:
    """Picture and mask files of the test set by name, from the first root that has them; nothing where none has."""
    for root in roots:
        try:
            return {s.name: (s.path, s.masks) for s in datasets.load(dataset, category, root).test}
        except DatasetError:
            continue
    return {}


def overlays(
    records: Iterable[Record], out: Path, results: Path, find: Samples, *, pictures: int = 1,
    colormap: str = PERCEPTUAL, form: str = "png",
) -> list[Path]:
    """A grid of input, panels, anomaly map and ground truth for each record whose maps were kept; the files written.

    find: (dataset, category) -> files by name, see `samples`. pictures: how many of each kind of defect.
    """
    written = []
    for record in records:
        unit = record["unit"]
        place = Path(record["path"]).relative_to(Store(results).runs).with_suffix("")
        folder = results / "maps" / place / unit["category"] / "test"
        files = find(unit["dataset"], unit["category"])
        chosen = _per_kind([name for name in files if (folder / f"{name}.tiff").exists()], pictures)
        if not chosen:
            continue
        spec = spec_of(record)
        path = out / drawn.file_name(
            spec, unit["dataset"], unit["category"], *([f"seed{unit['seed']}"] if unit["seed"] else []),
            suffix=f".{form}",
        )
        examples = [_example(name, *files[name], folder) for name in chosen]
        overlay_grid(examples, path, title=f"{spec}, {unit['category']}", colormap=colormap)
        written.append(path)
    return written


def _example(name: str, picture: Path, masks: Sequence[Path], folder: Path) -> Example:
    import tifffile

    mask = np.max([decode_mask(m) for m in masks], 0) if masks else None
    return Example(decode(picture), mask, tifffile.imread(folder / f"{name}.tiff"), name, _panels(folder / name))


def _panels(stem: Path) -> dict[str, np.ndarray]:
    """What was kept beside a map, uint8 arrays by name; the reconstruction first, as in the papers' figures."""
    from PIL import Image

    start = f"{stem.name}."
    found = {p.name[len(start) : -4]: p for p in stem.parent.glob("*.png") if p.name.startswith(start)}
    return {name: np.asarray(Image.open(found[name])) for name in sorted(found, key=lambda n: n != "reconstruction")}


def _per_kind(names: Sequence[str], count: int) -> list[str]:
    """The first `count` names of each kind, the part before the slash."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(name.partition("/")[0], []).append(name)
    return [name for group in kinds.values() for name in group[:count]]
