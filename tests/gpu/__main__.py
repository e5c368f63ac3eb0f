"""`make test-gpu`: the timings alone, then the checks side by side, and one verdict: `python -m tests.gpu [DIR]`.

Several processes share the GPU in the second part, since most of a check is the CPU's own run. The verdict is the last
line; everything found lies in gpu_verdict.json in DIR (here).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.gpu.conftest import DRY

PARTS = {"gpu and alone": 0, "gpu and not alone": max(1, min(8, (os.cpu_count() or 1) // 2))}  # processes; 0: this one


def run(marks: str, workers: int, xml: Path) -> None:
    """One part of the checks; what came of it lies in `xml`."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))} if workers else {}
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", marks, "-q", "-n", str(workers), "--timeout", "600",
               "--junit-xml", str(xml), "--durations", "15"]
    subprocess.run(command, env={**os.environ, **threads}, check=False)


def read(xml: Path) -> tuple[Counter[str], list[str], dict[str, dict[str, Any]]]:
    """Counts of passed, failed and skipped, what failed, and the findings of each test."""
    counts: Counter[str] = Counter()
    failed: list[str] = []
    findings: dict[str, dict[str, Any]] = {}
    if not xml.exists():
        return Counter(failed=1), ["pytest ended without a word"], {}
    for case in ElementTree.parse(xml).iter("testcase"):
        name = case.get("name", "")
        bad = case.find("failure") is not None or case.find("error") is not None
        counts["failed" if bad else "skipped" if case.find("skipped") is not None else "passed"] += 1
        failed += [name] if bad else []
        for found in case.iter("property"):
            findings.setdefault(name.partition("[")[0], {})[found.get("name", "")] = json.loads(found.get("value", ""))
    return counts, failed, findings


def verdict(counts: Counter[str], failed: list[str], device: str) -> str:
    """One line that says whether this GPU can be trusted."""
    if not counts["passed"] and not failed:
        return "none, since torch can use no GPU here; nothing was run"
    if DRY:
        return f"none, since the GPU was pretended ({counts['passed']} checks passed, {counts['failed']} failed)"
    said = f"NOT to be trusted: {', '.join(failed)}" if failed else "as on the CPU, repeatable, resumable"
    return f"{device}: {said} ({counts['passed']} checks passed, {counts['skipped']} skipped)"


def main(out: Path) -> int:
    counts: Counter[str] = Counter()
    failed: list[str] = []
    findings: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (marks, workers) in enumerate(PARTS.items()):
            xml = Path(folder) / f"{i}.xml"
            run(marks, workers, xml)
            more, bad, found = read(xml)
            counts += more
            failed += bad
            findings |= found
    line = verdict(counts, failed, findings.get("test_the_gpu_answers", {}).get("device", "unknown"))
    if counts["passed"] and not DRY:
        (out / "gpu_verdict.json").write_text(
            json.dumps({"verdict": line, **counts, "findings": findings}, indent=1) + "\n", encoding="utf-8")
    print(f"GPU verdict: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
