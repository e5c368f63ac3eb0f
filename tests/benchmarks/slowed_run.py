"""The command line with every phase announced and slowed down, so that a test can kill it, or fail its writes, there.

`python tests/benchmarks/slowed_run.py run ...` with BENCH_TRACE=DIR writes `DIR/<pid>.log`, a line per step: plan, then
data, build, fit, predict, metrics and write. Worker processes load this file too, because they are spawned from it.
BENCH_PAUSE is the pause at each step in seconds. BENCH_FAULT=<errno name>:<n> fails every write of a record or of its
scores in a worker from the n-th on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import datasets  # noqa: E402
from benchmarks import runner, store  # noqa: E402
from benchmarks.launchers import worker  # noqa: E402
from benchmarks.metrics import Scorer  # noqa: E402

PAUSE = float(os.environ.get("BENCH_PAUSE", "0.03"))
IN_WORKER = __name__ != "__main__"
_log = -1


def step(phase: str) -> None:
    """Announce a step of a phase and wait, so that a kill can hit it."""
    global _log
    if _log < 0:
        folder = Path(os.environ["BENCH_TRACE"])
        _log = os.open(folder / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_log, f"{phase}\n".encode())
    time.sleep(PAUSE)


class HalfWriting:
    """A file that writes its data in two halves with a pause between, as a slow disk does."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> HalfWriting:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        step("write")
        self.file.write(data[len(data) // 2 :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def install() -> None:
    """Put the steps, and the fault if one is asked for, around the functions that the phases go through."""
    plain = {
        "fingerprint": datasets.fingerprint, "run_unit": runner.run_unit, "result": Scorer.result,
        "fdopen": os.fdopen, "replace": os.replace, "write_atomic": store.write_atomic,
    }
    name, _, first = os.environ.get("BENCH_FAULT", "").partition(":")
    writes = 0

    def fingerprint(*args: Any, **more: Any) -> str:
        step("plan")
        return plain["fingerprint"](*args, **more)

    def run_unit(job: Any, report: Any, shared: Any = None) -> dict[str, Any]:
        def slow(phase: str, done: int, total: int, values: dict[str, float]) -> None:
            step(phase)
            report(phase, done, total, values)

        return plain["run_unit"](job, slow, shared)

    def result(self: Scorer) -> Any:
        for _ in range(4):
            step("metrics")
        return plain["result"](self)

    def write_atomic(path: Path, data: bytes) -> None:
        nonlocal writes
        plain["write_atomic"](path, data)
        writes += 1

    def fdopen(handle: int, mode: str = "r", *args: Any, **more: Any) -> Any:
        file = plain["fdopen"](handle, mode, *args, **more)
        if not IN_WORKER or mode != "wb":
            return file
        if name and writes >= int(first):
            file.close()
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
        return HalfWriting(file)

    def replace(source: Any, target: Any) -> None:
        if IN_WORKER:
            step("write")
        plain["replace"](source, target)
        if IN_WORKER:
            step("write")

    datasets.fingerprint, runner.run_unit, Scorer.result = fingerprint, run_unit, result
    os.fdopen, os.replace, store.write_atomic = fdopen, replace, write_atomic
    worker._without_main = contextlib.nullcontext  # workers load this file, unlike a user's script


install()

if __name__ == "__main__":
    import run_benchmark

    step("plan")
    sys.exit(run_benchmark.main())
