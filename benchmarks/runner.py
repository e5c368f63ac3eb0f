"""Runs one unit from pictures to record. Knows nothing of launchers, tables or the command line."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import history, provenance
from benchmarks.store import SCHEMA, Store
from benchmarks.units import Job, config_dict
from benchmarks.watching import Watch

Report = Callable[[str, int, int, dict[str, float]], None]
"""Progress of a unit: phase, steps done, steps in all, values to show. May raise `Stopped`."""


class Stopped(BaseException):
    """The run was asked to stop; not an error of the unit, so it must pass `except Exception`."""


class PhaseError(Exception):
    """An error with the phase in which it happened."""

    def __init__(self, phase: str, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.phase, self.cause = phase, cause


@dataclass
class Shared:
    """What the units of one (dataset, category, seed) share within a worker: features and fitted members."""

    key: tuple[Any, ...] = ()
    features: Any = None
    members: dict[Any, Any] = field(default_factory=dict)

    def for_job(self, job: Job) -> Shared:
        """Empty everything when the category, its data, the seed or the device changes."""
        unit = job.unit
        key = (unit.dataset, unit.category, unit.seed, job.fingerprint, job.weights, job.device)
        if key != self.key:
            from models.features import FeatureCache

            self.key, self.features, self.members = key, FeatureCache(), {}
        return self


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask for deterministic kernels where they exist."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries below us draw from the global generator
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def resolve_device(name: str) -> str:
    """'auto' -> 'cuda:0' when a GPU is there, else 'cpu'; ValueError for a GPU that is not there."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        index = torch.device(name).index or 0
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise ValueError(f"--device {name}: {torch.cuda.device_count()} GPUs are visible; use --device cpu or auto")
        return f"cuda:{index}"
    return "cpu"


def run_unit(job: Job, report: Report, shared: Shared | None = None) -> dict[str, Any]:
    """Run a job, store its record and return it. A failing unit gives a record with status 'failed', not an exception.

    `Stopped` and KeyboardInterrupt pass through and leave nothing that looks finished.
    """
    store = Store(job.results)
    device, started = "cpu", provenance.now()
    seconds: dict[str, float] = {}
    phase = "setup"
    scores = None
    try:
        device = resolve_device(job.device)
        provenance.reset_peak_memory(device)
        record, scores = _run(job, device, report, (shared or Shared()).for_job(job), seconds)
        phase = "write"
    except Exception as error:
        cause = error.cause if isinstance(error, PhaseError) else error
        phase = error.phase if isinstance(error, PhaseError) else phase
        record = failure(job, type(cause).__name__, _message(cause), phase)
        _free_device_memory()
    record["environment"] = {
        **provenance.environment(device), "started": started, "finished": provenance.now(), "command": job.command(),
    }
    record["timing"] = {f"{name}_s": round(value, 4) for name, value in seconds.items()}
    images = record["images"].get("test")
    if images and seconds.get("predict"):
        record["timing"]["images_per_s"] = round(images / seconds["predict"], 3)
    record["memory"] = provenance.peak_memory(device)
    store.save(job, record, scores)
    return record


def failure(job: Job, kind: str, message: str, phase: str) -> dict[str, Any]:
    """The record of a unit that did not finish."""
    return _skeleton(job) | {"status": "failed", "error": {"type": kind, "message": message, "phase": phase}}


def _message(error: BaseException) -> str:
    text = str(error).strip() or repr(error)
    if "out of memory" in text.lower() or isinstance(error, MemoryError):
        return f"out of memory: {text.splitlines()[0]}; use a smaller --set batch=N or a machine with more memory"
    return text


def _free_device_memory() -> None:
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _skeleton(job: Job) -> dict[str, Any]:
    from benchmarks.metrics import LIMITS, VERSION

    return {
        "schema": SCHEMA,
        "unit": job.unit.as_dict(),
        "status": "ok",
        "error": None,
        "metrics": {},
        "undefined": {},
        "protocol": {
            "metric_version": VERSION, "metric_size": job.protocol.metric_size, "limits": list(LIMITS),
            "image_score": None,
        },
        "images": {},
        "timing": {},
        "memory": {},
        "config": config_dict(job.config),
        "config_hash": job.config_hash,
        "weights": {},
        "dataset_fingerprint": job.fingerprint,
        "environment": {},
        "training": {},
        "marks": [],
        "notes": [],
    }


def _run(
    job: Job, device: str, report: Report, shared: Shared, seconds: dict[str, float]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    import datasets
    from benchmarks.scoring import score_test
    from models import registry
    from models.base import Context
    from models.weights import WeightStore

    begin = time.perf_counter()

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = time.perf_counter()
        report(name, 0, 0, {})
        try:
            yield
        except Exception as error:
            raise PhaseError(name, error) from error
        finally:
            seconds[name] = time.perf_counter() - start

    with phase("data"):
        category = datasets.load(job.source, job.unit.category, job.data_root)
        pictures, warnings = _pictures(category, job, report)
    scratch = job.unit.path(job.results / "scratch") / job.key
    with phase("build"):
        import torch

        seed_everything(job.unit.seed)
        weights = WeightStore(job.weights)
        context = Context(
            device=torch.device(device), seed=job.unit.seed, weights=weights, scratch=scratch,
            features=shared.features,
            extras={
                "dataset": category.dataset, "category": category.name, "textures": job.textures or None,
                "members": shared.members,
                "member_dir": job.unit.path(job.results / "members").parent.parent
                / f"seed{job.unit.seed}-{job.fingerprint[:10]}",
            },
        )
        detector = registry.method_class(job.unit.method)(job.config, context)
    watch = Watch(detector, lambda: score_test(
        detector, category, pictures["test"], job.protocol.metric_size, lambda done, total: None,
    ).metrics, job.watch) if job.watch else None

    def progress(done: int, total: int, /, **values: float) -> None:
        report("fit", done, total, values)
        if watch is not None:
            watch.step(done, total)

    with phase("fit"):
        log = detector.fit(
            pictures["train"], pictures["validation"] if len(pictures["validation"]) else None,
            progress,
        )
    with phase("predict"):
        scored = score_test(
            detector, category, pictures["test"], job.protocol.metric_size,
            lambda done, total: report("predict", done, total, {}),
            maps_dir=maps_dir(job) if job.keep_maps else None,
        )
    seconds["predict"], seconds["metrics"] = scored.predict_s, scored.metrics_s
    if watch is not None:  # the look at the test pictures is no part of training
        seconds["fit"], seconds["watch"] = seconds["fit"] - watch.seconds, watch.seconds
    seconds["total"] = time.perf_counter() - begin
    shutil.rmtree(scratch, ignore_errors=True)

    record = _skeleton(job)
    record["metrics"], record["undefined"] = scored.metrics, scored.undefined
    record["protocol"]["image_score"] = scored.image_score
    good = sum(1 for s in category.test if s.label == 0)
    record["images"] = {
        "train": len(category.train), "validation": len(category.validation), "test": len(category.test),
        "test_good": good, "test_anomalous": len(category.test) - good, "sizes": scored.sizes,
    }
    record["weights"] = dict(weights.used)
    if watch is not None and watch.log():
        log = {**(log or {}), "watched_on_test": watch.log()}
    record["training"], series = history.split(log or {})
    record["notes"] = [*category.notes, *warnings, *scored.notes, *(watch.notes() if watch else ())]
    record["marks"] = _marks(job, record["weights"], category.notes)
    return record, {**scored.per_image, **scored.curves, **series}


def _marks(job: Job, weights: dict[str, Any], notes: Sequence[str]) -> list[str]:
    """What every table must say beside this figure."""
    return [
        mark
        for mark, holds in (
            ("untrained", any(value == "untrained" for value in weights.values())),
            ("reduced", bool(notes)),
            ("short", job.config.shortened),
            ("modified", job.modified or job.textures == "embedded"),
        )
        if holds
    ]


def _pictures(category: Any, job: Job, report: Report) -> tuple[dict[str, Any], list[str]]:
    """The pictures of each split, decoded once for all units of the category, and what kept that from happening."""
    from datasets.cache import cached

    splits = {split: getattr(category, split) for split in ("train", "validation", "test")}
    together, warning = cached(
        [sample for samples in splits.values() for sample in samples], job.fingerprint, job.cache_dir, job.cache_size,
        lambda done, total: report("decode", done, total, {}),
    )
    pictures, start = {}, 0
    for split, samples in splits.items():
        pictures[split] = together[start : start + len(samples)]
        start += len(samples)
    return pictures, [warning] if warning else []


def maps_dir(job: Job) -> Path:
    """Where `--keep-maps` writes `<category>/test/<kind>/<name>.tiff`."""
    base = job.unit.path(job.results / "maps")
    return base.with_name(f"{base.name}-{job.key}")
