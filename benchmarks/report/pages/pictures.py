"""Pictures of the worst, the median and the best case of each kind, from maps that a run kept."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.report.drawings.overlays import OUTLINE, colour, limits, outline, overlay
from benchmarks.report.numbers.misses import Miss
from benchmarks.report.numbers.pool import Record

Samples = Callable[[str, str], Mapping[str, tuple[Path, Sequence[Path]]]]
"""(dataset, category) -> {picture name: (picture file, mask files)}."""
SIDE = 224
SAMPLES = 1 << 22
"""Values of all maps of a unit that its colour scale is taken from, at most."""


class Pictures:
    """Makes pictures of units from kept maps: input, ground truth and map where the data are there, else the map."""

    def __init__(self, out: Path, results: Path | None, samples: Samples | None) -> None:
        self.out, self.results, self.samples = out, results, samples
        self.made = 0
        self._known: dict[tuple[str, str], Mapping[str, tuple[Path, Sequence[Path]]]] = {}

    def of(self, record: Record, chosen: Sequence[tuple[str, Miss]]) -> dict[str, Any]:
        """JPEG files of chosen pictures by kind, on one colour scale over the maps of all test pictures.

        {'kinds': [(kind, [{'src' (from the method's page), 'alt', 'text', 'word', 'panels'}])], 'scale': in words};
        empty where no map was kept.
        """
        folder = self._folder(record)
        if folder is None:
            return {}
        there = [(word, miss, path) for word, miss in chosen if (path := folder / f"{miss.name}.tiff").exists()]
        if not there:
            return {}
        every = sorted(folder.rglob("*.tiff"))
        low, high = limits([_thinned(path, SAMPLES // len(every)) for path in every])
        known = self._samples(record["unit"]["dataset"], record["unit"]["category"])
        name = hashlib.sha256(str(record.get("path")).encode()).hexdigest()[:12]
        kinds: dict[str, list[dict[str, Any]]] = {}
        for k, (word, miss, file) in enumerate(there):
            path = self.out / "images" / name / f"{k:02d}.jpg"
            panels = _strip(_read_map(file), low, high, known.get(miss.name), path)
            kinds.setdefault(miss.kind, []).append({
                "src": relative(str(path), self.out / "methods") or "", "text": miss.text, "word": word,
                "alt": f"{', '.join(panels)} of {miss.name}", "panels": panels,
            })
            self.made += 1
        return {
            "kinds": list(kinds.items()),
            "scale": f"Colours over the maps of all {len(every)} test pictures: dark up to {low:.4g} (half of all "
                     f"pixels), brightest from {high:.4g} (the highest 0.1 %). Outlined: the ground truth.",
        }

    def _folder(self, record: Record) -> Path | None:
        """Where `--keep-maps` put the maps of a record: the place of the record, below the maps folder."""
        path = record.get("path")
        if self.results is None or not path or not Path(path).is_relative_to(self.results / "runs"):
            return None
        place = Path(path).relative_to(self.results / "runs").with_suffix("")
        folder = self.results / "maps" / place / str(record["unit"]["category"]) / "test"
        return folder if folder.is_dir() else None

    def _samples(self, dataset: str, category: str) -> Mapping[str, tuple[Path, Sequence[Path]]]:
        if self.samples is None:
            return {}
        if (dataset, category) not in self._known:
            try:
                self._known[dataset, category] = self.samples(dataset, category)
            except (ValueError, OSError):
                self._known[dataset, category] = {}  # the data are elsewhere by now: show the maps alone
        return self._known[dataset, category]


def _thinned(path: Path, most: int) -> np.ndarray:
    """About `most` values of a map, for its unit's colour scale."""
    import tifffile

    values = tifffile.imread(path)
    step = max(1, math.ceil(math.sqrt(values.size / max(1, most))))
    return values[::step, ::step]


def _read_map(path: Path) -> np.ndarray:
    """float32 [h, w] no larger than what is shown."""
    import tifffile
    from PIL import Image

    anomaly_map = Image.fromarray(np.nan_to_num(tifffile.imread(path).astype(np.float32)))
    anomaly_map.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.BOX)
    return np.asarray(anomaly_map)


def _strip(
    anomaly_map: np.ndarray, low: float, high: float, sample: tuple[Path, Sequence[Path]] | None, path: Path
) -> list[str]:
    """Write input | ground truth | overlay with the mask's outline, or the map alone; the panels' names."""
    from PIL import Image

    picture = _picture(sample[0]) if sample else None
    if picture is None or sample is None:
        tiles, names = [colour(anomaly_map, low, high)], ["anomaly map"]
    else:
        truth = np.zeros(picture.shape[:2], bool)
        for file in sample[1]:
            with Image.open(file) as mask:
                part = mask.convert("I").resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST)
            truth |= np.asarray(part) > 0
        shown = overlay(picture, anomaly_map, low, high)
        shown[outline(truth)] = OUTLINE
        tiles = [picture, np.repeat(truth[..., None].astype(np.uint8) * 255, 3, axis=2), shown]
        names = ["input", "ground truth", "anomaly map"]
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled = [Image.fromarray(tile) for tile in tiles]
    height = min(SIDE, scaled[0].height) if picture is None else scaled[0].height
    width = max(1, round(scaled[0].width * height / scaled[0].height))
    strip = Image.new("RGB", (len(scaled) * width + 4 * (len(scaled) - 1), height), "white")
    for k, tile in enumerate(scaled):
        strip.paste(tile.resize((width, height)), (k * (width + 4), 0))
    strip.save(path, quality=85)
    return names


def _picture(path: Path) -> np.ndarray | None:
    """uint8 [h, w, 3] of at most SIDE rows; None when it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
            image.thumbnail((2 * SIDE, SIDE))
            return np.asarray(image)
    except (OSError, ValueError):
        return None


def relative(path: str | None, start: Path) -> str | None:
    """A link from a folder to a file, percent-encoded; None without a file."""
    return quote(os.path.relpath(path, start).replace(os.sep, "/"), safe="/.") if path else None
