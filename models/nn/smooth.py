"""Gaussian smoothing of anomaly maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Maps float32 [B, h, w] smoothed with a Gaussian of `sigma` pixels cut at 4 sigma, borders mirrored.

    sigma = 0 gives the maps back. A map smaller than the kernel mirrors as far as it has pixels.
    """
    if sigma <= 0:
        return maps
    x = maps.unsqueeze(1)
    for axis in (2, 3):
        reach = min(int(4 * sigma + 0.5), x.shape[axis] - 1)
        offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        x = F.conv2d(F.pad(x, pad, mode="reflect"), (kernel / kernel.sum()).view(shape))
    return x[:, 0]
