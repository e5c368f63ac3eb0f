"""What several commands share: arguments of all, parsers of new ones, records, and how a command ends."""

from __future__ import annotations

import argparse
import errno
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

DEMO_DATASETS = ("demo", "demo_loco")
DEMO_FOLDER = "demo_data"
"""Where the command `demo` draws them, below --results."""

DATA_ROOT = Path("data")


class Version(argparse.Action):
    """Print the versions that a report of a fault needs, and end."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="versions of the program, the metrics and the libraries")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Look them up only when asked."""
        from importlib.metadata import PackageNotFoundError, version

        from benchmarks.metrics import VERSION
        from benchmarks.provenance import git_commit

        print(f"anomaly-benchmarks {git_commit() or 'without git'}, metric version {VERSION}")
        print(f"Python {sys.version.split()[0]}")
        for name in ("torch", "torchvision", "anomalib", "timm", "numpy"):
            try:
                print(f"{name} {version(name)}")
            except PackageNotFoundError:
                print(f"{name} is not installed")
        parser.exit(0)


Run = Callable[[argparse.Namespace], int]
"""What a command does; returns the exit code."""

PACKAGES = {"yaml": "PyYAML", "PIL": "pillow", "sklearn": "scikit-learn", "skimage": "scikit-image",
            "mlflow": "mlflow-skinny"}
"""Import name -> name of the package, where they differ."""

OPTIONAL = ("pyarrow", "mlflow", "ray")
"""What requirements.txt does not list, since a single flag asks for it."""


class Parser(argparse.ArgumentParser):
    """Wrong use ends in one line with the nearest right word, not in the whole list of arguments."""

    def error(self, message: str) -> NoReturn:
        """Print `error: ...` and exit with 2."""
        from datasets.sources import near

        options, given = self._in_use()
        unknown = next((word for word in given if word.startswith("--") and not self._known(word, options)), "")
        if found := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            known = re.findall(r"'([^']*)'", found[3])
            what = "command" if found[1] == "COMMAND" else found[1]
            hint = near(found[2], known)
            message = f"{what} {found[2]!r} is unknown{f'{hint} T' if hint else '; t'}here are {', '.join(known)}"
        elif found := re.fullmatch(r"(?:unrecognized arguments|the following arguments are required): (.+)", message):
            word = unknown or found[1].split()[0]
            if unknown or message.startswith("unrec"):
                message = f"unknown argument {word!r}{near(word.partition('=')[0], options)}"
        say(f"error: {message} (`{self.prog} --help` shows all)")
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; keeps what was typed, for `error`."""
        self._given = list(args or ())
        return super().parse_known_args(args, namespace)

    def _in_use(self) -> tuple[list[str], list[str]]:
        """The flags of the command that was typed, and what was typed."""
        given: list[str] = getattr(self, "_given", [])
        below = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        parser = below[0].get(given[0], self) if below and given else self
        return sorted(flag for flag in parser._option_string_actions if flag.startswith("--")), given

    @staticmethod
    def _known(word: str, options: Sequence[str]) -> bool:
        name = word.partition("=")[0]
        return name == "--" or any(flag.startswith(name) for flag in options)  # argparse takes the beginning of a flag


@cache
def places() -> argparse.ArgumentParser:
    """--data-root and --results, which every command has."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-root", type=Path, default=DATA_ROOT, metavar="DIR",
                        help="folder with mvtec_ad/, mvtec_loco/ or own datasets, or the folder of categories (data)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                        help="records and tables go here (results)")
    return parser


def add_measured(parser: argparse.ArgumentParser) -> None:
    """`--measured`."""
    parser.add_argument("--measured", choices=("all", "ours", "none"), default="recorded",
                        help="measured figures: also of what has no record, of the paper's own methods, or of none "
                             "(of all that have records)")


def add_json(parser: argparse.ArgumentParser, dest: str = "json") -> None:
    """--json: plain values for a program to read."""
    parser.add_argument("--json", dest=dest, action="store_const", const="json", help="print JSON")


def print_rows(
    args: argparse.Namespace, headers: Sequence[str], rows: Sequence[Sequence[Any]], **how: Any
) -> None:
    """A plain table, or with --json a list of objects."""
    if args.json:
        import json

        names = [re.sub(r"\W+", "_", re.split(r" \(| under ", header)[0]) for header in headers]
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
        return
    from tabulate import tabulate

    print(tabulate([["" if cell is None else ", ".join(cell) if isinstance(cell, list) else cell for cell in row]
                    for row in rows], headers=headers, **how))


def add(
    commands: Any, name: str, run: Run, text: str, parent: argparse.ArgumentParser | None = None
) -> argparse.ArgumentParser:
    """The parser of a new command, which `run` carries out. parent: further arguments (those of `places`)."""
    parser = commands.add_parser(name, help=text, parents=[parent or places()])
    parser.set_defaults(run=run, flags=parser)
    return parser


def execute(args: argparse.Namespace) -> int:
    """Run a parsed command; wrong use ends in one line and exit code 2, never in a traceback."""
    if not sys.warnoptions:  # `python -W` shows them; a user can do nothing about what libraries plan
        warnings.simplefilter("ignore", FutureWarning)
    try:
        return _execute(args)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("benchmarks", "datasets", "models"):
            raise  # our own mistake
        name = PACKAGES.get(package, package)
        what = name if package in OPTIONAL else "-r requirements.txt"
        say(f"error: the package {name} is not installed here; `{Path(sys.executable).name} -m pip install {what}` "
            "installs what is needed")
        return 2


def _execute(args: argparse.Namespace) -> int:
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
        return 2 if isinstance(error.__cause__, FileExistsError | NotADirectoryError | IsADirectoryError) else 1
    except KeyboardInterrupt:
        say("stopped; finished units are stored, the same command goes on from here")
        return 130
    except BrokenPipeError:  # the reader of our output left, as in `... | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a place that the command names and that cannot be read or written
        if error.filename is None:
            raise
        say(f"error: {error.filename}: {error.strerror}")
        return 1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else 2


def say(text: str) -> None:
    """A line about the work, beside its results."""
    print(text, file=sys.stderr)


def count(number: int, noun: str) -> str:
    """'1 unit', '2 units'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def together(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each reason, with all that it holds for: missing weights are told once, not once per unit."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons:
        by_reason.setdefault(why, []).append(name)
    return [
        f"{names[0] if len(names) == 1 else f'{len(names)} ({_few(names)})'}: {why}"
        for why, names in by_reason.items()
    ]


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def stored(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The newest record of each unit under --results; broken ones are named."""
    from benchmarks import api

    records, broken = api.stored(args.results)
    for path, why in broken.items():
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
    """`method@preset` for each name given, with its setting where one follows: 'patchcore@resnet18 shots=4'."""
    from benchmarks.plan import parse_setting
    from models import registry

    found = [("@".join(registry.parse(m.partition(" ")[0])), parse_setting(m)) for m in methods]
    return [f"{spec} {setting.text}" if setting else spec for spec, setting in found]
