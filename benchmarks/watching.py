"""AUROC on the test pictures while a method trains (`--watch-test`): for a plot, and never to choose anything.

A method need not know of it: its networks are put into evaluation mode, it predicts, and everything that the look
could have moved (modes, attributes, random states) is put back. On a CPU the unit's figures stay the same bit for bit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from models.base import Detector

METRICS = ("image_auroc", "pixel_auroc")
NOTE = "AUROC over training was measured on the test pictures for a plot; no choice was made by it"
DEPTH = 4


class Watch:
    """Measures a detector `times` times in the course of its training, the last time at its last step.

    measure: metrics of the detector as it is. seconds: what that took. A detector that cannot predict yet is tried
    again later; `notes` says if it never could.
    """

    def __init__(self, detector: Detector, measure: Callable[[], Mapping[str, float | None]], times: int) -> None:
        self.detector, self.measure, self.times = detector, measure, times
        self.seconds = 0.0
        self._next = 1
        self._why = "its training shows no steps"
        self._log: dict[str, list[float | None]] = {"done": []}

    def step(self, done: int, total: int) -> None:
        """To be called after each training step; measures when another share of the training is over."""
        if total <= 0 or done * self.times < self._next * total:
            return
        self._next = done * self.times // total + 1
        start = time.perf_counter()
        try:
            with undisturbed(self.detector):
                metrics = self.measure()
        except Exception as error:  # what an unfinished detector raises is its own affair
            self._why = f"{type(error).__name__}: {error}"
            return
        finally:
            self.seconds += time.perf_counter() - start
        self._log["done"].append(round(done / total, 4))
        for name in METRICS:
            if name in metrics:
                self._log.setdefault(name, []).append(metrics[name])

    def log(self) -> dict[str, list[float | None]]:
        """{'done': shares of the training, 'image_auroc': fractions, 'pixel_auroc': ...}; empty if nothing was seen."""
        return self._log if self._log["done"] else {}

    def notes(self) -> list[str]:
        """What the record must say about the look at the test pictures."""
        return [NOTE] if self.log() else [f"nothing to watch on the test pictures during training: {self._why}"]


@contextmanager
def undisturbed(detector: Detector) -> Iterator[None]:
    """The detector's networks in evaluation mode; afterwards modes, attributes and random states are as before."""
    import torch

    modes = [(part, part.training) for module in _modules(detector) for part in module.modules()]
    before = dict(vars(detector))
    contents = {k: v.copy() for k, v in before.items() if isinstance(v, list | dict | set)}
    device = getattr(detector.context, "device", None)
    devices = [device] if device is not None and device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  the generators that libraries share
    try:
        for part, _ in modes:
            part.training = False
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for part, mode in modes:
            part.training = mode
        vars(detector).clear()
        vars(detector).update(before)
        for name, content in contents.items():  # in place: the training may hold the same object
            held = before[name]
            held.clear()
            held.extend(content) if isinstance(held, list) else held.update(content)


def _modules(detector: Detector) -> list[Any]:
    """Every network that the detector holds, in containers and in parts of its own too."""
    from torch import nn

    found: dict[int, Any] = {}
    seen: set[int] = set()

    def look(value: Any, depth: int) -> None:
        if id(value) in seen or depth > DEPTH:
            return
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found[id(value)] = value
        elif isinstance(value, Mapping):
            for item in value.values():
                look(item, depth + 1)
        elif isinstance(value, list | tuple):
            for item in value:
                look(item, depth + 1)
        elif type(value).__module__.partition(".")[0] == "models" and hasattr(value, "__dict__"):
            for item in vars(value).values():
                look(item, depth + 1)

    for name, value in vars(detector).items():
        if name not in ("config", "context"):
            look(value, 0)
    return list(found.values())
