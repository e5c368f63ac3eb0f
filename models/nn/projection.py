"""Random projections that nearly keep distances (Johnson-Lindenstrauss)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def project(features: Tensor, kind: str, seed: int) -> Tensor:
    """Random projection of [N, D] that nearly keeps distances; unchanged where it would not have fewer dimensions.

    linear: Gaussian to 128 dimensions (Alg. 1 and the authors' code). sparse: entries of Achlioptas/Li with density
    1/sqrt(D), to the dimension of the Johnson-Lindenstrauss lemma for N points at eps = 0.9, as in anomalib.
    """
    count, size = features.shape
    rng = np.random.default_rng([seed, 1])
    if kind == "linear":
        matrix = rng.standard_normal((size, 128)) / math.sqrt(128)
    elif kind == "sparse":
        kept = max(1, int(4 * math.log(count) / (0.9**2 / 2 - 0.9**3 / 3)))
        density = 1 / math.sqrt(size)
        signs = rng.choice([-1.0, 0.0, 1.0], (size, kept), p=[density / 2, 1 - density, density / 2])
        matrix = signs / math.sqrt(density * kept)
    else:
        return features
    if matrix.shape[1] >= size:
        return features
    return features @ torch.from_numpy(matrix).to(features)
