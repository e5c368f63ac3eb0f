"""Repair of features with patches of a reference picture, and the fusion of the repaired maps (RB-AE, III-C)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ModelError

Similarity = Literal["contextual", "cosine"]


def patches(features: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> its non-overlapping patches [B, (H/size)(W/size), C*size*size], row by row."""
    return F.unfold(features, size, stride=size).mT


def choice(ours: Tensor, theirs: Tensor, similarity: Similarity, scale: float) -> Tensor:
    """Which reference patches stand for which patch: softmax over the reference, [B, N, D] and [1, N, D] -> [B, N, N].

    cosine: of Eq. 3. contextual: the reference patch normalised, ours not, as in contextual attention (Yu et al.,
    CVPR 2018), to which III-C refers. scale multiplies both; Eq. 4 prints none.
    """
    if similarity == "cosine":
        ours = F.normalize(ours, dim=-1)
    return (ours @ F.normalize(theirs, dim=-1).mT * scale).softmax(-1)


def repair(
    features: Tensor, reference: Tensor, size: int, similarity: Similarity = "contextual", scale: float = 10.0
) -> Tensor:
    """RBFRM (Eq. 3 to 5): each patch of [B, C, H, W] becomes a weighted mean of those of the reference [1, C, H, W]."""
    theirs = patches(reference, size)
    repaired = choice(patches(features, size), theirs, similarity, scale) @ theirs
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

    def __init__(
        self, width: int, side: int, sizes: tuple[int, ...] = (2, 4), similarity: Similarity = "contextual",
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        for size in sizes:
            if size < 1 or side % size:
                raise ModelError(
                    f"patch size {size} does not divide the {side}x{side} feature map; choose `patch_sizes` that do, "
                    "or another `size` of the input"
                )
        self.sizes, self.similarity, self.scale = sizes, similarity, scale
        self.fusion = Fusion(width, len(sizes) + 1)

    def maps(self, features: Tensor, reference: Tensor) -> list[Tensor]:
        """What is fused: the repaired map of each patch size, and the map itself."""
        return [*(repair(features, reference, size, self.similarity, self.scale) for size in self.sizes), features]

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """features [B, C, H, W], reference [1, C, H, W] -> repaired [B, C, H, W]."""
        return self.fusion(self.maps(features, reference))


@torch.no_grad()
def acts(
    module: ReferenceAttention, clean: Tensor, defective: Tensor, mask: Tensor, reference: Tensor
) -> dict[str, dict[str, float]]:
    """Whether the repair chooses, on one layer's maps [B, C, H, W] of pictures without and with defects (at mask).

    For each patch size: patches_used, exp of the choice's entropy (of `patches`; all of them: a constant), averaged
    over the clean pictures; variance_kept, of the repaired clean map over positions, relative to the map's own;
    error_inside, squared error against the clean map inside defects, relative to its square there. 'fusion': the
    error inside of the map itself (unrepaired) and of the fused one, the weight of each branch inside and outside of
    defects, and the weights' standard deviation. 'features': variance of the clean map over pictures relative to its
    square; 0 says that the encoder sees no picture any more.
    """
    inside = mask.expand_as(clean)
    scale = (inside * clean.square()).sum().clamp_min(1e-12)

    def error(found: Tensor) -> float:
        return float((inside * (found - clean).square()).sum() / scale)

    spread = clean.var(0, correction=0).mean() / clean.square().mean().clamp_min(1e-12)
    out: dict[str, dict[str, float]] = {"features": {"variance_over_pictures": float(spread)}}
    for size in module.sizes:
        theirs = patches(reference, size)
        chosen = choice(patches(clean, size), theirs, module.similarity, module.scale)
        entropy = -(chosen * chosen.clamp_min(1e-30).log()).sum(-1)
        kept = F.fold((chosen @ theirs).mT, clean.shape[-2:], size, stride=size)
        out[f"patch{size}"] = {
            "patches": theirs.shape[1], "patches_used": float(entropy.exp().mean()),
            "variance_kept": float(kept.var((2, 3)).sum() / clean.var((2, 3)).sum()),
            "error_inside": error(repair(defective, reference, size, module.similarity, module.scale)),
        }
    maps = module.maps(defective, reference)
    weights = module.fusion.weights(maps)
    out["fusion"] = {"error_unrepaired": error(defective), "error_fused": error(module(defective, reference))}
    for name, weight in zip([*(f"patch{size}" for size in module.sizes), "unrepaired"], weights, strict=True):
        out["fusion"][f"{name}_inside"] = float((weight * inside).sum() / inside.sum().clamp_min(1e-12))
        out["fusion"][f"{name}_outside"] = float((weight * (1 - inside)).sum() / (1 - inside).sum())
    out["fusion"]["spread"] = float(weights.std((1, 2, 3, 4)).mean())
    return out
