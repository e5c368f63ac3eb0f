"""The compiled search of `models.nn.neighbours`, in a file of its own because numba takes a moment to import."""

from __future__ import annotations

import numpy as np

from models.nn.coreset_kernel import compiled, squared


@compiled(nogil=True)
def nearest(queries, bank, screened, limit, distances, indices):  # type: ignore[no-untyped-def]
    """Of the bank's rows with screened[i, j] <= limit[i] those k nearest to query i, by distances summed in float64.

    distances float32 [n, k], filled with inf, and indices int64 [n, k] are written: rising, equal ones by lowest index.
    """
    k = distances.shape[1]
    for i in range(queries.shape[0]):
        for j in range(bank.shape[0]):
            if screened[i, j] <= limit[i]:
                distance = np.float32(np.sqrt(squared(queries[i], bank[j], np.inf)))
                place = k
                while place > 0 and distance < distances[i, place - 1]:
                    place -= 1
                for later in range(k - 1, place, -1):
                    distances[i, later] = distances[i, later - 1]
                    indices[i, later] = indices[i, later - 1]
                if place < k:
                    distances[i, place] = distance
                    indices[i, place] = j
