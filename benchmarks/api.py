"""The harness from Python, as pandas objects: what the commands of the same names do.

    from benchmarks import compare, records, reproduce, run, table

    run(["patchcore@resnet18"], ["mvtec_ad"], data_root="data")
    figures = table("rb_ae/II")
    figures.pivot_table(index="row", columns=["column", "source"], values="value")

Units are stored and found again as on the command line. Figures of tables are in the unit shown (column `unit`, mostly
percent), those of records are fractions; columns are those of the CSV files (`benchmarks/report/text/csv_text.py`).
Marks stand in their own column and belong to a figure wherever it is shown. Wrong use raises a ValueError that says
what to do (UsageError, SuiteError, ReportError, DatasetError, ModelError). Units that fail are named in a warning, and
what was finished is stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import papers, plan
from benchmarks.errors import UsageError
from benchmarks.launchers.common import Outcome
from benchmarks.plan import Options, Plan
from benchmarks.report.numbers import intervals as sure
from benchmarks.report.numbers import tables
from benchmarks.report.numbers.compare import comparisons
from benchmarks.report.numbers.pool import pool
from benchmarks.report.numbers.suites import load
from benchmarks.report.text import csv_text
from benchmarks.store import Store, latest
from datasets.sources import name_of
from models import registry
from models.errors import near

if TYPE_CHECKING:
    from pandas import DataFrame

CACHE_SIZE = 20 * 10**9
"""Bytes of decoded pictures kept below the results, as on the command line."""


def run(
    methods: Sequence[str], datasets: Sequence[str], *, categories: Sequence[str] = (), seeds: Sequence[int] = (0,),
    workers: int = 1, force: bool = False, quiet: bool = True, **options: Any,
) -> DataFrame:
    """Every method on every category, what is finished excepted; the records of all of them, as `records` gives them.

    options: fields of `benchmarks.plan.Options`, among them data_root, results, weights, device, metric_size, settings.
    """
    chosen = _options(options)
    plan.check_settings(chosen.settings, _names(methods))
    made = plan.make_plan(_names(methods), _names(datasets), chosen, categories=_names(categories), seeds=seeds)
    ran = launch(made, chosen.results, force=force, workers=workers, quiet=quiet)
    _warn(ran)
    return _tidy(ran.records)


def reproduce(
    paper: str, table: str | None = None, *, quick: bool = False, methods: Sequence[str] = (),
    categories: Sequence[str] = (), seeds: Sequence[int] = (0,), workers: int = 1, force: bool = False,
    quiet: bool = True, measured: str = "recorded", **options: Any,
) -> DataFrame:
    """Run what a paper's tables need, then their figures: a line for each published and each measured one.

    quick: short presets, which are marked. measured: as for `table`; what is not shown is not run. options: as for
    `run`. Data that are not there leave cells empty and are named in a warning.
    """
    chosen = _options(options)
    names = papers.papers(paper)
    made, said = papers.make_plan(
        names, table, chosen, seeds, quick=quick, methods=_names(methods), categories=_names(categories),
        measured=measured,
    )
    if said and not (made.jobs or made.unreadable):
        raise UsageError("nothing to run: " + "; ".join(said))
    ran = launch(made, chosen.results, force=force, workers=workers, quiet=quiet)
    _warn(ran, said)
    store = Store(chosen.results)
    found = papers.records(store, made, chosen) + papers.counted(names, table, chosen.data_root)
    return _long([
        one for name in names
        for one in tables.suite_tables(name, found, table, quick=quick or None, measured=measured)
    ])


def table(
    name: str, *, results: Path | str = "results", data_root: Path | str = "data", intervals: bool = False,
    mixed: bool = False, measured: str = "recorded",
) -> DataFrame:
    """A table of a paper, such as 'rb_ae/II', from stored records: a line for each published and each measured figure.

    intervals: with columns `low` and `high`, 95 % over test pictures where records have counts. measured: whose
    measured figures stand beside the published ones: of all methods with records ('recorded'), also of those without
    ('all'), of the paper's own ('ours'), or of none ('none').
    """
    records = stored(results)[0]
    return _long([build_table(name, records, data_root, intervals=intervals, mixed=mixed, measured=measured)])


def compare(
    methods: Sequence[str], datasets: Sequence[str], *, metric: str | None = None, results: Path | str = "results",
    mixed: bool = False,
) -> DataFrame:
    """Methods against each other per category, from stored records; without `metric` by the usual three."""
    specs, wanted = ["@".join(registry.parse(name)) for name in _names(methods)], list(map(name_of, _names(datasets)))
    found = pool(on(stored(results)[0], wanted))
    return _long([one.table for one in comparisons(found, specs, [metric] if metric else None, mixed)])


def records(results: Path | str = "results") -> DataFrame:
    """A line for each metric of each stored unit, from its newest record; warns of files that cannot be read."""
    found, broken = stored(results)
    for path, why in broken.items():
        warnings.warn(f"left out {path}: {why}", stacklevel=2)
    return _tidy(found)


@dataclass(frozen=True)
class Ran:
    """What came of a plan: units finished before, the finished records of the whole plan, records that were broken."""

    plan: Plan
    outcome: Outcome
    done: int
    records: list[dict[str, Any]]
    broken: dict[str, str]

    @property
    def failed(self) -> dict[str, str]:
        """What could not be read and what failed -> why."""
        return {**self.plan.unreadable, **self.outcome.failed}


def launch(
    plan: Plan, results: Path, *, force: bool = False, launcher: str = "local", address: str | None = None,
    workers: int = 1, quiet: bool = False,
) -> Ran:
    """Run the units of a plan that have no finished record; with `force` all of them."""
    store = Store(results)
    if force:
        for job in plan.jobs:
            store.retire(job)
    jobs = plan.open(store)
    broken = dict(store.broken)
    outcome = Outcome()
    if jobs and launcher == "ray":
        from benchmarks.launchers import ray

        outcome = ray.run(jobs, workers=workers, quiet=quiet, address=address)
    elif jobs:
        from benchmarks.launchers import local

        outcome = local.run(jobs, workers=workers, quiet=quiet)
    done = len(plan.jobs) - len(jobs) + outcome.resumed  # the latter by another run on the same results, meanwhile
    return Ran(plan, outcome, done, [r for job in plan.jobs if (r := store.load(job)) is not None], broken)


def stored(results: Path | str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The newest record of each unit, and files that cannot be read -> why.

    Raises UsageError for a folder that is not there, unless it is the default one, which the first run makes.
    """
    store = existing(Path(results))
    return latest(store.records()), store.broken


def existing(results: Path) -> Store:
    """The store of a folder to read. Raises UsageError as `stored` does."""
    if not results.is_dir() and (results.exists() or results != Options.results):
        raise UsageError(f"--results {results}: no such folder; it should be one that a run has written to")
    return Store(results)


def on(found: Sequence[dict[str, Any]], datasets: Sequence[str]) -> list[dict[str, Any]]:
    """Those of the records that are on these datasets. Raises UsageError for a dataset that has none."""
    known = sorted({record["unit"]["dataset"] for record in found})
    for name in datasets:
        if name not in known:
            raise UsageError(f"no record on {name}{near(name, known)}; run it first (there are records on "
                             f"{', '.join(known) or 'nothing'})")
    return [record for record in found if record["unit"]["dataset"] in datasets]


def build_table(
    name: str, records: Sequence[Mapping[str, Any]], data_root: Path | str, *, intervals: bool = False,
    mixed: bool = False, measured: str = "recorded",
) -> tables.Table:
    """A table of a paper, by 'paper/table', with the pictures that it counts on disk."""
    paper, _, which = name.partition("/")
    if not which:
        raise UsageError(f"table {paper}: name one of its tables: "
                         + ", ".join(f"{paper}/{table.name}" for table in load(paper).tables))
    found = [*records, *papers.counted([paper], which, Path(data_root))]
    made = tables.build(paper, which, found, mixed=mixed, measured=measured)
    if intervals:
        sure.add(made)
    return made


def _options(given: Mapping[str, Any]) -> Options:
    """Options from keywords, with the cache of decoded pictures that the command line has too."""
    known = {one.name for one in fields(Options)}
    for name in given:
        if name not in known:
            raise UsageError(f"unknown argument {name!r}{near(name, known)}; there are {', '.join(sorted(known))}")
    given = {k: Path(v) if k in ("data_root", "results") else v for k, v in given.items()}
    results = given.get("results", Options.results)
    settings = {key: str(value) for key, value in given.get("settings", {}).items()}
    return Options(**{"cache_dir": results / "cache", "cache_size": CACHE_SIZE, **given, "settings": settings})


def _names(given: Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else [str(name) for name in given]


def _warn(ran: Ran, said: Sequence[str] = ()) -> None:
    if ran.outcome.stopped:
        raise KeyboardInterrupt("stopped; finished units are stored, the same call goes on from here")
    absent = [f"{d}: not under the data root: {', '.join(names)}" for d, names in ran.plan.absent.items() if names]
    for line in (*said, *absent, *(f"failed: {name}: {why}" for name, why in ran.failed.items())):
        warnings.warn(line, stacklevel=3)


def _long(made: Sequence[tables.Table]) -> DataFrame:
    import pandas

    return pandas.DataFrame(csv_text.long_rows(made), columns=csv_text.LONG)


def _tidy(found: Sequence[Mapping[str, Any]]) -> DataFrame:
    import pandas

    return pandas.DataFrame(csv_text.tidy_rows(pool(found)), columns=csv_text.TIDY)
