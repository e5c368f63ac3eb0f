"""The registry: which methods exist, with which presets, and where their code lives.

Names and presets are read from the source of the rooms for methods, and of a folder named by the environment variable
BENCH_METHODS, without importing it, so that listing is instant; a method's file is imported when it is built. A name
used twice is an error; an unknown name suggests near ones.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from models.base import Config, Detector
from models.errors import ModelError, near

HERE = Path(__file__).parent
ROOMS = ("baselines", "papers", "ensembles")
GENERIC = "models.baselines.anomalib_generic"  # the module behind every name `anomalib/<model>`
_classes: dict[str, type[Detector]] = {}
_presets: dict[str, Mapping[str, Config]] = {}
D = TypeVar("D", bound=type[Detector])


@dataclass(frozen=True)
class Entry:
    """A registered method as seen from its source: the module to import, its presets, the first one the default."""

    name: str
    module: str
    presets: tuple[str, ...]
    line: int
    summary: str


def register(name: str, *, presets: Mapping[str, Config] | None = None) -> Callable[[D], D]:
    """Class decorator that names a method and its presets; the first preset is the default.

    Without `presets` there is one, `default`, with the config's own values.
    """

    def add(cls: D) -> D:
        if name in _classes and (_classes[name].__module__, _classes[name].__qualname__) != (
            cls.__module__, cls.__qualname__
        ):
            raise ModelError(f"method {name!r} is registered twice: {_classes[name].__module__} and {cls.__module__}")
        cls.name = name
        _classes[name] = cls
        _presets[name] = dict(presets) if presets else {"default": cls.Config()}
        return cls

    return add


@cache
def entries() -> dict[str, Entry]:
    """Every registered method by name, from the source files; raises ModelError when a name is used twice."""
    found: dict[str, Entry] = {}
    own = os.environ.get("BENCH_METHODS")
    if own and not Path(own).is_dir():
        raise ModelError(f"BENCH_METHODS={own}: not a directory; name the folder with your method files, or unset it")
    if own and own not in sys.path:
        sys.path.append(own)
    for path in [*(p for room in ROOMS for p in sorted((HERE / room).glob("*.py"))), *_own(own)]:
        source = path.read_text(encoding="utf-8")
        if "@register(" not in source:
            continue
        try:
            tree = ast.parse(source, str(path))
        except SyntaxError as error:
            told = f"{path.name}, line {error.lineno}: {error.msg}; the file cannot be read"
            if path.parent.parent == HERE:
                raise ModelError(told) from error
            # a file that is being written must not stop what has nothing to do with it
            print(f"{told}, so its methods are missing", file=sys.stderr)
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                for entry in _decorations(node, path):
                    if entry.name in found:
                        first = found[entry.name]
                        raise ModelError(
                            f"method {entry.name!r} is registered twice: {first.module.replace('.', '/')}.py line "
                            f"{first.line} and {path.name} line {entry.line}; rename one"
                        )
                    found[entry.name] = entry
    return dict(sorted(found.items()))


def _own(folder: str | None) -> list[Path]:
    return sorted(Path(folder).glob("*.py")) if folder else []


def _decorations(node: ast.ClassDef, path: Path) -> list[Entry]:
    found = []
    module = f"models.{path.parent.name}.{path.stem}" if path.parent.parent == HERE else path.stem
    for call in node.decorator_list:
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register" and call.args):
            continue
        if not (isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)):
            raise ModelError(f"{path.name}, line {call.lineno}: @register needs a literal name")
        presets: tuple[str, ...] = ("default",)
        for keyword in call.keywords:
            if keyword.arg == "presets" and isinstance(keyword.value, ast.Dict):
                presets = tuple(str(ast.literal_eval(key)) for key in keyword.value.keys if key is not None)
            elif keyword.arg == "presets":
                raise ModelError(f"{path.name}, line {call.lineno}: presets must be a literal dict of configs")
        summary = (ast.get_docstring(node) or "").partition("\n")[0]
        found.append(Entry(call.args[0].value, module, presets, call.lineno, summary))
    return found


def parse(spec: str) -> tuple[str, str]:
    """'patchcore@resnet18' -> ('patchcore', 'resnet18'); without '@' the default preset.

    Raises ModelError with near names when the method or the preset is unknown.
    """
    name, at, preset = spec.partition("@")
    if name.startswith("anomalib/") and name != "anomalib/":
        if preset and preset != "default":
            raise ModelError(f"{name} has the one preset 'default', not {preset!r}; use --set field=value")
        return name, "default"
    known = entries()
    if name not in known:
        raise ModelError(f"unknown method {name!r}{near(name, known)}; `run_benchmark.py list methods` shows all")
    if at and preset not in known[name].presets:
        raise ModelError(
            f"method {name!r} has no preset {preset!r}{near(preset, known[name].presets)}; "
            f"it has {', '.join(known[name].presets)}"
        )
    return name, preset or known[name].presets[0]


def method_class(name: str) -> type[Detector]:
    """The detector class of a method name; imports its file."""
    if name.startswith("anomalib/"):
        return importlib.import_module(GENERIC).detector_class(name.removeprefix("anomalib/"))
    parse(name)
    if name not in _classes:
        importlib.import_module(entries()[name].module)
    return _classes[name]


def config(spec: str, settings: Mapping[str, str] | None = None) -> Config:
    """The preset's config, with `--set` texts applied and typed. Raises ModelError for an unknown field or value."""
    name, preset = parse(spec)
    cls = method_class(name)
    base = cls.Config() if name.startswith("anomalib/") else _presets[name][preset]
    if not settings:
        return base
    hints = get_type_hints(type(base))
    known = {f.name for f in fields(base)}
    changes = {}
    for key, text in settings.items():
        if key not in known:
            raise ModelError(
                f"{name} has no field {key!r}{near(key, known)}; its fields: {', '.join(sorted(known))}"
            )
        changes[key] = _typed(text, hints[key], f"{name}: {key}")
    try:
        return base.with_(**changes)
    except ModelError:  # says which method already
        raise
    except (ValueError, TypeError) as error:
        raise ModelError(f"{name}: {error}") from error


def _typed(text: str, hint: Any, where: str) -> Any:
    """A text of the command line as the field's type: numbers, true/false, none, and comma lists for tuples."""
    options = [a for a in get_args(hint) if a is not type(None)] if get_origin(hint) is not tuple else []
    if type(None) in get_args(hint) and text.lower() == "none":
        return None
    kind = options[0] if options and get_origin(hint) is not None and not isinstance(options[0], str) else hint
    try:
        if options and all(isinstance(o, str) for o in options):  # Literal
            if text not in options:
                raise ValueError(f"one of {', '.join(options)}")
            return text
        if get_origin(kind) is tuple:
            inner = get_args(kind)[0]
            return tuple(_typed(part.strip(), inner, where) for part in text.split(",") if part.strip())
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return kind(text) if kind in (int, float, str) else text
    except (KeyError, ValueError) as error:
        raise ModelError(f"{where}={text!r} is not a valid {getattr(kind, '__name__', kind)}: {error}") from error
