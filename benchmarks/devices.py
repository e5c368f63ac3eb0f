"""Which device a unit runs on, and how it computes there: named exactly, set explicitly, said in the record."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError

NAMES = re.compile(r"auto|cpu|cuda(:\d+)?")
WORKSPACE = ":4096:8"  # with a workspace of its own cuBLAS repeats its results (its manual, "Reproducibility")
DRIVER = Path("/dev/nvidia0")  # there when a driver has found a GPU, whatever torch can do with it


@dataclass(frozen=True)
class Device:
    """A device by its full name ('cpu', 'cuda:1'), and a line to say when it is not the one that was hoped for."""

    name: str
    note: str = ""


def check(name: str) -> None:
    """Raise UsageError when `--device` is none of auto, cpu, cuda, cuda:i. Nothing is imported or asked for."""
    if not NAMES.fullmatch(name):
        meant = "cuda" if name.lower() in ("gpu", "nvidia", "cuba") else f"cuda:{name}" if name.isdigit() else ""
        hint = f", did you mean {meant}?" if meant else ""
        raise UsageError(f"--device {name!r}: use auto, cpu, cuda or cuda:i (the first GPU is cuda:0){hint}")


def resolve(name: str) -> Device:
    """'auto' -> the first GPU where torch can use one, else the CPU; 'cuda' -> 'cuda:0'.

    Raises UsageError for a name that is no device, and for a GPU that is not there or that torch cannot use, with
    torch's own reason (a driver too old for the installed torch, for example). With 'auto' that reason is the note.
    """
    check(name)
    if name == "cpu":
        return Device("cpu")
    count, why = _gpus()
    if name == "auto":
        if count:
            return Device("cuda:0")
        unusable = bool(why) or DRIVER.exists()
        return Device("cpu", f"computed on the CPU, since torch cannot use the GPU: {why or 'no reason given'}"
                      if unusable else "")
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        seen = f"{count} GPU{'s' * (count != 1)} visible"
        raise UsageError(f"--device {name}: {seen}{f' ({why})' if why else ''}; use --device cpu or auto")
    return Device(f"cuda:{index}")


def _gpus() -> tuple[int, str]:
    """How many GPUs torch can use, and what it warned of while it looked."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    first = str(caught[0].message).strip().splitlines()[0] if caught else ""
    if not count and not first and torch.version.cuda is None and DRIVER.exists():
        first = "the installed torch is a build without CUDA"
    return count, first


def prepare(name: str, *, repeatable: bool = False) -> dict[str, Any]:
    """Make `name` the current device and set how it computes; returns what the record says of it.

    TF32 is off for matrix products and convolutions: it keeps 10 bits of a factor, which moves the nearest neighbour
    of many a feature (`--set precision=tf32` turns it on). On a GPU, cuDNN is asked for algorithms that repeat
    and cuBLAS for a workspace that does, which costs little. `repeatable` also asks torch for deterministic forms of
    everything else; these cost much where maps are resized or written by index in a backward pass.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)  # read when the device is first used
    import torch

    gpu = name.startswith("cuda")
    if gpu:
        torch.cuda.set_device(torch.device(name))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # a safety net for code that reads what it never wrote
    torch.use_deterministic_algorithms(repeatable or not gpu, warn_only=True)
    for fused in (torch.backends.cuda.enable_mem_efficient_sdp, torch.backends.cuda.enable_flash_sdp):
        fused(not repeatable)  # the backward passes of fused attention add in any order, whatever is asked for above
    return {
        "determinism": "full" if repeatable or not gpu else "cudnn and cublas",
        "tf32": False,
    }
