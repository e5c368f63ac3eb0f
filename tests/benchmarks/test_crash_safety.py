"""Nothing that is finished is lost: kills, full disks, directories that become read-only, signals, clocks set back.

The long proof: `python -m tests.benchmarks.kill_proof --kills 60 --seed 0`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.launchers import local
from benchmarks.launchers.progress import Bars
from benchmarks.launchers.worker import Worker
from benchmarks.runner import _skeleton
from benchmarks.store import Store, latest
from tests.benchmarks import kill_proof
from tests.benchmarks.test_store import job
from tests.conftest import REPO, Cli, make_mvtec


def test_kills_in_every_phase_change_nothing(tmp_path: Path) -> None:
    proof = kill_proof.prove(tmp_path, kills=5, seed=3)
    print(proof)
    assert proof.kills == 5 and not proof.wrong, proof
    assert proof.compared >= 6 and set(proof.targets) == set(kill_proof.TARGETS)


@pytest.mark.slow
def test_sixty_kills_change_nothing(tmp_path: Path) -> None:
    proof = kill_proof.prove(tmp_path, kills=60, seed=0)
    print(proof)
    assert proof.kills == 60 and not proof.wrong, proof
    assert all(proof.phases[phase] >= 5 for phase in kill_proof.PHASES), proof
    assert all(proof.targets[target] >= 10 for target in kill_proof.TARGETS), proof
    assert proof.kept > 60, "hardly any finished record was there to be kept"


def test_the_proof_sees_a_changed_record_and_a_torn_file(tmp_path: Path) -> None:
    data, results, proof = tmp_path / "data", tmp_path / "r", kill_proof.Proof()
    make_mvtec(data / "parts" / "nut", seed=0, train=3, good=2, bad=3)
    reference = kill_proof.undisturbed(data, results)
    before = kill_proof.files(results)
    assert kill_proof.look(results, before, proof) == before and not proof.wrong
    kill_proof.compare(reference, results, proof)
    assert not proof.wrong and proof.compared == 3
    path = next(kill_proof.finished(results))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"image_auroc": ', b'"image_auroc": 0'[:-1] + b"0.0625, \"x\": "))
    kill_proof.compare(reference, results, proof)
    assert any("metrics differs" in text for text in proof.wrong), proof
    path.write_bytes(whole[:100])
    path.with_suffix(".npz").write_bytes(b"torn")
    proof.wrong.clear()
    kill_proof.look(results, before, proof)
    assert sum("changed or lost" in text for text in proof.wrong) == 2
    assert sum("half-written" in text for text in proof.wrong) == 2


# ---------------------------------------------------------------- disks


def arguments(data: Path, results: Path, *more: object) -> list[str]:
    return ["run", "--datasets", "parts", "--data-root", str(data), "--results", str(results), "--weights", "none",
            "--device", "cpu", "--quiet", *map(str, more)]


def slowed(trace: Path, *run: str, **environment: str) -> subprocess.Popen[str]:
    trace.mkdir()
    return subprocess.Popen(
        [sys.executable, str(REPO / "tests/benchmarks/slowed_run.py"), *run], cwd=REPO, text=True,
        env=os.environ | {"BENCH_TRACE": str(trace)} | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize(("name", "words"), [
    ("ENOSPC", "No space left on device; free some space there or choose another --results DIR"),
    ("EROFS", "Read-only file system; free some space there or choose another --results DIR"),
])
def test_a_disk_that_fails_in_mid_run_ends_it_in_one_line_and_keeps_what_is_whole(
    cli: Cli, data_root: Path, tmp_path: Path, name: str, words: str
) -> None:
    """The write of the second unit's record fails, after its scores were written."""
    run = arguments(data_root, tmp_path / "r", "--methods", "fake", "--seeds", 0, 1)
    process = slowed(tmp_path / "trace", *run, BENCH_FAULT=f"{name}:3", BENCH_PAUSE="0")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert stderr.count("error: cannot write") == 1 and words in stderr and "Traceback" not in stderr
    store = Store(tmp_path / "r")
    assert len(store.records(failed=True)) == 1 and not store.broken
    assert not list((tmp_path / "r").rglob("*.part"))
    done = cli(*run)
    assert done.returncode == 0 and "4 units: 3 run now, 1 finished before" in done.stderr


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Path:
    """A file system of 256 KiB; the test is skipped where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("a small file system can be mounted by the superuser only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_disk_runs_full_and_the_run_goes_on_when_there_is_room(
    cli: Cli, data_root: Path, tiny_disk: Path
) -> None:
    filler = tiny_disk / "filler"
    filler.write_bytes(b"x" * (200 << 10))
    run = arguments(data_root, tiny_disk / "r", "--methods", "fake", "--seeds", *range(6), "--cache-size", 0)
    full = cli(*run)
    assert full.returncode == 1 and "No space left on device" in full.stderr and "Traceback" not in full.stderr
    store = Store(tiny_disk / "r")
    finished = len(store.records())
    assert 0 < finished < 12 and not store.broken and not list(tiny_disk.rglob("*.part"))
    filler.unlink()
    done = cli(*run)
    assert done.returncode == 0 and f"{12 - finished} run now, {finished} finished before" in done.stderr, done.stderr


def test_setting_records_aside_where_nothing_may_be_written_is_said(
    cli: Cli, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = arguments(data_root, tmp_path, "--methods", "fake", "--categories", "nut")
    assert cli(*run).returncode == 0

    replace = os.replace

    def refuse(source: object, target: object) -> None:
        if "configs" not in str(target):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    done = cli(*run, "--force")
    assert done.returncode == 1 and "cannot set" in done.stderr and "another --results DIR" in done.stderr
    assert len(Store(tmp_path).records()) == 1


# ---------------------------------------------------------------- signals


def test_ctrl_c_twice_ends_a_hanging_unit_at_once(data_root: Path, tmp_path: Path) -> None:
    process = slowed(tmp_path / "trace", *arguments(data_root, tmp_path / "r", "--methods", "fake_bad@hang"))
    own = tmp_path / "trace" / f"{process.pid}.log"
    end = time.monotonic() + 120
    while not any("fit" in p.read_text() for p in (tmp_path / "trace").glob("*.log") if p != own):
        assert time.monotonic() < end and process.poll() is None, "the unit never began"
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
        time.sleep(0.3)
    _, stderr = process.communicate(timeout=local.GRACE_S - 1)
    assert process.returncode == 130 and "once more to stop at once" in stderr and "Traceback" not in stderr
    assert not psutil.wait_procs(workers, timeout=10)[1], "a worker is left"
    assert not Store(tmp_path / "r").records(failed=True)


def test_ctrl_c_while_a_worker_starts_is_no_failure_of_its_unit(data_root: Path, tmp_path: Path) -> None:
    process = slowed(tmp_path / "trace", *arguments(data_root, tmp_path / "r", "--methods", "fake"))
    end = time.monotonic() + 120
    while not any("spawn_main" in " ".join(c.cmdline()) for c in psutil.Process(process.pid).children()):
        assert time.monotonic() < end and process.poll() is None, "no worker was started"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    assert not [r["error"] for r in Store(tmp_path / "r").records(failed=True) if r["status"] != "ok"]


# ---------------------------------------------------------------- a worker that falls too late, clocks


def test_a_worker_lost_after_its_record_was_written_is_no_failure(data_root: Path, tmp_path: Path) -> None:
    from benchmarks.plan import Options, make_plan
    from benchmarks.runner import run_unit

    options = Options(data_root=data_root, results=tmp_path, weights="none", device="cpu")
    (one, *_) = make_plan(["fake"], ["parts"], options, categories=["nut"]).jobs
    run_unit(one, lambda *_: None)

    class Dead:
        exitcode = -9

        def is_alive(self) -> bool:
            return False

        def join(self, timeout: float) -> None:
            pass

    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    loop = local.Loop([], 1, Bars(1, True))
    loop.pool.append(Worker(Dead(), ours, 0, job=one))
    loop.lose(loop.pool[0], "killed")
    assert (loop.outcome.finished, loop.outcome.failed, loop.pool) == (1, {}, [])
    assert [r["status"] for r in Store(tmp_path).records(failed=True)] == ["ok"]


def test_the_newest_record_is_the_one_written_last_although_the_clock_jumped_back(tmp_path: Path) -> None:
    store, now = Store(tmp_path), datetime(2026, 3, 1, tzinfo=UTC)
    jobs = [job(tmp_path, config_hash=name) for name in ("first", "second", "third")]
    clocks = [now, now - timedelta(days=400), now - timedelta(days=399)]
    for one, clock in zip(jobs, clocks, strict=True):
        record = _skeleton(one) | {"environment": {"finished": clock.isoformat(timespec="milliseconds")}}
        store.save(one, record, {"score": np.zeros(1, np.float32)})
        assert [r["config_hash"] for r in latest(store.records())] == [one.config_hash]
    notes = {r["config_hash"]: r["notes"] for r in store.records()}
    assert not notes["first"] and "the clock stood at 2025-01-26" in notes["third"][0]
    other = replace(jobs[0], unit=replace(jobs[0].unit, seed=4))
    store.save(other, _skeleton(other) | {"environment": {"finished": clocks[1].isoformat(timespec="milliseconds")}})
    assert not store.load(other)["notes"], "another unit's time does not matter"
