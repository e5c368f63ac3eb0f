"""Times of parts of a unit; one sub-command each, Markdown tables out.

    python -m benchmarks.speed.parts_speed neighbours --data-root DIR --weights DIR
    python -m benchmarks.speed.parts_speed growth     --data-root DIR --weights DIR [--images 24]
    python -m benchmarks.speed.parts_speed distances  --data-root DIR --weights DIR [--share 0.1]
    python -m benchmarks.speed.parts_speed second     --data-root DIR --weights DIR

neighbours: our search beside anomalib's, on patch features of the pictures. growth: seconds of prediction, metrics and
coreset for 1, 2, 4 and 8 times as many pictures. distances: which share of all distances the coreset selection computes
as it grows. second: where the time of a unit goes when another method ran on the category before. All with PatchCore
on ResNet-18 at 256 px; medians of alternating rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.common import REPO, add_category, category_of, child, exponent, finish, middle, table

MODULE = "benchmarks.speed.parts_speed"
FACTORS = (1, 2, 4, 8)


def pictures(root: Path, split: str) -> list[np.ndarray]:
    """Decoded pictures uint8 [H, W, 3] of one split of the copied category."""
    import datasets
    from datasets.images import decode

    return [decode(sample.path) for sample in getattr(datasets.load("pictures", "category", root), split)]


def patchcore(weights: str) -> Any:
    import torch

    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    context = Context(torch.device("cpu"), 0, WeightStore(weights))
    return registry.method_class("patchcore")(registry.config("patchcore@resnet18"), context)


def patches(detector: Any, images: Sequence[np.ndarray]) -> Any:
    """Locally aware features float32 [n * 1024, 384]."""
    return detector.feature_maps(images)[0].permute(0, 2, 3, 1).flatten(0, 2)


# ---------------------------------------------------------------- neighbours


def neighbours(root: Path, arguments: argparse.Namespace) -> None:
    """Queries of 8 test pictures against banks of the sizes that 1 % and 10 % of all of bottle's patches have."""
    import torch

    detector = patchcore(arguments.weights)
    train = pictures(root, "train")
    everything = patches(detector, train)
    queries = patches(detector, pictures(root, "test")[-8:])
    np.save(root / "queries.npy", queries.numpy())
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    rows = []
    for size in (2140, 21401):
        if size > len(everything):
            print(f"(left out: a bank of {size:,}; {len(train)} training pictures have {len(everything):,} patches)")
            continue
        np.save(root / "bank.npy", everything[order[:size]].numpy())
        for k in (1, 9):
            runs: dict[str, list[dict]] = {"ours": [], "anomalib": []}
            for _ in range(arguments.rounds):
                for name in runs:
                    runs[name].append(child(MODULE, ["--child", "neighbours", name, root, k]))
            base = middle(runs["ours"], "seconds")
            for name, held in runs.items():
                seconds = middle(held, "seconds")
                rows.append([
                    f"{size:,}", str(k), name, f"{seconds:.3f}", f"{seconds / base:.2f}",
                    f"{middle(held, 'cpu'):.3f}", f"{max(r['extra_mb'] for r in held):,.0f}",
                    f"{100 * held[0]['same']:.2f} %", f"{held[0]['off']:.1e}",
                ])
    print(f"{len(queries):,} queries of {queries.shape[1]} dimensions, {arguments.rounds} rounds. 'same', 'off': "
          "neighbours as near as those by float64 distances, and the largest error of a distance, of 2,048 queries. "
          "Peak 0: no more than was held while loading.\n")
    table(("bank", "k", "", "s", "times ours", "CPU s", "peak extra MB", "same", "off"), rows)


def neighbours_child(name: str, root: Path, k: int) -> dict[str, Any]:
    import resource

    import torch

    queries, bank = (torch.from_numpy(np.load(root / f"{what}.npy")) for what in ("queries", "bank"))
    if name == "ours":
        from models.nn.neighbours import knn

        def search(some: Any) -> Any:
            return knn(some, bank, k)
    else:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        model = PatchcoreModel(["layer2", "layer3"], "resnet18", pre_trained=False)
        model.memory_bank = bank

        def search(some: Any) -> Any:
            return model.nearest_neighbors(some, k)

    with torch.inference_mode():
        search(queries[:64])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, busy = time.perf_counter(), time.process_time()
        found, places = search(queries)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        exact = torch.cat([torch.cdist(q.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
                           .topk(k, largest=False).values for q in queries[:2048].split(64)])
        at = (queries[:2048, None].double() - bank[places[:2048].view(2048, k)].double()).norm(dim=2)
    return {
        "seconds": seconds, "cpu": busy, "extra_mb": extra,
        "same": float(torch.isclose(at, exact, rtol=1e-12, atol=0).double().mean()),
        "off": float((found[:2048].view(2048, k).double() - exact).abs().max()),
    }


# ---------------------------------------------------------------- growth


class Shifted(Sequence[np.ndarray]):
    """`count` pictures: the given ones again and again, each time moved sideways, so that no two are equal."""

    def __init__(self, images: Sequence[np.ndarray], count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        return np.roll(self.images[index % len(self.images)], 3 * (index // len(self.images)), 1)


def growth(root: Path, arguments: argparse.Namespace) -> None:
    """Prediction and metrics of a fitted detector; coreset of distinct training pictures."""
    import datasets
    from benchmarks.scoring import score_test
    from models.nn.coreset import greedy_coreset
    from models.nn.projection import project

    detector = patchcore(arguments.weights)
    category = datasets.load("pictures", "category", root)
    train, test = pictures(root, "train"), pictures(root, "test")
    detector.fit(train[:16], None)
    # every second one, so that small counts hold good and anomalous pictures alike
    order = np.random.default_rng(0).permutation(len(test))
    base = arguments.images
    if base * FACTORS[-1] > len(test):
        raise SystemExit(f"--images {base}: {base * FACTORS[-1]} test pictures are needed, and there are {len(test)}")
    parts: dict[str, dict[int, list[float]]] = {"predict": {}, "metrics": {}, "coreset 1 %": {}, "coreset 10 %": {}}
    everything = patches(detector, train)
    greedy_coreset(everything[:500], 50, start=0)  # compile
    per = len(everything) // len(train)
    counts = [min(len(train), f * len(train) // FACTORS[-1]) for f in FACTORS]
    for _ in range(arguments.rounds):
        for factor, count in zip(FACTORS, counts, strict=True):
            chosen = [int(i) for i in order[: base * factor]]
            some = replace(category, test=tuple(category.test[i] for i in chosen))
            shifted = Shifted([test[i] for i in order], len(chosen))
            scored = score_test(detector, some, shifted, "original", lambda done, total: None)
            parts["predict"].setdefault(factor, []).append(scored.predict_s)
            parts["metrics"].setdefault(factor, []).append(scored.metrics_s)
            features = project(everything[: count * per], "sparse", 0)
            for share in (0.01, 0.1):
                if share == 0.1 and len(features) > arguments.limit:
                    continue
                start = time.perf_counter()
                greedy_coreset(features, max(1, int(len(features) * share)), start=7)
                parts[f"coreset {100 * share:.0f} %"].setdefault(factor, []).append(time.perf_counter() - start)
    print(f"1 x is {base} test pictures, or {counts[0]} training pictures ({counts[0] * per:,} patches) for the "
          f"coreset; medians of {arguments.rounds} rounds.\n")
    rows = []
    for name, held in parts.items():
        seconds = {f: statistics.median(times) for f, times in held.items()}
        per_picture = [f"{1000 * seconds[f] / (base * f if 'coreset' not in name else counts[FACTORS.index(f)]):.2f}"
                       if f in seconds else "" for f in FACTORS]
        slope = f"{exponent(list(seconds), list(seconds.values())):.2f}" if len(seconds) > 1 else ""
        rows.append([name, *(f"{seconds[f]:.2f}" if f in seconds else "" for f in FACTORS), *per_picture, slope])
    table(("", *(f"{f}x s" for f in FACTORS), *(f"{f}x ms/picture" for f in FACTORS), "exponent"), rows)
    print("\nExponent 1: cost per picture flat; 2: quadratic, which the plain rule for a fixed share is.")


# ---------------------------------------------------------------- share of distances


def distances(root: Path, arguments: argparse.Namespace) -> None:
    """Shares while and until so many points are selected."""
    from models.nn.coreset import greedy_coreset
    from models.nn.projection import project

    features = project(patches(patchcore(arguments.weights), pictures(root, "train")), "sparse", 0)
    count, stats = int(len(features) * arguments.share), {}
    greedy_coreset(features[:500], 50, start=0)  # compile
    start = time.perf_counter()
    greedy_coreset(features, count, start=7, stats=stats)
    print(f"{len(features):,} points of {features.shape[1]} dimensions, {count:,} selected in "
          f"{time.perf_counter() - start:.1f} s.\n")
    rows, computed, before = [], 0.0, 0
    wanted = sorted({count, *(n for n in (16, 100, 300, 1000, 3000, 10000) if n < count)})
    for selected, share in stats["curve"]:
        computed += share * (selected - before)
        before = selected
        while wanted and selected >= wanted[0]:
            wanted.pop(0)
            row = [f"{selected:,}", f"{100 * share:.3f} %", f"{100 * computed / selected:.3f} %"]
            if row not in rows:
                rows.append(row)
    table(("selected", "share in the last steps", "share so far"), rows)


# ---------------------------------------------------------------- second method


def second(root: Path, arguments: argparse.Namespace) -> None:
    """The same unit in the worker that ran another method before, and in a fresh process with the decode cache only."""
    runs: dict[str, list[dict]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as results:
            for name, methods in (("same worker", "padim@resnet18,patchcore@resnet18"),
                                  ("new worker", "patchcore@resnet18")):
                found = child(MODULE, ["--child", "second", methods, root, results, arguments.weights])
                for unit in found["units"]:
                    runs.setdefault(f"{unit['spec']}, {name if unit['second'] else 'first on the category'}", []) \
                        .append(unit)
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, str(REPO / "run_benchmark.py"), "run", "--methods", "patchcore@resnet18", "--datasets",
                 "pictures", "--data-root", str(root), "--results", results, "--weights", arguments.weights, "--device",
                 "cpu", "--quiet", "--force"], cwd=REPO, capture_output=True, check=True,
            )
            runs.setdefault("command", []).append({"wall": time.perf_counter() - start})
    command = middle(runs.pop("command"), "wall")
    rows = []
    for name, held in runs.items():
        wall = middle(held, "wall")
        parts = [middle(held, key) for key in ("data", "model", "metrics", "overhead")]
        rows.append([name, f"{wall:.2f}", *(f"{part:.2f} ({100 * part / wall:.1f} %)" for part in parts),
                     f"{middle(held, 'reused'):.0f} of {middle(held, 'pictures'):.0f}", f"{middle(held, 'saved'):.2f}"])
    print(f"Medians of {arguments.rounds} rounds; a unit from the call to its stored record. data: folder, cache, "
          "pictures, masks. overhead: what is neither data, model nor metrics.\n")
    table(("unit", "s", "data s", "model s", "metrics s", "overhead s", "features reused", "seconds saved"), rows)
    print(f"\nThe whole command for one unit with the decode cache, start and plan included: {command:.2f} s.")


def second_child(methods: str, root: Path, results: Path, weights: str) -> dict[str, Any]:
    import timm  # noqa: F401  what a worker imports for its first unit is no part of a later one's time

    from benchmarks import scoring  # noqa: F401
    from benchmarks.plan import Options, make_plan
    from benchmarks.runner import Shared, run_unit
    from models import registry
    from models.nn import coreset_kernel  # noqa: F401

    options = Options(data_root=root, results=results, weights=weights, device="cpu", cache_dir=results / "cache",
                      cache_size=10**10)
    specs = methods.split(",")
    fresh = not (results / "cache").exists()
    jobs = make_plan(specs, ["pictures"], options).jobs
    for spec in specs:
        registry.method_class(spec.partition("@")[0])
    shared, units = Shared(), []
    for position, job in enumerate(jobs):
        start = time.perf_counter()
        record = run_unit(job, lambda *step: None, shared)
        wall = time.perf_counter() - start
        if record["status"] != "ok":
            raise SystemExit(f"{job.unit}: {record['error']}")
        t, features = record["timing"], record["features"]
        data = t["data_s"] + t["fit_read_s"] + t["test_read_s"]
        model = t["build_s"] + t["fit_s"] - t["fit_read_s"] + t["predict_s"]
        units.append({
            "spec": job.unit.spec, "second": position > 0 or not fresh, "wall": wall, "data": data, "model": model,
            "metrics": t["metrics_s"], "overhead": wall - data - model - t["metrics_s"],
            "reused": features["reused"], "pictures": features["reused"] + features["computed"],
            "saved": features["saved_s"],
        })
    return {"units": units}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["neighbours", "growth", "distances", "second"])
    add_category(parser)
    parser.add_argument("--train", type=int, help="training pictures (all without it)")
    parser.add_argument("--images", type=int, default=24, help="growth: test pictures at 1 x")
    parser.add_argument("--limit", type=int, default=120_000, help="growth: most points of a 10 %% coreset")
    parser.add_argument("--share", type=float, default=0.1, help="distances: of the points to select")
    arguments = parser.parse_args()
    if arguments.child:
        what, *rest = arguments.child
        if what == "neighbours":
            finish(neighbours_child(rest[0], Path(rest[1]), int(rest[2])))
        else:
            finish(second_child(rest[0], Path(rest[1]), Path(rest[2]), rest[3]))
        return
    if arguments.what is None:
        parser.error("name a sub-command")
    with category_of(parser, arguments, arguments.train) as held:
        globals()[arguments.what](held, arguments)


if __name__ == "__main__":
    main()
