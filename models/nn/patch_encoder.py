"""Networks and draws of Patch-SVDD (Yi & Yoon, ACCV 2020, and the authors' code): patches of 32 and of 64 px."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL, BIG, DIMENSION = 32, 64, 64  # sides of a patch in pixels, values of an embedding
WIDTHS = (32, 64, 128, 128, 64, 32, 32, DIMENSION)
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # row, column
NOISE = 0.02  # standard deviation of the shift of a patch's colours, and of its pixels' noise


class Encoder(nn.Module):
    """Embeddings of patches of 32 px by eight unpadded convolutions, and of 64 px from their four quadrants."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)):
            layers += [nn.Conv2d(a, b, 3, 2 if i == 0 else 1), nn.LeakyReLU(0.1)]
        self.small = nn.Sequential(*layers[:-1], nn.Tanh())
        self.join = nn.Conv2d(DIMENSION, 128, 2)
        self.last = nn.Conv2d(128, DIMENSION, 1)

    def joined(self, maps: Tensor, apart: int = 1) -> Tensor:
        """Maps of small embeddings [B, 64, h, w], whose quadrants lie `apart` places apart -> [B, 64, h', w']."""
        joined = F.conv2d(maps, self.join.weight, self.join.bias, dilation=apart)
        return self.last(F.leaky_relu(joined, 0.1)).tanh()

    def forward(self, patches: Tensor) -> Tensor:
        """[B, 3, 32, 32] or [B, 3, 64, 64] -> [B, 64]."""
        count, side = len(patches), patches.shape[-1] // SMALL
        quadrants = patches.view(count, 3, side, SMALL, side, SMALL).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        found = self.small(quadrants)
        if side > 1:
            found = self.joined(found.view(count, side, side, DIMENSION).permute(0, 3, 1, 2))
        return found.flatten(1)


class Classifier(nn.Module):
    """Logits of the eight directions from the difference of two embeddings: [B, 64] -> [B, 8].

    The last weights have columns of norm 1 and stay as they were drawn, as in the authors' code; its bias is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(DIMENSION, 128), nn.Linear(128, 128), nn.Linear(128, 8)
        self.last.weight.requires_grad_(False)

    def forward(self, difference: Tensor) -> Tensor:
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(difference), 0.1)), 0.1)
        return F.linear(x, F.normalize(self.last.weight, dim=0), self.last.bias)


def near(x: Tensor, side: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A patch of each picture [B, 3, s, s] and one up to side / 32 px beside it, but not itself unless at a border."""
    start, room = _start(x, side, random), side // 32
    # of the (2 room + 1)^2 steps all but the middle one, which is the last here
    step = torch.randint((2 * room + 1) ** 2 - 1, (len(x),), generator=random, device=x.device)
    step = torch.where(step == 2 * room * (room + 1), (2 * room + 1) ** 2 - 1, step)
    steps = torch.stack([step // (2 * room + 1), step % (2 * room + 1)]) - room
    return crops(x, side, start), crops(x, side, start + steps)


def directed(x: Tensor, side: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A patch of each picture, one 3/4 to 1 side away in one of eight directions, both disturbed, and which: int64 [B].

    Near the border the second patch is moved inside, so that its direction may no longer be right (as in the code).
    """
    start = _start(x, side, random)
    label = torch.randint(8, (len(x),), generator=random, device=x.device)
    away = 3 * side // 4 + torch.randint(side // 4, (2, len(x)), generator=random, device=x.device)
    place = label + (label >= 4)  # of nine, row by row; the middle one is no direction
    steps = torch.stack([place // 3, place % 3]).sub(1) * away
    first, second = (_disturbed(crops(x, side, place), random) for place in (start, start + steps))
    return first, second, label


def spread_over(distances: Tensor, side: int, stride: int, size: int) -> Tensor:
    """A pixel's mean over the patches on it, 0 where there is none: [B, n, n] of patches -> [B, size, size]."""
    kernel = distances.new_ones(1, 1, side, side)
    both = torch.stack([distances, torch.ones_like(distances)], 1).flatten(0, 1).unsqueeze(1)
    total, count = F.conv_transpose2d(both, kernel, stride=stride).view(len(distances), 2, -1).unbind(1)
    reached = (distances.shape[-1] - 1) * stride + side
    return F.pad((total / count.clamp_min(1)).view(-1, reached, reached), (0, size - reached) * 2)


def _start(x: Tensor, side: int, random: torch.Generator) -> Tensor:
    return torch.randint(x.shape[-1] - side + 1, (2, len(x)), generator=random, device=x.device)


def crops(x: Tensor, side: int, start: Tensor) -> Tensor:
    """Patches [B, 3, side, side] at `start` int64 [2, B], moved inside."""
    lines = torch.arange(side, device=x.device)
    top, left = start.clamp(0, x.shape[-1] - side).unsqueeze(2) + lines
    which = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    return x[which, :, top.unsqueeze(2), left.unsqueeze(1)].permute(0, 3, 1, 2)


def _disturbed(x: Tensor, random: torch.Generator) -> Tensor:
    shift = torch.randn(len(x), 3, 1, 1, generator=random, device=x.device)
    return x + NOISE * (shift + torch.randn(x.shape, generator=random, device=x.device))
