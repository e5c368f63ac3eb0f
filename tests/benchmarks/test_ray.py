"""The Ray launcher on a local cluster: the same records as the local launcher, also when a worker is killed."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.launchers import local
from benchmarks.plan import Options, make_plan
from benchmarks.runner import maps_dir
from benchmarks.store import Store
from benchmarks.units import Job
from tests.forked import forked_workers

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

    with forked_workers():
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
    kept, bad = more_jobs(data_root, tmp_path / "ray")
    again = launcher.run([*jobs(data_root, tmp_path / "ray"), kept, bad], workers=2, quiet=True)
    assert (again.finished, again.resumed) == (1, 8)
    assert list(again.failed) == [str(bad.unit)] and "passed the time limit of 6 s" in again.failed[str(bad.unit)]
    assert len(list(maps_dir(kept).rglob("*.tiff"))) == 8, "kept maps were lost"
    assert not list((tmp_path / "ray" / "runs").glob(".shared-*"))


def more_jobs(data_root: Path, results: Path) -> tuple[Job, Job]:
    """One that keeps its maps, and one that hangs and has a time limit."""
    options = Options(data_root=data_root, results=results, weights="none", device="cpu", keep_maps=True)
    kept, bad = (make_plan([spec], ["parts"], options, categories=["nut"]).jobs[0]
                 for spec in ("fake@plain", "fake_bad@hang"))
    return kept, replace(bad, time_limit=6.0)


@pytest.mark.parametrize(("device", "gpus", "workers", "share"), [
    ("cpu", 8, 4, 0), ("auto", 0, 4, 0), ("auto", 4, 1, 1), ("auto", 4, 4, 1), ("auto", 2, 4, 0.5),
    ("auto", 4, 6, 0.5), ("cuda:0", 1, 3, 1 / 3),
])
def test_workers_beyond_the_gpus_share_them(device: str, gpus: float, workers: int, share: float) -> None:
    from benchmarks.launchers.ray import gpu_share

    assert gpu_share(device, gpus, workers) == pytest.approx(share)


@pytest.mark.parametrize(("own", "given"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_threads_of_rays_workers_wait_as_ours_do(
    own: dict[str, str], given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from benchmarks.launchers import ray as launcher

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    seen: list[dict] = []
    launcher._connect(SimpleNamespace(init=lambda **given: seen.append(given)), None, 2)
    assert seen[0]["runtime_env"]["env_vars"].get("OMP_WAIT_POLICY") == given
