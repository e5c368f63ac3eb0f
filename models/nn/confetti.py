"""Training pictures of FCDD (Liznerski et al., ICLR 2021, and its code): variations, and confetti as anomalies.

Sizes are in pixels of a side of 224 and grow with the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.smooth import gaussian_smooth

SQUARES = 6  # most squares of one kind
DENSITY = {"coloured": 1.8e-5, "white": 1.2e-5}  # centres of squares per pixel


def varied(x: Tensor, side: int, noise: torch.Generator) -> Tensor:
    """A crop, or the picture made smaller; brightness, contrast and noise: [B, 3, S, S] -> [B, 3, side, side]."""
    room, count = x.shape[-1] - side + 1, len(x)
    draw = torch.rand(6, count, 1, 1, 1, generator=noise, device=x.device)
    top, left = torch.randint(room, (2, count, 1), generator=noise, device=x.device) + torch.arange(
        side, device=x.device)
    which = torch.arange(count, device=x.device).view(-1, 1, 1)
    crops = x[which, :, top.unsqueeze(2), left.unsqueeze(1)].permute(0, 3, 1, 2)
    x = torch.where(draw[0] < 0.5, crops, F.interpolate(x, (side, side)))
    strength = torch.where(draw[1] < 0.5, 0.04, 0.005)
    x = x * (1 + strength * (2 * draw[2] - 1))
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * (1 + strength * (2 * draw[3] - 1))
    grain = torch.randn(x.shape, generator=noise, device=x.device) * 0.1 * x.std((1, 2, 3), keepdim=True)
    return (x + grain * (draw[4] < 0.5)).clamp(0, 1)


def confetti(x: Tensor, noise: torch.Generator) -> Tensor:
    """Pictures [B, 3, s, s] in [0, 1] with turned, blurred squares added; subtracted where that changes too little."""
    count, side, device = len(x), x.shape[-1], x.device
    rows = torch.arange(side, device=device).view(1, 1, -1, 1)
    columns = rows.transpose(2, 3)
    total = torch.zeros_like(x)
    for i, (kind, density) in enumerate(DENSITY.items()):
        place = torch.rand(5, count, SQUARES, 1, 1, generator=noise, device=device)
        colour = torch.rand(count, SQUARES, 3, 1, 1, generator=noise, device=device)
        expected = torch.full((count, 1, 1, 1), density * 224**2, device=device)
        number = torch.poisson(expected, generator=noise).clamp_min(1 - i)
        y, across = rows - place[0] * side, columns - place[1] * side
        angle, half = (place[2] - 0.5) * (torch.pi / 2), (8 + 46 * place[3]) * side / 448
        u, v = y * angle.cos() + across * angle.sin(), across * angle.cos() - y * angle.sin()
        squares = (u.abs() < half) & (v.abs() < half)
        squares = squares & (torch.arange(SQUARES, device=device).view(1, -1, 1, 1) < number)
        total = total + (squares.unsqueeze(2) * (colour if kind == "coloured" else 1.0)).sum(1)
    total = gaussian_smooth(total.clamp(0, 1).flatten(0, 1), 5.0 * side / 224, cut=2.4).view_as(x)
    added, taken = (x + total).clamp(0, 1), (x - total).clamp(0, 1)
    change = ((added - x).abs().sum((1, 2, 3)), (taken - x).abs().sum((1, 2, 3)))
    return torch.where((change[0] >= 0.5 * change[1]).view(-1, 1, 1, 1), added, taken)
