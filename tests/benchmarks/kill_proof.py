"""Kills runs with SIGKILL at random moments and compares what is left with an undisturbed run.

    python -m tests.benchmarks.kill_proof --kills 60 --seed 0

Each kill waits for a phase (plan, fit, predict, metrics, write) and a random time more, then hits the parent, the
worker or both. After each one every finished record must still have its bytes and its time, and every file must be
whole. A run that ended is started again; when its units are all done, its records are compared with the undisturbed
ones and the next run begins in an empty directory. Prints the counts; exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.store import Store
from tests.conftest import REPO, make_mvtec

PHASES = ("plan", "fit", "predict", "metrics", "write")
TARGETS = ("group", "parent", "worker")
SEEDS = (0, 1, 2)
START_S = 120.0


@dataclass
class Proof:
    """What was killed and what was found wrong afterwards."""

    phases: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    compared: int = 0
    kept: int = 0  # checks of a finished record that a kill must have left alone
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(self.phases.values())

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.starts} starts; by phase: {_counts(self.phases)}; by process: "
            f"{_counts(self.targets)}\n{self.kept} looks at finished records after a kill, {self.compared} final "
            f"records compared with the undisturbed run: {len(self.wrong)} differences"
            + "".join(f"\n- {text}" for text in self.wrong)
        )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


class Run:
    """One run of the slowed command line in a process group of its own."""

    def __init__(self, data: Path, results: Path, trace: Path) -> None:
        self.trace = trace
        self.trace.mkdir(parents=True, exist_ok=True)
        for old in self.trace.iterdir():
            old.unlink()
        environment = os.environ | {
            "BENCH_TRACE": str(trace), "OMP_NUM_THREADS": "1", "BENCH_METHODS": str(REPO / "tests" / "methods"),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "tests/benchmarks/slowed_run.py"), *arguments(data, results)],
            cwd=REPO, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )

    def workers(self) -> list[int]:
        return [int(p.stem) for p in self.trace.glob("*.log") if int(p.stem) != self.process.pid and alive(int(p.stem))]

    def steps(self, pid: int) -> list[str]:
        try:
            return (self.trace / f"{pid}.log").read_text().split()
        except OSError:
            return []

    def wait_for(self, phase: str, nth: int) -> int | None:
        """The process that is at its n-th step of a phase from now on; None when the run ended before."""
        seen: dict[int, int] = {pid: self.steps(pid).count(phase) for pid in self.workers()}
        end = time.monotonic() + START_S
        while self.process.poll() is None:
            for pid in [self.process.pid] if phase == "plan" else self.workers():
                if self.steps(pid).count(phase) - seen.get(pid, 0) >= nth:
                    return pid
            if time.monotonic() > end:
                raise TimeoutError(f"no step of {phase} within {START_S:g} s")
            time.sleep(0.004)
        return None

    def finish(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=START_S)
        return self.process.returncode, stderr.decode()

    def gone(self) -> bool:
        """Whether every process of the run has ended within some seconds."""
        self.process.wait(START_S)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if not self.workers():
                return True
            time.sleep(0.02)
        return False


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def arguments(data: Path, results: Path) -> list[str]:
    return ["run", "--methods", "fake@noisy", "--datasets", "parts", "--data-root", str(data), "--results",
            str(results), "--weights", "none", "--device", "cpu", "--quiet", "--seeds", *map(str, SEEDS),
            "--set", "size=16", "batch=2"]


def files(results: Path) -> dict[str, tuple[int, str]]:
    """Time of change and content hash of each finished record and of the arrays beside it."""
    return {
        str(p): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) if p.exists() else (0, "absent")
        for record in finished(results) for p in (record, record.with_suffix(".npz"))
    }


def finished(results: Path) -> Iterator[Path]:
    return (p for p in (results / "runs").rglob("seed*.json") if not p.name.endswith(".failed.json"))


def content(results: Path) -> dict[str, Any]:
    """Per unit all that must not depend on how often the run was killed: numbers, settings and per-image arrays."""
    found = {}
    for record in Store(results).records():
        with np.load(Path(record["path"]).parent / record["images"]["scores"], allow_pickle=False) as arrays:
            stored = {name: (arrays[name].dtype.str, arrays[name].tolist()) for name in arrays.files}
        kept = {k: record[k] for k in ("metrics", "undefined", "protocol", "images", "config_hash", "weights", "marks",
                                       "dataset_fingerprint", "training", "notes", "status")}
        found[str(sorted(record["unit"].items()))] = kept | {"arrays": stored}
    return found


def undisturbed(data: Path, results: Path) -> dict[str, Any]:
    """The same units one after another in this process."""
    from benchmarks.plan import Options, make_plan
    from benchmarks.runner import run_unit

    options = Options(data_root=data, results=results, weights="none", device="cpu",
                      settings={"size": "16", "batch": "2"})
    for job in make_plan(["fake@noisy"], ["parts"], options, seeds=SEEDS).jobs:
        run_unit(job, lambda *_: None)
    return content(results)


def look(results: Path, before: dict[str, tuple[int, str]], proof: Proof) -> dict[str, tuple[int, str]]:
    """After a kill: what was finished is untouched and every file that has a final name is whole."""
    now = files(results)
    proof.wrong += [f"a record without its scores: {path}" for path, stamp in now.items() if stamp[1] == "absent"]
    for path, stamp in before.items():
        proof.kept += path.endswith(".json")
        if now.get(path) != stamp:
            proof.wrong.append(f"a finished file was changed or lost: {path}")
    store = Store(results)
    store.records(failed=True)
    proof.wrong += [f"half-written: {path}: {why}" for path, why in store.broken.items()]
    for path in (results / "runs").rglob("*.npz"):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError) as error:
            proof.wrong.append(f"half-written: {path}: {error}")
    return now


def compare(reference: dict[str, Any], results: Path, proof: Proof) -> None:
    measured = content(results)
    proof.compared += len(measured)
    for unit in reference.keys() | measured.keys():
        for part in reference.get(unit, {"record": None}):
            if measured.get(unit, {}).get(part) != reference.get(unit, {}).get(part):
                proof.wrong.append(f"{unit}: {part} differs from the undisturbed run")


def prove(folder: Path, kills: int, seed: int, show: bool = False) -> Proof:
    """Run, kill and start again until `kills` kills are done and the last run has ended in peace."""
    rng = np.random.default_rng(seed)
    data = folder / "data"
    for i, name in enumerate(("nut", "plate")):
        make_mvtec(data / "parts" / name, seed=i, train=3, good=2, bad=3, size=(36, 36))
    reference = undisturbed(data, folder / "undisturbed")
    proof, life, results = Proof(), 0, folder / "killed0"
    before: dict[str, tuple[int, str]] = {}
    run: Run | None = None
    aims: list[tuple[str, str]] = []
    while True:
        fresh = run is None or run.process.poll() is not None
        if fresh:
            run = Run(data, results, folder / "trace")
            proof.starts += 1
        if proof.kills < kills:
            phase, target = _aim(aims, rng, fresh)
            pid = run.wait_for(phase, int(rng.integers(1, 4 if phase == "plan" else 14)))  # in one of some units
            if pid is not None:
                aims.remove((phase, target))
                time.sleep(float(rng.uniform(0, 0.06)))
                _kill(run, pid, phase, target, proof)
                if show:
                    print(f"{proof.kills:3d} {phase:8s} {target:7s} {len(before) // 2} finished before", flush=True)
                if target != "worker" and not run.gone():
                    proof.wrong.append(f"a worker outlived its parent ({phase})")
                before = look(results, before, proof)
                continue
        code, stderr = run.finish()
        if code == 1 and "its worker process was killed" in stderr:
            run = None  # the next start tries the units again whose worker was killed in this one
            continue
        if code:
            proof.wrong.append(f"a run that was let alone ended with {code}: {stderr}")
        look(results, before, proof)
        compare(reference, results, proof)
        if proof.kills >= kills:
            return proof
        life, before, run = life + 1, {}, None
        results = folder / f"killed{life}"


def _aim(aims: list[tuple[str, str]], rng: np.random.Generator, fresh: bool) -> tuple[str, str]:
    """The next pair of phase and process: each in turn, in random order; planning can be hit in a new run only."""
    fitting = [aim for aim in aims if fresh or aim[0] != "plan"]
    if not fitting:
        every = [(p, t) for p in PHASES for t in TARGETS if (p, t) != ("plan", "worker")]
        aims += [every[i] for i in rng.permutation(len(every))]
        fitting = [aim for aim in aims if fresh or aim[0] != "plan"]
    return next((aim for aim in fitting if fresh and aim[0] == "plan"), fitting[0])


def _kill(run: Run, pid: int, phase: str, target: str, proof: Proof) -> None:
    """SIGKILL; the phase that counts is the one in which the process was when it was hit."""
    now = (run.steps(pid) or [phase])[-1]
    with contextlib.suppress(ProcessLookupError):
        match target:
            case "group":
                os.killpg(run.process.pid, signal.SIGKILL)
            case "parent":
                run.process.kill()
            case "worker":
                os.kill(pid, signal.SIGKILL)
    proof.phases[now] += 1
    proof.targets[target] += 1


def main() -> int:
    """Command line; exit code 1 when anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.kill_proof", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the processes that are hit")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        proof = prove(Path(folder), args.kills, args.seed, show=True)
    print(proof)
    return int(bool(proof.wrong))


if __name__ == "__main__":
    sys.exit(main())
