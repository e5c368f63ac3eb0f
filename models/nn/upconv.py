"""Nearest upsampling by 2 and a 3x3 convolution in one step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpConv(nn.Conv2d):
    """`nn.Conv2d(width_in, width_out, 3, padding=1)` of the picture upsampled by 2 (nearest): [B, C, H, W] -> 2H, 2W.

    Each upsampled pixel repeats one of the input, so the nine products per output collapse into four: the same sum as a
    transposed convolution with the kernel spread by a 2x2 box. Same weights, less than half the time.
    """

    spread: Tensor

    def __init__(self, width_in: int, width_out: int, bias: bool = True) -> None:
        super().__init__(width_in, width_out, 3, padding=1, bias=bias)
        # [9, 16]: what each weight adds to the 4x4 kernel. A product with it is forty times faster on a CPU than a
        # convolution of as many tiny pictures as there are kernels, which took half of a training step.
        one_hot = torch.eye(9).view(9, 1, 3, 3).flip(2, 3)
        self.register_buffer(
            "spread", F.conv2d(one_hot, torch.ones(1, 1, 2, 2), padding=1).view(9, 16), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        width_out, width_in = self.weight.shape[:2]
        kernel = (self.weight.reshape(-1, 9) @ self.spread).view(width_out, width_in, 4, 4)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.bias, stride=2, padding=1)
