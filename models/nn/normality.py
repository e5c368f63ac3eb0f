"""The feature normality estimator of TSDN (section 2.4): the network, its target, and whether it learnt it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.ssim import ssim_map


class Estimator(nn.Sequential):
    """Convolution, flatten, three fully connected layers: F [B, width, side, side] -> W' [B, width] in (0, 1)."""

    def __init__(self, width: int, side: int, mlp: tuple[int, int], hidden: int = 32) -> None:
        super().__init__(
            nn.Conv2d(width, hidden, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(hidden * side * side, mlp[0]), nn.ReLU(), nn.Linear(mlp[0], mlp[1]), nn.ReLU(),
            nn.Linear(mlp[1], width), nn.Sigmoid(),
        )


@torch.no_grad()
def normality_target(
    features: Tensor, mask: Tensor, *, size: int | None = None, scaling: str = "channel", norm: str = "minmax",
    chunk: int = 16,
) -> Tensor:
    """W_gt [B, C] in [0, 1] (Eq. 1): low for channels of F [B, C, h, w] that look like the mask M' [B, 1, H, W].

    Eq. 1 is SSIM itself, the text wants low values for similar channels: the distance is 1 - SSIM. size: side at which
    both are compared, M' reduced by area averaging; none: the mask's own. No gradient. float32: the mean over a map is
    within 2e-6 of float64's. Works through the channels in chunks, since C maps at 352 px take half a GB each time.
    """
    features, mask = features.float(), mask.float()
    if size is not None:
        mask = F.adaptive_avg_pool2d(mask, size)
    similarity = []
    for part in features.split(chunk, 1):
        x = F.interpolate(part, mask.shape[-2:], mode="bilinear", align_corners=False)
        if scaling == "channel":
            low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
            x = (x - low) / (high - low + 1e-8)
        similarity.append(ssim_map(x, mask, dtype=torch.float32).mean((2, 3)))
    distance = 1 - torch.cat(similarity, 1)
    if norm == "fixed":
        return distance.div(2).clamp(0, 1)
    low, high = distance.amin(1, keepdim=True), distance.amax(1, keepdim=True)
    return (distance - low) / (high - low + 1e-8)


def cross_entropy(weights: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of W' [B, C] with soft targets, element by element (Eq. 2 before it is reduced)."""
    # torch's own function stops at NaN with an error that names no epoch; the limit of -100 is torch's
    return -(target * weights.log().clamp_min(-100) + (1 - target) * torch.log1p(-weights).clamp_min(-100))


def learnt(weights: Tensor, target: Tensor) -> dict[str, float]:
    """W' and W_gt of some pictures [N, C] -> what the estimator knows, beside what a constant per channel would.

    bce: its cross entropy; no prediction is below `entropy`, always-0.5 gives 0.693. correlation: of W' with W_gt.
    spread_*: mean standard deviation of W' over the channels of a picture, and over the pictures for a channel.
    """
    constant = target.mean(0, keepdim=True).expand_as(target)
    return {
        "bce": float(cross_entropy(weights, target).mean()),
        "best_constant_per_channel": float(cross_entropy(constant, target).mean()),
        "entropy": float(cross_entropy(target, target).mean()),
        "correlation": float(torch.corrcoef(torch.stack([weights.flatten(), target.flatten()]))[0, 1].nan_to_num(0.0)),
        "spread_over_channels": float(weights.std(1, correction=0).mean()),
        "spread_over_pictures": float(weights.std(0, correction=0).mean()),
    }
