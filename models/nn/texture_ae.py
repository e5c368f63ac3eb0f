"""The convolutional parts of RB-AE (III-A, III-D): encoder of five layers, decoder, discriminators of defects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.upconv import UpConv


def double_conv(width_in: int, width_out: int, *, up: bool = False) -> nn.Sequential:
    """Twice: 3x3 convolution, batch norm, ReLU. up: after nearest upsampling by 2."""
    first = UpConv(width_in, width_out, bias=False) if up else nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
    second = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(width_out), nn.ReLU(), second, nn.BatchNorm2d(width_out), nn.ReLU())


class Encoder(nn.Module):
    """Five layers; the first works at full size, every further one after a 2x2 max pool."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            double_conv(before, after) for before, after in zip((3, *widths[:-1]), widths, strict=True)
        )

    def forward(self, x: Tensor, depth: int = 5) -> list[Tensor]:
        """[B, 3, H, W] -> the first `depth` maps, layer l of size H / 2^(l-1)."""
        maps = []
        for index, layer in enumerate(self.layers[:depth]):
            x = layer(F.max_pool2d(x, 2) if index else x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Layer 5 is decoded, layers 4 and 3 join on the way; none from layers 1 and 2, which hold no repair."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths
        self.up5 = UpConv(w5, w4)
        self.merge4 = double_conv(2 * w4, w4)
        self.up4 = UpConv(w4, w3)
        self.merge3 = double_conv(2 * w3, w3)
        self.layer2 = double_conv(w3, w2, up=True)
        self.layer1 = double_conv(w2, w1, up=True)
        self.out = nn.Conv2d(w1, 3, 3, padding=1)

    def forward(self, f3: Tensor, f4: Tensor, f5: Tensor) -> Tensor:
        """Maps of layers 3, 4, 5 -> picture [B, 3, H, W] in (0, 1)."""
        x = self.merge4(torch.cat([self.up5(f5), f4], 1))
        x = self.merge3(torch.cat([self.up4(x), f3], 1))
        return self.out(self.layer1(self.layer2(x))).sigmoid()


def discriminator(width: int) -> nn.Sequential:
    """FDM of one layer: features of picture and reconstruction [B, 2C, h, w] -> defect probability [B, 1, h, w]."""
    return nn.Sequential(
        nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU(),
        nn.Conv2d(width // 2, 1, 1), nn.Sigmoid(),
    )
