"""Many small units in one worker: the memory it takes, what the launcher adds to each, and how long planning takes.

    python -m tests.benchmarks.soak memory --units 200 [--method fake@plain | patchcore@demo ...]
    python -m tests.benchmarks.soak plan --units 2000
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import REPO, make_mvtec

WARM = 20  # units until caches and allocators have settled


def memory(folder: Path, method: str, units: int, show: bool = False) -> tuple[list[float], float]:
    """Resident MiB of the one worker after each unit, and the seconds per unit that its record does not account for."""
    from benchmarks.launchers import local
    from benchmarks.plan import Options, make_plan

    settings = {"size": "16"} if method.startswith("fake") else {}
    options = Options(data_root=small_data(folder), results=folder / "r", weights="none", device="cpu",
                      settings=settings)
    jobs = make_plan([method], ["parts"], options, seeds=range(units)).jobs
    resident: list[float] = []
    ends: list[float] = []
    pids: set[int] = set()
    inside = 0.0

    def finished(record: dict[str, Any]) -> None:
        nonlocal inside
        assert record["status"] == "ok", record["error"]
        (worker,) = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        pids.add(worker.pid)
        resident.append(worker.memory_info().rss / 2**20)
        ends.append(time.perf_counter())
        inside += record["timing"]["total_s"] if len(ends) > WARM else 0.0
        if show and len(resident) % WARM == 0:
            print(f"unit {len(resident):4d}: {resident[-1]:7.1f} MiB", flush=True)

    local.run(jobs, quiet=True, on_record=finished)
    assert len(pids) == 1, "the worker was replaced"
    counted = len(ends) - WARM
    return resident, (ends[-1] - ends[WARM - 1] - inside) / counted if counted > 0 else float("nan")


def growth(resident: list[float]) -> float:
    """Growth from unit 20 to the last as a share; each is the mean of five units, since single ones jitter."""
    first, last = resident[WARM - 5 : WARM], resident[-5:]
    return sum(last) / sum(first) - 1


def small_data(folder: Path) -> Path:
    make_mvtec(folder / "data" / "parts" / "nut", seed=0, train=3, good=2, bad=3, size=(36, 36))
    return folder / "data"


def plan(folder: Path, units: int) -> tuple[float, float]:
    """Seconds to plan `units` units and to find that all of them have a finished record."""
    from benchmarks.plan import Options, make_plan
    from benchmarks.runner import _skeleton
    from benchmarks.store import Store

    options = Options(data_root=small_data(folder), results=folder / "r", weights="none", device="cpu")
    start = time.perf_counter()
    planned = make_plan(["fake"], ["parts"], options, seeds=range(units))
    planning = time.perf_counter() - start
    store = Store(folder / "r")
    for job in planned.jobs:
        store.save(job, _skeleton(job))
    start = time.perf_counter()
    assert not planned.open(store)
    return planning, time.perf_counter() - start


def main() -> int:
    """Command line; exit code 1 when memory grew by 5 % or more."""
    os.environ.setdefault("BENCH_METHODS", str(REPO / "tests" / "methods"))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("what", choices=("memory", "plan"))
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--method", default="fake@plain")
    args = parser.parse_args()
    if args.what == "memory" and args.units <= WARM:
        parser.error(f"--units: give more than {WARM}, after which growth is counted")
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "plan":
            planning, resuming = plan(Path(folder), args.units)
            print(f"{args.units} units: planned in {planning:.2f} s, found finished in {resuming:.2f} s")
            return 0
        resident, overhead = memory(Path(folder), args.method, args.units, show=True)
    print(f"{args.method}, {args.units} units in one worker: {100 * growth(resident):+.1f} % from unit {WARM} to the "
          f"last; launcher, tidying and writing took {overhead:.3f} s per unit")
    return int(growth(resident) >= 0.05)


if __name__ == "__main__":
    sys.exit(main())
