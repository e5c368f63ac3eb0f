"""Residual networks of the improved Wasserstein GAN (Gulrajani et al., NeurIPS 2017) for pictures of 64 px.

After the code that f-AnoGAN took over (igul222/improved_wgan_training, GoodGenerator and GoodDiscriminator): norm, ReLU
and a 3x3 convolution twice, halving by the mean of four pixels, doubling by repetition, shortcuts of 1x1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START = 4  # side of the generator's first map
Norm = Callable[[int], nn.Module]


class LayerNorm(nn.Module):
    """Over a whole picture's values, with a factor and an offset per channel: it knows no batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:]) * self.weight + self.bias


def conv(a: int, b: int, side: int = 3, gain: float = 2**0.5, bias: bool = True) -> nn.Conv2d:
    """Of the size of its input; Glorot's uniform weights times `gain`, biases 0."""
    made = nn.Conv2d(a, b, side, padding=side // 2, bias=bias)
    nn.init.xavier_uniform_(made.weight, gain)
    if bias:
        nn.init.zeros_(made.bias)
    return made


class Residual(nn.Module):
    """[B, a, h, w] -> [B, b, 2h, 2w] where `up`, else [B, b, h / 2, w / 2]."""

    def __init__(self, a: int, b: int, norm: Norm, *, up: bool) -> None:
        super().__init__()
        middle = b if up else a
        self.up = up
        self.shortcut = conv(a, b, 1, 1.0)
        self.before, self.first = norm(a), conv(a, middle, bias=False)
        self.between, self.second = norm(middle), conv(middle, b)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x).relu()
        if self.up:
            y = self.second(self.between(self.first(_double(y))).relu())
            return self.shortcut(_double(x)) + y
        y = self.second(self.between(self.first(y)).relu())
        return self.shortcut(F.avg_pool2d(x, 2)) + F.avg_pool2d(y, 2)


class Generator(nn.Module):
    """Codes [B, latent] -> pictures [B, 3, h, w] in (-1, 1), h = 4 x 2^(len(widths) - 1)."""

    def __init__(self, latent: int, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths
        self.start = linear(latent, START * START * widths[0])
        self.blocks = nn.Sequential(*(Residual(a, b, nn.BatchNorm2d, up=True) for a, b in pairwise(widths)))
        self.norm, self.out = nn.BatchNorm2d(widths[-1]), conv(widths[-1], 3)

    def forward(self, code: Tensor) -> Tensor:
        x = self.blocks(self.start(code).view(-1, self.widths[0], START, START))
        return self.out(self.norm(x).relu()).tanh()


def judge(widths: list[int], norm: Norm, outputs: int) -> nn.Sequential:
    """Pictures [B, 3, h, w] -> [B, outputs]; all but the last module give the features [B, C x 4 x 4]."""
    blocks = [Residual(a, b, norm, up=False) for a, b in pairwise(widths)]
    return nn.Sequential(conv(3, widths[0], gain=1.0), *blocks, nn.Flatten(), linear(START**2 * widths[-1], outputs))


def linear(a: int, b: int) -> nn.Linear:
    """Glorot's uniform weights, biases 0."""
    made = nn.Linear(a, b)
    nn.init.xavier_uniform_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
