"""SPADE (Cohen & Hoshen, 2020, arXiv 2005.02357): pixels are compared with those of the most similar normal pictures.

No training. The K nearest normal pictures are found by the pooled last stage (Sec. 3.1, 3.2); image score = their mean
distance. Then each pixel's distance to the nearest feature at any place of these K pictures, per stage of the pyramid
(Sec. 3.3, kappa = 1). The authors published no code; compared with the one whose figures are quoted
(byungjae89/SPADE-pytorch at 077c67b). The same in `k5`: Wide-ResNet-50-2, 256 px and crop 224, mean Euclidean distance
to 5 pictures, bilinear upsampling and mean of the three stages' distances, Gaussian of sigma 4 with reflected borders.
`paper` has K = 50 (Sec. 3.5) and squared distances of pictures as a translation of the paper gives them; that also says
that the paper joins the stages before the distance, which is not followed here: the code does not, and the authors'
later work has both. Left: that code cuts the bank to a multiple of 100 vectors (rounding), and its distances are wrong
with newer torch (a reduction over another axis); both sides are resized (theirs the shorter one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, WIDE50, backbone, extract
from models.nn.neighbours import knn
from models.nn.preprocess import Preprocess
from models.nn.smooth import gaussian_smooth
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class SpadeConfig(Config):
    """Settings as reviews of the paper quote them; `k5` is the code's."""

    backbone: str = WIDE50
    layers: tuple[str, ...] = STAGES
    pooled: str = "layer4"  # stage whose mean over positions describes a picture
    size: int = 256
    crop: int | None = 224
    neighbours: int = 50  # K pictures, for the score and for the map
    squared: bool = True  # squared distances of pictures
    sigma: float = 4.0


@register("spade", presets={
    "paper": SpadeConfig(),
    "k5": SpadeConfig(neighbours=5, squared=False),
    "quick": SpadeConfig(
        backbone=RESNET18, pooled="layer3", size=128, crop=None, neighbours=5, squared=False, sigma=2.0, shortened=True
    ),
})
class Spade(Detector):
    """SPADE: nearest normal pictures, then nearest features at any place of these pictures"""

    Config = SpadeConfig
    config: SpadeConfig

    def __init__(self, config: SpadeConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), (config.crop, config.crop) if config.crop else None)
        layers = tuple(dict.fromkeys((*config.layers, config.pooled)))
        self.net = backbone(config.backbone, layers, context.weights, context.device)
        self.pooled = torch.empty(0)  # [N, D]
        self.bank: dict[str, Tensor] = {}  # layer -> [N, h * w, C]

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> None:
        if len(train) < self.config.neighbours:
            raise ModelError(
                f"spade: {len(train)} training pictures, but neighbours={self.config.neighbours} are asked for; "
                "lower --set neighbours, or add pictures to the category's train folder"
            )
        pooled, done = [], 0
        for features in self._features(train):
            pooled.append(features[self.config.pooled].mean((2, 3)))
            for layer in self.config.layers:
                rows = _rows(features[layer])
                if done == 0:
                    self.bank[layer] = rows.new_empty(len(train), *rows.shape[1:])
                self.bank[layer][done : done + len(rows)] = rows
            progress(done := done + len(pooled[-1]), len(train))
        self.pooled = torch.cat(pooled)
        if not torch.isfinite(self.pooled.sum()):
            raise ModelError(f"spade: features of {self.config.backbone} are not finite; check its weights")

    def predict(self, batch: Images) -> Prediction:
        maps, scores = [], []
        for features in self._features(batch):
            distances, nearest = knn(features[self.config.pooled].mean((2, 3)), self.pooled, self.config.neighbours)
            scores.append((distances.square() if self.config.squared else distances).mean(1))
            parts = []
            for layer in self.config.layers:
                grid = features[layer].shape[-2:]
                found = [
                    knn(rows, self.bank[layer][chosen].flatten(0, 1))[0].view(1, *grid)
                    for rows, chosen in zip(_rows(features[layer]), nearest, strict=True)
                ]
                size = self.preprocess.output
                parts.append(F.interpolate(torch.stack(found), size, mode="bilinear", align_corners=False)[:, 0])
            maps.append(gaussian_smooth(torch.stack(parts).mean(0), self.config.sigma, "reflect"))
        return Prediction(torch.cat(maps), torch.cat(scores))

    def _features(self, images: Images) -> Iterator[dict[str, Tensor]]:
        return extract(self.net, self.preprocess, images, self.context.device, self.context.features)

    def state_dict(self) -> dict[str, Any]:
        return {"pooled": self.pooled, "bank": self.bank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pooled = state["pooled"].to(self.context.device)
        self.bank = {layer: rows.to(self.context.device) for layer, rows in state["bank"].items()}


def _rows(maps: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h * w, C]."""
    return maps.flatten(2).transpose(1, 2)
