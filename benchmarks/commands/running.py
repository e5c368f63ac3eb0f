"""What measures: `run`, `reproduce` and `demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.commands import arguments
from benchmarks.commands.common import (
    DATA_ROOT,
    DEMO_DATASETS,
    DEMO_FOLDER,
    add,
    add_measured,
    count,
    samples,
    say,
    together,
)

if TYPE_CHECKING:
    from benchmarks.plan import Plan
    from benchmarks.store import Store

DEMO_PRESET = "demo"


def add_run(commands: Any) -> None:
    """`run --methods M --datasets D`."""
    parser = add(commands, "run", run, "run methods on datasets", arguments.running())
    parser.add_argument("--methods", nargs="+", required=True, metavar="M[@PRESET]")
    parser.add_argument("--datasets", nargs="+", required=True, metavar="D")
    parser.add_argument("--categories", nargs="+", default=[], metavar="C", help="categories (all found)")
    parser.add_argument("--setting", nargs="+", default=["clean"], metavar="S",
                        help="settings to run each method under: clean, shots=4, contaminated=0.1, held_out=0.1, "
                             "corrupted=blur:3, size=128, multi_class (clean)")


def run(args: argparse.Namespace) -> int:
    """Every method on every category of the datasets."""
    from benchmarks.plan import check_settings, make_plan
    from benchmarks.report import views

    options = arguments.options(args)
    check_settings(options.settings, args.methods)
    plan = make_plan(
        [f"{method} {setting}" for setting in args.setting for method in args.methods], args.datasets,
        options, categories=args.categories, seeds=arguments.seeds(args),
    )
    if args.dry_run:
        return _preview(args, plan)
    code, records = _launch(args, plan)
    if records:
        print(views.overview(records, absent=plan.absent, form="screen"))
    return code


def _preview(args: argparse.Namespace, plan: Plan) -> int:
    from benchmarks.plan import weights_needed
    from benchmarks.preview import preview
    from benchmarks.store import Store

    print(preview(plan, Store(args.results), weights_needed(plan.jobs)))
    return int(bool(plan.unreadable))


def add_reproduce(commands: Any) -> None:
    """`reproduce --paper ID`."""
    parser = add(commands, "reproduce", reproduce, "run what a paper's tables need and write them", arguments.running())
    parser.add_argument("--paper", default="all", metavar="ID|all")
    parser.add_argument("--table", default=None, metavar="T")
    add_measured(parser)
    parser.add_argument("--quick", action="store_true", help="short CPU presets; every figure is marked")
    parser.add_argument("--no-run", dest="dry_run", action="store_true", help=argparse.SUPPRESS)  # its former name
    parser.add_argument("--categories", nargs="+", default=[], metavar="C", help="categories (all found)")
    parser.add_argument("--methods", nargs="+", default=[], metavar="M", help="only these methods (all of the tables)")


def reproduce(args: argparse.Namespace) -> int:
    """The units behind the tables, then the tables, and with --keep-maps figures too."""
    from benchmarks import papers as tables
    from benchmarks.errors import UsageError
    from benchmarks.report import views
    from benchmarks.store import Store
    from datasets.catalog import OFFICIAL

    papers, options = tables.papers(args.paper), arguments.options(args)
    plan, said = tables.make_plan(
        papers, args.table, options, arguments.seeds(args), quick=args.quick, methods=args.methods,
        categories=args.categories, measured=args.measured,
    )
    mistyped = args.data_root != DATA_ROOT and not args.data_root.is_dir()  # a dry run without data is none
    if said and (mistyped or not args.dry_run) and not (plan.jobs or plan.unreadable):
        raise UsageError("nothing to run: " + "; ".join(said))
    for line in said:
        say(line)
    code, store = 0, Store(args.results)
    if args.dry_run:
        _list_units(plan, store, args.device)
    elif plan.jobs or plan.unreadable:
        code, _ = _launch(args, plan)
    records = tables.records(store, plan, options) + tables.counted(papers, args.table, options.data_root)
    for path, why in store.broken.items():
        say(f"left out {path}: {why}")
    folder = args.results / "tables"
    quick = args.quick or None
    for paper in papers:
        written = views.write_suite(paper, records, folder, only=args.table, quick=quick, measured=args.measured)
        say(f"{paper}: {count(len(written), 'file')} in {folder / paper}")
        if len(papers) == 1 and not args.dry_run:
            print(views.suite_text(
                paper, records, only=args.table, quick=quick, form="screen", measured=args.measured,
            ))
    missing = {dataset: names for dataset, names in plan.absent.items() if names and dataset in OFFICIAL}
    if missing:
        say("incomplete: " + "; ".join(f"{d} lacks {', '.join(names)}" for d, names in missing.items())
            + "; cells that need them are empty (--categories asks for a part on purpose)")
        code = code or int(not args.dry_run)
    if args.keep_maps:
        _draw(args, [record for job in plan.jobs if (record := store.load(job)) is not None])
    return code


def _list_units(plan: Plan, store: Store, device: str) -> None:
    from benchmarks.preview import Times

    missing = plan.open(store)
    open_ones = {id(job) for job in missing}
    for job in plan.jobs:
        print(f"{'to run  ' if id(job) in open_ones else 'finished'} {job.unit}")
    say(f"{count(len(plan.jobs), 'unit')}, {len(missing)} of them to run; nothing was run")
    if missing:
        say(Times(store, device).line(missing))


def _draw(args: argparse.Namespace, records: Sequence[dict[str, Any]]) -> None:
    """Losses and overlays of finished units."""
    from benchmarks import kept
    from benchmarks.report.drawings import drawn

    out = args.results / "figures"
    made = [
        *drawn.draw(["loss"], records, out), *kept.overlays(records, out, args.results, samples(args))
    ] if records else []
    say(f"{count(len(made), 'figure')} in {out}")


def add_demo(commands: Any) -> None:
    """`demo`."""
    parser = add(commands, "demo", demo, "embedded data, small presets, tables on screen", arguments.running())
    parser.add_argument("--methods", nargs="+", default=[], metavar="M", help="only these methods")


def demo(args: argparse.Namespace) -> int:
    """Embedded data through every method that has a `demo` preset, and through methods without presets (new ones)."""
    from dataclasses import replace

    from benchmarks import papers as tables
    from benchmarks.plan import make_plan
    from benchmarks.report import views
    from benchmarks.store import Store
    from datasets import demo as embedded
    from models import registry

    root = args.results / DEMO_FOLDER
    embedded.make(root)
    methods = list(map(_demo_preset, args.methods)) or [
        f"{e.name}@{preset}" for e in registry.entries().values()
        for preset in e.presets if preset == DEMO_PRESET or e.presets == ("default",)
    ]
    options = replace(arguments.options(args), data_root=root)
    if args.weights == "auto":
        options = replace(options, weights="none")  # the demo needs no network
    plan = make_plan(methods, DEMO_DATASETS, options, seeds=arguments.seeds(args))
    if args.dry_run:
        return _preview(args, plan)
    code, _ = _launch(args, plan)
    # with --methods the tables keep what other methods gave before
    records = tables.records(Store(args.results), plan, options)
    written = views.write_suite("demo", records, args.results / "tables")
    print(views.suite_text("demo", records, form="screen"))
    say(f"tables written to {', '.join(sorted({str(p.parent) for p in written}))}")
    return code


def _demo_preset(spec: str) -> str:
    """A method without a preset runs with its small one here, where it has one."""
    from models import registry

    entry = registry.entries().get(spec)
    return f"{spec}@{DEMO_PRESET}" if entry and DEMO_PRESET in entry.presets else spec


def _launch(args: argparse.Namespace, plan: Plan) -> tuple[int, list[dict[str, Any]]]:
    """Run what is missing and say what happened; the exit code and the finished records of the whole plan."""
    from benchmarks import api
    from benchmarks.commands import config

    kept = config.write(args)
    ran = api.launch(plan, args.results, force=args.force, launcher=args.launcher, address=args.address,
                     workers=args.workers, quiet=args.quiet)
    say(f"{count(len(plan.jobs), 'unit')}: {ran.outcome.finished} run now, {ran.done} finished before, "
        f"{len(ran.outcome.failed)} failed")
    for path, why in ran.broken.items():
        say(f"broken record run again: {path}: {why}")
    for dataset, names in plan.absent.items():
        if names:
            say(f"{dataset}: not under the data root, missing in the tables: {', '.join(names)}")
    for line in together(ran.failed.items()):
        say(f"FAILED {line}")
    say(f"{kept} repeats this: give it to --config")
    if ran.outcome.stopped:
        say("stopped before the end; finished units are stored, the same command goes on from here")
        return 130, ran.records
    return int(bool(ran.failed)), ran.records
