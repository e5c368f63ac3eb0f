"""What several commands share: arguments of all, parsers of new ones, records, and how a command ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

DEMO_DATASETS = ("demo", "demo_loco")
DEMO_FOLDER = "demo_data"
"""Where the command `demo` draws them, below --results."""

Run = Callable[[argparse.Namespace], int]
"""What a command does; returns the exit code."""


@cache
def places() -> argparse.ArgumentParser:
    """--data-root and --results, which every command has."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR",
                        help="folder with mvtec_ad/, mvtec_loco/ or own datasets, or the folder of categories (data)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                        help="records and tables go here (results)")
    return parser


def add(
    commands: Any, name: str, run: Run, text: str, parent: argparse.ArgumentParser | None = None
) -> argparse.ArgumentParser:
    """The parser of a new command, which `run` carries out. parent: further arguments (those of `places`)."""
    parser = commands.add_parser(name, help=text, parents=[parent or places()])
    parser.set_defaults(run=run)
    return parser


def execute(args: argparse.Namespace) -> int:
    """Run a parsed command; wrong use ends in one line and exit code 2, never in a traceback."""
    from benchmarks.errors import UsageError
    from benchmarks.report.numbers.pool import ReportError
    from benchmarks.report.numbers.suites import SuiteError
    from benchmarks.store import StoreError
    from datasets.base import DatasetError
    from models.base import ModelError

    try:
        return args.run(args)
    except (UsageError, DatasetError, ModelError, ReportError, SuiteError) as error:
        say(f"error: {error}")
        return 2
    except StoreError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; finished units are stored, the same command goes on from here")
        return 130
    except BrokenPipeError:  # the reader of our output left, as in `... | head`
        sys.stderr.close()
        return 0


def say(text: str) -> None:
    """A line about the work, beside its results."""
    print(text, file=sys.stderr)


def stored(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The newest record of each unit under --results; broken ones are named."""
    from benchmarks.store import Store, latest

    store = Store(args.results)
    records = latest(store.records())
    for path, why in store.broken.items():
        say(f"left out {path}: {why}")
    return records


def samples(args: argparse.Namespace) -> Callable[[str, str], dict[str, tuple[Path, tuple[Path, ...]]]]:
    """(dataset, category) -> picture and mask files by name, for figures; nothing when they are not on this machine."""
    from benchmarks import kept

    made = dict.fromkeys(DEMO_DATASETS, (args.results / DEMO_FOLDER,))
    given = dict(zip(names(args), getattr(args, "datasets", ()), strict=True))  # the file that gives a name
    return lambda dataset, category: kept.samples(
        given.get(dataset, dataset), category, (*made.get(dataset, ()), args.data_root)
    )


def names(args: argparse.Namespace) -> list[str]:
    """The datasets' names in records: that within a YAML file stands for the file."""
    from datasets.sources import name_of

    return [name_of(dataset) for dataset in getattr(args, "datasets", ())]


def specs(methods: list[str]) -> list[str]:
    """`method@preset` for each name given."""
    from models import registry

    return ["@".join(registry.parse(m)) for m in methods]
