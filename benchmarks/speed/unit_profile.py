"""Where the time of a whole unit goes: convolutions, other tensor work, and Python with the rest.

    python -m benchmarks.speed.unit_profile patchcore@resnet18 tsdn@quick:epochs=1 --data-root DIR --weights WDIR \\
        --against COMMIT

One unit on DIR/mvtec_ad/bottle from the plan to the stored record, after the imports, under torch's profiler; this
checkout and the other one (where given) in turns, each run a process of its own with one thread. Weights
that are not at hand are random ones, which take the same time. Let nothing else run: torch's profiler counts seconds,
not processor seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed.common import REPO, machine, table

KINDS = {  # of torch's operations, by a part of their names
    "convolutions": ("conv", "col2im", "im2col"),
    "matrix products": ("mm", "linear", "attention"),
    "normalisation": ("norm",),
    "resizing, pooling": ("upsample", "pool", "pad", "grid_sampl"),
}


def shares(seen: Any, seconds: float) -> dict[str, float]:
    """Seconds by kind of operation of a finished profile that took `seconds`, and outside torch."""
    found = dict.fromkeys((*KINDS, "other tensor operations"), 0.0)
    for event in seen.key_averages():
        kind = next((k for k, parts in KINDS.items() if any(part in event.key for part in parts)), [*found][-1])
        found[kind] += event.self_cpu_time_total / 1e6
    return found | {"outside torch": max(0.0, seconds - sum(found.values())), "all": seconds}


def measure(spec: str, root: Path, weights: str) -> dict[str, float]:
    """`shares` of one unit."""
    import timm  # noqa: F401  imports are not a part of it
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks import scoring  # noqa: F401
    from benchmarks.launchers import memory
    from benchmarks.plan import Options, make_plan
    from benchmarks.runner import run_unit
    from models import registry

    torch.set_num_threads(1)
    memory.reuse()
    registry.method_class(spec.partition("@")[0])
    with tempfile.TemporaryDirectory() as scratch:
        spec, _, entries = spec.partition(":")
        settings = dict(entry.split("=", 1) for entry in entries.split(",") if entry)
        plans = (make_plan([spec], ["mvtec_ad"], Options(
            data_root=root, results=Path(scratch), weights=source, device="cpu", settings=settings,
        ), categories=["bottle"]) for source in (weights, "none"))
        (job,) = next(plan.jobs for plan in plans if plan.jobs)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
            start = time.perf_counter()
            record = run_unit(job, lambda *step: None)
            seconds = time.perf_counter() - start
    if record["status"] != "ok":
        raise SystemExit(f"{spec} failed: {record['error']}")
    return shares(seen, seconds)


def child(checkout: Path, spec: str, root: Path, weights: str) -> dict[str, float]:
    """`measure` in a process that imports the harness of `checkout`."""
    from benchmarks.speed.common import in_checkout

    return in_checkout(checkout, __file__, [spec, "--data-root", str(root), "--weights", weights])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help="method@preset, with settings as in tsdn@quick:epochs=1")
    parser.add_argument("--data-root", type=Path, required=True, help="holds mvtec_ad/bottle")
    parser.add_argument("--weights", default="none", help="directory of weights, auto or none")
    parser.add_argument("--against", help="another checkout of this repository, or a commit of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root = arguments.data_root.resolve()
    weights = arguments.weights
    if weights not in ("auto", "none"):
        weights = str(Path(weights).resolve())
    if arguments.child:
        print(json.dumps(measure(arguments.methods[0], root, weights)))
        return
    print(f"{machine()}. One thread, medians of {arguments.rounds} alternating rounds; seconds.\n", flush=True)
    kinds = [*KINDS, "other tensor operations", "outside torch"]
    from benchmarks.speed.common import checkout_of

    def rows(checkouts: dict[str, Path]) -> Iterator[list[str]]:
        for spec in arguments.methods:
            held: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
            for _ in range(arguments.rounds):
                for name, checkout in checkouts.items():
                    held[name].append(child(checkout, spec, root, weights))
            for name, runs in held.items():
                seconds = {kind: statistics.median(run[kind] for run in runs) for kind in (*kinds, "all")}
                shares = (f"{seconds[kind]:.1f} ({seconds[kind] / seconds['all']:.0%})" for kind in kinds)
                yield [spec, name, f"{seconds['all']:.1f}", *shares]

    with contextlib.ExitStack() as stack:
        checkouts = {}
        if arguments.against:
            checkouts[f"before ({Path(arguments.against).name})"] = stack.enter_context(checkout_of(arguments.against))
        table(("unit", "", "all", *kinds), rows({**checkouts, "now": REPO}))


if __name__ == "__main__":
    main()
