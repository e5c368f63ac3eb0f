"""SuperSimpleNet (Rolih et al., ICPR 2024) on anomalib's heads and loss; scores are logits, without its sigmoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone
from models.nn.smooth import gaussian_smooth
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class SuperSimpleNetConfig(TrainedConfig):
    """Sec. 4.2 of the paper, unsupervised; the last epoch is kept."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    layers: tuple[str, ...] = ("layer2", "layer3")
    epochs: int = 300
    lr: float = 1e-4  # of the adaptor, twice that of the heads; times 0.4 after 80 % and 90 % of the epochs
    threshold: float = 0.2  # of the Perlin noise


@register("supersimplenet", presets={
    "wrn50": SuperSimpleNetConfig(),
    "resnet18": SuperSimpleNetConfig(backbone="resnet18.tv_in1k"),
    "quick": SuperSimpleNetConfig(backbone="resnet18.tv_in1k", size=128, epochs=6, train_batch=8, shortened=True),
})
class SuperSimpleNet(Trained):
    """SuperSimpleNet: noise in feature space teaches a segmentation and a classification head"""

    Config = SuperSimpleNetConfig
    config: SuperSimpleNetConfig

    def __init__(self, config: SuperSimpleNetConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 128:
            raise ModelError(f"supersimplenet: size={config.size}; its Perlin noise needs maps of 32, so at least 128")
        from anomalib.models.image.supersimplenet import torch_model as parts

        self.net = backbone(config.backbone, config.layers, context.weights, context.device)
        channels = sum(self.net.channels.values())
        self.noise = parts.AnomalyGenerator(0, 0.015, config.threshold)
        self._trained(adaptor=parts.FeatureAdapter(channels),
                      heads=parts.SegmentationDetectionModule(channels, stop_grad=True))

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        maps = list(self.net(x).values())
        size = [2 * side for side in maps[0].shape[-2:]]
        return F.avg_pool2d(torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1), 3, 1, 1)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.supersimplenet.loss import SSNLoss

        pictures, loss, lr = self._pictures(train), SSNLoss(), self.config.lr
        adaptor, heads = self.trained["adaptor"], self.trained["heads"]

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            features = self._features(pictures[indices])
            empty = features.new_zeros(len(features), 1, *features.shape[-2:])
            noised, adapted, masks, labels = self.noise(features, adaptor(features), empty, empty[:, 0, 0, 0])
            maps, scores = heads(seg_features=adapted, cls_features=noised)
            return loss(maps, scores, masks, labels)

        optimizer = AdamW([{"params": adaptor.parameters(), "lr": lr},
                           {"params": heads.parameters(), "lr": 2 * lr, "weight_decay": 1e-5}])
        milestones = [int(self.config.epochs * share) for share in (0.8, 0.9)]
        schedule = MultiStepLR(optimizer, milestones, 0.4)
        return self._train(step, [optimizer], len(train), progress, schedulers=[schedule])

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        features = self._features(self.preprocess(batch, self.context.device))
        adapted = self.trained["adaptor"](features)
        maps, scores = self.trained["heads"](seg_features=adapted, cls_features=features)  # logits, no sigmoid
        full = F.interpolate(maps, self.preprocess.output, mode="bilinear")
        return Prediction(gaussian_smooth(full[:, 0], 4.0), scores)
