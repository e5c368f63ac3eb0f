"""MB-PFM (Wan et al., IEEE Trans. Ind. Informatics 2023): two pretrained networks' features are mapped to each other.

At each of three levels a mapper of 1x1 convolutions predicts the one network's features from the other's, both ways,
through one bottleneck that the two directions share; where the prediction fails, something is unknown. Compared with
the authors' code (smiler96/PFM-and-PEFM-for-Image-Anomaly-Detection-and-Segmentation at 89268b6); the paper itself
could not be read. The same: ResNet-34 and ResNet-50, 256 px, features normalised over channels, widths of the mappers,
loss = sum over directions of the mean squared error per level, Adam 3e-3, 3e-4 and 3e-4 with decay 1e-5, batch 8, 200
epochs, last epoch; map = mean over levels of half the squared errors of both directions, upsampled bilinearly, not
smoothed; score = its maximum. Left: their flag --train switches training off (the logged figures were made with it on).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, backbone
from models.frozen import FrozenFeatures
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class MbPfmConfig(TrainedConfig):
    """The authors' code; `lr` is that of the first level, the others have a tenth."""

    backbone: str = "resnet34.tv_in1k"
    layers: tuple[str, ...] = STAGES
    second: str = "resnet50.tv_in1k"
    second_layers: tuple[str, ...] = STAGES
    latent: tuple[int, ...] = (200, 400, 900)
    epochs: int = 200
    train_batch: int = 8
    lr: float = 3e-3


@register("mbpfm", presets={
    "paper": MbPfmConfig(),
    "quick": MbPfmConfig(
        backbone=RESNET18, second="tf_efficientnet_lite0.in1k", second_layers=("blocks.1", "blocks.2", "blocks.4"),
        latent=(32, 64, 128), size=128, epochs=30, shortened=True,
    ),
})
class MbPfm(Trained):
    """MB-PFM: features of two pretrained networks are mapped to each other at three levels"""

    Config = MbPfmConfig
    config: MbPfmConfig

    def __init__(self, config: MbPfmConfig, context: Context) -> None:
        super().__init__(config, context)
        if not len(config.layers) == len(config.second_layers) == len(config.latent):
            raise ModelError("mbpfm: layers, second_layers and latent need one entry per level each")
        self.first = backbone(config.backbone, config.layers, context.weights, context.device)
        self.second = backbone(config.second, config.second_layers, context.weights, context.device)
        widths = zip((self.first.channels[layer] for layer in config.layers),
                     (self.second.channels[layer] for layer in config.second_layers), config.latent, strict=True)
        self._trained(**{f"level{i}": Mapper(a, b, z) for i, (a, b, z) in enumerate(widths)})

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        if not len(train):
            raise ModelError("mbpfm: there are no training pictures; check the category's train folder")
        first, second = (
            FrozenFeatures(net, self.preprocess, train, self.context.device, self.context.features)
            for net in (self.first, self.second)
        )

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            found = zip(self.trained.values(), first(indices), second(indices), strict=True)
            return torch.stack([errors(mapper, a, b).sum() for mapper, a, b in found]).sum()

        rates = [self.config.lr, *[self.config.lr / 10] * (len(self.trained) - 1)]
        optimizers = [Adam(mapper.parameters(), rate, weight_decay=1e-5)
                      for mapper, rate in zip(self.trained.values(), rates, strict=True)]
        return self._train(step, optimizers, len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x = self._seen(batch)
        found = zip(self.trained.values(), self.first(x).values(), self.second(x).values(), strict=True)
        maps = [F.interpolate(two_way_map(mapper, a, b), self.preprocess.output, mode="bilinear", align_corners=False)
                for mapper, a, b in found]
        return Prediction(torch.stack(maps).mean(0)[:, 0], None)


class Mapper(nn.Module):
    """Two-way mapping between maps of `a` and of `b` channels at one level, through a shared bottleneck of z."""

    def __init__(self, a: int, b: int, z: int) -> None:
        super().__init__()
        self.into = nn.ModuleList([_activated(c, c // 2 + z, 2 * z) for c in (a, b)])
        self.shared = nn.Conv2d(2 * z, z, 1)
        self.out = nn.ModuleList([
            nn.Sequential(_activated(z, 2 * z, c // 2 + z), nn.Conv2d(c // 2 + z, c, 1)) for c in (b, a)
        ])

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, a, h, w] and [B, b, h, w] -> what each predicts of the other: [B, b, h, w], [B, a, h, w]."""
        to_b, to_a = (out(self.shared(into(x))) for into, out, x in zip(self.into, self.out, (a, b), strict=True))
        return to_b, to_a


def _activated(*widths: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU())
              for a, b in pairwise(widths)]
    return nn.Sequential(*layers)


def _pairs(mapper: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of both predictions from the normalised features."""
    a, b = F.normalize(a), F.normalize(b)
    to_b, to_a = mapper(a, b)
    return to_b - b, to_a - a


def errors(mapper: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of either direction, [2]."""
    return torch.stack([difference.square().mean() for difference in _pairs(mapper, a, b)])


def two_way_map(mapper: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Half the squared errors of both directions, summed over channels: [B, 1, h, w]."""
    return sum(difference.square().sum(1, keepdim=True) for difference in _pairs(mapper, a, b)) / 2
