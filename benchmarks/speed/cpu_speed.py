"""Processor time of what the harness sets on CPUs: the form of frozen backbones, and how waiting threads wait.

    python -m benchmarks.speed.cpu_speed passes    # against the same network with batch norms, channels first
    python -m benchmarks.speed.cpu_speed waiting   # a training step with two threads, in processes of their own

Contestants alternate; medians. `waiting` shows something only where other work runs on the same cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.speed.common import child, finish, machine, middle, table

WAYS = {"PASSIVE, as workers set it": "PASSIVE", "not set, as OpenMP has it": ""}
STEPS = 10


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["passes", "waiting"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=8, help="of a pass, at 256 x 256")
    parser.add_argument("--networks", nargs="+", default=["resnet18.tv_in1k", "wide_resnet50_2.tv_in1k"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return finish(step_seconds())
    print(f"{machine()}. Medians of {args.rounds} alternating rounds.\n", flush=True)
    return passes(args.networks, args.pictures, args.rounds) if args.what == "passes" else waiting(args.rounds)


if __name__ == "__main__":
    main()
