"""What there is: `list` and `download`."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.commands.common import add


def add_list(commands: Any) -> None:
    """`list methods|datasets|tables`."""
    parser = add(commands, "list", show, "what is registered")
    parser.add_argument("what", choices=("methods", "datasets", "tables"))


def show(args: argparse.Namespace) -> int:
    """Print what is registered."""
    {"methods": _methods, "datasets": _datasets, "tables": _tables}[args.what](args)
    return 0


def _methods(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from models import registry

    rows = [[e.name, ", ".join(e.presets), e.summary] for e in registry.entries().values()]
    rows.append(["anomalib/<name>", "default", "Any other one-class image model of anomalib."])
    print(tabulate(rows, headers=["method", "presets (first is the default)", "what it is"], tablefmt="simple",
                   maxcolwidths=[None, 60, 60]))


def _datasets(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    import datasets
    from datasets.catalog import ABOUT, About

    rows = []
    for name in datasets.names(args.data_root):
        about = ABOUT.get(name, About("own folder", "", ""))
        try:
            found = sorted(datasets.find(name, args.data_root))
            rows.append([name, *about, f"{len(found)}: {', '.join(found)}"])
        except ValueError:
            rows.append([name, *about, "not found"])
    headers = ["dataset", "what it is", "pictures", "licence", f"categories under {args.data_root}"]
    print(tabulate(rows, headers=headers, maxcolwidths=[None, 30, None, None, 60],
                   disable_numparse=True))


def _tables(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from benchmarks.report.numbers import suites

    rows = [[f"{s.paper}/{t.name}", t.title] for s in suites.all() for t in s.tables]
    print(tabulate(rows, headers=["table", "content"]))


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
