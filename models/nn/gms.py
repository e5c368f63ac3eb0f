"""Gradient magnitude similarity of a picture and its reconstruction, on one scale and on several.

GMS: Xue et al. 2014. Several scales and the constant for values in [0, 1]: RIAD, Zavrtanik et al. 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

C = 0.0026


def gradient_magnitude(x: Tensor) -> Tensor:
    """Prewitt gradient magnitude of the channel mean: [B, C, H, W] -> float32 [B, 1, H, W].

    Kernels divided by 3; the border repeats the edge pixels, so a flat picture has no gradient anywhere.
    """
    # sums of slices, not a convolution: on a GPU that would round to TF32
    grey = F.pad(x.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate") / 3
    rows = grey[..., :-2, :] + grey[..., 1:-1, :] + grey[..., 2:, :]
    columns = grey[..., :-2] + grey[..., 1:-1] + grey[..., 2:]
    across, down = rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]
    # the small constant keeps the root's derivative finite where there is no gradient
    return (across.square() + down.square() + 1e-12).sqrt()


def gms(x: Tensor, y: Tensor, c: float = C) -> Tensor:
    """Similarity of gradient magnitudes in (0, 1], 1 where equal: [B, C, H, W] twice -> float32 [B, 1, H, W]."""
    with torch.autocast(x.device.type, enabled=False):
        a, b = gradient_magnitude(x), gradient_magnitude(y)
        return (2 * a * b + c) / (a * a + b * b + c)


def msgms(x: Tensor, y: Tensor, scales: int = 4, c: float = C) -> Tensor:
    """Mean of `gms` over `scales` sizes, each half the one before: float32 [B, 1, H, W].

    The smaller sizes come from 2x2 average pooling; their maps are brought back bilinearly.
    Raises ValueError when the last size would have no pixel.
    """
    size = x.shape[-2:]
    least = 2 ** (scales - 1)
    if min(size) < least:
        raise ValueError(f"MSGMS over {scales} sizes needs at least {least} pixels a side, got {list(size)}")
    x, y = x.float(), y.float()
    total = gms(x, y, c)
    for _ in range(scales - 1):
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        total = total + F.interpolate(gms(x, y, c), size, mode="bilinear", align_corners=False)
    return total / scales


def mean_filter(x: Tensor, size: int = 21) -> Tensor:
    """Mean over size x size pixels (odd) with the border mirrored: [B, C, H, W] -> the same shape."""
    pad = size // 2
    return F.avg_pool2d(F.pad(x, (pad, pad, pad, pad), mode="reflect"), size, stride=1)
