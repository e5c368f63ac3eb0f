"""The Ray launcher on a local cluster: the same records as the local launcher, also when a worker is killed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.launchers import local
from benchmarks.plan import Options, make_plan
from benchmarks.store import Store

ray = pytest.importorskip("ray", reason="Ray is not installed (requirements-cluster.txt)")
METHODS = ["fake@slow", "fake@noisy"]


def jobs(data_root: Path, results: Path) -> Any:
    options = Options(data_root=data_root, results=results, weights="none", device="cpu", settings={"wait": "0.2"})
    return make_plan(METHODS, ["parts"], options, seeds=[0, 1]).jobs


def numbers(results: Path) -> dict[str, Any]:
    return {str(sorted(r["unit"].items())): (r["metrics"], r["undefined"], r["config_hash"], r["marks"])
            for r in Store(results).records()}


class Killer(threading.Thread):
    """Kills the first worker that is seen at work on a unit."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed: list[int] = []

    def run(self) -> None:
        end = time.monotonic() + 120
        while not self.killed and time.monotonic() < end:
            for process in psutil.Process().children(recursive=True):
                try:
                    if "ray::_task" in " ".join(process.cmdline()):
                        time.sleep(0.5)
                        process.kill()
                        self.killed.append(process.pid)
                        return
                except psutil.Error:
                    continue
            time.sleep(0.05)


def test_records_equal_the_local_ones_although_a_worker_is_killed(data_root: Path, tmp_path: Path) -> None:
    from benchmarks.launchers import ray as launcher

    done = local.run(jobs(data_root, tmp_path / "local"), workers=2, quiet=True)
    assert done.finished == 8 and not done.failed
    killer = Killer()
    gathered = launcher.run(jobs(data_root, tmp_path / "ray"), workers=2, quiet=True, upload=True,
                            on_start=lambda _: killer.start())
    killer.join(130)
    assert killer.killed, "no worker was seen at work"
    assert gathered.finished == 8 and not gathered.failed
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "local")
    assert len(list((tmp_path / "ray" / "runs").rglob("seed*.npz"))) == 8
    again = launcher.run(jobs(data_root, tmp_path / "ray"), workers=2, quiet=True)
    assert (again.finished, again.resumed) == (0, 8)
