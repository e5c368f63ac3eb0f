"""What `reproduce` runs and shows: the units behind the papers' tables, the records for them, and picture counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from benchmarks.errors import UsageError
from benchmarks.metrics import VERSION
from benchmarks.plan import Options, Plan, plan_units
from benchmarks.report.numbers import suites
from benchmarks.report.numbers.pool import FILES
from benchmarks.report.numbers.suites import ANY
from benchmarks.store import SCHEMA, Store
from benchmarks.units import metric_size
from datasets.base import DatasetError


def papers(name: str) -> list[str]:
    """The papers that 'all' or one name stands for; SuiteError for an unknown one.

    'all' leaves `production` out: it is no paper's, and its settings would more than double the units.
    """
    return [n for n in suites.names() if n != "production"] if name == "all" else [suites.load(name).paper]


def make_plan(
    chosen: Sequence[str], table: str | None, options: Options, seeds: Iterable[int], *, quick: bool = False,
    methods: Sequence[str] = (), categories: Sequence[str] = (), measured: str = "recorded",
) -> tuple[Plan, list[str]]:
    """Every unit that the tables need and whose data are there, each once; and what is not there, in words.

    measured: whose figures the tables show, one of suites.MEASURED. methods, categories: only these. Raises UsageError
    for one that no table asks for.
    """
    if table is not None and len(chosen) > 1:
        raise UsageError(f"--table {table}: name its paper too, as in --paper rb_ae --table {table}")
    wanted = [unit for paper in chosen for unit in suites.units(paper, table, quick, measured)]
    for flag, names, known in (
        ("--methods", methods, {m for unit in wanted for m in (unit[0], unit[0].partition("@")[0])}),
        ("--categories", categories, {unit[2] for unit in wanted}),
    ):
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"{flag} {unknown[0]}: no table asks for it; there are {', '.join(sorted(known))}")
    wanted = [
        unit for unit in wanted
        if (not methods or unit[0] in methods or unit[0].partition("@")[0] in methods)
        and (not categories or unit[2] in categories)
    ]
    there: dict[str, set[str]] = {}
    said = []
    for dataset in dict.fromkeys(dataset for _, dataset, _ in wanted):
        try:
            there[dataset] = set(datasets.find(dataset, options.data_root))
        except DatasetError as error:
            there[dataset] = set()
            said.append(f"{dataset}: {error}")
    absent = {
        dataset: tuple(dict.fromkeys(c for _, d, c in wanted if d == dataset and c not in found))
        for dataset, found in there.items()
    }
    return plan_units([u for u in wanted if u[2] in there[u[1]]], options, seeds, absent), said


def records(store: Store, plan: Plan, options: Options) -> list[dict[str, Any]]:
    """What the tables show: the records of the plan, and for other units what is stored under the same protocol.

    A planned unit that failed gives its failure, so that the table can say why a cell is empty.
    """
    planned = [record for job in plan.jobs if (record := store.load(job)) is not None]
    have = {_unit(record) for record in planned}
    protocol = {"metric_version": VERSION, "metric_size": metric_size(options.metric_size)}
    others = [
        record for record in store.records(failed=True)
        if _unit(record) not in have and protocol.items() <= record["protocol"].items()
    ]
    return planned + others


def counted(chosen: Sequence[str], table: str | None, data_root: Path) -> list[dict[str, Any]]:
    """Counts of pictures on disk, in the shape of records, for tables that only count; absent categories are left out.

    Raises DatasetError when a category is there and its folders are not as they must be.
    """
    places: dict[tuple[str, str], None] = {}
    for paper in chosen:
        suite = suites.load(paper)
        for spec in suite.tables if table is None else [suite.table(table)]:
            for need in (n for row in spec.rows for column in spec.columns for n in suites.needs(spec, row, column)):
                if need.method == ANY and need.unit == "count":
                    places |= dict.fromkeys((need.dataset, category) for category in need.categories)
    found: dict[str, Mapping[str, Path]] = {}
    for dataset in dict.fromkeys(dataset for dataset, _ in places):
        try:
            found[dataset] = datasets.find(dataset, data_root)
        except DatasetError:  # nothing of it is there: its cells say so
            found[dataset] = {}
    return [_count(*place, data_root) for place in places if place[1] in found[place[0]]]


def _count(dataset: str, category: str, data_root: Path) -> dict[str, Any]:
    data = datasets.load(dataset, category, data_root)
    good = sum(sample.label == 0 for sample in data.test)
    return {
        "schema": SCHEMA, "status": "ok", "metrics": {},
        "unit": {"method": FILES, "preset": "counted", "dataset": dataset, "category": category, "seed": 0},
        "protocol": {"metric_version": None, "metric_size": None, "image_score": None},
        "images": {
            "train": len(data.train), "validation": len(data.validation), "test": len(data.test), "test_good": good,
            "test_anomalous": len(data.test) - good,
        },
    }


def _unit(record: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(record["unit"].items()))
