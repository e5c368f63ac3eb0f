#!/usr/bin/env python3
"""Greedy coreset: ours against the plain rule as anomalib's KCenterGreedy computes it, on the same features.

    python benchmarks/speed/coreset_speed.py --pictures DIR --weights DIR     features of real pictures (ResNet-18)
    python benchmarks/speed/coreset_speed.py                                  clustered random features

Runs alternate, and medians are printed. anomalib is timed over `--steps` of its steps, each of which costs the same,
and multiplied by the number of steps; ours runs to the end. CPU time is given beside wall time, since on a machine
that does other work only the former compares.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.common import machine
from models.nn.coreset import greedy_coreset, plain_greedy
from models.nn.projection import project


def picture_features(folder: Path, weights: str) -> Tensor:
    """Locally aware ResNet-18 features [N, 384] at 256 px of the pictures under `folder`."""
    from PIL import Image

    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    context = Context(torch.device("cpu"), 0, WeightStore(weights))
    detector = registry.method_class("patchcore")(registry.config("patchcore@resnet18"), context)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".bmp"})
    parts = []
    for start in range(0, len(files), 8):
        batch = [np.asarray(Image.open(path).convert("RGB")) for path in files[start : start + 8]]
        parts.append(detector.feature_maps(batch)[0].permute(0, 2, 3, 1).flatten(0, 2))
    return torch.cat(parts)


def random_features(count: int) -> Tensor:
    """Points in 384 dimensions around a curved sheet of 12, which is about how far features of one class spread."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(count, 12, generator=generator)
    lift = torch.randn(24, 384, generator=generator)
    return torch.cat([low, low.sin()], 1) @ lift + 0.05 * torch.randn(count, 384, generator=generator)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def ours(features: Tensor, count: int, start: int) -> tuple[Tensor, float, float, dict]:
    """Selection, wall seconds, CPU seconds, and its statistics."""
    stats: dict = {}
    wall, cpu = clocks()
    chosen = greedy_coreset(features, count, start=start, stats=stats)
    return chosen, clocks()[0] - wall, clocks()[1] - cpu, stats


def anomalibs(features: Tensor, steps: int, start: int) -> tuple[list[int], float, float]:
    """The first `steps` selections of anomalib's sampler, and wall and CPU seconds per step."""
    from anomalib.models.components import KCenterGreedy

    sampler = KCenterGreedy(features, 0.5)
    sampler.features = features
    sampler.reset_distances()
    index = torch.tensor(start)
    chosen = [start]
    wall, cpu = clocks()
    for _ in range(steps):
        sampler.update_distances(index)
        index = sampler.get_new_idx()
        sampler.min_distances.scatter_(0, index.unsqueeze(0).unsqueeze(1), 0.0)
        chosen.append(int(index))
    return chosen, (clocks()[0] - wall) / steps, (clocks()[1] - cpu) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description="time the greedy coreset against anomalib's")
    parser.add_argument("--pictures", type=Path, help="folder of pictures (random features without)")
    parser.add_argument("--weights", default="auto", help="directory of weights, auto or none")
    parser.add_argument("--points", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--share", type=float, default=0.1, help="of the points to select")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="steps of anomalib's sampler per round")
    parser.add_argument("--check", type=int, default=100, help="selections compared with the plain rule")
    args = parser.parse_args()

    largest = max(args.points)
    everything = picture_features(args.pictures, args.weights) if args.pictures else random_features(largest)
    ours(random_features(500), 50, 0)  # compile
    print(f"{machine()}.\nMedians of {args.rounds} alternating rounds.\n")
    print("| points | dims | selected | ours s | ours CPU s | anomalib ms/step | anomalib CPU ms/step | wall ratio "
          "| CPU ratio | distances computed | same as plain rule |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    curve: list[tuple[int, float]] = []
    for points in args.points:
        features = project(everything[:points], "sparse", 0)
        count = int(len(features) * args.share)
        mine, theirs = [], []
        for _ in range(args.rounds):
            chosen, *times, stats = ours(features, count, 7)
            mine.append(times)
            theirs.append(anomalibs(features, args.steps, 7)[1:])
        (wall, cpu), (step, step_cpu) = ([statistics.median(column) for column in zip(*runs, strict=True)]
                                         for runs in (mine, theirs))
        check = min(args.check, count)
        same = torch.equal(chosen[:check], plain_greedy(features, check, start=7))
        print(f"| {len(features):,} | {features.shape[1]} | {count:,} | {wall:.2f} | {cpu:.2f} | {1000 * step:.1f} "
              f"| {1000 * step_cpu:.1f} | {step * count / wall:.0f}x | {step_cpu * count / cpu:.0f}x "
              f"| {100 * stats['share']:.2f} % | {'yes' if same else 'NO'} ({check}) |", flush=True)
        curve = stats["curve"]
    print("\nShare of the distances computed, by points selected (largest run):\n")
    shown = [curve[i] for i in sorted({0, 1, 2, 3, 4, 5, len(curve) // 4, len(curve) // 2, len(curve) - 1} &
                                      set(range(len(curve))))]
    print("| selected | share |\n|---:|---:|")
    for selected, share in shown:
        print(f"| {selected:,} | {100 * share:.2f} % |")


if __name__ == "__main__":
    main()
