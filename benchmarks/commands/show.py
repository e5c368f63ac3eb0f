"""What a method is and what it is set to: `show METHOD[@PRESET]`."""

from __future__ import annotations

import argparse
import dataclasses
import io
import tokenize
from typing import Any

from benchmarks.commands.common import add


def add_show(commands: Any) -> None:
    """`show METHOD[@PRESET]`."""
    parser = add(commands, "show", show, "settings, presets and weights of a method")
    parser.add_argument("method", metavar="M[@PRESET]")


def show(args: argparse.Namespace) -> int:
    """Its presets, its fields with what the source says about each, and the pretrained networks that it asks for."""
    from tabulate import tabulate

    from benchmarks.plan import pretrained
    from models import registry

    method, preset = registry.parse(args.method)
    config, cls = registry.config(f"{method}@{preset}"), registry.method_class(method)
    entry = registry.entries().get(method)
    print(f"{method}@{preset}: {(cls.__doc__ or '').strip().partition(chr(10))[0]}")
    print(f"{cls.__module__.replace('.', '/')}.py\n")
    presets = entry.presets if entry else ("default",)
    rows = [[name, _differences(registry.config(f"{method}@{name}"), config)] for name in presets if name != preset]
    if rows:
        print(tabulate(rows, headers=["other presets", f"what differs from {preset}"], maxcolwidths=[None, 90]), "\n")
    said = comments(type(config))
    print(tabulate(
        [[f.name, _text(getattr(config, f.name)), said.get(f.name, "")] for f in dataclasses.fields(config)],
        headers=["--set", "value", "what the source says"], maxcolwidths=[None, 34, 70], disable_numparse=True,
    ))
    tags = sorted(pretrained(method, config))
    print(f"\nPretrained weights: {', '.join(tags) or 'none'}")
    return 0


def _differences(other: Any, config: Any) -> str:
    changed = [
        f"{f.name}={_text(value)}" for f in dataclasses.fields(other)
        if (value := getattr(other, f.name)) != getattr(config, f.name, dataclasses.MISSING)
    ]
    return ", ".join(changed) or "nothing"


def _text(value: Any) -> str:
    """As `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def comments(cls: type) -> dict[str, str]:
    """Field -> the comment beside or above it, base classes included."""
    import inspect

    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        above: list[str] = []
        name, first = "", True
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(base)).readline):
            if token.type == tokenize.COMMENT:
                text = token.string.lstrip("# ").strip()
                if name:
                    found[name] = " ".join([*above, text])
                    above = []
                else:
                    above.append(text)
            elif token.type == tokenize.NEWLINE:
                name, first, above = "", True, [] if name else above
            elif first and token.type == tokenize.NAME and token.start[1] == 4:
                name, first = token.string if token.string in cls.__dataclass_fields__ else "", False
                if name and above:
                    found[name] = " ".join(above)
    return found
