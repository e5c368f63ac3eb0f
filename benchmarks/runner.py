"""Runs one unit from pictures to record. Knows nothing of launchers, tables or the command line."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import devices, history, provenance
from benchmarks.fitting import Fitted, Report, fit
from benchmarks.store import SCHEMA, Store
from benchmarks.units import Job, config_dict

if TYPE_CHECKING:
    from datasets.base import Category
    from models.base import Images


class Stopped(BaseException):
    """The run was asked to stop; not an error of the unit, so it must pass `except Exception`."""


class PhaseError(Exception):
    """An error with the phase in which it happened."""

    def __init__(self, phase: str, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.phase, self.cause = phase, cause


@dataclass
class Shared:
    """What units share within a worker: features those of one category, fitted members those of one seed of it."""

    key: tuple[Any, ...] = ()
    seed: tuple[int, str] = (-1, "")  # and what training sees of the setting
    features: Any = None
    members: dict[Any, Any] = field(default_factory=dict)
    fit_key: tuple[Any, ...] = ()
    fitted: Fitted | None = None  # by the unit before, where the next one is fitted alike

    def for_job(self, job: Job) -> Shared:
        """Empty what the job's category, data, weights, device or seed has no use for."""
        unit = job.unit
        category = "" if job.joint else unit.category
        key = (unit.dataset, category, job.fingerprint, job.weights, job.weights_for, job.device)
        if key != self.key:
            from benchmarks.lending import Lending

            self.key, self.features, self.members, self.fitted = key, Lending(), {}, None
        if (unit.seed, job.training) != self.seed:
            self.seed, self.members = (unit.seed, job.training), {}
        if job.fit_key != self.fit_key:
            self.fit_key, self.fitted = job.fit_key, None
        self.features.begin()
        return self


def run_unit(job: Job, report: Report, shared: Shared | None = None) -> dict[str, Any]:
    """Run a job, store its record and return it. A failing unit gives a record with status 'failed', not an exception.

    `Stopped` and KeyboardInterrupt pass through and leave nothing that looks finished.
    """
    store = Store(job.results)
    device, started = "cpu", provenance.now()
    how: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    phase = "setup"
    scores = None
    try:
        found = devices.resolve(job.device)
        device, how = found.name, devices.prepare(found.name, repeatable=job.repeatable)
        provenance.reset_peak_memory(device)
        record, scores = _run(job, device, report, (shared or Shared()).for_job(job), seconds)
        record["notes"] += [found.note] if found.note else []
        phase = "write"
    except Exception as error:
        cause = error.cause if isinstance(error, PhaseError) else error
        phase = error.phase if isinstance(error, PhaseError) else phase
        record = failure(job, type(cause).__name__, _message(cause), phase)
        record["error"]["device_lost"] = _free_device_memory(cause)
    record["environment"] = {
        **provenance.environment(device), **how, "started": started, "finished": provenance.now(),
        "command": job.command(),
    }
    record["timing"] = {f"{name}_s": round(value, 4) for name, value in seconds.items()}
    images = record["images"].get("test")
    if images and seconds.get("predict"):
        record["timing"]["images_per_s"] = round(images / seconds["predict"], 3)
    record["memory"] |= provenance.peak_memory(device)
    store.save(job, record, scores)
    return record


def failure(job: Job, kind: str, message: str, phase: str) -> dict[str, Any]:
    """The record of a unit that did not finish."""
    return _skeleton(job) | {"status": "failed", "error": {"type": kind, "message": message, "phase": phase}}


def _message(error: BaseException) -> str:
    text = str(error).strip() or repr(error)
    memory = sys.modules.get("models.nn.memory")  # not imported yet when a unit fails early
    known = memory.out_of_memory(error) if memory is not None else isinstance(error, MemoryError)
    if known or "out of memory" in text.lower():  # the latter: within the message of a member
        return f"out of memory: {text.splitlines()[0]}; use a smaller --set batch=N or a machine with more memory"
    return text


def _free_device_memory(error: BaseException) -> bool:
    """Give unused memory back; returns whether the error made the process's GPU unusable."""
    memory = sys.modules.get("models.nn.memory")
    if memory is None:
        return False
    memory.free()
    return memory.device_lost(error)


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
    from benchmarks.deployed import latency, model_mb
    from benchmarks.scoring import score_test
    from datasets.images import DEEP
    from models.features import precision
    from models.nn.memory import noted

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
        category, pictures, warnings = _data(job, report)
    scratch = job.unit.path(job.results / "scratch") / job.key
    fitted, shared.fitted = shared.fitted, None
    if fitted is None or job.watch:
        fitted = fit(
            job, device, category, pictures, shared.features, shared.members, scratch, phase, report
        )
    else:  # by the unit before, which differs in nothing that training sees
        report("fit", 1, 1, {})
        fitted.restore_random()
    seconds |= fitted.seconds
    detector, weights, watch = fitted.detector, fitted.weights, fitted.watch
    lent = {"fit": fitted.lent}
    with noted() as remarks, precision(job.config.precision):
        with phase("predict"):
            scored = score_test(
                detector, category, pictures["test"], job.protocol.metric_size,
                lambda done, total: report("predict", done, total, {}),
                maps_dir=maps_dir(job) if job.keep_maps else None,
                normal=pictures["held_out"] or pictures["validation"],
            )
        lent["predict"] = shared.features.turn()
        with phase("deployed"):
            if not fitted.cost or job.joint:  # other categories may have larger pictures
                waits = latency(detector, pictures["test"], category.test, job.protocol.metric_size, shared.features)
                fitted.cost = {**waits, "model_mb": model_mb(detector)}
    remarks = list(dict.fromkeys([*fitted.remarks, *remarks]))
    shared.fitted = fitted if job.lend_fit and not job.watch else None
    size = fitted.cost["model_mb"]
    seconds |= {name: fitted.cost[name] for name in ("latency_p50", "latency_p95")}
    seconds["predict"], seconds["metrics"] = scored.predict_s, scored.metrics_s
    seconds["test_read"] = scored.read_s
    if watch is not None:  # the look at the test pictures is no part of training
        seconds["fit"], seconds["watch"] = seconds["fit"] - watch.seconds, watch.seconds
    seconds["total"] = time.perf_counter() - begin - seconds["deployed"] + fitted.borrowed_s
    fitted.borrowed_s = seconds["build"] + seconds["fit"]  # for the next unit, if it takes this detector
    shutil.rmtree(scratch, ignore_errors=True)

    record = _skeleton(job)
    record["metrics"], record["undefined"] = scored.metrics, scored.undefined
    record["protocol"]["image_score"] = scored.image_score
    labels = scored.per_image["label"]
    record["images"] = {
        "train": len(category.train), "validation": len(category.validation), "test": len(labels),
        "test_good": int((labels == 0).sum()), "test_anomalous": int((labels == 1).sum()), "sizes": scored.sizes,
        **({"held_out": len(category.held_out)} if category.held_out else {}),
    }
    if category.test[0].white_level != DEEP:
        record["images"]["white_level"] = category.test[0].white_level
    record["memory"] = {"model_mb": round(size, 3)}
    record["weights"] = dict(weights.used)
    unasked = [
        f"--weights-for {tag}: no network of this unit asked for these weights"
        for tag in weights.substitutes if tag not in weights.used
    ]
    log = fitted.log
    if watch is not None and watch.log():
        log = {**(log or {}), "watched_on_test": watch.log()}
    log = dict(log or {})
    learnt, told = log.pop("marks", ()), log.pop("notes", ())  # what the training says of itself (models/nn/floor.py)
    record["training"], series = history.split(log)
    found = (*(job.remarks or category.remarks), *scored.remarks)
    record["remarks"] = list(found)
    record["notes"] = [
        *category.notes, *category.told, *found, *warnings, *told, *scored.notes, *remarks, *unasked,
        *(watch.notes() if watch else ()),
    ]
    record["features"] = _features(shared.features.stats, lent, weights.forms)
    if job.config.precision != "float32":
        record["protocol"]["precision"] = job.config.precision
        record["protocol"]["precision_effect"] = scored.precision_effect
        if job.config.precision == "tf32" and device == "cpu":
            record["notes"].append("precision tf32 changed nothing: the CPU computes in float32")
        if job.config.precision == "bf16" and not any("bf16" in remark for remark in remarks):
            record["notes"].append(f"precision {job.config.precision} changed nothing: no part of the method uses it")
    record["marks"] = [*_marks(job, record["weights"], category.notes, found), *learnt]
    return record, {**scored.per_image, **scored.curves, **scored.statistics, **series}


def _features(stats: Mapping[str, float], lent: Mapping[str, float], forms: Mapping[str, str]) -> dict[str, Any]:
    """Pictures that went through a frozen backbone, and those whose features were there already.

    saved_s: seconds for all of the latter. lent_fit_s, lent_predict_s: for those that this unit would have computed
    in a phase had it run alone; they count as its cost (`report.numbers.pool.cost`). form: of each frozen backbone, by
    the tag of its weights.
    """
    return {
        "computed": int(stats["computed"]), "reused": int(stats["reused"]), "not_kept": int(stats["full"]),
        "compute_s": round(stats["compute_s"], 4), "saved_s": round(stats["saved_s"], 4),
        **{f"lent_{phase}_s": round(value, 4) for phase, value in lent.items()},
        **({"form": dict(forms)} if forms else {}),
    }


def _marks(job: Job, weights: dict[str, Any], notes: Sequence[str], found: Sequence[str]) -> list[str]:
    """What every table must say beside this figure."""
    return [
        mark
        for mark, holds in (
            ("untrained", any(value == "untrained" for value in weights.values())),
            ("other_weights", any(isinstance(value, dict) and value.get("substitute") for value in weights.values())),
            ("reduced", bool(notes)),
            ("noted", bool(found)),
            ("short", job.config.short),
            ("modified", job.modified or job.textures == "embedded"),
        )
        if holds
    ]


def _data(job: Job, report: Report) -> tuple[Category, dict[str, Images], list[str]]:
    """The category under the job's setting, the pictures of each split, and what kept them from being decoded once.

    Pictures are decoded once for all units of a category, whatever their settings.
    """
    import datasets
    from datasets.cache import cached
    from datasets.settings import Seen, Setting, joined, parse

    found: dict[str, Category] = {}
    whole, warnings = [], []
    for name, fingerprint in job.joint or ((job.unit.category, job.fingerprint),):
        one = found[name] = datasets.load(job.source, name, job.data_root, job.limit)
        decoded, warning = cached([*one.train, *one.validation, *one.test], fingerprint, job.cache_dir,
                                  job.cache_size, lambda done, total: report("decode", done, total, {}))
        whole.append(decoded)
        warnings += [warning] if warning else []
    category = found[job.unit.category]
    if job.joint:
        category = joined(category, tuple(found.values()), datasets.official(job.unit.dataset))
    setting = parse(job.unit.setting) if job.unit.setting else Setting("")
    category = setting.category(category, job.unit.seed)
    pictures: dict[str, Images] = {
        split: Seen(whole, getattr(category, split), split, setting, job.unit.seed)
        for split in ("train", "validation", "held_out", "test")
    }
    return category, pictures, warnings


def maps_dir(job: Job) -> Path:
    """Where `--keep-maps` writes `<category>/test/<kind>/<name>.tiff`."""
    base = job.unit.path(job.results / "maps")
    return base.with_name(f"{base.name}-{job.key}")
