"""Time, memory and size of tables and report for made-up records: `python -m benchmarks.speed.report_speed`.

    --records 1000 --pictures 0     tables and report of 1,000 records
    --records 40 --pictures 300     a report with 300 pictures of 256 x 256
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import views
from benchmarks.report.numbers import suites
from benchmarks.report.pages import html
from benchmarks.store import SCHEMA, Store
from datasets.catalog import OFFICIAL

METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro@0.01",
           "aupro@0.05", "aupro@0.1", "aupro@0.3", "aupro@1")
TEST, GOOD, RUNGS = 100, 30, 1000


def record(method: str, category: str, seed: int, rng: np.random.Generator) -> dict:
    """A record as a run writes it, with random figures."""
    unit = {"method": method, "preset": "made_up", "dataset": "mvtec_ad", "category": category, "seed": seed}
    return {
        "schema": SCHEMA, "unit": unit, "status": "ok", "error": None, "undefined": {},
        "metrics": dict(zip(METRICS, map(float, rng.random(len(METRICS))), strict=True)),
        "protocol": {"metric_version": 1, "metric_size": "original", "image_score": "max", "limits": [0.3]},
        "images": {
            "train": 200, "validation": 0, "test": TEST, "test_good": GOOD, "test_anomalous": TEST - GOOD,
            "sizes": "256x256",
        },
        "timing": {"build_s": 1.0, "fit_s": 10.0, "predict_s": 5.0, "total_s": 17.0, "images_per_s": 12.0},
        "memory": {"peak_host_mb": 900.0, "peak_device_mb": None}, "config": {"epochs": 3, "layers": ["a", "b"]},
        "config_hash": method, "weights": {}, "dataset_fingerprint": category, "marks": [], "notes": [],
        "environment": {"device": "cpu", "finished": "2026-01-01T00:00:00+00:00", "command": "python run_benchmark.py"},
        "training": {"loss": rng.random(100).tolist(), "epochs": 100},
    }


def ladder(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Counts of pixels over thresholds, of the shapes that a run keeps for intervals."""
    marked = np.arange(GOOD, TEST, dtype=np.int32)
    hits = rng.poisson(np.geomspace(8, 0.1, RUNGS + 1), (marked.size, RUNGS + 1)).astype(np.uint32)
    return {
        "thresholds": np.linspace(1, 0, RUNGS), "steps": np.ones(RUNGS + 1, bool), "marked": marked, "hits": hits,
        "background": rng.poisson(np.geomspace(0.1, 400, RUNGS + 1), (TEST, RUNGS + 1)).astype(np.uint32),
        "overlap": (hits / hits.sum(axis=1, keepdims=True)).astype(np.float32),
        "regions": np.ones(marked.size, np.int32),
    }


def make(root: Path, count: int, pictures: int) -> None:
    """Write `count` records with scores and curves, and `pictures` anomaly maps, eight a unit."""
    import tifffile

    rng = np.random.default_rng(0)
    store = Store(root)
    names = np.array([f"{'good' if i < GOOD else 'cut'}/{i:03d}" for i in range(TEST)])
    label = (np.arange(TEST) >= GOOD).astype(np.int8)
    x = np.linspace(0, 1, 200)
    left, counts = pictures, {f"ladder.{key}": values for key, values in ladder(rng).items()}
    for i in range(count):
        category = list(OFFICIAL["mvtec_ad"])[i % 15]
        made = record(f"method{i // 45}", category, i // 15 % 3, rng)
        folder = store.runs / "mvtec_ad" / category / f"method{i // 45}@made_up"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"seed{i // 15 % 3}-0123456789.json"
        made["images"]["scores"] = path.with_suffix(".npz").name
        path.write_text(json.dumps(made))
        np.savez(  # not compressed, which would take longer than the report
            path.with_suffix(".npz"), **counts, name=names, label=label,
            kind=np.array([n.partition("/")[0] for n in names]), score=(rng.random(TEST) + label).astype(np.float32),
            **{"curve.pixel": np.stack([x, x**0.1]).astype(np.float32)},
            **{"curve.pro": np.stack([x, x**0.3]).astype(np.float32)},
        )
        for name in names[: min(8, left)]:
            place = root / "maps" / path.relative_to(store.runs).with_suffix("") / category / "test" / f"{name}.tiff"
            place.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(place, rng.random((256, 256)).astype(np.float32))
        left = max(0, left - 8)


def main() -> None:
    """Make the records, then time what a user waits for; processor seconds, since machines are shared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, args.records, args.pictures)
        begin, wall = time.process_time(), time.perf_counter()
        records = Store(root).records()
        for suite in suites.all():
            views.write_suite(suite.paper, records, root / "tables")
        views.overview(records)
        between = time.process_time()
        html.write(root / "report", records, results=root)
        end = time.process_time()
        files = [path for path in (root / "report").rglob("*") if path.is_file()]
        size = sum(p.stat().st_size for p in files if p.suffix not in (".png", ".jpg", ".svg"))
        drawn = [p for p in files if p.suffix == ".jpg"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{len(records)} records, {len(drawn)} pictures: tables {between - begin:.1f} s, report "
            f"{end - between:.1f} s of processor time, {time.perf_counter() - wall:.1f} s in all; {peak:.0f} MiB; "
            f"pages {size / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
