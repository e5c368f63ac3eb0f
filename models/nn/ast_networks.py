"""AST's networks: the normalising flow (teacher), the convolutional student, and the positional encoding of both.

Sections are those of Rudolph et al., WACV 2023. `config` is an AstConfig of `models.baselines.ast`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Teacher(nn.Module):
    """Conditional normalising flow (Sec. 3.1): [B, C, h, w] -> latent [B, C, h, w] and log|det J| [B]."""

    def __init__(self, channels: int, config: Any) -> None:
        super().__init__()
        from FrEIA.framework import SequenceINN
        from FrEIA.modules import GLOWCouplingBlock, PermuteRandom

        alpha = config.clamp
        self.positions = config.positions
        # FrEIA asks for the spatial size only to compare it with the condition's: 1 x 1 leaves it open
        self.flow = SequenceINN(channels, 1, 1)
        with _numpy_state():  # PermuteRandom seeds NumPy's global generator
            for block in range(config.coupling_blocks):
                size = 5 if block == config.coupling_blocks - 1 else 3

                def subnet(before: int, after: int, size: int = size) -> nn.Module:
                    return Subnet(before, config.teacher_channels, after, size)

                condition = {"cond": 0, "cond_shape": (config.positions, 1, 1)} if config.positions else {}
                self.flow.append(PermuteRandom, seed=block)
                self.flow.append(
                    GLOWCouplingBlock, subnet_constructor=subnet, clamp=alpha,
                    clamp_activation=lambda s: 0.636 * torch.atan(s / alpha), **condition,
                )

    def forward(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        condition = [encoding(x, self.positions)] if self.positions else None
        return self.flow(x, c=condition, rev=inverse)


class Subnet(nn.Module):
    """Scale and shift of a coupling; the gain starts at zero, so that the flow starts as the identity."""

    def __init__(self, before: int, hidden: int, after: int, size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, hidden, size, padding=size // 2, padding_mode="replicate")
        self.second = nn.Conv2d(hidden, after, size, padding=size // 2, padding_mode="replicate")
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x))) * self.gain


class Student(nn.Module):
    """Residual convolutional network (Sec. 3.2): [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int, config: Any) -> None:
        super().__init__()
        self.positions, self.slope = config.positions, config.slope
        hidden = config.student_channels
        self.first = nn.Conv2d(channels + config.positions, hidden, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(hidden, config.slope) for _ in range(config.residual_blocks)))
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.positions:
            x = torch.cat([x, encoding(x, self.positions)], 1)
        return self.last(self.blocks(F.leaky_relu(self.first(x), self.slope)))


class Residual(nn.Module):
    """x plus two times (3x3 convolution, batch norm, leaky ReLU)."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.body = nn.Sequential(*(
            layer
            for _ in range(2)
            for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(slope))
        ))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def encoding(x: Tensor, channels: int) -> Tensor:
    """Sine and cosine of column and row, [B, channels, h, w] for a map x [B, C, h, w]; channels a multiple of 4.

    The first half of the channels encodes the column, the second the row, in alternating sine and cosine.
    """
    batch, _, height, width = x.shape
    rate = torch.exp(torch.arange(0, channels // 2, 2, device=x.device) * (-math.log(1e4) / (channels // 2)))

    def waves(count: int) -> Tensor:
        angle = rate[:, None] * torch.arange(count, device=x.device)
        return torch.stack([angle.sin(), angle.cos()], 1).flatten(0, 1)  # [channels / 2, count]

    columns = waves(width)[:, None].expand(-1, height, -1)
    rows = waves(height)[:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows]).to(x.dtype).expand(batch, -1, -1, -1)


@contextmanager
def _numpy_state() -> Iterator[None]:
    """Puts NumPy's global generator back where it was."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
