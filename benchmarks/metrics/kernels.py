"""The loops over all scores, compiled; in a file of their own because numba takes a moment to import.

Keys are uint32 or uint64 [n]; low and shift have their type; the cell of a key is (key - low) >> shift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

TABLE = 1 << 12  # cells of the table in `rungs`


def compiled(function: Callable[..., Any]) -> Any:
    """numba's njit without the interpreter's lock, kept on disk where there is a folder to write to."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no such folder
        return njit(nogil=True)(function)


@compiled
def part(keys, regions, low, shift, counts):  # type: ignore[no-untyped-def]
    """Puts keys, in place, into the order of their cells; within a cell they keep theirs.

    regions: int32 [n], moved along, or empty. counts: int64 zeros, one for each cell; gets the numbers of keys.
    """
    count(keys, low, shift, counts)
    to = np.empty(counts.size, np.int64)
    total = 0
    for cell in range(counts.size):
        to[cell] = total
        total += counts[cell]
    before = keys.copy()
    for key in before:
        cell = (key - low) >> shift
        keys[to[cell]] = key
        to[cell] += 1
    if regions.size:
        regions_before = regions.copy()
        for i in range(before.size - 1, -1, -1):  # `to` is now behind each cell
            cell = (before[i] - low) >> shift
            to[cell] -= 1
            regions[to[cell]] = regions_before[i]


@compiled
def count(keys, low, shift, counts):  # type: ignore[no-untyped-def]
    """Adds the number of keys in each cell to counts, int32 or int64."""
    for key in keys:
        counts[(key - low) >> shift] += 1


@compiled
def select(keys, low, shift, marked):  # type: ignore[no-untyped-def]
    """The keys in marked cells, bool, put at the front of `keys`; returns their number."""
    found = 0
    for key in keys:
        if marked[(key - low) >> shift]:
            keys[found] = key
            found += 1
    return found


@compiled
def sums_from(counts, cells):  # type: ignore[no-untyped-def]
    """int64 [n]: the sum of counts from each of the cells on; cells, int64 [n], ascend and may repeat."""
    out = np.empty(cells.size, np.int64)
    total, last = 0, counts.size
    for i in range(cells.size - 1, -1, -1):
        for cell in range(cells[i], last):
            total += counts[cell]
        last = cells[i]
        out[i] = total
    return out


@compiled
def rungs(scores, regions, ladder, rows, share, out):  # type: ignore[no-untyped-def]
    """Adds the share of its region for each score to out, [rows, K + 1], in the row of its region, by cell.

    scores: float [n]; regions: int32 [n], or empty: all of region 0. ladder: float64 [K], ascends. Cell k holds scores
    from the k-th highest threshold up to the one before it, cell K those below all. A table over the leading bits of
    the scores says which few thresholds may be meant.
    """
    top = np.iinfo(np.int64).max
    keys = np.empty(ladder.size, np.int64)
    for i, bits in enumerate((ladder + 0.0).view(np.int64)):
        keys[i] = bits ^ ((bits >> 63) & top)  # as integers in the order of the scores
    low, high = keys[0] >> 1, keys[-1] >> 1  # halved, so that their difference is no overflow
    shift = 0
    while (high - low) >> shift >= TABLE:
        shift += 1
    first = np.searchsorted((keys >> 1) - low >> shift, np.arange(TABLE + 1))
    values = np.empty(4096)
    bits = values.view(np.int64)
    for start in range(0, scores.size, values.size):
        count = min(values.size, scores.size - start)
        for i in range(count):
            values[i] = scores[start + i] + 0.0  # -0.0 becomes 0.0
        for i in range(count):
            key = bits[i] ^ ((bits[i] >> 63) & top)
            half = key >> 1
            if half < low:
                below = 0
            elif half > high:
                below = ladder.size
            else:
                cell = (half - low) >> shift
                below, end = first[cell], first[cell + 1]
                while below < end:
                    middle = (below + end) >> 1
                    if keys[middle] <= key:
                        below = middle + 1
                    else:
                        end = middle
            region = regions[start + i] if regions.size else 0
            out[rows[region], ladder.size - below] += share[region]
