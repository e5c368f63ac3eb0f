"""What the speed scripts share: the machine in words, processes of their own, tables, and a category cut to size."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]


def machine() -> str:
    """Processor, cores, memory, load and date, as a line to put above a table."""
    import torch

    from benchmarks.provenance import device_name

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {device_name('cpu')}, {memory:.0f} GiB, Python {sys.version.split()[0]}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, load before the start {load:.1f}"
    )


def child(module: str, arguments: Sequence[object]) -> dict[str, Any]:
    """Run `python -m module arguments` and return the JSON of its last line, with 'process_s' and 'peak_mb' added.

    The peak is the resident memory of that process alone (ru_maxrss). Ends the script when the process fails.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    seconds = time.perf_counter() - start
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{err[-3000:]}")
    return {**json.loads(lines[-1]), "process_s": seconds}


def in_checkout(checkout: Path, script: str, arguments: Sequence[str]) -> Any:
    """JSON of the last line that `script --child arguments` prints where it imports the harness of `checkout`.

    One thread. At its top the script may import from this file only what `checkout` has there too.
    """
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", run, str(Path(script).resolve()), *arguments, "--child"],
                          cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def checkout_of(place: str) -> Iterator[Path]:
    """Another checkout of this repository by its path, or a commit of this one, unpacked into a temporary folder."""
    if (Path(place) / "run_benchmark.py").is_file():
        yield Path(place).resolve()
        return
    archive = subprocess.run(["git", "archive", place], cwd=REPO, capture_output=True, check=False)
    if archive.returncode:
        raise SystemExit(f"{place} is neither a checkout of this repository nor a commit that it holds (a shallow "
                         f"clone lacks older ones: `git fetch --unshallow`): {archive.stderr.decode()[-300:]}")
    with tempfile.TemporaryDirectory() as held:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(held, filter="data")
        yield Path(held)


def finish(result: dict[str, Any]) -> None:
    """In a child: print what it measured, and its own peak of resident memory."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**result, "peak_mb": peak}), flush=True)


def middle(runs: Iterable[dict[str, Any]], key: str) -> float:
    """Median of one entry over runs."""
    return statistics.median(run[key] for run in runs)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, line by line as rows come."""
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def add_category(parser: argparse.ArgumentParser) -> None:
    """The options of a script that works on one category in MVTec AD layout."""
    parser.add_argument("--data-root", type=Path, help="holds mvtec_ad/<category>")
    parser.add_argument("--weights", default="auto", help="directory of weights, auto or none")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)


@contextmanager
def category_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace, images: int | None) -> Iterator[Path]:
    """A temporary folder with pictures/category, cut to `images` training pictures; prints the machine first."""
    if arguments.data_root is None:
        parser.error("--data-root is missing")
    if arguments.weights not in ("auto", "none"):
        arguments.weights = str(Path(arguments.weights).resolve())
    print(f"{machine()}.", flush=True)
    with tempfile.TemporaryDirectory() as held:
        cut(arguments.data_root / "mvtec_ad" / arguments.category, Path(held) / "pictures" / "category", images)
        yield Path(held)


def cut(source: Path, target: Path, images: int | None) -> Path:
    """Copy a category in MVTec AD layout with only the first `images` training pictures; returns `target`."""
    if not (source / "train" / "good").is_dir():
        raise SystemExit(f"no category in MVTec AD layout at {source}: train/good is missing")
    keep = sorted(p.name for p in (source / "train" / "good").iterdir() if not p.name.startswith("."))[:images]
    for folder in ("test", "ground_truth"):
        shutil.copytree(source / folder, target / folder)
    (target / "train" / "good").mkdir(parents=True)
    for name in keep:
        shutil.copy2(source / "train" / "good" / name, target / "train" / "good" / name)
    return target


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log(seconds) over log(size) by least squares: 1 is linear, 2 quadratic."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
