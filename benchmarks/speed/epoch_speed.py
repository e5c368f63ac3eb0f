"""Processor time of a training step, with freed memory returned to the system and with it kept for reuse.

    python -m benchmarks.speed.epoch_speed dae@mse cae@mse gen_encdec@quick --threads 1

Random pictures of the method's size, one batch, three steps of which the first is left out; each in its own process.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

from benchmarks.speed.common import child, finish, machine, table

STEPS = 3


def measure(spec: str, precision: str, kept: bool, threads: int) -> dict[str, Any]:
    """Median processor seconds of a training step, and the pictures in it."""
    import numpy as np
    import torch

    from benchmarks.launchers.local import reuse_memory
    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    if kept:
        reuse_memory()
    torch.set_num_threads(threads)
    config: Any = registry.config(spec, {"precision": precision, "epochs": str(STEPS)})
    detector: Any = registry.method_class(spec.split("@")[0])(
        config, Context(torch.device("cpu"), 0, WeightStore("none"), None)
    )
    rng, times = np.random.default_rng(0), []
    count = config.train_batch if spec.split("@")[0] != "gen_encdec" else config.train_batch * 5 // 4  # a fifth is held
    pictures = [rng.integers(0, 256, (config.size, config.size, 3), np.uint8) for _ in range(count)]
    detector.fit(pictures, None, lambda done, total, /, **values: times.append(time.process_time()))
    return {"step_s": statistics.median(b - a for a, b in itertools.pairwise(times)), "batch": config.train_batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["dae@mse", "dae@ssim", "cae@mse"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=209, help="of an epoch")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        spec, precision, kept = arguments.child
        finish(measure(spec, precision, kept == "kept", arguments.threads))
        return
    print(f"{machine()}; {arguments.threads} used.\n", flush=True)

    def row(spec: str, precision: str) -> list[str]:
        returned, kept = (
            child(__spec__.name, ["--threads", arguments.threads, "--child", spec, precision, how])
            for how in ("returned", "kept")
        )
        epoch = kept["step_s"] * arguments.pictures / kept["batch"]
        memory = (f"{returned['peak_mb']:,.0f}", f"{kept['peak_mb']:,.0f}")
        return [spec, precision, f"{returned['step_s']:.2f}", f"{kept['step_s']:.2f}", f"{epoch:.0f}", *memory]

    table(
        ("method", "precision", "step, memory returned, s", "step, kept, s", f"epoch of {arguments.pictures}, s",
         "peak MB, returned", "peak MB, kept"),
        (row(spec, precision) for spec in arguments.methods for precision in ("float32", "bf16")),
    )


if __name__ == "__main__":
    main()
