"""Processor seconds of a training step in this checkout and in an older one, in turns.

    python -m benchmarks.speed.step_speed tsdn@paper:size=128 dae@mse --against COMMIT --pictures 2

Random pictures of the method's size, one batch of them, three steps of which the first is left out; each run in a
process of its own, both checkouts in turns, so that whatever else the machine does falls on both alike. One thread.
gen_encdec, which holds pictures back, gets as many more. Settings that only one of the two knows do not fit here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed.common import REPO, machine, table

STEPS = 3
MORE = {"gen_encdec": 10}  # so many pictures at least; it learns four fifths of them


def measure(spec: str, count: int) -> dict[str, float]:
    """Median processor seconds of the steps of a training of STEPS epochs of one batch, with random weights."""
    import dataclasses

    import numpy as np
    import torch

    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    try:  # as in the harness's workers
        from benchmarks.launchers.memory import reuse
    except ImportError:  # where it stood before 58119d3
        from benchmarks.launchers.local import reuse_memory as reuse
    reuse()
    torch.set_num_threads(1)
    spec, _, entries = spec.partition(":")
    method = spec.partition("@")[0]
    fields = {field.name for field in dataclasses.fields(registry.config(spec))}
    count = max(count, MORE.get(method, 0))
    settings = {name: str(STEPS) for name in fields if name.startswith("epochs")} | {"train_batch": str(count)}
    settings |= ({"textures": "embedded"} if "textures" in fields else {})
    settings |= dict(entry.split("=", 1) for entry in entries.split(",") if entry)
    config: Any = registry.config(spec, settings)
    detector = registry.method_class(method)(config, Context(torch.device("cpu"), 0, WeightStore("none")))
    rng, side = np.random.default_rng(0), config.size if "size" in fields else config.resize
    pictures = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
    times: list[float] = []

    class Enough(Exception):
        pass

    def stop(done: int, total: int, /, **values: float) -> None:
        times.append(time.process_time())
        if len(times) == STEPS:
            raise Enough

    with contextlib.suppress(Enough):
        detector.fit(pictures, None, stop)
    return {"step_s": statistics.median(b - a for a, b in itertools.pairwise(times))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help="method@preset, with settings as in tsdn@paper:size=128,width=8")
    parser.add_argument("--against", help="another checkout of this repository, or a commit of it")
    parser.add_argument("--pictures", type=int, default=2, help="of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.methods[0], arguments.pictures)))
        return
    if arguments.against is None:
        parser.error("--against is missing")
    from benchmarks.speed.common import checkout_of, in_checkout

    print(f"{machine()}. One thread, {arguments.pictures} pictures a step, medians of {arguments.rounds} alternating "
          f"rounds; before is {Path(arguments.against).name}.\n", flush=True)

    def rows(before: Path) -> Iterator[list[str]]:
        for spec in arguments.methods:
            held: dict[Path, list[float]] = {before: [], REPO: []}
            for _ in range(arguments.rounds):
                for checkout, times in held.items():
                    found = in_checkout(checkout, __file__, [spec, "--pictures", str(arguments.pictures)])
                    times.append(found["step_s"])
            old, new = (statistics.median(times) for times in held.values())
            yield [spec, f"{old:.2f}", f"{new:.2f}", f"{old / new:.2f}"]

    with checkout_of(arguments.against) as before:
        table(("step of", "before, CPU s", "now, CPU s", "ratio"), rows(before))


if __name__ == "__main__":
    main()
