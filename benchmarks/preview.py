"""What a run would do (`--dry-run`): units, data, weights and time, from the plan and what is stored already."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

import datasets
from benchmarks import devices
from benchmarks.errors import UsageError
from benchmarks.plan import Plan
from benchmarks.provenance import device_name
from benchmarks.store import Store
from benchmarks.units import Job
from datasets.images import picture_size


def preview(plan: Plan, store: Store, weights: Iterable[tuple[str, str]]) -> str:
    """Tables of the categories, of the methods with their time, and of weights; then what was found in the files.

    weights: (tag, where it is or what to do), see `plan.weights_needed`.
    """
    from tabulate import tabulate

    missing = plan.open(store)
    parts = [
        tabulate(_categories(plan.jobs), headers=["category", "layout", "train", "validation", "test good", "anomalous",
                                                  "first picture"]),
        tabulate(_methods(plan.jobs, missing, store), headers=["method", "units", "to run", "estimated time"]),
        tabulate(list(weights), headers=["weights", "found"]),
        "\n".join(_found(plan)),
        f"{len(plan.jobs)} unit{'s' * (len(plan.jobs) != 1)}, {len(missing)} of them to run; nothing was run",
    ]
    return "\n\n".join(part for part in parts if part)


def _categories(jobs: Sequence[Job]) -> list[list[object]]:
    rows = []
    for job in {(j.unit.dataset, j.unit.category): j for j in jobs}.values():
        category = datasets.load(job.source, job.unit.category, job.data_root, job.limit)
        kinds = Counter(bool(s.label) for s in category.test)
        width, height = picture_size(category.train[0].path)
        rows.append([f"{job.unit.dataset}/{job.unit.category}", category.layout, len(category.train),
                     len(category.validation), kinds[False], kinds[True], f"{width}x{height}"])
    return rows


def _methods(jobs: Sequence[Job], missing: Sequence[Job], store: Store) -> list[list[object]]:
    known = Times(store, jobs[0].device) if jobs else None
    rows: list[list[object]] = []
    for spec in dict.fromkeys(j.unit.spec for j in jobs):
        mine = [j for j in missing if j.unit.spec == spec]
        rows.append([spec, sum(j.unit.spec == spec for j in jobs), len(mine), known.cell(mine) if known else "-"])
    return rows


class Times:
    """What units took on a device, from the stored records with the same settings; nothing is guessed.

    device: as `--device` has it. Where it is not there, no record is of it and all is unknown.
    """

    def __init__(self, store: Store, device: str) -> None:
        try:
            self.device = device_name(devices.resolve(device).name)
        except UsageError:
            self.device = ""
        self.where = self.device or f"{device} (not there)"
        self.own: dict[tuple[object, ...], list[float]] = defaultdict(list)
        self.other: dict[tuple[object, ...], list[float]] = defaultdict(list)
        for record in store.records():
            unit, seconds = record["unit"], record["timing"].get("total_s")
            if seconds and record["environment"].get("device") == self.device:
                limited = " --limit " in record["environment"].get("command", "")
                self.own[record["config_hash"], unit["dataset"], unit["category"], limited].append(seconds)
                self.other[record["config_hash"], limited].append(seconds)

    def of(self, jobs: Iterable[Job]) -> tuple[float, Counter[str], list[str]]:
        """Seconds of all jobs one after the other; how many are 'own' (known from their category), 'other' (from other
        categories) or 'unknown'; and the methods of the latter. A unit's time is the median of its records'."""
        total, counts, unknown = 0.0, Counter[str](), []
        for job in jobs:
            limited = bool(job.limit)
            own = self.own.get((job.config_hash, job.unit.dataset, job.unit.category, limited))
            found = own or self.other.get((job.config_hash, limited))
            total += median(found) if found else 0.0
            counts["own" if own else "other" if found else "unknown"] += 1
            unknown += [] if found else [job.unit.spec.partition(" ")[0]]
        return total, counts, list(dict.fromkeys(unknown))

    def cell(self, jobs: Sequence[Job]) -> str:
        """For the table of methods."""
        total, counts, _ = self.of(jobs)
        if not jobs:
            return "-"
        if counts["unknown"] == len(jobs):
            return "unknown: no stored unit of these settings on this device"
        return f"{total:.0f} s, as stored units took" + (
            f"; {counts['unknown']} units unknown" if counts["unknown"] else "")

    def line(self, jobs: Sequence[Job]) -> str:
        """What all jobs take, and from which records that is known."""
        total, counts, unknown = self.of(jobs)
        parts = [f"{counts[kind]} as stored units of {whose}" for kind, whose in
                 (("own", "their category"), ("other", "other categories")) if counts[kind]]
        text = f"{duration(total)} for {', '.join(parts)} took" if parts else "unknown, since no stored unit tells"
        if unknown and parts:
            text += f"; unknown for {counts['unknown']} unit{'s' * (counts['unknown'] != 1)}"
        return f"time on {self.where}, one worker: {text}" + (f" (no record: {', '.join(unknown)})" if unknown else "")


def duration(seconds: float) -> str:
    """'50 s', '12 min' or '3.4 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _found(plan: Plan) -> list[str]:
    """Remarks on data that will be run, and what is not run at all."""
    seen = {f"{j.unit.dataset}/{j.unit.category}": j for j in plan.jobs}
    lines = [f"{name}: {remark}" for name, job in seen.items() for remark in job.remarks]
    lines += [f"{d}: not under the data root: {', '.join(names)}" for d, names in plan.absent.items() if names]
    return lines + [f"WOULD FAIL {name}: {why}" for name, why in plan.unreadable.items()]
