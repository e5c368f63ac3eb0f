"""Gaussian smoothing of anomaly maps."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["mirror", "reflect"]


def gaussian_smooth(maps: Tensor, sigma: float, border: Border = "mirror", cut: float = 4.0) -> Tensor:
    """Maps float32 [B, h, w] smoothed with a Gaussian of `sigma` pixels that ends at `cut` sigma.

    border: what lies outside, in SciPy's words. 'mirror' (d c b | a b c d) is what torch's padding and so anomalib,
    kornia and torchvision do; 'reflect' (c b a | a b c d) is the default of `scipy.ndimage.gaussian_filter`, which
    most authors call. They differ within the kernel's reach of the border, on unit noise by up to 0.1.
    sigma = 0 gives the maps back. With 'mirror' a map smaller than the kernel mirrors as far as it has pixels.
    """
    if sigma <= 0:
        return maps
    x = maps.unsqueeze(1)
    for axis in (2, 3):
        length, reach = x.shape[axis], int(cut * sigma + 0.5)
        if border == "mirror":
            reach = min(reach, length - 1)
        period = 2 * length - (2 if border == "mirror" else 0)
        places = torch.arange(-reach, length + reach, device=maps.device) % max(period, 1)
        places = torch.where(places < length, places, (period if border == "mirror" else period - 1) - places)
        offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        x = F.conv2d(x.index_select(axis, places), (kernel / kernel.sum()).view(shape))
    return x[:, 0]
