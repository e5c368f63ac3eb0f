"""Processor time of what the harness sets on CPUs: the form of frozen backbones, and how waiting threads wait.

    python -m benchmarks.speed.cpu_speed passes    # against the same network with batch norms, channels first
    python -m benchmarks.speed.cpu_speed waiting   # a training step with two threads, in processes of their own
    python -m benchmarks.speed.cpu_speed load      # the demo of some methods alone and beside eight busy processes

Contestants alternate; medians. `waiting` shows something only where other work runs on the same cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.speed.common import REPO, child, finish, machine, middle, table

WAYS = {"PASSIVE, as workers set it": "PASSIVE", "not set, as OpenMP has it": ""}
STEPS = 10
DEMO = ("patchcore",)


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Processor seconds of a call, of all threads."""
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def passes(tags: list[str], pictures: int, rounds: int) -> None:
    """Table of one pass to layer3 in both forms."""
    import torch

    from models.features import STAGES, Backbone, _Reached, backbone
    from models.weights import WeightStore

    def plain(net: Backbone, x: torch.Tensor) -> None:
        with contextlib.suppress(_Reached):
            net.net(x)
        net._found.clear()

    rows = []
    with torch.no_grad():
        for tag in tags:
            ours = backbone(tag, STAGES, WeightStore("none"))
            other = backbone(tag, STAGES, WeightStore("none"), trained=True)
            other.net.to(memory_format=torch.contiguous_format)
            x = torch.randn(pictures, 3, 256, 256)
            runs = [(timed(ours, x), timed(plain, other, x)) for _ in range(rounds + 1)][1:]
            a, b = (statistics.median(column) for column in zip(*runs, strict=True))
            rows.append([tag, ours.form, f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}"])
    table(["network", "form", "CPU s", "plain, CPU s", "ratio"], rows)


def step_seconds() -> dict[str, float]:
    """Processor and wall seconds of a small network's training step with two threads, in this process."""
    import torch
    from torch import nn

    torch.set_num_threads(2)
    torch.manual_seed(0)
    net = nn.Sequential(*(
        part for i in range(12)
        for part in (nn.Conv2d(32 if i else 3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
    ))
    adam = torch.optim.Adam(net.parameters(), fused=True)

    def step() -> None:
        adam.zero_grad()
        net(torch.randn(2, 3, 32, 32)).square().mean().backward()
        adam.step()

    step()
    wall = time.perf_counter()
    cpu = timed(lambda: [step() for _ in range(STEPS)])
    return {"cpu": cpu / STEPS, "wall": (time.perf_counter() - wall) / STEPS}


def waiting(rounds: int) -> None:
    """Table of a training step by how OpenMP's threads wait."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    before = os.environ.pop("OMP_WAIT_POLICY", None), os.environ.pop("OMP_NUM_THREADS", None)
    for _ in range(rounds):
        for name, value in WAYS.items():
            os.environ.update({"OMP_WAIT_POLICY": value} if value else {})
            found[name].append(child("benchmarks.speed.cpu_speed", ["waiting", "--child"]))
            os.environ.pop("OMP_WAIT_POLICY", None)
    os.environ.update({k: v for k, v in zip(("OMP_WAIT_POLICY", "OMP_NUM_THREADS"), before, strict=True) if v})
    table(["OMP_WAIT_POLICY", "CPU ms a step", "wall ms a step"], [
        [name, *(f"{1000 * middle(runs, key):.1f}" for key in ("cpu", "wall"))] for name, runs in found.items()
    ])


def demo_seconds(busy: int) -> dict[str, float]:
    """Seconds and processor seconds of the demo beside so many processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as results:
            start = time.perf_counter()
            command = [sys.executable, "run_benchmark.py", "demo", "--methods", *DEMO, "--quiet", "--results", results]
            process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, code, usage = os.wait4(process.pid, 0)
            if code:
                raise SystemExit(f"{' '.join(command)} ended with {code}")
            return {"wall": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime}
    finally:
        for other in others:
            other.kill()
            other.wait()


def load(rounds: int) -> None:
    """Table of the demo alone and beside busy processes."""
    found: dict[int, list[dict[str, float]]] = {0: [], 8: []}
    for _ in range(rounds):
        for busy, runs in found.items():
            runs.append(demo_seconds(busy))
    print(f"The demo of {', '.join(DEMO)}.\n")
    alone = middle(found[0], "cpu")
    table(["busy processes beside it", "CPU s", "times alone", "wall s"], [
        [str(busy), f"{middle(runs, 'cpu'):.1f}", f"{middle(runs, 'cpu') / alone:.2f}", f"{middle(runs, 'wall'):.1f}"]
        for busy, runs in found.items()
    ])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["passes", "waiting", "load"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=8, help="of a pass, at 256 x 256")
    parser.add_argument("--networks", nargs="+", default=["resnet18.tv_in1k", "wide_resnet50_2.tv_in1k"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return finish(step_seconds())
    print(f"{machine()}. Medians of {args.rounds} alternating rounds.\n", flush=True)
    if args.what == "passes":
        return passes(args.networks, args.pictures, args.rounds)
    return waiting(args.rounds) if args.what == "waiting" else load(args.rounds)


if __name__ == "__main__":
    main()
