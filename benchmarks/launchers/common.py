"""What both launchers share: what came of a run, an orderly stop, locks of units, records of units that were lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.store import StoreError
from benchmarks.units import Job


@dataclass
class Outcome:
    """What came of a run: counts, failed unit -> why, and whether it was stopped before its end.

    resumed: finished by another run on the same results directory, meanwhile.
    """

    finished: int = 0
    resumed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    def count(self, job: Job, record: Mapping[str, Any]) -> None:
        """Take in the record of a unit that ran."""
        if record["status"] == "ok":
            self.finished += 1
        else:
            self.failed[str(job.unit)] = f"{record['error']['phase']}: {record['error']['message']}"


def passive_waiting() -> dict[str, str]:
    """Environment for a worker whose threads sleep while they wait, unless the user's own says how; read when torch is
    imported. A thread that spins takes the core of the one that it waits for."""
    told = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    return {} if told else {"OMP_WAIT_POLICY": "PASSIVE"}


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


def lost(job: Job, why: str) -> dict[str, Any]:
    """The record of a unit whose process was lost."""
    from benchmarks import provenance
    from benchmarks.runner import failure

    record = failure(job, "WorkerLost", why, "worker")
    record["environment"] |= {"finished": provenance.now()}
    return record
