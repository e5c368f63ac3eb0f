"""The compiled distances of `models.nn.neighbours`, in a file of their own because numba takes a moment to import."""

from __future__ import annotations

import numpy as np

from models.nn.coreset_kernel import compiled, squared


@compiled(nogil=True)
def pairs(queries, bank, rows, columns, out):  # type: ignore[no-untyped-def]
    """out[i] = float32 distance of queries[rows[i]] and bank[columns[i]], summed in float64."""
    for i in range(rows.shape[0]):
        out[i] = np.sqrt(squared(queries[rows[i]], bank[columns[i]], np.inf))
