"""Milliseconds of a training step on a GPU, with each precision and with operations that repeat.

    python -m benchmarks.speed.gpu_steps dae@mse dae@vgg16_mse tsdn@paper,encoder=tf_efficientnet_lite0.in1k rb_ae@paper

96 random pictures of 256 px, random weights, embedded textures. A training runs for 20 steps; the time is the mean of
those after the fourth, from and to a moment at which the GPU has done all that it was told.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

from benchmarks.speed.common import machine, table

STEPS, FIRST, PICTURES, SIDE = 20, 4, 96, 256
MODES = ("float32", "repeatable", "tf32", "bf16")


def measure(text: str, mode: str) -> tuple[float, int]:
    """(milliseconds a step, peak MiB) of METHOD@PRESET[,FIELD=VALUE...]."""
    import numpy as np
    import torch

    from benchmarks import devices
    from models import registry
    from models.base import Context
    from models.features import precision
    from models.weights import WeightStore

    spec, *rest = text.split(",")
    kind = "float32" if mode == "repeatable" else mode
    fields = dict(part.split("=", 1) for part in rest) | {"precision": kind}
    devices.prepare("cuda:0", repeatable=mode == "repeatable")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8) for _ in range(PICTURES)]
    times: list[float] = []

    class Enough(BaseException):
        pass

    def step(done: int, total: int, /, **values: float) -> None:
        if len(times) + 1 in (FIRST, STEPS):
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) == STEPS:
            raise Enough

    with tempfile.TemporaryDirectory() as scratch, precision(kind), contextlib.suppress(Enough):
        context = Context(
            torch.device("cuda:0"), 0, WeightStore("none"), Path(scratch),
            extras={"members": {}, "member_dir": None, "textures": "embedded"},
        )
        registry.method_class(registry.parse(spec)[0])(registry.config(spec, fields), context).fit(pictures, None, step)
    if len(times) < STEPS:
        raise SystemExit(f"{text}: its training has {len(times)} steps, {STEPS} are needed; set more epochs")
    return 1e3 * (times[STEPS - 1] - times[FIRST - 1]) / (STEPS - FIRST), torch.cuda.max_memory_allocated() >> 20


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", metavar="METHOD@PRESET[,FIELD=VALUE...]")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here")
    print(f"{torch.cuda.get_device_name()}; {machine()}\n")
    rows = []
    for text in arguments.specs:
        found = [measure(text, mode) for mode in MODES]
        rows.append([text, *(f"{ms:.1f}" for ms, _ in found), found[0][1]])
    table(("", *(f"{mode}, ms" for mode in MODES), "peak MiB, float32"), rows)


if __name__ == "__main__":
    main()
