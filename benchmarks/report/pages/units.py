"""Pages of the report with every unit of a method: its figures, worst misses with pictures, and its provenance."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from benchmarks.report.drawings import charts
from benchmarks.report.numbers.arrays import arrays_of
from benchmarks.report.numbers.pool import Pool, Record, protocol_of, size_text
from benchmarks.report.numbers.tables import symbol

Samples = Callable[[str, str], Mapping[str, tuple[Path, Sequence[Path]]]]
COUNTS = {"train": "train", "validation": "validation", "test_good": "good", "test_anomalous": "defective"}
SIDE = 224
MISSES = 4


class Miss(NamedTuple):
    """One picture and how wrong its score is: the share of the pictures of the other label that it is wrong against."""

    name: str
    kind: str
    label: int
    score: float
    wrong: float

    @property
    def text(self) -> str:
        return f"{self.name}: {self.score:.4g} ({100 * self.wrong:.0f} %)"


@dataclass
class Page:
    """The page of one `method@preset`."""

    spec: str
    file: str
    records: list[Record]
    content: dict[str, Any] = field(default_factory=dict)

    def anchor(self, record: Record) -> str:
        """Link from the report's root to a record's section."""
        return f"{self.file}#u{next(i for i, r in enumerate(self.records) if r is record)}"


def method_pages(found: Pool, out: Path, results: Path | None, pictures: Pictures) -> list[Page]:
    """One page per method with all its units, by dataset, category and seed."""
    specs = sorted({f"{key[0]}@{key[1]}" for key in found.units})
    pages = []
    for number, spec in enumerate(specs):
        keys = sorted(key for key in found.units if f"{key[0]}@{key[1]}" == spec)
        records = [record for key in keys for _, record in sorted(found.units[key].items())]
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in spec)[:40]
        page = Page(spec, f"methods/{number:02d}-{safe}.html", records)
        configs: dict[str, dict[str, Any]] = {}
        machines: dict[str, dict[str, Any]] = {}
        units = [_unit(i, record, out, configs, machines, pictures) for i, record in enumerate(records)]
        for i, (unit, record) in enumerate(zip(units, records, strict=True)):
            unit["charts"] = _charts(record, out / "charts" / f"{number}-{i}.svg")
        common = {unit["protocol"] for unit in units}
        if len(common) == 1:
            for unit in units:
                unit["protocol"] = ""
        page.content = {
            "units": units, "configs": list(configs.values()), "machines": list(machines.values()),
            "protocol": next(iter(common)) if len(common) == 1 else "",
        }
        pages.append(page)
    return pages


def _unit(
    number: int, record: Record, out: Path, configs: dict[str, dict[str, Any]], machines: dict[str, dict[str, Any]],
    pictures: Pictures,
) -> dict[str, Any]:
    environment = dict(record.get("environment") or {})
    config = {"hash": str(record.get("config_hash", "?")), "items": _flat(record.get("config") or {})}
    finished, command = environment.pop("finished", ""), environment.pop("command", "not recorded")
    environment.pop("started", None)
    weights = [(f"weights {tag}", _weights(used)) for tag, used in (record.get("weights") or {}).items()]
    machine = {"device": str(environment.get("device", "unknown device")), "items": [*_flat(environment), *weights]}
    misses = worst(record)
    timing, memory, images = (record.get(part) or {} for part in ("timing", "memory", "images"))
    marks = record.get("marks") or ()
    path = record.get("path")
    version, size = protocol_of(record)
    rule = {"max": "image score: maximum of the map", "method": "image score: the method's own"}.get(
        record["protocol"].get("image_score"), "image score: not recorded"
    )
    return {
        "number": number, **{k: record["unit"][k] for k in ("dataset", "category", "seed")},
        "marks": "; ".join(f"{symbol(m)} {m}" for m in marks), "notes": [str(n) for n in record.get("notes") or ()],
        "metrics": ", ".join(f"{k} {v:.4f}" for k, v in record["metrics"].items() if v is not None),
        "undefined": list((record.get("undefined") or {}).items()),
        "misses": [miss.text for miss in misses[:MISSES]],
        "pictures": pictures.of(record, misses),
        "command": command, "finished": _minute(finished), "device": machine["device"],
        "record": _relative(path, out / "methods"), "record_name": Path(path).name if path else "",
        "protocol": f"at {size_text(size)}; {rule}; metric version {version}",
        "images": ", ".join(
            f"{images[k]} {name}" for k, name in COUNTS.items() if images.get(k) is not None
        ) + (f", {images['sizes']} pixels" if images.get("sizes") else ""),
        "fingerprint": str(record.get("dataset_fingerprint", "?"))[:16],
        "cost": ", ".join(
            [f"{k.removesuffix('_s')} {v:.1f} s" for k, v in timing.items() if k.endswith("_s") and k != "images_per_s"
             and isinstance(v, int | float)]
            + [f"{k.removeprefix('peak_').removesuffix('_mb')} {v:.0f} MiB" for k, v in memory.items() if v is not None]
        ),
        "config": _index_of(configs, config), "config_hash": config["hash"],
        "machine": _index_of(machines, machine),
    }


def _charts(record: Record, path: Path) -> str:
    """Write the unit's curves, losses and scores; the link from the method's page, '' when nothing is stored."""
    drawn = charts.of(record)
    if not drawn:
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn, encoding="utf-8")
    return f"../charts/{path.name}"


def _minute(time: str) -> str:
    """'2026-01-01 09:30 UTC' from the record's time in full."""
    return f"{time[:10]} {time[11:16]} UTC" if time[19:].endswith("+00:00") else time


def _index_of(known: dict[str, dict[str, Any]], item: dict[str, Any]) -> int:
    """Settings and machines that units share stand once on the page."""
    key = json.dumps(item, sort_keys=True, default=str)
    known.setdefault(key, item)
    return list(known).index(key)


def _flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    items = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            items += [(f"{key} {inner}", text) for inner, text in _flat(value)]
        else:
            items.append((str(key), "none" if value is None else str(value)))
    return items


def _weights(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('file', '?')}, sha256 {value.get('sha256', '?')}"
    return str(value)


def _relative(path: str | None, start: Path) -> str | None:
    """A link from a folder to a file, percent-encoded; None without a file."""
    return quote(os.path.relpath(path, start).replace(os.sep, "/"), safe="/.") if path else None


def worst(record: Record) -> list[Miss]:
    """Every test picture, the most wrongly scored first: defective ones below good ones and the other way round."""
    arrays = arrays_of(record)
    if not arrays:
        return []
    label, score = arrays["label"].astype(int), arrays["score"].astype(float)
    order = {which: np.sort(score[(label == which) & np.isfinite(score)]) for which in (0, 1)}
    misses = []
    for name, kind, mine, value in zip(arrays["name"], arrays["kind"], label, score, strict=True):
        others = order[1 - int(mine)]
        if not np.isfinite(value) or others.size == 0:
            continue
        below = np.searchsorted(others, value, side="right" if mine == 0 else "left")
        wrong = below / others.size if mine == 0 else 1 - below / others.size
        misses.append(Miss(str(name), str(kind), int(mine), float(value), float(wrong)))
    # among equals: a good picture with a high score and a defective one with a low score come first
    return sorted(misses, key=lambda m: (-m.wrong, -m.score if m.label == 0 else m.score, m.name))


class Pictures:
    """Makes pictures of units from kept maps: input, ground truth and map where the data are there, else the map."""

    def __init__(
        self, out: Path, results: Path | None, maps_dir: Path | None, samples: Samples | None, per_unit: int
    ) -> None:
        self.out, self.results, self.maps_dir = out, results, maps_dir
        self.samples, self.per_unit = samples, per_unit
        self.made = 0
        self._known: dict[tuple[str, str], Mapping[str, tuple[Path, Sequence[Path]]]] = {}

    def of(self, record: Record, misses: Sequence[Miss]) -> list[dict[str, str]]:
        """JPEG files of the worst misses, on one colour scale, as {'src' (from the method's page), 'alt', 'text'}."""
        folder = self._folder(record)
        if folder is None or not misses or not self.per_unit:
            return []
        maps = {}
        for miss in misses:
            path = folder / f"{miss.name}.tiff"
            if len(maps) < self.per_unit and path.exists():
                maps[miss] = _read_map(path)
        if not maps:
            return []
        from benchmarks.report.drawings.figures import limits

        low, high = limits(list(maps.values()))
        known = self._samples(record["unit"]["dataset"], record["unit"]["category"])
        name = hashlib.sha256(str(record.get("path")).encode()).hexdigest()[:12]
        shown = []
        for k, (miss, anomaly_map) in enumerate(maps.items()):
            path = self.out / "images" / name / f"{k:02d}.jpg"
            parts = _strip(anomaly_map, low, high, known.get(miss.name), path)
            shown.append({
                "src": _relative(str(path), self.out / "methods") or "", "text": miss.text,
                "alt": f"{parts} of {miss.name}",
            })
            self.made += 1
        return shown

    def _folder(self, record: Record) -> Path | None:
        """Where `--keep-maps` put the maps of a record: the place of the record, below the maps folder."""
        if self.maps_dir is None or not record.get("path"):
            return None
        path = Path(record["path"])
        runs = Path(self.results) / "runs" if self.results is not None else None
        if runs is not None and path.is_relative_to(runs):
            inside = path.relative_to(runs)
        else:
            inside = Path(*path.parts[-4:])
        folder = self.maps_dir / inside.with_suffix("") / str(record["unit"]["category"]) / "test"
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


def _read_map(path: Path) -> np.ndarray:
    """float32 [h, w] no larger than what is shown."""
    import tifffile
    from PIL import Image

    anomaly_map = Image.fromarray(np.nan_to_num(tifffile.imread(path).astype(np.float32)))
    anomaly_map.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.BOX)
    return np.asarray(anomaly_map)


def _strip(
    anomaly_map: np.ndarray, low: float, high: float, sample: tuple[Path, Sequence[Path]] | None, path: Path
) -> str:
    """Write input | ground truth | overlay, or the map alone; returns what is shown in words."""
    from PIL import Image

    from benchmarks.report.drawings.figures import colour, overlay

    picture = _picture(sample[0]) if sample else None
    if picture is None:
        tiles, words = [colour(anomaly_map, low, high)], "anomaly map"
    else:
        truth = np.zeros(picture.shape[:2], np.uint8)
        for file in sample[1]:
            with Image.open(file) as mask:
                part = mask.convert("I").resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST)
            truth[np.asarray(part) > 0] = 255
        tiles = [picture, np.repeat(truth[..., None], 3, axis=2), overlay(picture, anomaly_map, low, high)]
        words = "input, ground truth and anomaly map"
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled = [Image.fromarray(tile) for tile in tiles]
    height = min(SIDE, scaled[0].height) if picture is None else scaled[0].height
    width = max(1, round(scaled[0].width * height / scaled[0].height))
    strip = Image.new("RGB", (len(scaled) * width + 4 * (len(scaled) - 1), height), "white")
    for k, tile in enumerate(scaled):
        strip.paste(tile.resize((width, height)), (k * (width + 4), 0))
    strip.save(path, quality=82)
    return words


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
