"""How soon the harness answers: first line, first step, `list`, and a plan of 2,000 units.

    python -m benchmarks.speed.startup_speed --data-root DIR --weights WDIR [--rounds 5]

Every command is a process of its own on a terminal, on a warm disk (one run before is left out). The first step is that
of the first unit's `fit`. The plan is over 15 categories, each of them DIR's bottle, 27 methods and five seeds. CPU
seconds are those of all its processes until then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from benchmarks.speed.common import REPO, machine, table

CATEGORIES, METHODS, SEEDS = 15, 27, 5
STEP = rb": fit.*?[^0-9]([1-9][0-9]*)/[0-9]"  # of the unit's progress bar
ANY = rb"\S.*\n"


def until(command: list[str], pattern: bytes | None) -> tuple[float, float]:
    """Seconds and processor seconds until the output matches, or to the end where there is no pattern."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 160))
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPO, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while part := os.read(master, 1 << 16):
            seen += part
            if pattern and re.search(pattern, seen):
                break
    seconds, busy = time.perf_counter() - start, session_cpu(process.pid)
    if pattern and re.search(pattern, seen):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        _, code, usage = os.wait4(process.pid, 0)
        seconds, busy = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        if code or pattern:
            raise SystemExit(f"{' '.join(command)} failed or ended too early:\n{seen.decode()[-2000:]}")
    os.close(master)
    return seconds, busy


def session_cpu(session: int) -> float:
    """Processor seconds so far of the processes of a session, and of those that they waited for."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = entry.read_text().rpartition(")")[2].split()  # from the third on
            ticks += sum(map(int, values[11:15])) if int(values[3]) == session else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="holds mvtec_ad/bottle")
    parser.add_argument("--weights", default="none", help="directory of weights, auto or none")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    weights = arguments.weights
    if weights not in ("auto", "none"):
        weights = str(Path(weights).resolve())
    from models import registry

    names = registry.entries().items()
    presets = [f"{name}@{preset}" for name, entry in names for preset in entry.presets if "ensemble" not in name]
    with tempfile.TemporaryDirectory() as held:
        root, results = Path(held) / "data", Path(held) / "results"
        (root / "pictures").mkdir(parents=True)
        for i in range(CATEGORIES):
            (root / "pictures" / f"part{i:02d}").symlink_to((arguments.data_root / "mvtec_ad" / "bottle").resolve())
        harness = [sys.executable, "run_benchmark.py"]
        run = [*harness, "run", "--datasets", "pictures", "--data-root", str(root), "--results", str(results)]
        one = [*run, "--categories", "part00", "--methods", "patchcore@resnet18", "--weights", weights, "--force"]
        seeds = [str(seed) for seed in range(SEEDS)]
        plan = [*run, "--methods", *presets[:METHODS], "--seeds", *seeds, "--textures", "embedded",
                "--weights", "none", "--dry-run"]
        cases = {
            "`import torch`, for comparison": ([sys.executable, "-c", "import torch"], None, ""),
            "`run`, first line of output": (one, ANY, "3"),
            "`run`, first step of the first unit": (one, STEP, "6"),
            "`list methods`": ([*harness, "list", "methods"], None, "1"),
            f"`run --dry-run` of {CATEGORIES * METHODS * SEEDS:,} units": (plan, None, "3"),
        }
        print(f"{machine()}. Medians of {arguments.rounds} alternating rounds.\n", flush=True)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(arguments.rounds + 1):
            for name, (command, pattern, _) in cases.items():
                runs[name].append(until(command, pattern))
        table(("", "s", "CPU s", "target s"), (
            [name, *(f"{statistics.median(column):.2f}" for column in zip(*found[1:], strict=True)), cases[name][2]]
            for name, found in runs.items()
        ))


if __name__ == "__main__":
    main()
