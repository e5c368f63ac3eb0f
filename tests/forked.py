"""Processes that are there at once: forks of one that has imported what lies below this project (`tests.below`).

A spawned worker takes 5 s of processor time for these imports, most of what a quick command costs. What it does then is
the same. Tests about how a worker starts, ends or fills memory use `spawn`, as users' runs do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest


def forks() -> Any:
    """A context of multiprocessing whose processes are forks; the one that they are forked from runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.below"])
    with contextlib.chdir(Path(__file__).parent.parent):  # found from there
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """The launcher's workers are forks within this block."""
    from benchmarks.launchers import worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "multiprocessing", _Forks())
        yield


class _Forks:
    """Stands in for `multiprocessing` in the launcher, and for the context that it asks for."""

    def get_context(self, method: str) -> _Forks:
        assert method == "spawn"
        self._context = forks()
        self.Pipe = self._context.Pipe
        return self

    def Process(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> Any:
        return self._context.Process(target=_work, args=(dict(os.environ), target, args), daemon=daemon)


def _work(environment: Mapping[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """`target` in the environment that its parent has now; the server that forks has that of its own start."""
    os.environ.clear()
    os.environ.update(environment)
    target(*args)
