"""Completion of words in the shell: `completion bash|zsh`."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.commands.common import add

PROGRAM = "anomaly-bench"
"""A shell completes the words of a command, which `pip install -e .` makes; it cannot do so for `python FILE`."""


def add_completion(commands: Any) -> None:
    """`completion bash|zsh`."""
    parser = add(commands, "completion", completion, f"print what completes the words of {PROGRAM} in a shell")
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.set_defaults(commands=commands)


def completion(args: argparse.Namespace) -> int:
    """Flags, choices, files, and the names of methods, datasets, papers and tables that are known now."""
    import shtab

    import datasets
    from benchmarks.report.numbers import suites
    from models import registry

    known = [f"{e.name}@{preset}" for e in registry.entries().values() for preset in e.presets]
    words = {
        "M[@PRESET]": [*registry.entries(), *known], "M": [*registry.entries(), *known],
        "D": datasets.names(args.data_root), "ID|all": ["all", *(suite.paper for suite in suites.all())],
        "PAPER/TABLE": [f"{suite.paper}/{table.name}" for suite in suites.all() for table in suite.tables],
    }
    preamble = {"bash": "", "zsh": ""}
    for i, (metavar, names) in enumerate(words.items()):
        preamble["bash"] += f"_anomaly_bench_{i}() {{ compgen -W {_quoted(' '.join(names))} -- \"$1\"; }}\n"
        words[metavar] = {"bash": f"_anomaly_bench_{i}", "zsh": f"({' '.join(names)})"}
    top = argparse.ArgumentParser(PROGRAM)
    below = top.add_subparsers(dest="command")
    below._name_parser_map.update(args.commands.choices)
    below._choices_actions += args.commands._choices_actions
    for parser in args.commands.choices.values():
        for action in parser._actions:
            kind = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}.get(action.metavar, words.get(action.metavar))
            if kind:
                action.complete = kind
    print(shtab.complete(top, args.shell, preamble=preamble))
    return 0


def _quoted(text: str) -> str:
    from shlex import quote

    return quote(text)
