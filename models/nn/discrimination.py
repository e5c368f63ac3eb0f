"""Losses that teach features and maps where artificial defects are (RB-AE, Eq. 2, 9, 10).

All norms are means over elements, so that the paper's weights 100 : 1 : 1 : 1 balance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.focal import focal_loss


def normalise(x: Tensor, how: str = "sample", epsilon: float = 1e-8) -> Tensor:
    """N of Eq. 2 for maps [B, h, w] >= 0: min-max per map or over the batch, or 2 sigmoid(x) - 1 (0 stays 0).

    The gradient passes through the extremes. Were they constants, every defect's features would be pulled apart without
    end, and batch norm, which has to spend its variance on them, would leave none to normal texture: in the deepest
    layers all pictures would look alike.
    """
    if how == "sigmoid":
        return 2 * x.sigmoid() - 1
    axes = (1, 2) if how == "sample" else (0, 1, 2)
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    return (x - low) / (high - low + epsilon)


def resize_mask(mask: Tensor, like: Tensor) -> Tensor:
    """Mask [B, 1, H, W] at the size of a map, bilinear."""
    return F.interpolate(mask, like.shape[-2:], mode="bilinear", align_corners=False)


def pixel_discrimination(clean: list[Tensor], defective: list[Tensor], mask: Tensor, how: str = "sample") -> Tensor:
    """Eq. 2: at each layer the normalised channel mean of the squared feature difference should be the mask."""
    return torch.stack([
        F.mse_loss(normalise((ours - theirs).square().mean(1), how), resize_mask(mask, ours)[:, 0])
        for ours, theirs in zip(clean, defective, strict=True)
    ]).mean()


def repair_loss(repaired: list[Tensor], clean: list[Tensor], factor: str = "printed") -> Tensor:
    """Eq. 9 over layers 3 to 5: the sum of squared differences over l2 - l1 = 2 as printed, or over 3 ('mean')."""
    total = torch.stack([F.mse_loss(r, c) for r, c in zip(repaired, clean, strict=True)]).sum()
    return total / (len(repaired) - 1 if factor == "printed" else len(repaired))


def segmentation_loss(maps: list[Tensor], mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Eq. 10: mean focal loss of the anomaly maps against the mask at their sizes."""
    return torch.stack([focal_loss(m, resize_mask(mask, m), gamma) for m in maps]).mean()
