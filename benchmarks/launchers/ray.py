"""Runs jobs on a Ray cluster: one task per unit, results gathered by the driver, lost workers retried.

A task runs the same `run_unit` as the local launcher into a folder of its own and sends the record and the per-image
scores back; the driver writes them, so that only the driver needs the results directory. Data roots are read from a
shared path, or uploaded once per category (`upload=True`) and unpacked where a task needs them. Anomaly maps
(`--keep-maps`) are written by the task where it sees the driver's results directory, else they come back as well.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.launchers import local, memory
from benchmarks.launchers.common import Interrupts, Outcome, acquire, lost, passive_waiting
from benchmarks.launchers.progress import Bars
from benchmarks.store import Store, write_atomic
from benchmarks.units import Job

RETRIES = 3
REPO = Path(__file__).resolve().parents[2]
LEFT_BEHIND = (".git", ".venv", "data", "results/runs", "results/cache", "results/maps", "results/demo_data",
               "results/report", "results/tables", "results/scratch", "**/__pycache__")


def run(
    jobs: Sequence[Job],
    workers: int = 1,
    quiet: bool = False,
    address: str | None = None,
    *,
    upload: bool = False,
    on_start: Callable[[Any], None] | None = None,
) -> Outcome:
    """Run every job without a finished record on the cluster at `address`, or on a local one of `workers` CPUs.

    upload: send the categories to the machines, which then need no data root. on_start: called with Ray connected. A
    task whose worker process is lost is tried RETRIES times more.
    Raises UsageError when Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--launcher ray needs Ray: pip install -r requirements-cluster.txt") from error
    from benchmarks.plan import up_to_date

    outcome = Outcome()
    if not jobs:
        return outcome
    store = Store(jobs[0].results)
    store.check_writable()
    _connect(ray, address, workers)
    bars = Bars(len(jobs), quiet)
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if address is None else 1
    gpus = gpu_share(jobs[0].device, ray.cluster_resources().get("GPU", 0), workers)
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_task)
    probe = store.runs / f".shared-{os.getpid()}-{time.time_ns()}.part"  # a name that `sweep` removes if we are killed
    write_atomic(probe, b"")
    uploads: dict[tuple[str, ...], Any] = {}
    waiting, running = list(jobs), {}
    try:
        if on_start:
            on_start(ray)
        with Interrupts() as interrupts:
            while (waiting or running) and not interrupts.count:
                for job in list(waiting):
                    lock = acquire(store.path(job))
                    if lock is None:
                        continue
                    waiting.remove(job)
                    if up_to_date(store, job):
                        lock.release()
                        outcome.resumed += 1
                        bars.finished(job, "resumed")
                        continue
                    data = _upload(ray, job, uploads) if upload else None
                    running[task.remote(pickle.dumps(job), data, threads, str(probe))] = (job, lock)
                done, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
                for reference in done:
                    job, lock = running.pop(reference)
                    _gather(ray, reference, job, store, outcome, bars)
                    lock.release()
                if not running and waiting:
                    time.sleep(0.5)  # every open unit is locked by another run
            outcome.stopped = bool(interrupts.count)
    finally:
        for reference, (_, lock) in running.items():
            ray.cancel(reference, force=True)
            lock.release()
        probe.unlink(missing_ok=True)
        bars.close()
        ray.shutdown()
    return outcome


def gpu_share(device: str, gpus: float, workers: int) -> float:
    """The share of a GPU that one unit asks Ray for: 0 on CPU or without GPUs, one GPU each while they suffice for the
    workers, else 1/k with the smallest k that lets all workers run at once.

    Ray hides all GPUs from a task that asks for none, so 0 would silently mean CPU.
    """
    if device == "cpu" or gpus < 1:
        return 0.0
    return 1 / max(1, math.ceil(workers / gpus))


def _connect(ray: Any, address: str | None, workers: int) -> None:
    environment = {
        "working_dir": str(REPO), "excludes": list(LEFT_BEHIND),
        "env_vars": passive_waiting() | {k: v for k in ("BENCH_METHODS",) if (v := os.environ.get(k))},
    }
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, runtime_env=environment)
        else:
            ray.init(address=address, log_to_driver=False, runtime_env=environment)
    except Exception as error:  # Ray raises plain ones too, for a node that does not start in time
        where = "--launcher ray: it did not start" if address is None else f"--address {address}: no Ray cluster there"
        raise UsageError(f"{where} ({error})") from error


def _upload(ray: Any, job: Job, uploads: dict[tuple[str, ...], Any]) -> Any:
    """The folders of the categories that the unit needs as a tar in the object store, packed once."""
    import datasets

    names = tuple(name for name, _ in job.joint) or (job.unit.category,)
    key = (job.source, *names)
    if key not in uploads:
        uploads[key] = ray.put(_packed({
            f"{job.unit.dataset}/{name}": datasets.load(job.source, name, job.data_root).root for name in names
        }))
    return uploads[key]


def _task(pickled: bytes, data: bytes | None, threads: int, probe: str) -> tuple[bytes, bytes | None, bytes | None]:
    """Body of a task: run the unit in a folder of its own; returns the record, the per-image scores and, where the
    driver's results directory (the one with the file `probe`) is not seen from here, kept maps as a tar."""
    import torch

    from benchmarks.runner import maps_dir, run_unit
    from models import registry

    registry.entries()  # makes the files of BENCH_METHODS importable, which unpickling a config of theirs needs
    job: Job = pickle.loads(pickled)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if data is not None:
            root = Path(folder) / "data"
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                archive.extractall(root, filter="data")
            job = replace(job, data_root=root, source=job.unit.dataset)
        final = maps_dir(job)
        job = replace(job, results=Path(folder) / "results", cache_dir=None)
        if job.time_limit:  # a hang can only be ended from outside, so the unit gets a process of its own
            records: list[dict] = []
            outcome = local.run([job], quiet=True, on_record=records.append)
            why = next(iter(outcome.failed.values()), "the task was stopped")
            record = records[0] if records else lost(job, why)
        else:
            record = run_unit(job, lambda phase, done, total, values: None)
        memory.tidy()
        scores = Store(job.results).path(job).with_suffix(".npz")
        maps = None
        if maps_dir(job).is_dir() and record["status"] == "ok":
            if Path(probe).exists():
                shutil.copytree(maps_dir(job), final, dirs_exist_ok=True)
            else:
                maps = _packed({".": maps_dir(job)})
        return json.dumps(record, default=str).encode(), scores.read_bytes() if scores.exists() else None, maps


def _packed(folders: Mapping[str, Path]) -> bytes:
    """A tar of folders under the names given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, folder in folders.items():
            archive.add(folder, name)
    return buffer.getvalue()


def _gather(ray: Any, reference: Any, job: Job, store: Store, outcome: Outcome, bars: Bars) -> None:
    from benchmarks.runner import maps_dir

    scores = maps = None
    try:
        record, scores, maps = ray.get(reference)
        record = json.loads(record)
    except ray.exceptions.RayError as error:
        record = lost(job, f"the task was lost: {str(error).strip().splitlines()[-1]}")
    if maps is not None:
        with tarfile.open(fileobj=io.BytesIO(maps)) as archive:
            archive.extractall(maps_dir(job), filter="data")
    if scores is not None and record["status"] == "ok":
        write_atomic(store.path(job).with_suffix(".npz"), scores)
    store.save(job, record)
    outcome.count(job, record)
    bars.finished(job, record["status"], record)
