"""What there is, and how more comes in: `list`, `download` and `prepare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands.common import DATA_ROOT, add, add_json, print_rows, stored


def add_list(commands: Any) -> None:
    """`list methods|datasets|tables|papers`."""
    parser = add(commands, "list", show, "what is registered")
    parser.add_argument("what", choices=("methods", "datasets", "tables", "papers"))
    add_json(parser)


def show(args: argparse.Namespace) -> int:
    """Print what is registered."""
    {"methods": _methods, "datasets": _datasets, "tables": _tables, "papers": _papers}[args.what](args)
    return 0


def _methods(args: argparse.Namespace) -> None:
    from models import registry

    rows = [[e.name, list(e.presets), e.summary] for e in registry.entries().values()]
    rows.append(["anomalib/<name>", ["default"], "Any other one-class image model of anomalib."])
    print_rows(args, ["method", "presets (first is the default)", "what it is"], rows, tablefmt="simple",
               maxcolwidths=[None, 60, 60])


def _datasets(args: argparse.Namespace) -> None:
    import datasets
    from benchmarks.errors import UsageError
    from datasets.catalog import ABOUT, About

    if args.data_root != DATA_ROOT and not args.data_root.is_dir():
        raise UsageError(f"--data-root {args.data_root}: no such folder")
    rows = []
    for name in datasets.names(args.data_root):
        about = ABOUT.get(name, About("own folder", "", ""))
        try:
            found = sorted(datasets.find(name, args.data_root))
            there: Any = found if args.json else f"{len(found)}: {', '.join(found)}"
        except ValueError:
            there = [] if args.json else "not found"
        rows.append([name, *about, there])
    headers = ["dataset", "what it is", "pictures", "licence", f"categories under {args.data_root}"]
    print_rows(args, headers, rows, maxcolwidths=[None, 30, None, None, 60], disable_numparse=True)


def _tables(args: argparse.Namespace) -> None:
    from benchmarks.report.numbers import suites

    print_rows(args, ["table", "content"], [[f"{s.paper}/{t.name}", t.title] for s in suites.all() for t in s.tables])


def _papers(args: argparse.Namespace) -> None:
    """Each paper, and how much of its tables the records under --results fill."""
    from benchmarks.report.numbers import suites
    from benchmarks.report.numbers.tables import suite_tables

    records, rows = stored(args), []
    for suite in suites.all():
        cells = [
            cell for table in suite_tables(suite.paper, records)
            for row, line in zip(table.rows, table.cells, strict=True)
            for column, cell in zip(table.columns, line, strict=True) if not (row.partial or column.partial)
        ]
        asked = [cell for cell in cells if cell.state and cell.need.unit != "count"]
        have = [cell for cell in asked if cell.state == "value"]
        rows.append([
            suite.paper, suite.source, suite.link or "-", len(suite.tables),
            sum(cell.printed_value is not None for cell in cells), len(asked), len(have),
            sum(not cell.marks for cell in have),
        ])
    headers = ["paper", "source", "link", "tables", "published\nfigures", "figures\nto measure", "measured\nhere",
               "of these\nwithout a mark"]
    print_rows(args, headers, rows, maxcolwidths=[None, 44, None, None, None, None, None, None])


def add_download(commands: Any) -> None:
    """`download DATASET`."""
    parser = add(commands, "download", download, "fetch a public dataset, or draw an embedded one")
    parser.add_argument("dataset", metavar="NAME",
                        help="a public dataset of `list datasets`, demo, demo_loco or demo_flat_connector")


def download(args: argparse.Namespace) -> int:
    """Bring a dataset under the data root."""
    from datasets import demo, flat_connector
    from datasets import download as public

    drawn = {"demo": demo.make, "demo_loco": demo.make, "demo_flat_connector": flat_connector.make}
    if args.dataset in drawn:
        drawn[args.dataset](args.data_root)
        print(f"{args.dataset}: drawn into {args.data_root / args.dataset}")
    else:
        print(public.download(args.dataset, args.data_root))
    return 0


def add_prepare(commands: Any) -> None:
    """`prepare DIR --as DATASET/CATEGORY`."""
    parser = add(commands, "prepare", lay_out, "lay out a category of sorted or annotated pictures")
    parser.add_argument("source", type=Path, metavar="DIR",
                        help="good/ and a folder for each defect, with masks; or with --annotations any folder")
    parser.add_argument("--as", dest="name", required=True, metavar="DATASET/CATEGORY", help="place below --data-root")
    parser.add_argument("--annotations", type=Path, default=None, metavar="FILE|DIR",
                        help="COCO or VIA JSON, CVAT XML, or a folder of LabelMe files")
    parser.add_argument("--unannotated", choices=("refuse", "good", "leave"), default="refuse",
                        help="pictures that the annotations do not list (refuse)")
    parser.add_argument("--test-good", type=int, default=0, metavar="N", help="good pictures for the test (a fifth)")
    parser.add_argument("--copy", action="store_true", help="copy files instead of linking them")


def lay_out(args: argparse.Namespace) -> int:
    """Lay out, and say what came of it and what to look at."""
    from shlex import quote

    from benchmarks.errors import UsageError
    from datasets.prepare import prepare

    dataset, _, category = args.name.partition("/")
    if not dataset or not category or "/" in category or {dataset, category} & {".", ".."}:
        raise UsageError(f"--as {args.name!r}: write DATASET/CATEGORY, for example buttons/round")
    if args.test_good < 0:
        raise UsageError(f"--test-good {args.test_good}: give 1 or more")
    made = prepare(args.source, args.data_root / dataset / category, annotations=args.annotations,
                   unannotated=args.unannotated, test_good=args.test_good, copy=args.copy)
    for place, count in sorted(made.counts.items()):
        print(f"{place}: {count}")
    for remark in made.remarks:
        print(f"note: {remark}")
    if made.sheet:
        print(f"look at some masks: {made.sheet}")
    print(f"{made.folder} is ready: python run_benchmark.py run --methods patchcore --datasets {quote(dataset)} "
          f"--categories {quote(category)} --data-root {quote(str(args.data_root))}")
    return 0
