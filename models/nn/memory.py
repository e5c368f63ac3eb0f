"""What to do when memory runs out: the same work in halves, with a note that the record keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import torch

OUT_OF_MEMORY = (  # of torch's host allocator, the driver, cuBLAS and cuDNN 8 and 9, in lower case
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "alloc_failed",
    "allocation_failed", "bad_alloc", "defaultcpuallocator", "cublas_status_not_initialized",
)
DEVICE_LOST = (
    "device-side assert", "illegal memory access", "misaligned address", "illegal instruction", "unspecified launch",
    "device not ready", "uncorrectable ecc", "launch timed out", "cudnn_status_mapping_error",
)


class Held(Protocol):
    """Something that holds memory it can do without, at the price of computing it again."""

    def holds(self) -> int:
        """Bytes held now."""

    def give_up(self) -> int:
        """Drop what is held and keep nothing from here on; returns the bytes that were held."""


_held: weakref.WeakSet[Any] = weakref.WeakSet()
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
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY) and not device_lost(error)


def device_lost(error: BaseException) -> bool:
    """Whether an exception leaves the process's GPU unusable: every later call to it fails, whatever it asks for."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in DEVICE_LOST)


def may_give_up(holder: Held) -> None:
    """Have `holder` asked to give up what it holds when memory runs out, before work is cut into smaller parts."""
    _held.add(holder)


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
    """Give unused memory back to the device; nothing where the device no longer answers."""
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # after a device-side assert every call fails, and the error to tell is that one
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
            if not out_of_memory(error) or (len(part) < 2 and not any(holder.holds() for holder in _held)):
                raise
        else:
            start += len(part)
            continue
        # outside the handler, whose exception holds on to the tensors of the failed call
        given_up = sum(holder.give_up() for holder in _held)
        free()
        if given_up:
            note(f"out of memory: {given_up / 2**20:.0f} MiB of kept features were given up")
            continue
        size = len(part) // 2
        note(f"out of memory: {what} {size} at a time instead of {len(part)}")
    return results
