"""Runs jobs in worker processes that are replaced when they die, hang or pass the time limit.

The parent shows progress, hands out jobs and never imports a model; the worker keeps what units of one category share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from benchmarks import devices
from benchmarks.launchers import worker
from benchmarks.launchers.common import Interrupts, Outcome, acquire, lost
from benchmarks.launchers.progress import Bars
from benchmarks.launchers.worker import Worker
from benchmarks.plan import up_to_date
from benchmarks.store import Store, StoreError
from benchmarks.units import Job

GRACE_S = 10.0
RETRY_S = 0.5  # how long a unit that another run has locked is left alone


def run(jobs: Sequence[Job], workers: int = 1, quiet: bool = False, on_record: Callable[[dict], None] | None = None
        ) -> Outcome:
    """Run every job without a finished record; returns when all are done or the run was stopped.

    Two runs on one results directory share the work: a unit locked by the other run is left to it and looked at again
    at the end. Raises StoreError when records cannot be written, UsageError when the device is not there.
    """
    if not jobs:
        return Outcome()
    store = Store(jobs[0].results)
    store.check_writable()
    if note := devices.resolve(jobs[0].device).note:
        print(f"note: {note}", file=sys.stderr)
    store.sweep()
    loop = Loop(list(jobs), max(1, workers), Bars(len(jobs), quiet), on_record)
    try:
        with Interrupts() as interrupts:
            loop.go(interrupts)
            loop.outcome.stopped = interrupts.count > 0
    finally:
        for one in loop.pool:
            one.end()
        loop.bars.close()
    return loop.outcome


@dataclass
class Loop:
    """The parent's work: jobs that wait, workers, and what came of the units so far."""

    waiting: list[Job]
    workers: int
    bars: Bars
    on_record: Callable[[dict], None] | None = None
    outcome: Outcome = field(default_factory=Outcome)
    pool: list[Worker] = field(default_factory=list)

    def go(self, interrupts: Interrupts) -> None:
        """Until all jobs are done; after an interrupt until the workers stopped, GRACE_S at most."""
        stopping_since = locked_at = 0.0
        while True:
            running = [one for one in self.pool if one.job]
            if interrupts.count and not stopping_since:
                stopping_since = time.monotonic()
                for one in running:
                    one.send("stop")
            if interrupts.count >= 2 or (stopping_since and time.monotonic() - stopping_since > GRACE_S):
                return
            if not running and (stopping_since or not self.waiting):
                return
            free = self.waiting and len(running) < self.workers and not stopping_since
            if free and time.monotonic() >= locked_at + RETRY_S and not self.hand_out():
                locked_at = time.monotonic()  # every open unit is locked by another run
            ready = wait([w.pipe for w in self.pool] + [w.process.sentinel for w in self.pool], timeout=0.2)
            for one in list(self.pool):
                if one.pipe in ready or one.process.sentinel in ready:
                    self.receive(one)
                elif one.job and one.overdue():
                    self.lose(one, f"passed the time limit of {one.job.time_limit:g} s")

    def hand_out(self) -> bool:
        """Give jobs to free workers; True when something was handed out or found finished."""
        moved = False
        position = 0
        while position < len(self.waiting) and sum(1 for w in self.pool if w.job) < self.workers:
            job = self.waiting[position]
            if any(one.job and one.job.joint and one.job.fitted_like(job) for one in self.pool):
                position += 1  # whoever fits the model of all categories scores it on each
                continue
            store = Store(job.results)
            lock = acquire(store.path(job))
            if lock is None:
                position += 1
                continue
            if up_to_date(store, job):
                lock.release()
                self.outcome.resumed += 1
                self.bars.finished(job, "resumed")
            else:
                self._free(job).take(job, lock)
            self.waiting.pop(position)
            moved = True
        return moved

    def _free(self, job: Job) -> Worker:
        """An idle worker, rather one that holds the job's detector; else a new one."""
        idle = min((one for one in self.pool if not one.job), default=None,
                   key=lambda one: not (one.last and one.last.fitted_like(job)))
        if idle is None:
            taken = {one.index for one in self.pool}
            idle = worker.start(next(i for i in range(self.workers) if i not in taken), self.workers)
            self.pool.append(idle)
        return idle

    def receive(self, one: Worker) -> None:
        """What a worker has to say; a dead one is lost."""
        try:
            while one.pipe.poll():
                kind, *rest = one.pipe.recv()
                if kind == "progress":
                    self.bars.progress(self.pool.index(one), one.job, *rest)
                elif kind == "fatal":
                    raise StoreError(rest[0])
                elif kind in ("record", "stopped"):
                    job = one.job
                    one.release()
                    if kind == "record" and job:
                        self._count(job, rest[0])
                        if (rest[0].get("error") or {}).get("device_lost"):  # this process can use its GPU no more
                            one.kill()
                            self.pool.remove(one)
                            return
            if not one.process.is_alive():
                raise EOFError
        except (EOFError, ConnectionError):
            self.lose(one, one.death())

    def _count(self, job: Job, record: dict[str, Any]) -> None:
        self.outcome.count(job, record)
        self.bars.finished(job, record["status"], record)
        if self.on_record:
            self.on_record(record)

    def lose(self, one: Worker, why: str) -> None:
        """A worker died, hung or ran out of time: record the failure, drop it; the next job starts a new one."""
        job = one.job
        one.kill()
        self.pool.remove(one)
        if job is None:
            return
        if up_to_date(Store(job.results), job):  # it fell after its record was written and before it could say so
            one.release()
            self.outcome.finished += 1
            self.bars.finished(job, "ok")
            return
        try:
            Store(job.results).save(job, lost(job, why))
        finally:
            one.release()
        self.outcome.failed[str(job.unit)] = why
        self.bars.finished(job, "failed")
