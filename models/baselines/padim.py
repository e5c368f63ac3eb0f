"""PaDiM (Defard et al., ICPR 2020): one Gaussian per position over random dimensions of three stages.

The authors published no code; compared with the one whose figures are quoted (xiahaifeng1995/PaDiM at 0488159),
equal: random dimensions, deeper stages brought to the first one's grid by repeating the nearest value, unbiased
covariance plus 0.01, Mahalanobis distance, bilinear upsampling, Gaussian of sigma 4 with reflected borders, image
score = maximum of the map. Other: both sides are resized (theirs the shorter one); another 0.00001 on the covariance,
as anomalib has it, whose Gaussians these are without the seconds that its import takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone, extract
from models.nn.preprocess import Preprocess
from models.nn.smooth import gaussian_smooth
from models.nn.training import generator
from models.registry import register

BLOCK = 256 << 20  # bytes of covariances that are inverted at a time
EPSILON = 0.01 + 1e-5  # on the covariance's diagonal: the paper's (Eq. 1), and what anomalib adds


@dataclass(frozen=True, kw_only=True)
class PadimConfig(Config):
    """Sec. IV of the paper."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    size: int = 256
    crop: int | None = 224
    dimensions: int = 550  # random dimensions kept: 550 for Wide-ResNet-50, 100 for ResNet-18
    sigma: float = 4.0


@register("padim", presets={
    "wrn50": PadimConfig(),
    "resnet18": PadimConfig(backbone="resnet18.tv_in1k", crop=None, dimensions=100),
    "demo": PadimConfig(backbone="resnet18.tv_in1k", size=128, crop=None, dimensions=50, shortened=True),
})
class Padim(Detector):
    """PaDiM: one Gaussian per position over embeddings of three stages, Mahalanobis distance"""

    Config = PadimConfig
    config: PadimConfig

    def __init__(self, config: PadimConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), (config.crop, config.crop) if config.crop else None)
        self.net = backbone(config.backbone, config.layers, context.weights, context.device)
        total = sum(self.net.channels.values())
        if not 0 < config.dimensions <= total:
            raise ModelError(f"padim: dimensions={config.dimensions}; {config.backbone} has {total} in {config.layers}")
        order = torch.randperm(total, generator=generator(context, "dimensions"))
        self._keep(order[: config.dimensions])
        self.mean = self.inverse = torch.empty(0)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> None:
        if len(train) < 2:
            raise ModelError("padim needs at least 2 training pictures: the covariance of one is undefined")
        every, done = torch.empty(0), 0
        for part in self._embeddings(train):
            if not len(every):
                every = part.new_empty(len(train), *part.shape[1:])
            every[done : done + len(part)] = part
            progress(done := done + len(part), len(train) + 1)
        channels, height, width = every.shape[1:]
        self.mean = every.new_empty(channels, height * width)
        self.inverse = every.new_empty(height * width, channels, channels)
        rows = max(1, BLOCK // (4 * channels**2 * width))
        for y in range(0, height, rows):
            places = slice(y * width, (y + rows) * width)
            self.mean[:, places], self.inverse[places] = gaussians(every[:, :, y : y + rows].flatten(2))
        progress(len(train) + 1, len(train) + 1)

    def predict(self, batch: Images) -> Prediction:
        maps = []
        for x in self._embeddings(batch):
            b, _, h, w = x.shape
            delta = (x.flatten(2) - self.mean).permute(2, 0, 1)  # [h * w, b, dimensions]
            distance = ((delta @ self.inverse) * delta).sum(2).clamp_min(0).sqrt().T.reshape(b, 1, h, w)
            full = F.interpolate(distance, self.preprocess.output, mode="bilinear", align_corners=False)
            maps.append(gaussian_smooth(full[:, 0], self.config.sigma, "reflect"))
        return Prediction(torch.cat(maps), None)

    def _embeddings(self, images: Images) -> Any:
        """The kept dimensions in their order, a chunk of pictures at a time; those left out are not brought to size."""
        for features in extract(self.net, self.preprocess, images, self.context.device, self.context.features):
            first, *rest = (features[layer][:, own] for layer, own in zip(self.net.layers, self.own, strict=True))
            yield torch.cat([first, *(F.interpolate(m, first.shape[-2:]) for m in rest)], 1)[:, self.places]

    def _keep(self, kept: Tensor) -> None:
        """Remember the dimensions that are kept, each stage's own, and where these stand when stages are joined."""
        edges = torch.tensor([0, *self.net.channels.values()]).cumsum(0).tolist()
        stages = [((kept >= low) & (kept < high)).nonzero()[:, 0] for low, high in itertools.pairwise(edges)]
        device = self.context.device
        self.kept, self.places = kept.to(device), torch.cat(stages).argsort().to(device)
        self.own = [(kept[stage] - low).to(device) for stage, low in zip(stages, edges, strict=False)]

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "mean": self.mean, "inverse": self.inverse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._keep(state["kept"].cpu())
        self.mean, self.inverse = (state[k].to(self.context.device) for k in ("mean", "inverse"))


def gaussians(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C, P] and inverse covariance [P, C, C] of embeddings [N, C, P] of N pictures at P positions (Eq. 1)."""
    mean = embeddings.mean(0)
    centred = (embeddings - mean).permute(2, 1, 0)
    covariance = centred @ centred.mT / (len(embeddings) - 1)
    covariance.diagonal(dim1=1, dim2=2).add_(EPSILON)
    return mean, torch.linalg.inv(covariance)
