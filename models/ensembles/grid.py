"""Bringing members' maps to one grid over the whole picture, and pictures to a square for the padding ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Images
from models.nn.preprocess import Preprocess


def to_grid(maps: Tensor, view: Preprocess, grid: int) -> Tensor:
    """Maps [B, C, h, w] of a member's field of view -> [B, C, grid, grid] of the whole picture, bilinear.

    Averages over the pixels that fall on a cell when the map is finer than the grid. Outside a centre crop the
    nearest value is repeated.
    """
    shares = [inner / outer for inner, outer in zip(view.output, view.size, strict=True)]
    inner = tuple(max(1, round(grid * share)) for share in shares)
    if maps.shape[-2] > inner[0] or maps.shape[-1] > inner[1]:
        maps = F.interpolate(maps, inner, mode="bilinear", align_corners=False, antialias=True)
    if view.crop is None:
        if maps.shape[-2:] == (grid, grid):
            return maps
        return F.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False)
    centres = (torch.arange(grid, device=maps.device, dtype=maps.dtype) * 2 + 1) / grid - 1
    y, x = torch.meshgrid(centres / shares[0], centres / shares[1], indexing="ij")
    where = torch.stack([x, y], -1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, where, mode="bilinear", padding_mode="border", align_corners=False)


class Squares(Sequence[np.ndarray]):
    """Pictures padded to squares on access: centred, the border's pixels repeated, which adds no edge of its own."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Squares(self.images[index])
        picture = self.images[index]
        top, left, side = _place(picture.shape[:2])
        height, width = picture.shape[:2]
        return np.pad(picture, ((top, side - height - top), (left, side - width - left), (0, 0)), mode="edge")


def from_square(maps: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Maps [B, s, s] of padded pictures -> [B, s, s] of the pictures alone, whose (height, width) are `sizes`.

    The part of each map that shows the picture, resampled bilinearly.
    """
    shares = []
    for height, width in sizes:
        side = max(height, width)
        top, left, _ = _place((height, width))
        shares.append(((2 * left + width) / side - 1, (2 * top + height) / side - 1, width / side, height / side))
    x0, y0, w, h = maps.new_tensor(shares).T[:, :, None, None]
    centres = (torch.arange(maps.shape[-1], device=maps.device, dtype=maps.dtype) * 2 + 1) / maps.shape[-1] - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    where = torch.stack([x0 + w * x, y0 + h * y], -1)
    return F.grid_sample(maps[:, None], where, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def _place(size: tuple[int, int]) -> tuple[int, int, int]:
    """(top, left, side) of a picture of this (height, width) in its square."""
    side = max(size)
    return (side - size[0]) // 2, (side - size[1]) // 2, side
