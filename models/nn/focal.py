"""Focal loss for segmentation (Lin et al., ICCV 2017, Eq. 4 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def focal_loss(
    probability: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None, epsilon: float = 1e-6
) -> Tensor:
    """Mean over pixels of -a (1 - p_t)^gamma log p_t, where p_t = p t + (1 - p)(1 - t).

    probability: of 'defect' in [0, 1], any shape; target: the same shape, in [0, 1]. At soft targets (a resized mask)
    the two classes' losses are mixed in the target's proportion. alpha: weight of the defect class, 1 - alpha of the
    other one; None weighs both 1.
    """
    p = probability.clamp(epsilon, 1 - epsilon)
    defect = -((1 - p) ** gamma) * p.log()
    normal = -(p**gamma) * torch.log1p(-p)
    if alpha is not None:
        defect, normal = defect * alpha, normal * (1 - alpha)
    return (target * defect + (1 - target) * normal).mean()
