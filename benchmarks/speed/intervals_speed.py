"""What 95 % intervals cost for one unit of 83 pictures: `python -m benchmarks.speed.intervals_speed [--side 900]`.

The counts that the scorer keeps for them (a scorer with and without, bytes beside the record), and 2,000 draws of all
metrics. Processor time stands beside wall time.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.metrics import Scorer, bootstrap
from benchmarks.speed.common import machine, table
from benchmarks.speed.metrics_speed import blob, scores, smooth_noise

KINDS = ("good",) * 20 + ("broken_large",) * 20 + ("broken_small",) * 22 + ("contamination",) * 21  # bottle


def pictures(side: int) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """(kind, map float32 [side, side], mask or None) of made-up pictures, the same in every run."""
    rng = np.random.default_rng(0)
    bases = [smooth_noise((side, side), rng) for _ in range(4)]
    made = []
    for i, kind in enumerate(KINDS):
        mask = None if kind == "good" else blob((side, side), 0.03, rng)
        made.append((kind, scores(bases[i % 4], np.zeros((side, side), bool) if mask is None else mask, rng), mask))
    return made


def scored(made: list[tuple[str, np.ndarray, np.ndarray | None]], statistics: bool) -> Any:
    """The scorer's result, with or without the counts for intervals."""
    scorer = Scorer(statistics=statistics)
    for i, (kind, anomaly_map, mask) in enumerate(made):
        scorer.add(f"{kind}/{i}", label=int(kind != "good"), kind=kind, anomaly_map=anomaly_map, score=None, mask=mask)
    return scorer.result()


def timed(do: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, its wall seconds and its processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    found = do()
    return found, time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{machine()}\n{len(KINDS)} pictures of {args.side} x {args.side}, medians of {args.rounds} rounds\n")
    made = pictures(args.side)
    spent: dict[str, list[tuple[float, float]]] = {"metrics": [], "metrics and counts": [], "2,000 draws": []}
    size = intervals = 0
    for _ in range(args.rounds):
        for name, keep in (("metrics", False), ("metrics and counts", True)):
            result, *seconds = timed(partial(scored, made, keep))
            spent[name].append((seconds[0], seconds[1]))
        tops = np.array([m.max() for _, m, _ in made], np.float32)
        arrays = {
            "name": np.array([f"{kind}/{i}" for i, (kind, _, _) in enumerate(made)]), "kind": np.array(KINDS),
            "label": np.array([kind != "good" for kind in KINDS], np.int8), "score": tops, "score_max": tops,
            **result.statistics,
        }
        held = io.BytesIO()
        np.savez_compressed(held, **arrays)
        size = len(held.getvalue())
        found, *seconds = timed(partial(bootstrap.intervals, arrays, result.metrics, list(result.metrics)))
        intervals = sum(pair is not None for pair in found.values())
        spent["2,000 draws"].append((seconds[0], seconds[1]))
    rows = [[name, *(f"{statistics.median(column):.2f}" for column in zip(*pairs, strict=True))]
            for name, pairs in spent.items()]
    table(["part", "wall (s)", "processor (s)"], rows)
    print(f"\n{intervals} intervals of {len(result.metrics)} metrics; {size / 1e6:.2f} MB beside the record")


if __name__ == "__main__":
    main()
