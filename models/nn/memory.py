"""What to do when memory runs out: the same work in halves, with a note that the record keeps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects what `note` is told inside; each text once."""
    found: list[str] = []
    token = _notes.set(found)
    try:
        yield found
    finally:
        _notes.reset(token)


def note(text: str) -> None:
    """Tell whoever listens (the harness writes it into the record of the unit)."""
    found = _notes.get()
    if found is not None and text not in found:
        found.append(text)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch has no exception type of its own for the host, nor cuBLAS and cuDNN for their workspaces
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in (
        "out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED",
    ))


def available(device: torch.device | str) -> int:
    """Bytes that can still be taken on a device; on the CPU what the system and its control group leave."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # absent, or 'max' for no limit
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(counts.get("inactive_file", 0)))  # the files' share is given up on demand
    return max(0, min(found)) if found else 4 << 30


def free() -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_parts(call: Callable[[Any], Any], items: Sequence[Any] | torch.Tensor, size: int, what: str) -> list[Any]:
    """`call` on runs of up to `size` items, in order; where memory runs out, with half as many from there on.

    items: anything that has a length and slices. Returns one result per call. Raises what `call` raises, also when
    memory does not suffice for one item.
    """
    results: list[Any] = []
    start, size = 0, max(1, size)
    while start < len(items):
        part = items[start : start + size]
        try:
            results.append(call(part))
        except Exception as error:
            if not out_of_memory(error) or len(part) < 2:
                raise
        else:
            start += len(part)
            continue
        # outside the handler, whose exception holds on to the tensors of the failed call
        size = len(part) // 2
        free()
        note(f"out of memory: {what} {size} at a time instead of {len(part)}")
    return results
