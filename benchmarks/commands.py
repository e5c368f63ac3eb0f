"""What each command of the command line does. Prints results to stdout, progress and problems to stderr."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.store import Store, StoreError, latest, write_atomic
from benchmarks.units import UsageError

DEMO_DATASETS = ("demo", "demo_loco")
DEMO_PRESET = "demo"


def execute(args: argparse.Namespace) -> int:
    """Run a parsed command; wrong use ends in one line and exit code 2, never in a traceback."""
    from benchmarks.report.numbers.pool import ReportError
    from benchmarks.report.numbers.suites import SuiteError
    from datasets.base import DatasetError
    from models.base import ModelError

    try:
        return globals()[f"_{args.command}"](args)
    except (UsageError, DatasetError, ModelError, ReportError, SuiteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished units are stored, the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as in `... | head`
        sys.stderr.close()
        return 0


# ---------------------------------------------------------------- list


def _list(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    if args.what == "methods":
        from models import registry

        rows = [[e.name, ", ".join(e.presets), e.summary] for e in registry.entries().values()]
        rows.append(["anomalib/<name>", "default", "Any other one-class image model of anomalib."])
        print(tabulate(rows, headers=["method", "presets (first is the default)", "what it is"], tablefmt="simple",
                       maxcolwidths=[None, 60, 60]))
    elif args.what == "datasets":
        import datasets

        rows = []
        for name in datasets.names(args.data_root):
            try:
                found = sorted(datasets.find(name, args.data_root))
                rows.append([name, len(found), ", ".join(found)])
            except ValueError:
                rows.append([name, 0, "not found"])
        headers = ["dataset", "categories", f"under {args.data_root}"]
        print(tabulate(rows, headers=headers, maxcolwidths=[None, None, 90]))
    else:
        from benchmarks.report.numbers import suites

        rows = [[f"{s.paper}/{t.name}", t.title] for s in suites.all() for t in s.tables]
        print(tabulate(rows, headers=["table", "content"]))
    return 0


# ---------------------------------------------------------------- run


def _options(args: argparse.Namespace) -> Any:
    from benchmarks.plan import Options

    settings = {}
    for text in args.set:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {text!r}: write field=value, for example --set epochs=5")
        settings[key] = value
    weights_for = {}
    for text in args.weights_for:
        tag, sign, file = text.partition("=")
        if not sign or not tag or not file or tag in weights_for:
            raise UsageError(
                f"--weights-for {text!r}: write one TAG=FILE per tag, for example vgg19.tv_in1k=weights/mine.pth"
            )
        weights_for[tag] = Path(file)
    size = _bytes(args.cache_size)
    if not 0 <= args.watch_test <= 200:
        raise UsageError(f"--watch-test {args.watch_test}: give 0 to 200")
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: give 1 or more")
    return Options(
        data_root=args.data_root, results=args.results, weights=args.weights, weights_for=weights_for,
        device=args.device, textures=args.textures, metric_size=args.metric_size, settings=settings,
        keep_maps=args.keep_maps, watch=args.watch_test,
        cache_dir=args.results / "cache" if size else None, cache_size=size, time_limit=args.time_limit,
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|[kKmMgGtT])i?[bB]?", text.strip())
    if not match:
        raise UsageError(f"--cache-size {text!r}: write a size such as 20GB, 500MB or 0")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


def _launch(args: argparse.Namespace, plan: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run what is missing and say what happened; the exit code and the finished records of the whole plan."""
    from benchmarks.plan import up_to_date

    store = Store(Path(args.results))
    if args.force:
        for job in plan.jobs:
            store.retire(job)
    jobs = [job for job in plan.jobs if not up_to_date(store, job)]
    done = len(plan.jobs) - len(jobs)
    broken = dict(store.broken)
    stopped, finished = False, 0
    failed: dict[str, str] = {}
    if jobs:
        if args.launcher == "ray":
            from benchmarks.launchers import ray as launcher

            outcome = launcher.run(jobs, workers=args.workers, quiet=args.quiet, address=args.address)
        else:
            from benchmarks.launchers import local as launcher

            outcome = launcher.run(jobs, workers=args.workers, quiet=args.quiet)
        stopped, failed, finished = outcome.stopped, outcome.failed, outcome.finished
        done += outcome.resumed  # by another run on the same results directory, meanwhile
    records = [r for job in plan.jobs if (r := store.load(job)) is not None]
    _say(f"{len(plan.jobs)} units: {finished} run now, {done} finished before, {len(failed)} failed")
    for path, why in broken.items():
        _say(f"broken record run again: {path}: {why}")
    for dataset, names in plan.absent.items():
        if names:
            _say(f"{dataset}: not under the data root, missing in the tables: {', '.join(names)}")
    for name, why in plan.unreadable.items():
        _say(f"FAILED {name}: {why}")
    for name, why in failed.items():
        _say(f"FAILED {name}: {why}")
    if stopped:
        _say("stopped before the end; finished units are stored, the same command goes on from here")
        return 130, records
    return int(bool(failed or plan.unreadable)), records


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _run(args: argparse.Namespace) -> int:
    from benchmarks.plan import make_plan
    from benchmarks.report import views

    plan = make_plan(
        args.methods, args.datasets, _options(args), categories=args.categories,
        seeds=_seeds(args.seeds),
    )
    _some_units(plan, args)
    code, records = _launch(args, plan)
    if records:
        print(views.overview(records, absent=plan.absent))
    return code


def _seeds(seeds: Iterable[int] | None, default: Sequence[int] = (0,)) -> list[int]:
    chosen = list(seeds if seeds is not None else default)
    if any(seed < 0 for seed in chosen):
        raise UsageError("--seeds: give numbers from 0 on")
    return chosen


def _some_units(plan: Any, args: argparse.Namespace) -> None:
    if not plan.jobs and not plan.unreadable:
        raise UsageError(
            f"nothing to run: no category of {', '.join(getattr(args, 'datasets', None) or ['the tables'])} is under "
            f"{args.data_root}; `run_benchmark.py list datasets --data-root {args.data_root}` shows what is found"
        )


def _demo(args: argparse.Namespace) -> int:
    """Embedded data through every method that has a `demo` preset, and through methods without presets (new ones)."""
    from dataclasses import replace

    from benchmarks.plan import Options, make_plan
    from benchmarks.report import views
    from datasets import demo
    from models import registry

    root = Path(args.results) / "demo_data"
    demo.make(root)
    specs = args.methods or [
        f"{e.name}@{preset}" for e in registry.entries().values()
        for preset in e.presets if preset == DEMO_PRESET or e.presets == ("default",)
    ]
    options: Options = replace(_options(args), data_root=root)
    if args.weights == "auto":
        options = replace(options, weights="none")  # the demo needs no network
    plan = make_plan(specs, DEMO_DATASETS, options, seeds=_seeds(args.seeds))
    code, records = _launch(args, plan)
    written = views.write_suite("demo", records, Path(args.results) / "tables")
    print(views.suite_text("demo", records))
    _say(f"tables written to {', '.join(sorted({str(p.parent) for p in written}))}")
    return code


def _reproduce(args: argparse.Namespace) -> int:
    from benchmarks import reproduce
    from benchmarks.report import views

    papers, options = reproduce.papers(args.paper), _options(args)
    plan, said = reproduce.make_plan(
        papers, args.table, options, _seeds(args.seeds), quick=args.quick, methods=args.methods,
        categories=args.categories,
    )
    for line in said:
        _say(line)
    code = 0
    if args.no_run:
        open_jobs = {id(job) for job in plan.open(Store(Path(args.results)))}
        for job in plan.jobs:
            print(f"{'to run  ' if id(job) in open_jobs else 'finished'} {job.unit}")
        _say(f"{len(plan.jobs)} units, {len(open_jobs)} of them to run; nothing was run")
    elif plan.jobs:
        code, _ = _launch(args, plan)
    store = Store(Path(args.results))
    records = reproduce.records(store, plan, options) + reproduce.counted(papers, args.table, options.data_root)
    for path, why in store.broken.items():
        _say(f"left out {path}: {why}")
    folder = Path(args.results) / "tables"
    quick = args.quick or None
    for paper in papers:
        written = views.write_suite(paper, records, folder, only=args.table, quick=quick)
        _say(f"{paper}: {len(written)} files in {folder / paper}")
        if len(papers) == 1 and not args.no_run:
            print(views.suite_text(paper, records, only=args.table, quick=quick))
    if args.keep_maps:
        from benchmarks.report.drawings import drawn

        out = Path(args.results) / "figures"
        own = [record for job in plan.jobs if (record := store.load(job)) is not None]
        made = [*drawn.draw(["loss"], own, out), *_overlays(args, own, out)] if own else []
        _say(f"{len(made)} figures in {out}")
    return code


# ---------------------------------------------------------------- views


def _records(args: argparse.Namespace) -> list[dict[str, Any]]:
    store = Store(Path(args.results))
    records = latest(store.records())
    for path, why in store.broken.items():
        _say(f"left out {path}: {why}")
    return records


def _table(args: argparse.Namespace) -> int:
    from benchmarks import reproduce
    from benchmarks.report import views
    from benchmarks.report.numbers import tables

    paper, _, table = args.table.partition("/")
    records = [*_records(args), *reproduce.counted([paper], table, args.data_root)]
    print(views.render(tables.build(paper, table, records, mixed=args.mixed), args.format))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from benchmarks.report import views
    from benchmarks.report.numbers.pool import pool
    from models import registry

    specs = ["@".join(registry.parse(m)) for m in args.methods]
    records = [r for r in _records(args) if r["unit"]["dataset"] in args.datasets]
    print(views.comparison(records, specs, metric=args.metric, form=args.format, mixed=args.mixed))
    if args.plot:
        from benchmarks.report.drawings.comparison import plot
        from benchmarks.report.numbers.compare import comparisons

        args.plot.mkdir(parents=True, exist_ok=True)
        for one in comparisons(pool(records), specs, [args.metric] if args.metric else None, args.mixed):
            name = re.sub(r"[^\w.@-]+", "_", f"{one.metric}.png")
            plot(one, args.plot / name)
            _say(f"plot written to {args.plot / name}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from benchmarks.report.pages import html

    out = args.out or Path(args.results) / "report"
    store = Store(Path(args.results))
    records = store.records(failed=True)
    index = html.write(
        out, records, results=Path(args.results), broken=dict(store.broken), mixed=args.mixed,
        samples=lambda dataset, category: _samples(args, dataset, category),
    )
    print(index)
    return 0


def _samples(args: argparse.Namespace, dataset: str, category: str) -> dict[str, tuple[Path, tuple[Path, ...]]]:
    """Picture and mask files by name, for figures; nothing when the data are not on this machine."""
    import datasets
    from datasets.base import DatasetError

    made = [Path(args.results) / "demo_data"] if dataset in DEMO_DATASETS else []
    for root in (*made, args.data_root):
        try:
            return {s.name: (s.path, s.masks) for s in datasets.load(dataset, category, root).test}
        except DatasetError:
            continue
    return {}


def _figure(args: argparse.Namespace) -> int:
    """Figures of stored units: grids as in the papers, curves, histograms, losses, heat tables."""
    from benchmarks.report.drawings import drawn
    from models import registry

    specs = ["@".join(registry.parse(m)) for m in args.methods]
    records = [
        r for r in _records(args)
        if r["unit"]["dataset"] in args.datasets and (not args.categories or r["unit"]["category"] in args.categories)
        and f"{r['unit']['method']}@{r['unit']['preset']}" in specs
    ]
    where = f"{', '.join(specs)} on {', '.join(args.datasets)}"
    if not records:
        raise UsageError(f"no record of {where} under {args.results}; run it first (for overlays "
                         "with --keep-maps)")
    kinds = [k for k in drawn.KINDS if k != "overlay"] if "all" in args.kinds else list(dict.fromkeys(args.kinds))
    written = drawn.draw([k for k in kinds if k != "overlay"], records, args.out, metric=args.metric, limit=args.limit,
                         mixed=args.mixed)
    if "overlay" in kinds or "all" in args.kinds:
        written += _overlays(args, records, args.out, args.pictures, args.colormap)
    for path in written:
        print(path)
    if not written:
        advice = {
            "overlay": f"no kept maps, or no pictures under {args.data_root}: run with --keep-maps --force",
            "watch": "nothing was watched: run with --watch-test N --force",
            "loss": "no training log: the method does not train by epochs",
        }
        raise UsageError(f"nothing to draw of {where}: " + "; ".join(
            advice.get(kind, f"{kind}: no such curve is stored; run again with --force if the record is older")
            for kind in kinds
        ))
    return 0


def _overlays(
    args: argparse.Namespace, records: Sequence[Mapping[str, Any]], out: Path, pictures: int = 1,
    colormap: str = "inferno",
) -> list[Path]:
    """Grids of input, panels, anomaly map and ground truth, as in the papers' figures, from maps that a run kept."""
    import numpy as np
    import tifffile

    from benchmarks.report.drawings import drawn, overlays
    from datasets.images import decode, decode_mask

    maps = Path(args.results) / "maps"
    written = []
    for record in records:
        unit = record["unit"]
        folder = maps / Path(record["path"]).relative_to(Store(Path(args.results)).runs).with_suffix("")
        samples = _samples(args, unit["dataset"], unit["category"])
        chosen = _per_kind([name for name in samples if (folder / unit["category"] / "test" / f"{name}.tiff").exists()],
                           pictures)
        if not chosen:
            continue
        found = {n: tifffile.imread(folder / unit["category"] / "test" / f"{n}.tiff") for n in chosen}
        examples = [
            overlays.Example(
                decode(samples[n][0]), np.max([decode_mask(m) for m in samples[n][1]], 0) if samples[n][1] else None,
                found[n], n, _panels(folder / unit["category"] / "test" / n),
            )
            for n in chosen
        ]
        spec = f"{unit['method']}@{unit['preset']}"
        path = out / drawn.file_name(
            spec, unit["dataset"], unit["category"], *([f"seed{unit['seed']}"] if unit["seed"] else [])
        )
        overlays.overlay_grid(examples, path, title=f"{spec}, {unit['category']}", colormap=colormap)
        written.append(path)
    return written


def _panels(stem: Path) -> dict[str, Any]:
    """What was kept beside a map, uint8 arrays by name; the reconstruction first, as in the papers' figures."""
    import numpy as np
    from PIL import Image

    start = f"{stem.name}."
    found = {p.name[len(start) : -4]: p for p in stem.parent.glob("*.png") if p.name.startswith(start)}
    return {name: np.asarray(Image.open(found[name])) for name in sorted(found, key=lambda n: n != "reconstruction")}


def _per_kind(names: Sequence[str], count: int) -> list[str]:
    """The first `count` names of each kind, the part before the slash."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(name.partition("/")[0], []).append(name)
    return [name for group in kinds.values() for name in group[:count]]


# ---------------------------------------------------------------- regression gate


def _check(args: argparse.Namespace) -> int:
    from benchmarks import regression

    baseline = regression.read_baseline(args.baseline)
    store = Store(Path(args.results))
    lines = regression.compare(baseline, store.records())
    code = regression.exit_code(lines)
    text = regression.summary(lines) + "\n\n" + regression.table(lines)
    print(text.strip())
    if code == 2:
        print(f"\ncannot judge everything; the stored scores were made with: {baseline['command']}", file=sys.stderr)
    if args.junit:
        write_atomic(args.junit, regression.junit(lines))
    if args.summary:
        before = args.summary.read_bytes() if args.summary.exists() else b""
        write_atomic(args.summary, before + f"### Regression check\n\n{text.strip()}\n".encode())
    return code


def _baseline(args: argparse.Namespace) -> int:
    import json

    from benchmarks import regression
    from models import registry

    specs = {"@".join(registry.parse(m)) for m in args.methods}
    records = [
        r for r in _records(args)
        if r["unit"]["dataset"] in args.datasets
        and (not specs or f"{r['unit']['method']}@{r['unit']['preset']}" in specs)
    ]
    data = regression.make_baseline(records, _baseline_command(records, args))
    entries = ",\n".join(json.dumps(entry) for entry in data.pop("entries"))  # a line each: readable differences
    text = json.dumps(data, indent=1)[:-2] + f',\n "entries": [\n{entries}\n ]\n}}\n'
    write_atomic(args.out, text.encode())
    print(f"{args.out}: {entries.count(chr(10)) + 1} scores")
    return 0


def _baseline_command(records: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> str:
    seeds = " ".join(str(s) for s in sorted({r["unit"]["seed"] for r in records}))
    methods = " ".join(sorted({f"{r['unit']['method']}@{r['unit']['preset']}" for r in records}))
    if set(args.datasets) <= set(DEMO_DATASETS):
        return f"python run_benchmark.py demo --methods {methods} --seeds {seeds}"
    return f"python run_benchmark.py run --methods {methods} --datasets {' '.join(args.datasets)} --seeds {seeds}"


# ---------------------------------------------------------------- download


def _download(args: argparse.Namespace) -> int:
    from datasets import demo, download, flat_connector

    drawn = {"demo": demo.make, "demo_loco": demo.make, "demo_flat_connector": flat_connector.make}
    if args.dataset in drawn:
        drawn[args.dataset](args.data_root)
        print(f"{args.dataset}: drawn into {args.data_root / args.dataset}")
    else:
        print(download.download(args.dataset, args.data_root))
    return 0
