"""Processor time of one training step: the whole batch at once beside pieces of it, float32 beside bf16.

    python -m benchmarks.speed.epoch_speed dae@mse dae@ssim cae@mse --threads 1

Random pictures, one batch, three steps of which the first is left out.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

from tabulate import tabulate

from benchmarks.speed.common import machine

STEPS = 3


def step_s(spec: str, changes: dict[str, Any], whole: bool) -> tuple[float, int]:
    """(median processor seconds of a training step, pictures in it)."""
    import numpy as np
    import torch

    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    config: Any = registry.config(spec, changes)
    detector: Any = registry.method_class(spec.split("@")[0])(
        config, Context(torch.device("cpu"), 0, WeightStore("none"), None)
    )
    if whole:
        detector._piece = lambda: None
    rng, times = np.random.default_rng(0), [time.process_time()]
    pictures = [rng.integers(0, 256, (config.size, config.size, 3), np.uint8) for _ in range(config.train_batch)]
    detector.fit(pictures, None, lambda done, total, /, **values: times.append(time.process_time()))
    return statistics.median(b - a for a, b in itertools.pairwise(times[1:])), config.train_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["dae@mse", "dae@ssim", "cae@mse"], help="of dae and cae")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=209, help="of an epoch")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    rows = []
    for spec in arguments.methods:
        for precision in ("float32", "bf16"):
            changes = {"precision": precision, "epochs": str(STEPS)}
            whole, batch = step_s(spec, changes, True)
            pieces, _ = step_s(spec, changes, False)
            epoch = pieces * arguments.pictures / batch
            rows.append([spec, precision, f"{whole:.2f}", f"{pieces:.2f}", f"{epoch:.0f}"])
    print(f"{machine()}.\n")
    heads = ["method", "precision", "whole batch, s", "in pieces, s", f"epoch of {arguments.pictures}, s"]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
