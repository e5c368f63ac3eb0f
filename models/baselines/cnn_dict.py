"""CNN_Dict (Napoletano et al., Sensors 2018, as Bergmann et al., CVPR 2019, run it): patches against a dictionary.

Patches (16x16 px; 65x65 in the authors' paper of 2020, App. C: preset `p65`) are described by the pooled last stage of
ResNet-18, reduced by a PCA to 95 % of their variance, and clustered by k-means; the dictionary is the descriptor
nearest to each of the 10 centres. A patch's anomaly is its distance to the dictionary; a pixel's the mean over the
patches on it, every 4 px; objects have 256, textures 512 px. Neither paper came with code, and MVTec AD's figures are
from Bergmann's own implementation; compared with another's (shikharmn/CNN-Feature-Dictionary at eb5e863, which differs
from the recipe: ResNeXt-101, descriptors standardised, squared distances to the 3 nearest entries). From the recipe:
all of the above. Not public, and chosen here: the distance is to the nearest entry (`nearest`); the components are not
scaled after the PCA; a patch is enlarged to the 224 px of ResNet's training and normalised as ImageNet's pictures;
k-means starts from drawn descriptors; 10,000 patches at random places, neither turned nor mirrored (the recipe
augments); score = the map's maximum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, backbone
from models.nn.clusters import k_means
from models.nn.memory import in_parts
from models.nn.neighbours import knn
from models.nn.patch_encoder import spread_over
from models.nn.pca import Covariance, principal_components
from models.nn.preprocess import Preprocess
from models.nn.training import generator
from models.registry import register

AT_ONCE = 256  # patches per pass
ROUNDS, MOVED = 300, 1e-4  # of k-means


@dataclass(frozen=True, kw_only=True)
class CnnDictConfig(Config):
    """Bergmann et al., CVPR 2019, Sec. 4.1.3."""

    backbone: str = RESNET18
    layer: str = "layer4"
    size: int = 256
    patch: int = 16
    stride: int = 4
    input: int = 224  # side that a patch is enlarged to
    samples: int = 10_000  # training patches
    variance: float = 0.95  # share that the PCA keeps
    centres: int = 10
    nearest: int = 1  # entries of the dictionary whose distances are averaged


@register("cnn_dict", presets={
    "objects": CnnDictConfig(),
    "textures": CnnDictConfig(size=512),
    "p65": CnnDictConfig(patch=65),
    "quick": CnnDictConfig(layer="layer3", size=128, stride=8, input=32, samples=2000, shortened=True),
})
class CnnDict(Detector):
    """CNN_Dict (Bergmann's recipe): distance of pretrained patch descriptors to a dictionary of ten"""

    Config = CnnDictConfig
    config: CnnDictConfig

    def __init__(self, config: CnnDictConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.patch > config.size:
            raise ModelError(f"cnn_dict: size={config.size} must be at least the patch's {config.patch} px")
        self.preprocess = Preprocess((config.size, config.size))
        self.net = backbone(config.backbone, (config.layer,), context.weights, context.device)
        self.mean = self.directions = self.dictionary = torch.empty(0)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, device, parts = self.config, self.context.device, []
        places = generator(self.context, "places", device)
        for i in range(len(train)):
            # samples are dealt evenly to the pictures, the remainder to the first
            count = config.samples // len(train) + (i < config.samples % len(train))
            windows = self._windows(self.preprocess([train[i]], device), 1)[0]
            top, left = torch.randint(windows.shape[1], (2, count), generator=places, device=device)
            parts.append(self._described(windows[:, top, left].transpose(0, 1)))
            progress(i + 1, len(train))
        found = torch.cat(parts) if parts else torch.empty(0, 1)
        if len(found) <= config.centres:
            raise ModelError(f"cnn_dict: {len(found)} patches of {len(train)} training pictures are too few for "
                             f"{config.centres} centres; add pictures to the category's train folder")
        covariance = Covariance(found.shape[1], device)
        covariance.add(found)
        components = principal_components(covariance, config.variance)
        self.mean, self.directions = components.mean.float(), components.directions.float()
        rows = self._reduced(found)
        drawn = torch.randperm(len(rows), generator=generator(self.context, "centres"))[: config.centres]
        centres, own = k_means(rows, rows[drawn.to(device)], ROUNDS, MOVED)
        self.dictionary = rows[knn(centres, rows)[1][:, 0]]
        sizes = torch.bincount(own, minlength=config.centres).tolist()
        return {"components": len(self.directions), "explained": components.explained, "cluster_sizes": sizes}

    def predict(self, batch: Images) -> Prediction:
        maps = []
        for picture in batch:
            grid = self._windows(self.preprocess([picture], self.context.device), self.config.stride)[0]
            rows = self._reduced(self._described(grid.permute(1, 2, 0, 3, 4).flatten(0, 1)))
            distances = knn(rows, self.dictionary, self.config.nearest)[0].mean(1).view(1, *grid.shape[1:3])
            reached = (len(grid[0]) - 1) * self.config.stride + self.config.patch
            means = spread_over(distances, self.config.patch, self.config.stride, reached).unsqueeze(1)
            left = self.config.size - reached  # lines that no patch reaches take the last one's values
            maps.append(F.pad(means, (0, left, 0, left), mode="replicate")[:, 0])
        return Prediction(torch.cat(maps), None)

    def _windows(self, x: Tensor, stride: int) -> Tensor:
        """All patches of pictures [B, 3, s, s] every `stride` px, without a copy: [B, 3, n, n, p, p]."""
        return x.unfold(2, self.config.patch, stride).unfold(3, self.config.patch, stride)

    def _described(self, patches: Tensor) -> Tensor:
        """Mean of the last stage over its places, for patches [N, 3, p, p]: float32 [N, D]."""
        def some(part: Tensor) -> Tensor:
            large = F.interpolate(part, (self.config.input, self.config.input), mode="bilinear", align_corners=False)
            return self.net(large)[self.config.layer].mean((2, 3))

        with torch.no_grad():
            return torch.cat(in_parts(some, patches, AT_ONCE, "patches are described"))

    def _reduced(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.directions.T

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "directions": self.directions, "dictionary": self.dictionary}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("mean", "directions", "dictionary"):
            setattr(self, name, state[name].to(self.context.device))
