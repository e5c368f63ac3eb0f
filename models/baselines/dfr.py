"""DFR (Shi, Yang & Qi, Neurocomputing 2021, arXiv 2012.07122): an autoencoder of multi-scale regional features.

Maps of many layers of VGG-19 are enlarged to the picture's size, averaged over small regions and joined: one vector per
region. 1x1 convolutions compress it to z values and restore it; a region's anomaly is the squared error. Compared with
the authors' code (YoungGod/DFR at f2e2d4e); of the paper only the abstract and others' reports were at hand. The same:
twelve ReLU outputs relu1_1 to relu4_4 (3,456 channels) with reflected borders, 256 px, enlarged with aligned corners
and averaged 4 x 4; z = components of a PCA with 90 % of the variance on the first ten pictures; widths (C + 2z) / 2,
2z, z with batch norm and ReLU (the paper: (C + z) / 2, none); Adam 1e-4, batch 4, 700 epochs (the paper; the code's
default is 150); map = channel mean of the squared error, enlarged with aligned corners, not smoothed; score = its
maximum. Left: pictures are resized bilinearly with antialiasing (theirs: nearest). Enlarging and averaging are one
matrix per axis.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from models.nn.pca import Covariance, principal_components
from models.nn.trained import Trained, TrainedConfig
from models.registry import register

VGG19 = "vgg19.tv_in1k"
RELUS = tuple(f"features.{i}" for i in (1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26))  # relu1_1 to relu4_4


@dataclass(frozen=True, kw_only=True)
class DfrConfig(TrainedConfig):
    """The authors' code; the number of epochs is the paper's."""

    backbone: str = VGG19
    layers: tuple[str, ...] = RELUS
    region: int = 4  # side of a region in pixels
    variance: float = 0.9  # share that z components of the features hold
    epochs: int = 700
    train_batch: int = 4
    lr: float = 1e-4


@register("dfr", presets={
    "paper": DfrConfig(),
    "quick": DfrConfig(backbone=RESNET18, layers=STAGES, size=128, epochs=5, lr=1e-3, shortened=True),
})
class Dfr(Trained):
    """DFR: a convolutional autoencoder of multi-scale regional features, squared error per region"""

    Config = DfrConfig
    config: DfrConfig
    kept = ("latent",)

    def __init__(self, config: DfrConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size % config.region:
            raise ModelError(f"dfr: size={config.size} is not a multiple of region={config.region}")
        self.net = reflected(backbone(config.backbone, config.layers, context.weights, context.device))
        self.latent = 0

    def _build(self, latent: int) -> None:
        self.latent = latent
        self._trained(autoencoder=autoencoder(sum(self.net.channels.values()), latent))

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config = self.config
        self._checked(train)
        features = FrozenFeatures(self.net, self.preprocess, train, self.context.device, self.context.features)
        covariance = Covariance(sum(self.net.channels.values()), self.context.device)
        for i in range(min(10, len(train))):
            found = self._regions(features(torch.tensor([i], device=self.context.device)))
            covariance.add(found.permute(0, 2, 3, 1).flatten(0, 2))
        self._build(len(principal_components(covariance, config.variance).variance))

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            regions = self._regions(features(indices))
            return F.mse_loss(self.trained["autoencoder"](regions), regions)

        log = self._train(step, [Adam(self._parameters(), config.lr)], len(train), progress, key=self.latent)
        return {**log, "latent": self.latent, "variance": float(covariance.matrix.diagonal().mean())}

    def _checked(self, train: Images) -> None:
        if not len(train):
            raise ModelError("dfr: there are no training pictures; check the category's train folder")

    def _regions(self, found: list[Tensor]) -> Tensor:
        return regional(found, self.config.size, self.config.region)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        regions = self._regions(list(self.net(self._seen(batch)).values()))
        error = (self.trained["autoencoder"](regions) - regions).square().mean(1, keepdim=True)
        full = F.interpolate(error, self.preprocess.output, mode="bilinear", align_corners=True)
        return Prediction(full[:, 0], None)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._build(state["latent"])
        super().load_state_dict(state)


def reflected(net: Any) -> Any:
    """The frozen network with reflected borders instead of zeros, and an identity of its own in the feature cache."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = "reflect"
    net.identity = (net.identity[0], f"{net.identity[1]} reflected")
    return net


def regional(found: list[Tensor], size: int, region: int) -> Tensor:
    """Maps [B, C, h, w] enlarged to `size` with aligned corners, averaged over regions, joined: [B, sum C, n, n]."""
    def axis(length: int) -> Tensor:  # [length, n]
        rows = torch.eye(length, device=found[0].device).unsqueeze(0)
        return F.avg_pool1d(F.interpolate(rows, size, mode="linear", align_corners=True), region)[0]

    return torch.cat([axis(m.shape[2]).T @ (m @ axis(m.shape[3])) for m in found], 1)


def autoencoder(channels: int, latent: int) -> nn.Sequential:
    """1x1 convolutions to `latent` values and back; batch norm and ReLU but after the latent and the last one."""
    widths = [channels, (channels + 2 * latent) // 2, 2 * latent, latent]
    widths += widths[-2::-1]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers.append(nn.Conv2d(a, b, 1))
        if i not in (2, 5):
            layers += [nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)
