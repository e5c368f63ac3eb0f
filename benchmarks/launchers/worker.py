"""A worker process from both sides: the parent's handle on it, and what runs inside it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.launchers import memory
from benchmarks.launchers.common import passive_waiting
from benchmarks.store import StoreError
from benchmarks.units import Job


@dataclass
class Worker:
    """The parent's side: the process, the job that it is at work on, since when, and the lock of the job's unit.

    index: its place among the workers, which decides its GPU; whoever replaces it takes the same place. last: the job
    before, whose detector it may still hold.
    """

    process: Any
    pipe: Connection
    index: int
    job: Job | None = None
    since: float = 0.0
    lock: Any = None
    last: Job | None = None

    def take(self, job: Job, lock: Any) -> None:
        """Hand it a job."""
        self.job, self.since, self.lock = job, time.monotonic(), lock
        self.send(job)

    def send(self, message: Any) -> None:
        """A job, 'stop', or None to end it."""
        with contextlib.suppress(OSError):  # its death is seen by the loop
            self.pipe.send(message)

    def overdue(self) -> bool:
        """Whether its job passed the time limit."""
        return bool(self.job and self.job.time_limit and time.monotonic() - self.since > self.job.time_limit)

    def release(self) -> None:
        """It is done with its job."""
        self.job, self.last = None, self.job
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def death(self) -> str:
        """Why it ended, in words."""
        self.process.join(10)  # its pipe may close a moment before it has ended
        code = self.process.exitcode
        if not code or code > 0:
            return f"its worker process ended with exit code {code}"
        killed = f"its worker process was killed by signal {-code} ({_signal(-code)})"
        return killed + ("; probably out of memory" if code == -signal.SIGKILL else "")

    def kill(self) -> None:
        """End it at once; the unit stays locked until `release`."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join(5)
        self.pipe.close()

    def end(self) -> None:
        """End it in order when it is idle, else at once."""
        self.send(None)
        if not self.job:
            self.process.join(5)
        self.kill()
        self.release()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def start(index: int, workers: int) -> Worker:
    """A new process, one of `workers` that share the processor's cores."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if workers > 1 else 0
    process = context.Process(target=work, args=(theirs, threads, index), daemon=True)
    # Ctrl-C in a terminal reaches the whole group: a worker must not fall to it before `work` can ignore it, and
    # what is blocked here stays blocked there. The resource tracker starts first, because its start unblocks both.
    resource_tracker.ensure_running()
    old = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        with _without_main():
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    theirs.close()
    return Worker(process, ours, index)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Spawn would run the user's script once more in each worker, which needs nothing of it."""
    main = sys.modules["__main__"]
    held = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(held)


def work(pipe: Connection, threads: int, index: int) -> None:
    """Body of a worker process: take jobs from the pipe until None comes or the parent is gone.

    Answers ('progress', phase, done, total, values), ('record', record), ('stopped',) or ('fatal', why no record can be
    written). threads: for torch and the libraries below it; 0 leaves them alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    memory.reuse()
    os.environ.update(passive_waiting())
    if threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, str(threads))
    from benchmarks.runner import Shared, Stopped, run_unit

    current: list[Job] = []
    _warnings_to_log(current)
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
            current[:] = [job]
            try:
                answer = ("record", run_unit(_on_device(job, index), report, shared))
            except Stopped:
                answer = ("stopped",)
            except StoreError as error:
                answer = ("fatal", str(error))
            memory.tidy()
            pipe.send(answer)
    except (EOFError, OSError, KeyboardInterrupt):
        sys.exit(0)  # the parent is gone


def _warnings_to_log(current: list[Job]) -> None:
    """Warnings of the libraries below us go to `<results>/warnings.log`: on the screen they would break the bars."""
    said: set[str] = set()

    def keep(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        text = f"{category.__name__}: {message} ({filename}:{lineno})"
        if not current or text in said:
            return
        said.add(text)
        with contextlib.suppress(OSError), (current[0].results / "warnings.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {current[0].unit}: {' '.join(text.split())}\n")

    warnings.showwarning = keep


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when the parent is killed, so that no orphan works on a freed unit."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if os.getppid() == 1:
        sys.exit(0)


def _on_device(job: Job, index: int) -> Job:
    """Spread workers over the GPUs when the device is chosen automatically."""
    if job.device != "auto":
        return job
    import torch

    count = torch.cuda.device_count()
    return replace(job, device=f"cuda:{index % count}") if count > 1 else job
