"""GCPF (Wan et al., IEEE Trans. Ind. Electron. 2022): Gaussian clusters of pretrained features.

Features of every position of a stage are clustered into K = 10 Gaussians; a position's anomaly is the least Mahalanobis
distance to one of them, and the stages' maps are averaged. Compared with the authors' code (smiler96/GCPF at 67e2345);
the paper itself could not be read. The same: Wide-ResNet-50-2, 256 px and crop 224, stages 1 to 3 apart; k-means from
drawn vectors, then positions are given to the nearest cluster by Mahalanobis distance (no determinant, no weights) and
means and Ledoit-Wolf covariances are computed anew, until both have moved by less than 0.1 together; bilinear
upsampling, Gaussian of sigma 4; score = maximum. Left: theirs never gives the last vector to another cluster (a slice
too short) and falls back to plain k-means on any error; an empty cluster keeps its Gaussian here.
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
from models.nn.clusters import BLOCK, k_means
from models.nn.preprocess import Preprocess
from models.nn.smooth import gaussian_smooth
from models.nn.training import generator
from models.registry import register

MOVED = 0.1  # sum of the shifts below which clustering ends


@dataclass(frozen=True, kw_only=True)
class GcpfConfig(Config):
    """The authors' code."""

    backbone: str = WIDE50
    layers: tuple[str, ...] = STAGES
    size: int = 256
    crop: int | None = 224
    clusters: int = 10
    rounds: int = 1000  # of k-means, and again of the Gaussians, at most
    sigma: float = 4.0


@register("gcpf", presets={
    "wrn50": GcpfConfig(),
    "quick": GcpfConfig(backbone=RESNET18, size=128, crop=None, rounds=10, sigma=2.0, shortened=True),
})
class Gcpf(Detector):
    """GCPF: Gaussian clusters of pretrained features, least Mahalanobis distance per stage"""

    Config = GcpfConfig
    config: GcpfConfig

    def __init__(self, config: GcpfConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), (config.crop, config.crop) if config.crop else None)
        self.net = backbone(config.backbone, config.layers, context.weights, context.device)
        self.means: dict[str, Tensor] = {}  # layer -> [K, C]
        self.whiten: dict[str, Tensor] = {}  # layer -> [K, C, C], W with |W^T d| the distance of a difference d

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, rounds, last = self.config, {}, {}
        total = len(config.layers) * (len(train) + 1)
        for i, layer in enumerate(config.layers):
            done, parts = 0, []
            for features in extract(self.net, self.preprocess, train, self.context.device, self.context.features):
                parts.append(features[layer].permute(0, 2, 3, 1).flatten(0, 2))
                progress(i * (len(train) + 1) + (done := done + len(features[layer])), total)
            vectors = torch.cat(parts) if parts else torch.empty(0, 1)
            if len(vectors) <= config.clusters:
                raise ModelError(f"gcpf: {len(vectors)} positions in {len(train)} training pictures are too few for "
                                 f"{config.clusters} clusters; add pictures to the category's train folder")
            if not torch.isfinite(vectors.sum()):
                raise ModelError(f"gcpf: features of {config.backbone} are not finite; check its weights")
            drawn = torch.randperm(len(vectors), generator=generator(self.context, layer))[: config.clusters]
            start = vectors[drawn.to(vectors.device)]
            self.means[layer], self.whiten[layer], rounds[layer], last[layer] = clustered(vectors, start, config.rounds)
            progress((i + 1) * (len(train) + 1), total)
        return {"gaussian_rounds": rounds, "last_shift": last}

    def predict(self, batch: Images) -> Prediction:
        maps, layers = [], self.config.layers
        for features in self._features(batch):
            parts = []
            for layer in layers:
                b, _, h, w = features[layer].shape
                rows = features[layer].permute(0, 2, 3, 1).flatten(0, 2)
                least = nearest(rows, self.means[layer], self.whiten[layer])[0].view(b, 1, h, w)
                parts.append(F.interpolate(least, self.preprocess.output, mode="bilinear", align_corners=False)[:, 0])
            maps.append(gaussian_smooth(torch.stack(parts).mean(0), self.config.sigma, "reflect"))
        return Prediction(torch.cat(maps), None)

    def _features(self, images: Images) -> Iterator[dict[str, Tensor]]:
        return extract(self.net, self.preprocess, images, self.context.device, self.context.features)

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means, "whiten": self.whiten}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("means", "whiten"):
            setattr(self, name, {layer: values.to(self.context.device) for layer, values in state[name].items()})


def clustered(x: Tensor, means: Tensor, rounds: int) -> tuple[Tensor, Tensor, int, float]:
    """Vectors [N, C] from the means [K, C]: means, whitening [K, C, C], rounds of the Gaussians, and their last shift.

    k-means first; the shift of a round is the norm of all means' (and covariances') change.
    """
    means, own = k_means(x, means, rounds, MOVED)
    covariances = torch.eye(x.shape[1], device=x.device).repeat(len(means), 1, 1)
    for done in range(rounds + 1):
        pairs = [ledoit_wolf(x[own == k]) if (own == k).sum() > 1 else (means[k], covariances[k])
                 for k in range(len(means))]
        after, shapes = (torch.stack(values) for values in zip(*pairs, strict=True))
        moved = float((after - means).norm() + (shapes - covariances).norm())
        means, covariances = after, shapes
        whiten = torch.linalg.cholesky(torch.linalg.inv(covariances.double())).float()
        if moved < MOVED or done == rounds:
            break
        own = nearest(x, means, whiten)[1]
    return means, whiten, done, moved


def nearest(x: Tensor, means: Tensor, whiten: Tensor) -> tuple[Tensor, Tensor]:
    """Least Mahalanobis distance of each vector [N, C], float32 [N], and whose it is, int64 [N]."""
    found = [torch.stack([((p - m) @ w).norm(dim=1) for m, w in zip(means, whiten, strict=True)], 1).min(1)
             for p in x.split(BLOCK)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def ledoit_wolf(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C] of vectors [n, C], shrunk towards a multiple of one (Ledoit & Wolf 2004)."""
    mean, (count, channels) = x.mean(0), x.shape
    delta = x - mean
    sample = delta.T @ delta / count
    mu = sample.diagonal().mean()
    away = (sample - mu * torch.eye(channels, device=x.device)).square().sum()
    noise = (delta.square().sum(1).square().sum() / count - sample.square().sum()) / count
    share = (noise.clamp_min(0).minimum(away) / away.clamp_min(1e-30)).clamp(0, 1)
    return mean, (1 - share) * sample + share * mu * torch.eye(channels, device=x.device)
