"""Focal loss for segmentation (Lin et al., ICCV 2017, Eq. 4 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def focal_loss(
    probability: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None, epsilon: float = 1e-6,
    smooth: float = 0.0,
) -> Tensor:
    """Mean over pixels of -a (1 - p_t)^gamma log p_t, where p_t = p t + (1 - p)(1 - t).

    probability: of 'defect' in [0, 1], any shape; target: the same shape, in [0, 1]. At soft targets (a resized mask)
    the two classes' losses are mixed in the target's proportion. alpha: weight of the defect class, 1 - alpha of the
    other one; None weighs both 1. smooth: p_t becomes p_t (1 - 2 s) + 2 s, which is what DRAEM's code makes of a hard
    target (s = 1e-5; the logarithm is then finite without `epsilon`, which may be 0).
    """
    p = probability.clamp(epsilon, 1 - epsilon)
    keep = 1 - 2 * smooth
    defect = -(((1 - p) * keep) ** gamma) * torch.log(p + 2 * smooth * (1 - p))
    normal = -((p * keep) ** gamma) * torch.log1p(-p * keep)
    if alpha is not None:
        defect, normal = defect * alpha, normal * (1 - alpha)
    return (target * defect + (1 - target) * normal).mean()
