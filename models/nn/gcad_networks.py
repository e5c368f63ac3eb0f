"""Networks of GCAD: U-Nets without batch norm, and an autoencoder of 1x1 codes whose skip connections fade away."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.base import ModelError

SLOPE = 5e-3  # of leaky ReLUs, as in the teachers
LEVELS = 5  # of a U-Net: four halvings
WIDER = (1, 1, 2, 2, 4, 4)  # widths of the autoencoder's maps from half the picture's size to 4 x 4, times `width`


class UNet(nn.Module):
    """[B, 3, h, w] -> [B, channels, h, w]; widths double over five levels (as jvanvugt/pytorch-unet)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(LEVELS)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairwise([3, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(_twice(b, a) for a, b in pairwise(widths))
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, down in enumerate(self.down):
            x = down(self.pool(x) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up[::-1], self.merge[::-1], skips[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.out(x)


def _twice(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU())


class Global(nn.Module):
    """[B, 3, s, s] -> [B, channels, s, s] through codes of `bottleneck` values that have no place.

    Convolutions 4x4 of stride 2 down to 4 x 4, one without padding to the code, and the same way back.
    """

    def __init__(self, size: int, width: int, bottleneck: int, channels: int) -> None:
        super().__init__()
        halvings = size.bit_length() - 3
        if size < 32 or size & (size - 1) or halvings > len(WIDER):
            raise ModelError(f"gcad: size={size} must be 32, 64, 128 or 256")
        widths = [width * wider for wider in WIDER[:halvings]]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise([3, *widths]))
        self.into, self.back = nn.Conv2d(widths[-1], bottleneck, 4), nn.ConvTranspose2d(bottleneck, widths[-1], 4)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 4, 2, 1) for a, b in pairwise([channels, *widths]))
        self.skip = nn.ModuleList(nn.Conv2d(a, a, 1) for a in widths)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor, weights: list[float] | None = None) -> Tensor:
        """weights: of the skip connections, that of the largest map first; None for none, as at test."""
        skips = []
        for down in self.down:
            x = self.act(down(x))
            skips.append(x)
        x = self.act(self.back(self.act(self.into(x))))
        for i in reversed(range(len(skips))):
            if weights and weights[i]:
                x = x + weights[i] * self.skip[i](skips[i])
            x = self.up[i](x)
            x = self.act(x) if i else x
        return x


def fading(done: float, levels: int) -> list[float]:
    """Weights of skip connections, of which `done` (0 to 1) is over: one by one 1 to 0, the largest map's first."""
    return [min(1.0, max(0.0, i + 1 - done * levels)) for i in range(levels)]
