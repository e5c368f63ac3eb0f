"""Reads the golden vectors (BENCH_GOLDEN, else `<repo>/../shared/golden`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.metrics import LIMITS, Region, Scorer, Scores

ROOT = Path(os.environ.get("BENCH_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden")


def cases() -> list[str]:
    return sorted(p.parent.name for p in ROOT.glob("*/expected.json"))


def maps(case: Path) -> list[np.ndarray]:
    with np.load(case / "maps.npz") as held:
        return list(held["maps"]) if "maps" in held else [held[key] for key in sorted(held)]


def images(name: str) -> list[dict[str, Any]]:
    """Arguments of `Scorer.add` for each image of a case."""
    case = ROOT / name
    labels = json.loads((case / "labels.json").read_text())["images"]
    config = case / "defects_config.json"
    defects = {d["pixel_value"]: d for d in json.loads(config.read_text())} if config.exists() else None
    out = []
    for entry, scores in zip(labels, maps(case), strict=True):
        item: dict[str, Any] = {
            "name": f"{entry['type']}/{entry['index']:03d}",
            "label": entry["label"],
            "kind": entry["type"],
            "anomaly_map": scores,
            "score": None,
        }
        if entry["mask"] and defects is None:
            item["mask"] = np.asarray(Image.open(case / entry["mask"]))
        elif entry["mask"]:
            item["regions"] = [_region(path, defects) for path in sorted((case / entry["mask"]).glob("*.png"))]
        out.append(item)
    return out


def _region(path: Path, defects: dict[int, dict[str, Any]]) -> Region:
    pixels = np.asarray(Image.open(path))
    defect = defects[int(pixels.max())]
    return Region(pixels > 0, defect["saturation_threshold"], defect["relative_saturation"], defect["defect_name"])


def score(name: str, **options: Any) -> Scores:
    scorer = Scorer(loco=name.startswith("loco"), **options)
    for item in images(name):
        item = dict(item)
        scorer.add(item.pop("name"), **item)
    return scorer.result()


def expected(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name / "expected.json").read_text())


def flat(values: dict[str, Any]) -> dict[str, float | None]:
    """Values of an expected.json under our metric keys."""
    short = {"logical_anomalies": "logical", "structural_anomalies": "structural", "mean": "mean", "pooled": "pooled"}
    out: dict[str, float | None] = {}
    for key in ("image_auroc", "pixel_auroc"):
        value = values.get(key)
        if isinstance(value, dict):
            out |= {f"{key}/{short[kind]}": number for kind, number in value.items()}
        elif key in values:
            out[key] = value
    for limit, value in (values.get("au_pro") or {}).items():
        out[f"aupro@{float(limit):g}"] = value
    for kind, held in (values.get("au_spro") or {}).items():
        for limit, value in (held or {}).items():
            out[f"auspro@{float(limit):g}/{short[kind]}"] = value
    assert all(float(limit) in LIMITS for limit in values.get("au_pro") or {})
    return out
