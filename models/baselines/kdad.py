"""KDAD, also MKD (Salehi et al., CVPR 2021, arXiv 2011.11108): a small cloner learns a network's critical layers.

L = L_val + lambda L_dir over the outputs of VGG-16's last four poolings: the mean squared difference, and 1 - cosine of
the flattened maps. Image score = L. Map = |gradient of L with respect to the picture|, summed over colours, Gaussian of
sigma 4, then an opening by a 3x3 ellipse (a cross). Compared with the authors' code
(rohban-lab/Knowledge_Distillation_AD at 5e9f615 and 0dbc8c0). The same: 128 px, no normalisation; cloner of 16-channel
convolutions whose last one before a pooling has the source's width, batch norm and ReLU but there, no biases, Xavier
start; Adam 1e-3, batch 64, 601 epochs. Where the two differ the paper is followed: the code weights L_val by 0.5
instead of L_dir by lambda and leaves the first critical layer out at test; it clips maps at the 99th percentile, scales
each to [0, 1] and opens thresholded maps; its default is guided backpropagation (the paper's table has plain gradients
first). The paper's lambda makes both terms equal on the untrained cloner: measured on the first batch. Left: figures
are of the last epoch (the paper: mean over checkpoints; the code prints test figures every 10 epochs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, backbone
from models.frozen import FrozenFeatures
from models.nn.smooth import gaussian_smooth
from models.nn.trained import Trained, TrainedConfig
from models.registry import register

POOL = 0  # in a list of widths


@dataclass(frozen=True, kw_only=True)
class KdadConfig(TrainedConfig):
    """The paper and the authors' code."""

    backbone: str = "vgg16.tv_in1k"
    layers: tuple[str, ...] = ("features.9", "features.16", "features.23", "features.30")  # poolings 2 to 5
    cloner: tuple[int, ...] = (16, 16, POOL, 16, 128, POOL, 16, 16, 256, POOL, 16, 16, 512, POOL, 16, 16, 512, POOL)
    size: int = 128
    epochs: int = 601
    train_batch: int = 64
    sigma: float = 4.0


@register("kdad", presets={
    "paper": KdadConfig(),
    "quick": KdadConfig(
        backbone=RESNET18, layers=STAGES, cloner=(16, 16, POOL, 16, 64, POOL, 16, 16, 128, POOL, 16, 16, 256, POOL),
        epochs=10, train_batch=8, shortened=True,
    ),
})
class Kdad(Trained):
    """KDAD (MKD): a small cloner learns a network's critical layers, map from the loss's gradient"""

    Config = KdadConfig
    config: KdadConfig
    normalise = False
    kept = ("weight",)

    def __init__(self, config: KdadConfig, context: Context) -> None:
        super().__init__(config, context)
        self.source = backbone(config.backbone, config.layers, context.weights, context.device)
        pools = config.cloner.count(POOL)
        if pools < len(config.layers):
            raise ModelError(f"kdad: cloner has {pools} poolings, but there are {len(config.layers)} critical layers")
        self.weight = 1.0
        self._trained(cloner=Cloner(config.cloner, len(config.layers)))

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        pictures = self._pictures(train)
        source = FrozenFeatures(self.source, self.preprocess, train, self.context.device, self.context.features)
        cloner = self.trained["cloner"]
        first = torch.arange(min(self.config.train_batch, len(train)), device=self.context.device)
        with torch.no_grad():
            cloner.train()
            values, directions = terms(source(first), cloner(pictures[first]))
            cloner.eval()
        self.weight = float(values.mean() / directions.mean())

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            values, directions = terms(source(indices), cloner(pictures[indices]))
            return {"loss": (values + self.weight * directions).mean(), "direction": directions.mean()}

        log = self._train(step, [Adam(self._parameters(), self.config.lr)], len(train), progress)
        return {**log, "lambda": self.weight}

    def predict(self, batch: Images) -> Prediction:
        with torch.inference_mode(False), torch.enable_grad():
            x = self._seen(batch).clone().requires_grad_()
            values, directions = terms(list(self.source(x).values()), self.trained["cloner"](x))
            score = values + self.weight * directions
            (gradient,) = torch.autograd.grad(score.sum(), x)
        maps = gaussian_smooth(gradient.abs().sum(1), self.config.sigma, "reflect")
        return Prediction(opened(maps), score.detach())


class Cloner(nn.Module):
    """3x3 convolutions of the given widths; gives the outputs of its last `outputs` poolings."""

    def __init__(self, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.stages, self.outputs, stage, before = nn.ModuleList(), outputs, [], 3
        for width, following in zip(widths, (*widths[1:], POOL), strict=True):
            if width == POOL:
                self.stages.append(nn.Sequential(*stage, nn.MaxPool2d(2)))
                stage = []
                continue
            conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
            nn.init.xavier_uniform_(conv.weight)
            stage += [conv] if following == POOL else [conv, nn.BatchNorm2d(width), nn.ReLU()]
            before = width

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x := stage(x) for stage in self.stages][-self.outputs :]


def terms(source: list[Tensor], cloner: list[Tensor]) -> tuple[Tensor, Tensor]:
    """L_val and L_dir of each picture, [B]: summed over the critical layers [B, C, h, w]."""
    pairs = [(s.flatten(1), c.flatten(1)) for s, c in zip(source, cloner, strict=True)]
    values = torch.stack([(s - c).square().mean(1) for s, c in pairs]).sum(0)
    return values, torch.stack([1 - F.cosine_similarity(s, c) for s, c in pairs]).sum(0)


def opened(maps: Tensor) -> Tensor:
    """Grey opening of maps [B, h, w] by a cross of 3x3 pixels: least, then largest of a pixel and its 4 neighbours."""
    def largest(x: Tensor) -> Tensor:
        tall, wide = F.max_pool2d(x, (3, 1), 1, (1, 0)), F.max_pool2d(x, (1, 3), 1, (0, 1))
        return tall.maximum(wide)

    return largest(-largest(-maps.unsqueeze(1)))[:, 0]
