"""`--config FILE`: the flags of a run as YAML, and the file that each run writes so that it can be repeated.

    methods: [patchcore@resnet18, padim@resnet18]
    datasets: [mvtec_ad]
    seeds: [0, 1, 2]
    set: {coreset: 0.1}
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands.common import Parser

UNKEPT = ("config", "dry_run", "force", "quiet", "help")
"""What says how to run and not what."""


def expand(top: Parser, arguments: Sequence[str]) -> list[str]:
    """The command line with the flags of its --config file put before those that are typed. Exits with 2 on a bad file.

    Typed flags win; `--set` and `--weights-for` are added to those of the file, and win by key.
    """
    given = [str(a) for a in arguments]
    at = next((i for i, a in enumerate(given) if re.fullmatch(r"--config(=.*)?", a)), None)
    if not given or given[0].startswith("-") or at is None:
        return given
    command = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices.get(given[0])
    path = given[at].partition("=")[2] or (given[at + 1] if at + 1 < len(given) else "")
    if not path or command is None or "--config" not in command._option_string_actions:
        return given  # argparse says what is wrong
    return [given[0], *_flags(Path(path), command), *given[1:]]


def _flags(path: Path, command: Parser) -> list[str]:
    import yaml

    from datasets.sources import near

    try:
        # BaseLoader: every scalar is a text, so that a category 01 stays 01
        raw = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    except OSError as error:
        command.error(f"--config {path}: {error.strerror}")
    except Exception as error:  # besides YAMLError, odd scalars raise ValueError, KeyError and others
        command.error(f"--config {path}: cannot be read as YAML ({' '.join(str(error).split())})")
    known = {flag[2:]: action for flag, action in command._option_string_actions.items() if flag.startswith("--")}
    known = {key: action for key, action in known.items() if key not in ("config", "help")}
    if not isinstance(raw, dict):
        command.error(f"--config {path}: write flag: value, a line each")
    words: list[str] = []
    for name, value in raw.items():
        key = str(name).replace("_", "-")
        if key not in known:
            command.error(f"--config {path}: {name!r} is no flag of this command{near(key, known)}")
        if known[key].nargs == 0:
            if value not in ("true", "false"):
                command.error(f"--config {path}: {name}: write true or false")
            words += [f"--{key}"] if value == "true" else []
            continue
        if isinstance(value, dict):
            value = [f"{k}={v}" for k, v in value.items()]
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str) for v in several) or (len(several) != 1 and known[key].nargs != "+"):
            command.error(f"--config {path}: {name}: give {'texts' if known[key].nargs == '+' else 'one value'}")
        if known[key].nargs == "+":
            words += [f"--{key}", *several] if several else []
        else:
            words.append(f"--{key}={several[0]}")
    return words


def write(args: argparse.Namespace) -> Path:
    """Write the flags that are not at their default to `<results>/configs/<command>-<hash>.yaml`; returns the path."""
    import yaml

    from benchmarks.store import write_atomic
    from benchmarks.units import digest

    kept: dict[str, Any] = {}
    for action in args.flags._actions:
        value = getattr(args, action.dest, None)
        if action.option_strings and action.dest not in UNKEPT and value != action.default:
            key = action.option_strings[-1].removeprefix("--")
            kept[key] = [_plain(v) for v in value] if isinstance(value, list) else _plain(value)
    path = args.results / "configs" / f"{args.command}-{digest(kept, 8)}.yaml"
    text = f"# python run_benchmark.py {args.command} --config {path.as_posix()}\n"
    write_atomic(path, (text + (yaml.safe_dump(kept, sort_keys=False) if kept else "{}\n")).encode())
    return path


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
