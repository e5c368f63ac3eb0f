"""The regression gate: `check` and `baseline make`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands.common import DEMO_DATASETS, add, names, specs, stored


def add_check(commands: Any) -> None:
    """`check --baseline FILE`."""
    parser = add(commands, "check", check, "compare records with a baseline; 1 = regression")
    parser.add_argument("--baseline", type=Path, required=True, metavar="FILE")
    parser.add_argument("--junit", type=Path, default=None, metavar="FILE", help="also write JUnit XML")
    parser.add_argument("--summary", type=Path, default=None, metavar="FILE", help="also append a Markdown summary")


def check(args: argparse.Namespace) -> int:
    """Every stored score against the records."""
    from benchmarks import api, regression
    from benchmarks.store import write_atomic

    baseline = regression.read_baseline(args.baseline)
    lines = regression.compare(baseline, api.existing(args.results).records())
    code = regression.exit_code(lines)
    text = regression.summary(lines) + "\n\n" + regression.table(lines)
    print(text.strip())
    if code == 2:
        print(f"\ncannot judge everything; the stored scores were made with: {baseline['command']}", file=sys.stderr)
    if args.junit:
        write_atomic(args.junit, regression.junit(lines))
    if args.summary:
        before = args.summary.read_bytes() if args.summary.exists() else b""
        write_atomic(args.summary, before + f"### Regression check\n\n{text.strip()}\n".encode())
    return code


def add_baseline(commands: Any) -> None:
    """`baseline make --out FILE`."""
    parser = add(commands, "baseline", baseline, "make a baseline file from records")
    parser.add_argument("action", choices=("make",))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--methods", nargs="+", default=[], metavar="M[@PRESET]", help="methods (all with records)")
    parser.add_argument("--datasets", nargs="+", required=True, metavar="D")


def baseline(args: argparse.Namespace) -> int:
    """Bands from the records of several seeds."""
    from benchmarks import api, regression
    from benchmarks.report.numbers.pool import spec_of
    from benchmarks.store import write_atomic

    wanted = specs(args.methods)
    records = [r for r in api.on(stored(args), names(args)) if not wanted or spec_of(r) in wanted]
    made = regression.make_baseline(records, _command(records, args.datasets))
    write_atomic(args.out, regression.encode(made))
    print(f"{args.out}: {len(made['entries'])} scores")
    return 0


def _command(records: Sequence[Mapping[str, Any]], datasets: Sequence[str]) -> str:
    """The command that makes such records again."""
    from shlex import quote

    from benchmarks.report.numbers.pool import spec_of

    seeds = " ".join(str(s) for s in sorted({r["unit"]["seed"] for r in records}))
    methods = " ".join(sorted({quote(spec_of(r)) for r in records}))
    if set(datasets) <= set(DEMO_DATASETS):
        return f"python run_benchmark.py demo --methods {methods} --seeds {seeds}"
    return f"python run_benchmark.py run --methods {methods} --datasets {' '.join(datasets)} --seeds {seeds}"
