"""Views of stored records: `table`, `compare`, `report` and `figure`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands.common import add, add_json, add_measured, count, names, samples, say, specs, stored

FORMATS = ("md", "latex", "latex-input", "csv", "csv-long", "html")


def add_table(commands: Any) -> None:
    """`table PAPER/TABLE`."""
    parser = add(commands, "table", table, "print one table from stored records")
    parser.add_argument("table", metavar="PAPER/TABLE")
    add_measured(parser)
    parser.add_argument("--intervals", action="store_true", help="how sure figures are: 95 %% over test pictures")
    parser.add_argument("--format", choices=FORMATS, default="screen", help="(set for the terminal; md when piped)")
    add_json(parser, "format")
    parser.add_argument("--mixed", action="store_true", help="allow records of several protocols, labelled")


def table(args: argparse.Namespace) -> int:
    """One table of a paper, published and measured side by side."""
    from benchmarks import api
    from benchmarks.report import views

    made = api.build_table(
        args.table, stored(args), args.data_root, intervals=args.intervals, mixed=args.mixed, measured=args.measured,
    )
    print(views.render(made, args.format))
    return 0


def add_compare(commands: Any) -> None:
    """`compare M1 M2 --datasets D`."""
    parser = add(commands, "compare", compare, "compare methods per category")
    parser.add_argument("methods", nargs="+", metavar="M[@PRESET]")
    parser.add_argument("--datasets", nargs="+", required=True, metavar="D")
    parser.add_argument("--metric", default=None, metavar="KEY", help="metric key (image and pixel AUROC, AUPRO)")
    parser.add_argument("--intervals", action="store_true", help="how sure figures are: 95 %% over test pictures")
    parser.add_argument("--plot", type=Path, default=None, metavar="DIR", help="also write a plot per metric here")
    parser.add_argument("--mixed", action="store_true", help="allow records of several protocols, labelled")
    parser.add_argument("--format", choices=FORMATS, default="screen", help="(set for the terminal; md when piped)")
    add_json(parser, "format")


def compare(args: argparse.Namespace) -> int:
    """Methods against each other, and plots of it."""
    from benchmarks import api
    from benchmarks.report import views

    methods = specs(args.methods)
    records = api.on(stored(args), names(args))
    if args.plot:
        args.plot.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is told before anything else
    print(views.comparison(records, methods, metric=args.metric, form=args.format, mixed=args.mixed,
                           sure=args.intervals))
    if args.plot:
        from benchmarks.report.drawings.comparison import latency, plot
        from benchmarks.report.numbers.compare import comparisons
        from benchmarks.report.numbers.front import places
        from benchmarks.report.numbers.pool import pool

        found = pool(records)
        for one in comparisons(found, methods, [args.metric] if args.metric else None, args.mixed):
            name = re.sub(r"[^\w.@-]+", "_", one.metric)
            made = [plot(one, args.plot / f"{name}.png")]
            spots = places(one, found)
            for number, device in enumerate(dict.fromkeys(p.device for p in spots)):
                here = [p for p in spots if p.device == device]
                path = args.plot / f"{name}-latency{number or ''}.png"
                made += [latency(here, path, ylabel=f"{one.name} (%)")] if len(here) > 1 else []
            for path in made:
                say(f"plot written to {path}")
    return 0


def add_export(commands: Any) -> None:
    """`export --out FILE`."""
    parser = add(commands, "export", export, "all records as CSV or Parquet, to MLflow, or as a Hugging Face dataset")
    parser.add_argument("--out", required=True, metavar="FILE", help="a file, or a folder for the last two of --format")
    parser.add_argument("--format", choices=("csv", "parquet", "mlflow", "hugging-face"), default=None,
                        help="csv and parquet: a line for each metric of each unit (by the name's end)")


def export(args: argparse.Namespace) -> int:
    """Every metric of every unit in one place."""
    from benchmarks.errors import UsageError
    from benchmarks.exports import FORMATS
    from benchmarks.report.numbers.pool import pool

    form = args.format or Path(args.out).suffix.removeprefix(".")
    if form not in FORMATS:
        raise UsageError(f"--out {args.out}: end the name in .csv or .parquet, or give --format {'|'.join(FORMATS)}")
    found = pool(stored(args))
    if not found.units:
        raise UsageError(f"no record under {args.results}: run some units first, or name another results directory")
    number, noun = FORMATS[form](found, args.out)
    say(f"{args.out}: {count(number, noun)} of {count(sum(map(len, found.units.values())), 'unit')}")
    return 0


def add_report(commands: Any) -> None:
    """`report`."""
    parser = add(commands, "report", report, "write the static HTML report")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="folder of the report (results/report)")
    parser.add_argument("--no-intervals", action="store_true",
                        help="without 95 %% intervals over test pictures, which is faster")
    parser.add_argument("--mixed", action="store_true", help="allow records of several protocols, labelled")


def report(args: argparse.Namespace) -> int:
    """The report as a folder of pages."""
    from benchmarks import api
    from benchmarks.report.pages import html

    store = api.existing(args.results)
    records = store.records(failed=True)
    index = html.write(
        args.out or args.results / "report", records, results=args.results, broken=dict(store.broken),
        mixed=args.mixed, samples=samples(args), sure=not args.no_intervals,
    )
    print(index)
    return 0


def add_figure(commands: Any) -> None:
    """`figure M1 M2 --datasets D --out DIR`."""
    parser = add(commands, "figure", figure, "overlays, curves, histograms, losses, heat tables")
    parser.add_argument("methods", nargs="+", metavar="M[@PRESET]")
    parser.add_argument("--datasets", nargs="+", required=True, metavar="D")
    parser.add_argument("--categories", nargs="+", default=[], metavar="C", help="categories (all with records)")
    parser.add_argument("--kinds", nargs="+", default=["overlay"], metavar="K", choices=(
        "overlay", "roc", "pixel_roc", "pro", "spro", "scores", "loss", "watch", "heat", "setting", "all",
    ), help="overlay, roc, pixel_roc, pro, spro, scores, loss, watch, heat, setting or all (overlay, from kept maps)")
    parser.add_argument("--pictures", type=int, default=1, metavar="N", help="overlay: pictures per kind of defect (1)")
    parser.add_argument("--colormap", default="inferno", help="overlay: jet for likeness to the papers (inferno)")
    parser.add_argument("--limit", type=float, default=None, metavar="FPR",
                        help="end of the area (PRO 0.3, sPRO 0.05)")
    parser.add_argument("--metric", default=None, metavar="KEY", help="heat and setting: what to show (image AUROC)")
    parser.add_argument("--mixed", action="store_true", help="allow records of several protocols")
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png", help="form of the files (png)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="files are written here")


def figure(args: argparse.Namespace) -> int:
    """Figures of stored units: grids as in the papers, curves, histograms, losses, heat tables."""
    from benchmarks import api, kept
    from benchmarks.errors import UsageError
    from benchmarks.report.drawings import drawn
    from benchmarks.report.numbers.pool import spec_of

    _check_colormap(args.colormap)
    if args.limit is not None and not 0 < args.limit <= 1:
        raise UsageError(f"--limit {args.limit:g}: give a false positive rate above 0 and up to 1")
    if args.pictures < 1:
        raise UsageError(f"--pictures {args.pictures}: give 1 or more")
    methods = specs(args.methods)
    wanted = names(args)
    records = [
        r for r in api.on(stored(args), wanted)
        if (not args.categories or r["unit"]["category"] in args.categories)
        and (spec_of(r) in methods or ("setting" in args.kinds and spec_of(r).partition(" ")[0] in methods))
    ]
    where = f"{', '.join(methods)} on {', '.join(wanted)}"
    if not records:
        raise UsageError(f"no record of {where} under {args.results}; run it first (for overlays "
                         "with --keep-maps)")
    everything = "all" in args.kinds
    kinds = [k for k in drawn.KINDS if k != "overlay"] if everything else list(dict.fromkeys(args.kinds))
    written = drawn.draw([k for k in kinds if k != "overlay"], records, args.out, metric=args.metric, limit=args.limit,
                         mixed=args.mixed, form=args.format)
    if everything or "overlay" in kinds:
        written += kept.overlays(
            records, args.out, args.results, samples(args), pictures=args.pictures, colormap=args.colormap,
            form=args.format,
        )
    for path in written:
        print(path)
    if not written:
        raise UsageError(f"nothing to draw of {where}: " + "; ".join(_advice(kinds, args.data_root)))
    return 0


def _check_colormap(name: str) -> None:
    from matplotlib import colormaps

    from benchmarks.errors import UsageError
    from datasets.sources import near

    if name not in colormaps:
        raise UsageError(f"--colormap {name!r}: matplotlib has none of that name{near(name, colormaps)}; inferno, "
                         "viridis, gray and jet are some")


def _advice(kinds: Sequence[str], data_root: Path) -> list[str]:
    """Why there may be nothing of each kind, and what to do."""
    known = {
        "overlay": f"no kept maps, or no pictures under {data_root} (a dataset of a YAML file is named by that file): "
                   "run with --keep-maps --force",
        "watch": "nothing was watched: run with --watch-test N --force",
        "loss": "no training log: the method does not train by epochs",
    }
    return [
        known.get(kind, f"{kind}: no such curve is stored; run again with --force if the record is older")
        for kind in kinds
    ]
