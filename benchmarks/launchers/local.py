"""Runs jobs in worker processes that are replaced when they die, hang or pass the time limit.

The parent shows progress, hands out jobs and never imports a model; the worker keeps what units of one category share.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.store import Store, StoreError
from benchmarks.units import Job

GRACE_S = 10.0
_settled = 0  # resident pages after the last collection, see `tidy_memory`


@dataclass
class Outcome:
    """What came of a run: unit -> 'ok', 'failed: ...'; and whether it was stopped before its end."""

    finished: int = 0
    resumed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


@dataclass
class Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    since: float = 0.0
    lock: Any = None


class Interrupts:
    """Counts Ctrl-C and SIGTERM: the first asks for an orderly stop, the second ends at once."""

    def __enter__(self) -> Interrupts:
        self.count = 0
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._on)
        return self

    def _on(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count == 1:
            os.write(2, b"\nstopping after the current step; once more to stop at once\n")

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def run(jobs: Sequence[Job], workers: int = 1, quiet: bool = False, on_record: Callable[[dict], None] | None = None
        ) -> Outcome:
    """Run every job without a finished record; returns when all are done or the run was stopped.

    Two runs on one results directory share the work: a unit locked by the other run is left to it and looked at again
    at the end. Raises StoreError when records cannot be written.
    """
    outcome = Outcome()
    if not jobs:
        return outcome
    store = Store(jobs[0].results)
    store.check_writable()
    store.sweep()
    waiting = list(jobs)
    pool: list[Worker] = []
    bars = Bars(len(jobs), workers, quiet)
    try:
        with Interrupts() as interrupts:
            _loop(waiting, pool, max(1, workers), outcome, bars, interrupts, on_record)
            if interrupts.count:
                outcome.stopped = True
    finally:
        for worker in pool:
            _end(worker)
        bars.close()
    return outcome


def _loop(
    waiting: list[Job], pool: list[Worker], workers: int, outcome: Outcome, bars: Bars, interrupts: Interrupts,
    on_record: Callable[[dict], None] | None,
) -> None:
    stopping_since = 0.0
    busy_elsewhere_at = 0.0
    while True:
        running = [w for w in pool if w.job]
        if interrupts.count and not stopping_since:
            stopping_since = time.monotonic()
            for worker in running:
                _send(worker, "stop")
        if interrupts.count >= 2 or (stopping_since and time.monotonic() - stopping_since > GRACE_S):
            return
        if (not waiting and not running) or (stopping_since and not running):
            return
        free = workers - len(running)
        may_hand_out = not stopping_since and free and waiting and time.monotonic() >= busy_elsewhere_at
        if may_hand_out and not _hand_out(waiting, pool, workers, outcome, bars):
            busy_elsewhere_at = time.monotonic() + 0.5  # every open unit is locked by another run
        ready = wait([w.pipe for w in pool] + [w.process.sentinel for w in pool], timeout=0.2)
        for worker in list(pool):
            if worker.pipe in ready or worker.process.sentinel in ready:
                _receive(worker, pool, outcome, bars, on_record)
            elif worker.job and worker.job.time_limit and time.monotonic() - worker.since > worker.job.time_limit:
                _lost(worker, pool, outcome, bars, f"passed the time limit of {worker.job.time_limit:g} s")


def _hand_out(waiting: list[Job], pool: list[Worker], workers: int, outcome: Outcome, bars: Bars) -> bool:
    """Give jobs to free workers; True when something was handed out or found finished."""
    from benchmarks.plan import up_to_date

    moved = False
    position = 0
    while position < len(waiting) and sum(1 for w in pool if w.job) < workers:
        job = waiting[position]
        store = Store(job.results)
        lock = acquire(store.path(job))
        if lock is None:
            position += 1
            continue
        if up_to_date(store, job):
            lock.release()
            outcome.resumed += 1
            bars.finished(job, "resumed")
        else:
            worker = next((w for w in pool if not w.job), None) or _start(pool, workers)
            worker.job, worker.since, worker.lock = job, time.monotonic(), lock
            _send(worker, job)
        waiting.pop(position)
        moved = True
    return moved


def acquire(path: Path) -> Any:
    """The unit's lock, or None when another process holds it; the system frees it when its holder dies."""
    import filelock

    lock_path = path.with_suffix(".lock")
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(lock_path, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        return None
    except OSError as error:
        raise StoreError(
            f"cannot lock {lock_path}: {error.strerror or error}; make the results directory writable or choose "
            "another --results DIR"
        ) from error
    return lock


def _start(pool: list[Worker], workers: int) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if workers > 1 else 0
    index = len(pool)
    process = context.Process(target=work, args=(theirs, threads, index), daemon=True)
    # Ctrl-C in a terminal reaches the whole group: a worker must not fall to it before `work` can ignore it, and
    # what is blocked here stays blocked there. The resource tracker starts first, because its start unblocks both.
    resource_tracker.ensure_running()
    old = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    theirs.close()
    worker = Worker(process, ours)
    pool.append(worker)
    return worker


def _send(worker: Worker, message: Any) -> None:
    with contextlib.suppress(OSError):  # its death is seen by the loop
        worker.pipe.send(message)


def _receive(
    worker: Worker, pool: list[Worker], outcome: Outcome, bars: Bars, on_record: Callable[[dict], None] | None
) -> None:
    try:
        while worker.pipe.poll():
            kind, *rest = worker.pipe.recv()
            if kind == "progress":
                bars.progress(pool.index(worker), worker.job, *rest)
            elif kind == "fatal":
                raise StoreError(rest[0])
            elif kind in ("record", "stopped"):
                job = worker.job
                _release(worker)
                if kind == "record" and job:
                    _count(rest[0], job, outcome, bars, on_record)
        if not worker.process.is_alive():
            raise EOFError
    except (EOFError, ConnectionError):
        worker.process.join(10)  # its pipe may close a moment before it has ended
        code = worker.process.exitcode
        if code and code < 0:
            why = f"its worker process was killed by signal {-code} ({_signal(-code)})"
        else:
            why = f"its worker process ended with exit code {code}"
        _lost(worker, pool, outcome, bars, why + ("; probably out of memory" if code == -signal.SIGKILL else ""))


def _count(record: dict, job: Job, outcome: Outcome, bars: Bars, on_record: Callable[[dict], None] | None) -> None:
    if record["status"] == "ok":
        outcome.finished += 1
        bars.finished(job, "ok")
    else:
        error = record["error"]
        outcome.failed[str(job.unit)] = f"{error['phase']}: {error['message']}"
        bars.finished(job, "failed")
    if on_record:
        on_record(record)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _release(worker: Worker) -> None:
    worker.job = None
    if worker.lock is not None:
        worker.lock.release()
        worker.lock = None


def _lost(worker: Worker, pool: list[Worker], outcome: Outcome, bars: Bars, why: str) -> None:
    """A worker died, hung or ran out of time: record the failure, drop it; the next job starts a new one."""
    from benchmarks.plan import up_to_date

    job = worker.job
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join(5)
    pool.remove(worker)
    worker.pipe.close()
    if job is None:
        return
    if up_to_date(Store(job.results), job):  # it fell after its record was written and before it could say so
        _release(worker)
        outcome.finished += 1
        bars.finished(job, "ok")
        return
    try:
        Store(job.results).save(job, lost(job, why))
    finally:
        _release(worker)
    outcome.failed[str(job.unit)] = why
    bars.finished(job, "failed")


def lost(job: Job, why: str) -> dict[str, Any]:
    """The record of a unit whose process was lost."""
    from benchmarks import provenance
    from benchmarks.runner import failure

    record = failure(job, "WorkerLost", why, "worker")
    record["environment"] |= {"finished": provenance.now()}
    return record


def _end(worker: Worker) -> None:
    _send(worker, None)
    if worker.job:
        worker.process.kill()
    worker.process.join(5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join(5)
    _release(worker)
    worker.pipe.close()


def work(pipe: Connection, threads: int, index: int) -> None:
    """Body of a worker process: take jobs from the pipe until None comes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    reuse_memory()
    if threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, str(threads))
    from benchmarks.runner import Shared, Stopped, run_unit

    if threads:
        import torch

        torch.set_num_threads(threads)
    shared = Shared()
    last = 0.0

    def report(phase: str, done: int, total: int, values: dict[str, float]) -> None:
        nonlocal last
        try:
            if pipe.poll() and pipe.recv() == "stop":
                raise Stopped
            if time.monotonic() - last > 0.1 or done in (0, total):
                last = time.monotonic()
                pipe.send(("progress", phase, done, total, values))
        except (EOFError, OSError) as error:
            raise Stopped from error  # the parent is gone; this is no failure of the unit

    try:
        while (job := pipe.recv()) is not None:
            if job == "stop":
                continue
            try:
                answer = ("record", run_unit(_on_device(job, index), report, shared))
            except Stopped:
                answer = ("stopped",)
            except StoreError as error:
                answer = ("fatal", str(error))
            tidy_memory()
            pipe.send(answer)
    except (EOFError, OSError, KeyboardInterrupt):
        sys.exit(0)  # the parent is gone


def reuse_memory() -> None:
    """Have the C library reuse large blocks that were freed, instead of returning them to the system at once.

    Every tensor of a training step would else come as new pages that the kernel first fills with zeros, which takes a
    quarter to a third of the step on a CPU (benchmarks/speed/epoch_speed.py). `tidy_memory` gives them back in between.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 2**31 - 1)


def tidy_memory() -> None:
    """Give back what a unit leaves behind: networks are reference cycles, and the C library keeps freed pages.

    Without this a worker grows by several MiB with each unit, since Python collects old cycles ever more rarely. It
    takes a fifth of a second, so it is done when the process has grown by 2 % since the last time.
    """
    import ctypes
    import gc

    global _settled
    if 0 < _resident() < 1.02 * _settled:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    _settled = _resident()


def _resident() -> int:
    """Resident pages of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when the parent is killed, so that no orphan works on a freed unit."""
    import ctypes

    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if os.getppid() == 1:
        sys.exit(0)


def _on_device(job: Job, index: int) -> Job:
    """Spread workers over the GPUs when the device is chosen automatically."""
    from dataclasses import replace

    if job.device != "auto":
        return job
    import torch

    count = torch.cuda.device_count()
    return replace(job, device=f"cuda:{index % count}") if count > 1 else job


class Bars:
    """Two nested progress bars: units, and the steps of the unit that reported last."""

    def __init__(self, units: int, workers: int, quiet: bool) -> None:
        from tqdm import tqdm

        disable = quiet or None  # None: tqdm hides itself where the output is no terminal
        self.quiet = quiet
        self.outer = tqdm(total=units, desc="units", unit="unit", disable=disable, dynamic_ncols=True)
        self.inner = tqdm(total=0, desc="", leave=False, disable=disable, dynamic_ncols=True, position=1)
        self.current: tuple[int, str] | None = None

    def progress(self, worker: int, job: Job | None, phase: str, done: int, total: int, values: dict[str, float]
                 ) -> None:
        if job is None or self.inner.disable:  # a hidden bar would still print when refreshed
            return
        if self.current != (worker, phase):
            self.current = (worker, phase)
            self.inner.reset(total=total)
            self.inner.set_description(f"{job.unit}: {phase}")
        self.inner.total = total
        self.inner.n = done
        self.inner.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        self.inner.refresh()

    def finished(self, job: Job, how: str) -> None:
        from tqdm import tqdm

        if not self.quiet and how != "resumed":
            tqdm.write(f"{how:>7}  {job.unit}", file=sys.stderr)
        self.outer.update()

    def close(self) -> None:
        self.inner.close()
        self.outer.close()
