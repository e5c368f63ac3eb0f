"""Progress of a run on the screen: two bars on a terminal, else one line a unit and one a minute with the time."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.units import Job

EVERY_S = 60.0
"""Where the output is no terminal, what runs is said this often."""


class Bars:
    """Two nested progress bars: units, and the steps of the unit that reported last."""

    def __init__(self, units: int, quiet: bool) -> None:
        from tqdm import tqdm

        disable = quiet or None  # None: tqdm hides itself where the output is no terminal
        self.quiet, self.units, self.done, self.said = quiet, units, 0, time.monotonic()
        self.outer = tqdm(total=units, desc="units", unit="unit", disable=disable, dynamic_ncols=True)
        self.inner = tqdm(total=0, desc="", leave=False, disable=disable, dynamic_ncols=True, position=1)
        self.current: tuple[int, str] | None = None

    def progress(self, worker: int, job: Job | None, phase: str, done: int, total: int, values: dict[str, float]
                 ) -> None:
        """A worker reports a step of its unit."""
        if job is None:
            return
        if self.inner.disable:  # a hidden bar would still print when refreshed
            if not self.quiet and time.monotonic() - self.said >= EVERY_S:
                self.said = time.monotonic()
                self._line(f"running  {job.unit}: {phase}{f' {done} of {total}' if total else ''}")
            return
        if self.current != (worker, phase):
            self.current = (worker, phase)
            self.inner.reset(total=total)
            self.inner.set_description(f"{job.unit}: {phase}")
        self.inner.total = total
        self.inner.n = done
        self.inner.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        self.inner.refresh()

    def finished(self, job: Job, how: str, record: Mapping[str, Any] | None = None) -> None:
        """One line for a unit that ended: its number, seconds and score."""
        self.done += 1
        if not self.quiet and how != "resumed":
            self.said = time.monotonic()
            self._line(f"{how:>7}  {job.unit}{outcome(record or {})}")
        self.outer.update()

    def _line(self, text: str) -> None:
        from tqdm import tqdm

        clock = time.strftime("%H:%M:%S ") if self.outer.disable else ""
        tqdm.write(f"{clock}[{self.done}/{self.units}] {text}", file=sys.stderr)

    def close(self) -> None:
        """Take the bars away."""
        self.inner.close()
        self.outer.close()


def outcome(record: Mapping[str, Any]) -> str:
    """', 12.3 s, image AUROC 98.76' of a finished unit; LOCO's is the mean of its two kinds of defects."""
    seconds, metrics = (record.get("timing") or {}).get("total_s"), record.get("metrics") or {}
    score = next((metrics[m] for m in ("image_auroc/mean", "image_auroc") if metrics.get(m) is not None), None)
    return ("" if seconds is None else f", {seconds:.1f} s") + (
        "" if score is None else f", image AUROC {100 * score:.2f}"
    )
