"""Where a number comes from: library versions, device, commit, time; and how much memory it took."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torchvision", "anomalib", "timm", "numpy", "scipy", "scikit-learn", "pillow")


def now() -> str:
    """UTC time in ISO format with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def environment(device: str) -> dict[str, Any]:
    """Versions, device name, threads and commit, as they go into the record."""
    import torch

    return {
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda if device.startswith("cuda") else None,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "git_commit": git_commit(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def device_name(device: str) -> str:
    """Name of the GPU, or of the processor with its number of cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(torch.device(device))
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor()
    return f"cpu: {model or platform.machine()}, {len(os.sched_getaffinity(0))} cores"


@cache
def git_commit() -> str | None:
    """Commit of the checkout, with `+changes` when tracked files differ; None outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def reset_peak_memory(device: str) -> None:
    """Start a new peak, where the kernel allows it, so that a record shows its own unit and not an earlier one."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(torch.device(device))


def peak_memory(device: str) -> dict[str, float | None]:
    """Peak resident memory of this process and peak allocated device memory since the reset, in MiB."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                host = int(line.split()[1]) / 1024
    peak = None
    if device.startswith("cuda"):
        import torch

        with contextlib.suppress(RuntimeError):  # a lost device answers nothing, and its unit's record must be written
            peak = round(torch.cuda.max_memory_allocated(torch.device(device)) / 2**20, 1)
    return {"peak_host_mb": round(host, 1), "peak_device_mb": peak}
