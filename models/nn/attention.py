"""Repair of features with patches of a reference picture, and the fusion of the repaired maps (RB-AE, III-C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ModelError


def patches(features: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> its non-overlapping patches [B, (H/size)(W/size), C*size*size], row by row."""
    return F.unfold(features, size, stride=size).mT


def repair(features: Tensor, reference: Tensor, size: int, scale: float = 1.0) -> Tensor:
    """RBFRM (Eq. 3 to 5): each patch becomes a mean of the reference's patches, weighted by a softmax of cosines.

    features: [B, C, H, W]; reference: [1, C, H, W]. scale multiplies the cosines before the softmax; 1 is the paper's
    formula. Returns [B, C, H, W].
    """
    ours, theirs = patches(features, size), patches(reference, size)
    cosine = F.normalize(ours, dim=-1) @ F.normalize(theirs, dim=-1).mT  # [B, N, N]
    repaired = (cosine * scale).softmax(-1) @ theirs
    return F.fold(repaired.mT, features.shape[-2:], size, stride=size)


class Fusion(nn.Module):
    """FFM (Eq. 6 to 8): for every element, a softmax over the repaired maps and the map itself tells what to take.

    widths: C of the features; branches: how many maps are fused. Kernel 5 is larger than the largest patch (4), as the
    paper asks; 64 channels in between.
    """

    def __init__(self, width: int, branches: int = 3, hidden: int = 64, kernel: int = 5) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, hidden, kernel, padding=kernel // 2)
        self.attend = nn.ModuleList(nn.Conv2d(hidden, width, kernel, padding=kernel // 2) for _ in range(branches))

    def weights(self, maps: list[Tensor]) -> Tensor:
        """[branches, B, C, H, W], summing to 1 over the branches."""
        hidden = F.relu(self.squeeze(torch.stack(maps).sum(0)))
        return torch.stack([attend(hidden) for attend in self.attend]).softmax(0)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return (self.weights(maps) * torch.stack(maps)).sum(0)


class ReferenceAttention(nn.Module):
    """RBAM of one layer: repair at each patch size, then fusion with the unrepaired map.

    width: channels; side: height and width of the layer's map. Raises ModelError when a patch size does not divide it.
    """

    def __init__(self, width: int, side: int, sizes: tuple[int, ...] = (2, 4), scale: float = 1.0) -> None:
        super().__init__()
        for size in sizes:
            if size < 1 or side % size:
                raise ModelError(
                    f"patch size {size} does not divide the {side}x{side} feature map; choose `patch_sizes` that do, "
                    "or another `size` of the input"
                )
        self.sizes, self.scale = sizes, scale
        self.fusion = Fusion(width, len(sizes) + 1)

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """features [B, C, H, W], reference [1, C, H, W] -> repaired [B, C, H, W]."""
        if reference.shape[1:] != features.shape[1:]:
            raise ModelError(
                f"reference features {tuple(reference.shape[1:])}, picture features {tuple(features.shape[1:])}: "
                "reference and pictures must enter the network at one size"
            )
        return self.fusion([repair(features, reference, size, self.scale) for size in self.sizes] + [features])
