"""Memory of a process that runs many units: reused within a unit, given back between units."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

_settled = 0  # resident pages after the last collection, see `tidy`


def reuse() -> None:
    """Have the C library reuse large blocks that were freed, instead of returning them to the system at once.

    Every tensor of a training step would else come as new pages that the kernel first fills with zeros, which takes a
    quarter to a third of the step on a CPU (benchmarks/speed/epoch_speed.py). `tidy` gives them back in between.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 2**31 - 1)


def tidy() -> None:
    """Give back what a unit leaves behind: networks are reference cycles, and the C library keeps freed pages.

    Without this a worker grows by several MiB with each unit, since Python collects old cycles ever more rarely. It
    takes a fifth of a second, so it is done when the process has grown by 2 % since the last time.
    """
    global _settled
    if 0 < resident() < 1.02 * _settled:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    _settled = resident()


def resident() -> int:
    """Resident pages of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
