"""The GPU for `pytest -m gpu`, what its tests found, and one verdict at their end.

GPU=pretended runs them dry, on the pretended GPU and on small pictures: it shows that the checks themselves work, and
says nothing of a GPU. What needs a process of its own is then skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FINDINGS = pytest.StashKey[dict[str, Any]]()
DRY = os.environ.get("GPU") == "pretended"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FINDINGS] = {}


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """The first GPU, set as the harness sets it; the test is skipped where torch can use none."""
    from benchmarks import devices

    if DRY:
        import anomalib.models  # noqa: F401  pretending starts after it is imported

        from tests.gpu.pretended import pretended_gpus

        with pretended_gpus():
            devices.prepare("cuda:0")
            yield torch.device("cuda:0")
        torch.use_deterministic_algorithms(False)
        return
    found = devices.resolve("auto")
    if found.name == "cpu":
        pytest.skip(found.note or "torch sees no GPU")
    devices.prepare(found.name)
    yield torch.device(found.name)
    torch.cuda.empty_cache()


@pytest.fixture
def real_gpu(gpu: torch.device) -> torch.device:
    """For what a pretended GPU cannot show: other processes, memory that runs out, time."""
    if DRY:
        pytest.skip("needs a real GPU")
    return gpu


@pytest.fixture
def finding(request: pytest.FixtureRequest) -> Any:
    """`finding(name, value)` puts a figure into the verdict's JSON, under the test's own name."""
    def keep(name: str, value: Any) -> None:
        request.config.stash[FINDINGS].setdefault(request.node.originalname, {})[name] = value

    return keep


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With `-m gpu`: a line that says whether this GPU can be trusted, and a JSON file of everything found."""
    if "gpu" not in config.option.markexpr.split() or "not gpu" in config.option.markexpr:
        return
    counts = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    failed = [report.nodeid.partition("::")[2] for name in ("failed", "error")
              for report in terminalreporter.stats.get(name, [])]
    if not counts["passed"] and not failed:
        terminalreporter.write_line("GPU verdict: none, since torch can use no GPU here; nothing was run")
        return
    if DRY:
        terminalreporter.write_line(
            f"GPU verdict: none, since the GPU was pretended ({counts['passed']} checks passed, {len(failed)} failed)"
        )
        return
    verdict = "as on the CPU, repeatable, resumable" if not failed else f"NOT to be trusted: {', '.join(failed)}"
    terminalreporter.write_line(
        f"GPU verdict: {torch.cuda.get_device_name()}: {verdict} ({counts['passed']} checks passed, "
        f"{counts['skipped']} skipped)"
    )
    out = Path(os.environ.get("GPU_VERDICT", "gpu_verdict.json"))
    out.write_text(json.dumps({"verdict": verdict, **counts, "findings": config.stash[FINDINGS]}, indent=1) + "\n")
    terminalreporter.write_line(f"written to {out}")
