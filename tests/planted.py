"""Faults planted in the source one at a time, each of which a named quick test must catch.

A fault is a text of one file replaced by another. `caught` runs the named test in a process of its own that imports the
changed source; nothing on disk changes. These processes are forks (`tests.forked`).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.forked import forks

REPO = Path(__file__).parent.parent


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
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "output"
        process = forks().Process(target=_run, args=(fault, said))
        process.start()
        process.join()
        output = said.read_text(encoding="utf-8") if said.exists() else ""
    assert process.exitcode in (0, 1), f"{fault.test} could not be run:\n{output}"  # 0 passed, 1 failed
    assert "planted in" in output, f"{fault.test} does not import {fault.file}:\n{output}"
    return process.exitcode == 1, output


def _run(fault: Fault, said: Path) -> None:
    """The test with its fault in this process, whose exit code is pytest's; what it prints goes to the file `said`."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(REPO)
    finder = _Planting(fault)
    assert finder.module not in sys.modules, f"{finder.module} was imported before its fault"
    sys.meta_path.insert(0, finder)
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", fault.test], plugins=[finder])
    sys.stdout.flush()
    os._exit(int(code))


class _Planting(importlib.abc.MetaPathFinder):
    """Finds the one module that has the fault; all others are left to Python. As a plugin it says whether it did."""

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

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.imported:
            terminalreporter.write_line(f"planted in {self.fault.file}")


class _Changed(importlib.machinery.SourceFileLoader):
    fault: Fault

    def get_code(self, fullname: str) -> Any:
        return compile(self.fault.apply(Path(self.path).read_text(encoding="utf-8")), self.path, "exec")
