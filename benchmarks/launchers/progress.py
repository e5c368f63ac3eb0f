"""Progress of a run on the screen."""

from __future__ import annotations

import sys

from benchmarks.units import Job


class Bars:
    """Two nested progress bars: units, and the steps of the unit that reported last."""

    def __init__(self, units: int, quiet: bool) -> None:
        from tqdm import tqdm

        disable = quiet or None  # None: tqdm hides itself where the output is no terminal
        self.quiet = quiet
        self.outer = tqdm(total=units, desc="units", unit="unit", disable=disable, dynamic_ncols=True)
        self.inner = tqdm(total=0, desc="", leave=False, disable=disable, dynamic_ncols=True, position=1)
        self.current: tuple[int, str] | None = None

    def progress(self, worker: int, job: Job | None, phase: str, done: int, total: int, values: dict[str, float]
                 ) -> None:
        if job is None or self.inner.disable:  # a hidden bar would still print when refreshed
            return
        if self.current != (worker, phase):
            self.current = (worker, phase)
            self.inner.reset(total=total)
            self.inner.set_description(f"{job.unit}: {phase}")
        self.inner.total = total
        self.inner.n = done
        self.inner.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        self.inner.refresh()

    def finished(self, job: Job, how: str) -> None:
        from tqdm import tqdm

        if not self.quiet and how != "resumed":
            tqdm.write(f"{how:>7}  {job.unit}", file=sys.stderr)
        self.outer.update()

    def close(self) -> None:
        self.inner.close()
        self.outer.close()
