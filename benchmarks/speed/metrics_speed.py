"""Time and memory of the metrics beside other implementations, on the same arrays; prints Markdown tables.

    python -m benchmarks.speed.metrics_speed [--quick] [--rounds 3] [--only ours,anomalib] [--loco | --growth]

Every measurement is a process of its own that loads the maps first; rounds alternate over the contestants and the
tables show medians. CPU seconds are those of all threads. Memory is the peak of the process above what it held with the
maps loaded. Without --loco or --growth: 83 maps of 900 x 900 with as many good images, regions and anomalous pixels as
MVTec AD bottle has. The contestants that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.metrics import LIMITS, Region, Scorer
from benchmarks.speed.common import machine

# MVTec AD bottle: images by type, and the mean share of anomalous pixels
BOTTLE = (("good", 20, 0.0), ("broken_large", 20, 0.117), ("broken_small", 22, 0.031), ("contamination", 21, 0.085))
LOCO = (("good", 64, 0.0), ("logical_anomalies", 66, 0.115), ("structural_anomalies", 66, 0.03))


def blob(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """bool [H, W]: an ellipse that covers about `share` of the image."""
    height, width = shape
    aspect = rng.uniform(0.5, 2.0)
    radius = np.sqrt(share * rng.uniform(0.7, 1.3) / np.pi)
    a, b = radius * np.sqrt(aspect), radius / np.sqrt(aspect)
    y, x = np.ogrid[0:height, 0:width]
    cy, cx = rng.uniform(0.25, 0.75, 2)
    return ((y / height - cy) / a) ** 2 + ((x / width - cx) / b) ** 2 < 1


def smooth_noise(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W] of about mean 0 and deviation 1, as smooth as an upsampled anomaly map."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 4)
    return noise / noise.std()


def scores(base: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W] in (0, 1): the noise, moved, and raised where anomalous."""
    moved = np.roll(base, tuple(rng.integers(0, base.shape)), (0, 1)) + rng.normal(0, 0.3)
    return (1 / (1 + np.exp(2 - moved - 2 * truth))).astype(np.float32)


def make(folder: Path, shape: tuple[int, int], counts: Any, files: int, rng: np.random.Generator) -> None:
    """Writes maps float32 [n, H, W] and per-file masks bool [n, files, H, W], and the image kinds."""
    kinds = [kind for kind, n, _ in counts for _ in range(n)]
    shares = [share for _, n, share in counts for _ in range(n)]
    maps = np.lib.format.open_memmap(folder / "maps.npy", "w+", np.float32, (len(kinds), *shape))
    masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.bool_, (len(kinds), files, *shape))
    bases = [smooth_noise(shape, rng) for _ in range(4)]
    for i, share in enumerate(shares):
        for k in range(1 if files == 1 else int(rng.integers(1, files + 1))):
            if share:
                masks[i, k] = blob(shape, share / files**0.5, rng)
        maps[i] = scores(bases[i % 4], masks[i].any(0), rng)
    (folder / "kinds.json").write_text(json.dumps(kinds))


# Contestants: maps float32 [n, H, W], masks bool [n, files, H, W], kinds -> their numbers


def ours(maps: np.ndarray, masks: np.ndarray, kinds: list[str], **options: Any) -> dict[str, float | None]:
    scorer = Scorer(**options)
    for i, kind in enumerate(kinds):
        mask = None if kind == "good" else masks[i, 0]
        scorer.add(str(i), label=int(kind != "good"), kind=kind, anomaly_map=maps[i], score=None, mask=mask)
    return scorer.result().metrics


def ours_loco(maps: np.ndarray, masks: np.ndarray, kinds: list[str]) -> dict[str, float | None]:
    scorer = Scorer(loco=True)
    for i, kind in enumerate(kinds):
        regions = [Region(m, 20000 * (k + 1), False, f"defect {k}") for k, m in enumerate(masks[i]) if m.any()]
        scorer.add(str(i), label=int(kind != "good"), kind=kind, anomaly_map=maps[i], score=None, regions=regions)
    return scorer.result().metrics


def anomalib(maps: np.ndarray, masks: np.ndarray, kinds: list[str]) -> dict[str, float]:
    """Pixel AUROC and AUPRO at one limit, 0.3."""
    import torch
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC

    out = {}
    for key, metric in (("pixel_auroc", _AUROC()), ("aupro@0.3", _AUPRO(fpr_limit=0.3))):
        for i in range(len(kinds)):
            metric.update(torch.from_numpy(maps[i : i + 1]), torch.from_numpy(masks[i : i + 1, 0]).int())
        out[key] = float(metric.compute())
    return out


def sklearn(maps: np.ndarray, masks: np.ndarray, kinds: list[str]) -> dict[str, float]:
    """Pixel AUROC only."""
    from sklearn.metrics import roc_auc_score

    return {"pixel_auroc": float(roc_auc_score(masks[:, 0].ravel(), maps.ravel()))}


def adeval(maps: np.ndarray, masks: np.ndarray, kinds: list[str]) -> dict[str, float]:
    """Pixel AUROC, AP and AUPRO at one limit from 1,000 bins."""
    vars(np).setdefault("trapz", np.trapezoid)  # ADEval 1.1 calls it by the name that NumPy 2.4 dropped
    from adeval import EvalAccumulator

    held = EvalAccumulator(float(maps.min()), float(maps.max()), nstrips=1000)
    for i, kind in enumerate(kinds):
        held.add_anomap(maps[i], masks[i, 0].astype(np.uint8))
        held.add_image(float(maps[i].max()), int(kind != "good"))
    values = held.summary()
    return {"pixel_auroc": values["p_auroc"], "pixel_ap": values["p_aupr"], "aupro@0.3": values["p_aupro"]}


def all_thresholds(maps: np.ndarray, masks: np.ndarray, kinds: list[str]) -> dict[str, float]:
    """AUPRO at five limits, the textbook way: sort all pixels, accumulate both rates at every one of them."""
    from scipy.ndimage import label

    weight = np.zeros(maps.shape)
    regions = 0
    for i in range(len(kinds)):
        numbers, count = label(masks[i, 0], np.ones((3, 3)))
        regions += count
        if count:
            weight[i] = np.where(numbers > 0, 1 / np.bincount(numbers.ravel())[numbers], 0)
    order = np.argsort(maps.ravel())[::-1]
    ordered = maps.ravel()[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    good = ~masks[:, 0].ravel()[order]
    fpr = np.insert((np.cumsum(good) / good.sum())[last], 0, 0)
    pro = np.insert((np.cumsum(weight.ravel()[order]) / regions)[last], 0, 0)
    out = {}
    for limit in LIMITS:
        stop = int(np.searchsorted(fpr, limit))
        x = np.append(fpr[:stop], limit)
        y = np.append(pro[:stop], np.interp(limit, fpr, pro))
        out[f"aupro@{limit:g}"] = float(np.trapezoid(y, x) / limit)
    return out


CONTESTANTS: dict[str, tuple[str, Callable[..., dict[str, Any]], str]] = {
    "ours": ("this project: AUROC, AP, F1-max, AUPRO at 5 limits, exact", ours, "numpy"),
    "anomalib": ("anomalib AUROC + AUPRO at 1 limit", anomalib, "anomalib"),
    "sklearn": ("scikit-learn roc_auc_score", sklearn, "sklearn"),
    "adeval": ("ADEval, 1,000 bins: AUROC, AP, AUPRO at 1 limit", adeval, "adeval"),
    "all": ("all thresholds, plain: AUPRO at 5 limits", all_thresholds, "scipy"),
}


def child(name: str, folder: Path) -> None:
    """Measures one contestant in this process and prints JSON."""
    work = ours_loco if name == "ours_loco" else CONTESTANTS[name][1]
    maps, masks = np.load(folder / "maps.npy"), np.load(folder / "masks.npy")
    kinds = json.loads((folder / "kinds.json").read_text())
    few = [0, kinds.index(kinds[-1])]
    if name != "ours_loco":
        small = np.zeros((2, 1, 64, 64), bool)
        small[1, :, :, :9] = True
        work(maps[few, :64, :64].copy(), small, ["good", kinds[-1]])  # so that imports are not measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, busy = time.perf_counter(), time.process_time()
    values = work(maps, masks, kinds)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    extra = (peak - before) * 1024
    print(json.dumps({"seconds": seconds, "cpu": busy, "extra": extra, "maps": maps.nbytes, "values": values}))


def measure(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed.metrics_speed", "--child", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(names: list[str], folder: Path, rounds: int) -> Iterator[str]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            runs[name].append(measure(name, folder))
    base, busiest = (statistics.median(r[key] for r in runs[names[0]]) for key in ("seconds", "cpu"))
    heads = ("implementation", "median s", "range s", "times ours", "CPU s", "times ours", "peak extra", "of the maps")
    heads += ("AUPRO@0.3", "pixel AUROC")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for name, held in runs.items():
        seconds = [r["seconds"] for r in held]
        middle, cpu = statistics.median(seconds), statistics.median(r["cpu"] for r in held)
        extra = max(r["extra"] for r in held)
        shown = [held[0]["values"].get(key) for key in ("aupro@0.3", "pixel_auroc")]
        cells = [CONTESTANTS[name][0], f"{middle:.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"]
        cells += [f"{middle / base:.1f}", f"{cpu:.2f}", f"{cpu / busiest:.1f}", f"{extra / 1e6:,.0f} MB"]
        cells += [f"{extra / held[0]['maps']:.2f}", *("" if v is None else f"{v:.7f}" for v in shown)]
        yield f"| {' | '.join(cells)} |"


def loco(folder: Path, rounds: int) -> Iterator[str]:
    held = [measure("ours_loco", folder) for _ in range(rounds)]
    seconds, cpu = (statistics.median(r[key] for r in held) for key in ("seconds", "cpu"))
    extra, pixels = max(r["extra"] for r in held), held[0]["maps"] / 4
    yield "| LOCO: all types and limits | median s | CPU s | CPU ns per pixel | peak extra | of the maps |"
    yield "|---|---|---|---|---|---|"
    yield (
        f"| {pixels / 1e6:.0f} million pixels | {seconds:.2f} | {cpu:.2f} | {cpu / pixels * 1e9:.1f} "
        f"| {extra / 1e6:,.0f} MB | {extra / held[0]['maps']:.2f} |"
    )


def growth_child(pixels: int, limit: int | None, folder: Path) -> None:
    """Maps are made on the way, outside the measured time."""
    rng = np.random.default_rng(0)
    shape = (1000, 1000)
    bases = [smooth_noise(shape, rng) for _ in range(4)]
    warm = Scorer()  # enough pixels for every step, so that imports are not measured
    for i in range(4):
        truth = blob(shape, 0.08, rng)
        warm.add(str(i), label=1, kind="blob", anomaly_map=scores(bases[i], truth, rng), score=None, mask=truth)
    warm.result()
    scorer = Scorer(memory_limit=limit, scratch=folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = np.zeros(2)

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    for i in range(pixels // 1_000_000):
        truth = blob(shape, 0.08, rng)
        anomaly_map = scores(bases[i % 4], truth, rng)
        start = now()
        scorer.add(str(i), label=1, kind="blob", anomaly_map=anomaly_map, score=None, mask=truth)
        spent += now() - start
    start = now()
    values = scorer.result().metrics
    spent += now() - start
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"seconds": spent[0], "cpu": spent[1], "extra": extra, "aupro": values["aupro@0.3"]}))


def growth(sizes: list[int], rounds: int, folder: Path) -> Iterator[str]:
    yield "| million pixels | memory limit | median s | CPU s | CPU ns per pixel | peak extra | AUPRO@0.3 |"
    yield "|---|---|---|---|---|---|---|"
    for limit in (None, 256 << 20):
        for size in sizes if limit is None else sizes[-1:]:
            command = [sys.executable, "-m", "benchmarks.speed.metrics_speed", "--growth-child", str(size * 1_000_000)]
            command += [str(limit or 0), str(folder)]
            held = []
            for _ in range(rounds):
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                held.append(json.loads(done.stdout.splitlines()[-1]))
            seconds, cpu = (statistics.median(r[key] for r in held) for key in ("seconds", "cpu"))
            cells = [str(size), "none" if limit is None else f"{limit >> 20} MB", f"{seconds:.2f}", f"{cpu:.2f}"]
            cells += [f"{cpu / size * 1e3:.1f}", f"{max(r['extra'] for r in held) / 1e6:,.0f} MB"]
            yield f"| {' | '.join(cells)} | {held[0]['aupro']:.12f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds instead of minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants, with commas")
    parser.add_argument("--loco", action="store_true", help="the LOCO case only")
    parser.add_argument("--growth", action="store_true", help="cost per pixel over the number of pixels only")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--growth-child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    if args.growth_child:
        pixels, limit, folder = args.growth_child
        growth_child(int(pixels), int(limit) or None, Path(folder))
        return
    print(f"{machine()}. Medians of {args.rounds} rounds.\n", flush=True)
    with tempfile.TemporaryDirectory() as held:
        folder, rng = Path(held), np.random.default_rng(0)
        if args.growth:
            lines = growth([1, 4, 16] if args.quick else [1, 10, 67, 250, 500], args.rounds, folder)
        elif args.loco:
            counts = [(kind, n // 10 if args.quick else n, share) for kind, n, share in LOCO]
            make(folder, (800, 1600), counts, 3, rng)
            lines = loco(folder, args.rounds)
        else:
            make(folder, (200, 200) if args.quick else (900, 900), BOTTLE, 1, rng)
            names = [name for name in CONTESTANTS if name in ("ours", *args.only.split(","))]
            for name in [n for n in names if importlib.util.find_spec(CONTESTANTS[n][2]) is None]:
                names.remove(name)
                print(f"(left out: {CONTESTANTS[name][0]}: {CONTESTANTS[name][2]} is not installed)")
            lines = compare(names, folder, args.rounds)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
