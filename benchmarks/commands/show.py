"""What a method is and what it is set to: `show METHOD[@PRESET]`."""

from __future__ import annotations

import argparse
import dataclasses
import io
import tokenize
from typing import Any

from benchmarks.commands.common import add, add_json


def add_show(commands: Any) -> None:
    """`show METHOD[@PRESET]`."""
    parser = add(commands, "show", show, "settings, presets and weights of a method")
    parser.add_argument("method", metavar="M[@PRESET]")
    add_json(parser)


def show(args: argparse.Namespace) -> int:
    """Its presets, its fields with what the source says about each, and the pretrained networks that it asks for."""
    from benchmarks.plan import pretrained
    from models import registry

    method, preset = registry.parse(args.method)
    config, cls = registry.config(f"{method}@{preset}"), registry.method_class(method)
    entry = registry.entries().get(method)
    said = comments(type(config))
    about = {
        "method": method, "preset": preset, "what": (cls.__doc__ or "").strip().partition("\n")[0],
        "file": f"{cls.__module__.replace('.', '/')}.py",
        "presets": {
            name: _differences(registry.config(f"{method}@{name}"), config)
            for name in (entry.presets if entry else ("default",)) if name != preset
        },
        "settings": [
            {"field": f.name, "value": getattr(config, f.name), "source": said.get(f.name, "")}
            for f in dataclasses.fields(config)
        ],
        "weights": sorted(pretrained(method, config)),
    }
    if args.json:
        import json

        print(json.dumps(about, indent=1, default=str))
    else:
        _print(about)
    return 0


def _print(about: dict[str, Any]) -> None:
    from tabulate import tabulate

    print(f"{about['method']}@{about['preset']}: {about['what']}\n{about['file']}\n")
    if about["presets"]:
        rows = [[name, ", ".join(f"{k}={_text(v)}" for k, v in changed.items()) or "nothing"]
                for name, changed in about["presets"].items()]
        headers = ["other presets", f"what differs from {about['preset']}"]
        print(tabulate(rows, headers=headers, maxcolwidths=[None, 90]), "\n")
    print(tabulate(
        [[one["field"], _text(one["value"]), one["source"]] for one in about["settings"]],
        headers=["--set", "value", "what the source says"], maxcolwidths=[None, 34, 70], disable_numparse=True,
    ))
    print(f"\nPretrained weights: {', '.join(about['weights']) or 'none'}")


def _differences(other: Any, config: Any) -> dict[str, Any]:
    return {
        f.name: value for f in dataclasses.fields(other)
        if (value := getattr(other, f.name)) != getattr(config, f.name, dataclasses.MISSING)
    }


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
