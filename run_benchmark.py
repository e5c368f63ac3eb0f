#!/usr/bin/env python3
"""Command line of the benchmark: the commands and nothing else. Exit codes: 0 well, 1 failure, 2 wrong use."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # our folders before packages of the same names

from benchmarks.commands import common, completion, config, data, gate, running, show, views

COMMANDS = (
    data.add_list, show.add_show, running.add_run, running.add_reproduce, views.add_table, views.add_compare,
    gate.add_check, gate.add_baseline, views.add_report, views.add_figure, views.add_export,
    data.add_download, data.add_prepare, running.add_demo,
    completion.add_completion,
)
"""In the order in which --help shows them."""


def parser() -> common.Parser:
    """The whole command line."""
    top = common.Parser(
        prog="run_benchmark.py",
        description="Measure industrial visual anomaly detection methods and print the papers' tables beside them.",
    )
    top.add_argument("--version", action=common.Version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Parse, call, and turn errors a person can act on into one line and an exit code."""
    top = parser()
    return common.execute(top.parse_args(config.expand(top, sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    sys.exit(main())
