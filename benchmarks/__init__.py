"""The harness: plan, runner, launchers, store, metrics, report, regression.

From Python: `from benchmarks import run, reproduce, table, compare, records`; see `benchmarks.api`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["compare", "records", "reproduce", "run", "table"]


def __getattr__(name: str) -> Any:
    """The functions of `benchmarks.api`, imported when the first one is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'benchmarks' has no attribute {name!r}")
    return getattr(import_module("benchmarks.api"), name)
