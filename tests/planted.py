"""Faults planted in the source one at a time, each of which a named quick test must catch.

A fault is a text of one file replaced by another. `caught` runs the named test in a process of its own that imports the
changed source; nothing on disk changes. Loaded by that process as a pytest plugin (`-p tests.planted`).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent
VARIABLE = "PLANTED_FAULT"


@dataclass(frozen=True)
class Fault:
    """`old` (found exactly once in `file`, a path from the repository's root) becomes `new`; `test` must then fail."""

    file: str
    old: str
    new: str
    test: str  # node id of a quick test: "tests/models/baselines/test_draem.py::test_loss"

    def __str__(self) -> str:
        """For the test's id: the file and the changed text."""
        return f"{Path(self.file).stem}: {' '.join(self.new.split())[:60] or 'nothing for ' + self.old.strip()[:40]}"

    def apply(self, source: str) -> str:
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"{self.file} has {count} times {self.old!r}; a fault needs a text that is there once")
        return source.replace(self.old, self.new)


def caught(fault: Fault) -> tuple[bool, str]:
    """Whether `fault.test` fails with the fault in place, and pytest's output.

    Raises ValueError when the text is not there, and AssertionError when the test could not run at all, or passed
    without ever importing the changed file.
    """
    fault.apply((REPO / fault.file).read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.planted", "-x", "-q", "-p", "no:cacheprovider", fault.test],
        cwd=REPO, env={**os.environ, VARIABLE: json.dumps(asdict(fault))}, capture_output=True, text=True, check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode in (0, 1), f"{fault.test} could not be run:\n{output}"  # 0 passed, 1 failed
    assert "planted in" in output, f"{fault.test} does not import {fault.file}:\n{output}"
    return done.returncode == 1, output


class _Planting(importlib.abc.MetaPathFinder):
    """Finds the one module that has the fault; all others are left to Python."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.module = fault.file.removesuffix(".py").replace("/", ".")
        self.imported = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        self.imported = True
        loader = _Changed(name, str(REPO / self.fault.file))
        loader.fault = self.fault
        return importlib.machinery.ModuleSpec(name, loader, origin=loader.path)


class _Changed(importlib.machinery.SourceFileLoader):
    fault: Fault

    def get_code(self, fullname: str) -> Any:
        return compile(self.fault.apply(Path(self.path).read_text(encoding="utf-8")), self.path, "exec")


if VARIABLE in os.environ:
    _finder = _Planting(Fault(**json.loads(os.environ[VARIABLE])))
    sys.meta_path.insert(0, _finder)

    def pytest_terminal_summary(terminalreporter: Any) -> None:
        if _finder.imported:
            terminalreporter.write_line(f"planted in {_finder.fault.file}")
