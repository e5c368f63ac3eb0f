"""Locally aware patch features, as the code of PatchCore's authors joins them (SimpleNet's authors took it over)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_features(found: Mapping[str, Tensor], layers: tuple[str, ...], patch: int, dimension: int) -> Tensor:
    """{layer: float32 [B, C, h, w]} -> [B, dimension, h1, w1] at the first layer's resolution.

    Each layer's patch x patch neighbourhoods (zero outside) are averaged in runs to `dimension` values, deeper layers
    are brought bilinearly to the first one's size, and the layers side by side are averaged to `dimension` again, in
    the order of values of the authors' code (patchcore-inspection: PatchMaker, MeanMapper, Aggregator).
    """
    size = found[layers[0]].shape[-2:]
    parts = []
    for layer in layers:
        x = found[layer]
        columns = F.unfold(x, patch, padding=patch // 2)  # [B, C*patch*patch, h*w]
        pooled = _average(columns, dimension).unflatten(2, x.shape[-2:])
        if x.shape[-2:] != size:  # the same before or after averaging, since both are linear
            pooled = F.interpolate(pooled, size, mode="bilinear", align_corners=False)
        parts.append(pooled)
    return _average(torch.cat(parts, 1).flatten(2), dimension).unflatten(2, size)


def _average(x: Tensor, length: int) -> Tensor:
    """Adaptive average along the channels: [B, C, L] -> [B, length, L]."""
    if x.shape[1] == length:
        return x
    if x.shape[1] % length == 0:
        return x.unflatten(1, (length, -1)).mean(2)
    return F.adaptive_avg_pool2d(x.unsqueeze(1), (length, x.shape[2]))[:, 0]
