"""What goes wrong in one unit costs that unit only, and a worker does not grow over many units."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.launchers import local, memory, worker
from benchmarks.plan import Options, make_plan
from benchmarks.store import Store
from tests.benchmarks import soak
from tests.conftest import REPO, Cli
from tests.forked import forked_workers


@pytest.fixture
def quick_workers() -> None:
    """How workers die is the subject here: they are spawned, as in users' runs."""


WAYS = {  # how a unit goes wrong -> words in what is said of it
    "error": "fit: the fake was told to fail",
    "memory": "out of memory",  # more than there is
    "refused": "memory",  # the kernel refuses it to torch, at the process's address space limit
    "killed": "SIGKILL); probably out of memory",  # as the kernel's out-of-memory killer does
    "segfault": "SIGSEGV",
    "null": "SIGSEGV",  # a read at address 0
    "nan": "good/000",
    "shape": "expected [B, h, w]",
    "device_assert": "device-side assert",
}


def test_each_bad_unit_is_recorded_with_its_reason_and_the_others_go_on(
    cli: Cli, data_root: Path, tmp_path: Path
) -> None:
    """All ways to go wrong in one run of two workers, before, between and after units that work."""
    bad = [f"fake_bad@{way}" for way in WAYS]
    done = cli("run", "--methods", "fake", *bad, "fake@noisy", "--datasets", "parts", "--data-root", data_root,
               "--results", tmp_path, "--weights", "none", "--device", "cpu", "--quiet", "--categories", "nut",
               "--workers", 2)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("FAILED")]  # one for all of the same reason
    for way, words in WAYS.items():
        assert any(f"fake_bad@{way}" in line and words in line for line in said), (way, said)
    records = Store(tmp_path).records(failed=True)
    assert {f"{r['unit']['method']}@{r['unit']['preset']}" for r in records if r["status"] == "ok"} == {
        "fake@plain", "fake@noisy"}
    failed = [r for r in records if r["status"] == "failed"]
    assert len(failed) == len(WAYS) and all(r["error"]["phase"] for r in failed)


def test_memory_does_not_grow_over_thirty_units(tmp_path: Path) -> None:
    resident, _ = soak.memory(tmp_path, "fake@plain", 32)
    assert len(resident) == 32 and soak.growth(resident) < 0.05, resident


@pytest.mark.parametrize("way", ["device_assert", "killed"])
def test_a_worker_that_cannot_go_on_is_replaced_at_its_place(
    way: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place decides its GPU: a worker that took another's place would share that one's GPU."""
    places: list[int] = []
    start = worker.start
    monkeypatch.setattr(worker, "start", lambda index, workers: places.append(index) or start(index, workers))
    options = Options(data_root=data_root, results=tmp_path, weights="none", device="cpu")
    jobs = make_plan([f"fake_bad@{way}", "fake@slow", "fake"], ["parts"], options).jobs
    with forked_workers():
        outcome = local.run(jobs, workers=2, quiet=True)
    assert len(outcome.failed) == 2 and outcome.finished == 4
    assert len(places) >= 3 and set(places) == {0, 1}, "the process that was lost is not used again"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fake@plain", "patchcore@demo"])
def test_memory_does_not_grow_over_two_hundred_units(tmp_path: Path, method: str) -> None:
    resident, _ = soak.memory(tmp_path, method, 200)
    assert len(resident) == 200 and soak.growth(resident) < 0.05, resident


def test_what_a_unit_leaves_in_reference_cycles_is_collected_when_the_process_grew(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    class Network:
        def __init__(self) -> None:
            self.me: Any = self

    gc.disable()
    try:
        left = weakref.ref(Network())
        monkeypatch.setattr(memory, "_settled", 10**9)
        memory.tidy()
        assert left() is not None, "nothing grew"
        monkeypatch.setattr(memory, "_settled", memory.resident() // 2)
        memory.tidy()
        assert left() is None and memory._settled > 0
    finally:
        gc.enable()


@pytest.mark.parametrize(("own", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_threads_of_a_worker_sleep_while_they_wait_unless_told_otherwise(own: dict[str, str], spins: str) -> None:
    """As OpenMP itself tells when it is loaded, with torch; what is set after that has no effect."""
    code = (
        "import multiprocessing as m; from benchmarks.launchers import worker\n"
        "ours, theirs = m.Pipe(); ours.send(None); worker.work(theirs, 1, 0)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_WAIT", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **own}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=environment,
                          capture_output=True, text=True, check=True, timeout=300)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
