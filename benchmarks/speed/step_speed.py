"""Processor seconds of a training step in this checkout and in another one, in turns.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.speed.step_speed tsdn@paper --against /tmp/before --pictures 2 --set train_batch=2

Random pictures of the method's size, one batch, three steps of which the first is left out; each run in a process of
its own, both checkouts in turns, so that whatever else the machine does falls on both alike. One thread. Settings that
only one of the two knows do not fit here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.common import REPO, machine, table

STEPS = 3


def measure(spec: str, count: int, settings: dict[str, str]) -> dict[str, float]:
    """Median processor seconds of the steps of a training of STEPS epochs of one batch, with random weights."""
    import dataclasses

    import numpy as np
    import torch

    from benchmarks.launchers import memory
    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    memory.reuse()  # as in the harness's workers
    torch.set_num_threads(1)
    fields = {field.name for field in dataclasses.fields(registry.config(spec))}
    epochs = {name: str(STEPS) for name in fields if name.startswith("epochs")}
    config: Any = registry.config(spec, epochs | ({"textures": "embedded"} if "textures" in fields else {}) | settings)
    detector = registry.method_class(spec.split("@")[0])(config, Context(torch.device("cpu"), 0, WeightStore("none")))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (config.size, config.size, 3), np.uint8) for _ in range(count)]
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


def child(checkout: Path, spec: str, count: int, settings: list[str]) -> float:
    """`measure` in a process that imports the models of `checkout`."""
    from benchmarks.speed.common import in_checkout

    chosen = ["--set", *settings] if settings else []
    return in_checkout(checkout, __file__, [spec, "--pictures", str(count), *chosen])["step_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="method@preset")
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--pictures", type=int, default=2, help="training pictures: one batch of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.spec, arguments.pictures, dict(s.split("=", 1) for s in arguments.set))))
        return
    if arguments.against is None:
        parser.error("--against is missing")
    if not (arguments.against / "run_benchmark.py").is_file():
        parser.error(f"{arguments.against} is no checkout of this repository")
    print(f"{machine()}. {arguments.spec} {' '.join(arguments.set)}, {arguments.pictures} pictures a step.\n")
    held: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(arguments.rounds):
        for name, checkout in (("before", arguments.against.resolve()), ("now", REPO)):
            held[name].append(child(checkout, arguments.spec, arguments.pictures, arguments.set))
    middle = {name: statistics.median(times) for name, times in held.items()}
    table(("", "CPU s a step", "of each round", "times before"), [
        [name, f"{middle[name]:.2f}", ", ".join(f"{t:.2f}" for t in times), f"{middle[name] / middle['before']:.2f}"]
        for name, times in held.items()
    ])


if __name__ == "__main__":
    main()
