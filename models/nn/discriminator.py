"""SimpleNet's discriminator (Liu et al., CVPR 2023, sections 3.3 to 3.5), for SimpleNet and for feature ensembles.

It learns to tell normal features from the same with Gaussian noise added; its output, negated, is the anomaly map.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# pictures per step, everywhere: that of the authors' run script, with which their figures were made; the text says 4
TRAIN_BATCH = 8
WEIGHT_DECAY = 1e-5  # 4.1


class Discriminator(nn.Sequential):
    """Two layers (3.4): features [n, dimension] -> normality [n, 1], high for normal."""

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(dimension, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1, bias=False)
        )


def start(modules: Iterable[nn.Module]) -> None:
    """Xavier-normal weights for the linear layers among `modules`, in their order (code)."""
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)


def noise_loss(
    discriminator: nn.Module, real: Tensor, std: float, margin: float, noise: torch.Generator
) -> Tensor:
    """Hinge loss (3.4) of normal features [n, dimension] and of the same with Gaussian noise added (3.3)."""
    fake = real + torch.randn(real.shape, generator=noise, device=real.device) * std
    score_real, score_fake = discriminator(torch.cat([real, fake])).chunk(2)
    return (margin - score_real).clamp_min(0).mean() + (margin + score_fake).clamp_min(0).mean()


def optimizer(discriminator: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam with the paper's weight decay (4.1)."""
    return torch.optim.Adam(discriminator.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, fused=True)


def map_and_score(cells: Tensor, size: tuple[int, int], sigma: float) -> tuple[Tensor, Tensor]:
    """Minus the discriminator's output, [B, 1, h, w], -> maps float32 [B, *size] and scores float32 [B] (3.5).

    The map is raised bilinearly and smoothed by a Gaussian of `sigma` pixels (0: none); the score is the largest value
    over positions, before that.
    """
    maps = F.interpolate(cells, size, mode="bilinear", align_corners=False)[:, 0].cpu().numpy()
    if sigma > 0:
        from scipy.ndimage import gaussian_filter

        maps = np.stack([gaussian_filter(m, sigma) for m in maps])
    return torch.from_numpy(maps).float(), cells.flatten(1).amax(1).float().cpu()
