"""Processor time of a training step, with freed memory returned to the system and with it kept for reuse.

    python -m benchmarks.speed.epoch_speed dae@mse cae@mse gen_encdec@quick --threads 1
    python -m benchmarks.speed.epoch_speed dae@mse tsdn@quick rb_ae@quick --profile

Random pictures of the method's size, one batch, three steps of which the first is left out; each in its own process.
With --profile: what share of such a training each kind of operation takes, to see whether the network or the data bound
it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

from benchmarks.speed.common import child, finish, machine, table
from benchmarks.speed.unit_profile import shares

STEPS = 3


def prepare(spec: str, precision: str, threads: int) -> tuple[Any, list[Any]]:
    """A detector with random weights whose phases have STEPS epochs of one batch, and its training pictures."""
    import dataclasses

    import numpy as np
    import torch

    from models import registry
    from models.base import Context
    from models.nn.textures import EMBEDDED
    from models.weights import WeightStore

    torch.set_num_threads(threads)
    fields = [field.name for field in dataclasses.fields(registry.config(spec))]
    settings = {"precision": precision} | {name: str(STEPS) for name in fields if name.startswith("epochs")}
    config: Any = registry.config(spec, settings | ({"textures": EMBEDDED} if "textures" in fields else {}))
    detector = registry.method_class(spec.split("@")[0])(config, Context(torch.device("cpu"), 0, WeightStore("none")))
    count = config.train_batch if spec.split("@")[0] != "gen_encdec" else config.train_batch * 5 // 4  # a fifth is held
    rng = np.random.default_rng(0)
    return detector, [rng.integers(0, 256, (config.size, config.size, 3), np.uint8) for _ in range(count)]


def measure(spec: str, precision: str, kept: bool, threads: int) -> dict[str, Any]:
    """Median processor seconds of a training step, and the pictures in it."""
    from benchmarks.launchers import memory

    if kept:
        memory.reuse()
    detector, pictures = prepare(spec, precision, threads)
    times: list[float] = []
    detector.fit(pictures, None, lambda done, total, /, **values: times.append(time.process_time()))
    steps = statistics.median(b - a for a, b in itertools.pairwise(times))
    return {"step_s": steps, "batch": detector.config.train_batch}


def profile(spec: str, threads: int) -> dict[str, float]:
    """Seconds by kind of operation of a training of STEPS steps per phase, with what follows it, and outside torch."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from benchmarks.launchers import memory

    memory.reuse()
    detector, pictures = prepare(spec, "float32", threads)
    with profiler(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        start = time.perf_counter()
        detector.fit(pictures, None)
        seconds = time.perf_counter() - start
    return shares(seen, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["dae@mse", "dae@ssim", "cae@mse"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=209, help="of an epoch")
    parser.add_argument("--profile", action="store_true", help="shares of a training by kind of operation")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        spec, precision, kept = arguments.child
        finish(measure(spec, precision, kept == "kept", arguments.threads))
        return
    print(f"{machine()}; {arguments.threads} used.\n", flush=True)
    if arguments.profile:
        runs = {spec: profile(spec, arguments.threads) for spec in arguments.methods}
        kinds = [kind for kind in next(iter(runs.values())) if kind != "all"]
        table(("method", "s", *(f"{kind}, %" for kind in kinds)), (
            (spec, f"{run['all']:.1f}", *(f"{100 * run[kind] / run['all']:.0f}" for kind in kinds))
            for spec, run in runs.items()
        ))
        return

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
