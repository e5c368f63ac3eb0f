"""PatchCore (Roth et al., CVPR 2022): nearest neighbours in a coreset of locally aware patch features.

Compared with the authors' code (amazon-science/patchcore-inspection at 8a7748c), ours follows the paper: 3x3 means per
channel, all channels kept (Sec. 3.1), Euclidean distances (Eq. 6), an exact selection from one drawn point (Alg. 1).
The preset `authors` does as the code: each layer's neighbourhoods averaged in runs to 1024 values, then both layers to
1024; squared distances; selection from the point farthest on average from ten; the shorter side resized; borders
reflected in the smoothing. Left: their projection is uniform (`nn.Linear`), ours Gaussian; their mean distance to the
ten points bounds distances during the selection. `anomalib`: no crop, sparse projection, nearest upsampling, Eq. 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone, extract
from models.nn.coreset import greedy_coreset
from models.nn.neighbours import knn
from models.nn.patches import patch_features
from models.nn.preprocess import Aspect, Preprocess
from models.nn.projection import project
from models.nn.smooth import Border, gaussian_smooth
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(Config):
    """Sec. 4.1 of the paper where not said otherwise."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    layers: tuple[str, ...] = ("layer2", "layer3")
    size: int = 256
    crop: int | None = 224
    aspect: Aspect = "squash"  # 'short' cuts the ends of long pictures off, where LOCO has defects
    dimension: int | None = None  # values of a patch, averaged in runs; None keeps every channel (Sec. 3.1)
    coreset: float = 0.1  # share of the patches kept; the paper reports 25 %, 10 % and 1 %
    projection: Literal["linear", "sparse", "none"] = "linear"  # Alg. 1: for the selection only
    starts: int = 1  # points drawn; of several, the selection begins with the one farthest from them on average
    squared: bool = False  # squared distances
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    sigma: float = 4.0  # Sec. 3.3
    border: Border = "mirror"  # of the smoothing
    neighbours: int = 1  # 1: image score = largest patch score, as the authors' code; b > 1: re-weighted by Eq. 7


@register("patchcore", presets={
    "wrn50_10pct": PatchCoreConfig(),
    "wrn50_1pct": PatchCoreConfig(coreset=0.01),
    "authors": PatchCoreConfig(dimension=1024, starts=10, squared=True, aspect="short", border="reflect"),
    "resnet18": PatchCoreConfig(backbone="resnet18.tv_in1k", crop=None, coreset=0.01, projection="sparse"),
    "anomalib": PatchCoreConfig(crop=None, projection="sparse", upsample="nearest", neighbours=9),
    "demo": PatchCoreConfig(backbone="resnet18.tv_in1k", size=128, crop=None, coreset=0.1, shortened=True),
})
class PatchCore(Detector):
    """PatchCore: memory bank of patch features, exact greedy coreset, nearest neighbour distance"""

    Config = PatchCoreConfig
    config: PatchCoreConfig

    def __init__(self, config: PatchCoreConfig, context: Context) -> None:
        super().__init__(config, context)
        if not 0 < config.coreset <= 1:
            raise ModelError(f"patchcore: coreset={config.coreset} is not a share in (0, 1]")
        crop = (config.crop, config.crop) if config.crop else None
        self.preprocess = Preprocess((config.size, config.size), crop, aspect=config.aspect)
        self.net = backbone(config.backbone, config.layers, context.weights, context.device)
        self.bank = torch.empty(0, config.dimension or sum(self.net.channels.values()), device=context.device)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        if not len(train):
            raise ModelError("patchcore: there are no training pictures")
        patches, done = torch.empty(0), 0
        for features in self._features(train):
            maps = self._locally_aware(features)
            rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
            if not len(patches):
                patches = torch.empty(len(train) * len(rows) // len(maps), rows.shape[1], device=rows.device)
            patches[done * len(patches) // len(train) :][: len(rows)] = rows
            progress(done := done + len(maps), 2 * len(train))
        if not torch.isfinite(patches.sum()):
            raise ModelError(f"patchcore: features of {self.config.backbone} are not finite; check its weights")
        count = max(1, int(len(patches) * self.config.coreset))
        stats: dict[str, Any] = {}

        def selected(done: int, total: int, /, **values: float) -> None:
            progress(len(train) + round(len(train) * done / total), 2 * len(train))

        projected = project(patches, self.config.projection, self.context.seed)
        chosen = greedy_coreset(projected, count, start=self._start(projected), progress=selected, stats=stats)
        self.bank = patches[chosen]
        return {"patches": len(patches), "coreset": count, "distances_share": round(stats["share"], 5)}

    def predict(self, batch: Images) -> Prediction:
        maps, scores = [], []
        for features in self._features(batch):
            embedding = self._locally_aware(features)
            b, _, h, w = embedding.shape
            rows = embedding.permute(0, 2, 3, 1).flatten(0, 2)
            distances, nearest = knn(rows, self.bank)
            patch_scores = (distances.square() if self.config.squared else distances).view(b, h * w)
            scores.append(self._image_score(patch_scores, nearest.view(b, h * w), rows.view(b, h * w, -1)))
            full = F.interpolate(patch_scores.view(b, 1, h, w), self.preprocess.output, mode=self.config.upsample)
            maps.append(gaussian_smooth(full[:, 0], self.config.sigma, self.config.border))
        return Prediction(torch.cat(maps).float(), torch.cat(scores).float())

    def feature_maps(self, batch: Images) -> list[Tensor]:
        """The locally aware patch features, one map [B, C, h, w]."""
        return [torch.cat([self._locally_aware(features) for features in self._features(batch)])]

    def _features(self, images: Images) -> Any:
        return extract(self.net, self.preprocess, images, self.context.device, self.context.features)

    def _start(self, projected: Tensor) -> int:
        """The point that the selection begins with."""
        drawing = np.random.default_rng(self.context.seed)
        if self.config.starts == 1:
            return int(drawing.integers(len(projected)))
        drawn = drawing.choice(len(projected), min(self.config.starts, len(projected)), replace=False)
        return int(torch.cdist(projected, projected[drawn]).mean(1).argmax())

    def _locally_aware(self, features: Mapping[str, Tensor]) -> Tensor:
        """Sec. 3.1: 3x3 means of each layer, deeper layers resized to the first one's grid, channels joined."""
        if self.config.dimension:
            return patch_features(features, self.net.layers, 3, self.config.dimension)
        maps = [F.avg_pool2d(features[layer], 3, 1, 1) for layer in self.net.layers]
        return torch.cat([maps[0], *(F.interpolate(m, maps[0].shape[-2:], mode="bilinear") for m in maps[1:])], 1)

    def _image_score(self, patch_scores: Tensor, nearest: Tensor, rows: Tensor) -> Tensor:
        """Eq. 6, and with `neighbours` > 1 the weight of Eq. 7: how usual the nearest bank patch itself is."""
        score, place = patch_scores.max(1)
        if (count := min(self.config.neighbours, len(self.bank))) <= 1:
            return score
        pick = torch.arange(len(place), device=place.device)
        worst, match = rows[pick, place], self.bank[nearest[pick, place]]
        _, around = knn(match, self.bank, count)
        distances = (worst.unsqueeze(1) - self.bank[around]).norm(dim=2)
        return (1 - distances.softmax(1)[:, 0]) * score

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bank = state["bank"].to(self.context.device)
