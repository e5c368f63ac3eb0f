"""What a run would do (`run --dry-run`): units, data, weights and time, from the plan and what is stored already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

import datasets
from benchmarks.plan import Plan
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
        f"{len(plan.jobs)} units, {len(missing)} of them to run; nothing was run",
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
    records = store.records()
    return [
        [spec, sum(j.unit.spec == spec for j in jobs), len(mine := [j for j in missing if j.unit.spec == spec]),
         _time(mine, records)]
        for spec in dict.fromkeys(j.unit.spec for j in jobs)
    ]


def _time(jobs: Sequence[Job], records: Sequence[dict]) -> str:
    """The sum over units of the median time of stored ones: of the same category, else of all categories."""
    total, unknown = 0.0, 0
    for job in jobs:
        unit = job.unit.as_dict()
        method = [r["timing"] for r in records if all(r["unit"][k] == unit[k] for k in ("method", "preset"))]
        same = [r["timing"] for r in records if all(r["unit"][k] == v for k, v in unit.items() if k != "seed")]
        times = [timing["total_s"] for timing in same or method if timing.get("total_s")]
        total, unknown = total + (median(times) if times else 0), unknown + (not times)
    if not jobs:
        return "-"
    if unknown == len(jobs):
        return "unknown: no stored unit of this method"
    return f"{total:.0f} s, as stored units took" + (f"; {unknown} units unknown" if unknown else "")


def _found(plan: Plan) -> list[str]:
    """Remarks on data that will be run, and what is not run at all."""
    seen = {f"{j.unit.dataset}/{j.unit.category}": j for j in plan.jobs}
    lines = [f"{name}: {remark}" for name, job in seen.items() for remark in job.remarks]
    lines += [f"{d}: not under the data root: {', '.join(names)}" for d, names in plan.absent.items() if names]
    return lines + [f"WOULD FAIL {name}: {why}" for name, why in plan.unreadable.items()]
