"""Reverse Distillation (Deng & Li, CVPR 2022): a decoder restores a teacher's features from a one-class bottleneck.

Networks and losses are anomalib's, trained by our own loop and scored from their raw output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from models.base import Context, Images, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, WIDE50, backbone
from models.nn.smooth import gaussian_smooth
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class ReverseDistillationConfig(TrainedConfig):
    """Deng & Li, CVPR 2022, Sec. 4.1; the last epoch is kept."""

    backbone: str = WIDE50
    epochs: int = 200
    train_batch: int = 16
    lr: float = 0.005
    sigma: float = 4.0


@register("reverse_distillation", presets={
    "wrn50": ReverseDistillationConfig(),
    "resnet18": ReverseDistillationConfig(backbone=RESNET18),
    "quick": ReverseDistillationConfig(backbone=RESNET18, epochs=10, shortened=True),
})
class ReverseDistillation(Trained):
    """Reverse Distillation: a decoder restores a teacher's features from a one-class bottleneck"""

    Config = ReverseDistillationConfig
    config: ReverseDistillationConfig

    def __init__(self, config: ReverseDistillationConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.components.backbone import get_decoder
        from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer

        self.teacher = backbone(config.backbone, STAGES, context.weights, context.device)
        name = config.backbone.partition(".")[0]
        self._trained(bottleneck=get_bottleneck_layer(name), decoder=get_decoder(name))

    def _pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad():
            teacher = list(self.teacher(x).values())
        return teacher, self.trained["decoder"](self.trained["bottleneck"](teacher))

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

        pictures, loss = self._pictures(train), ReverseDistillationLoss()

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            return loss(*self._pairs(pictures[indices]))

        return self._train(step, [Adam(self._parameters(), self.config.lr, (0.5, 0.999))], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        pairs = zip(*self._pairs(self.preprocess(batch, self.context.device)), strict=True)
        distances = [1 - F.cosine_similarity(teacher, student).unsqueeze(1) for teacher, student in pairs]
        full = [F.interpolate(d, self.preprocess.output, mode="bilinear", align_corners=True) for d in distances]
        return Prediction(gaussian_smooth(torch.stack(full).sum(0)[:, 0], self.config.sigma), None)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """Squared differences of teacher and student, one map per stage [B, C, h, w]."""
        pairs = zip(*self._pairs(self.preprocess(batch, self.context.device)), strict=True)
        return [(F.normalize(teacher) - F.normalize(student)).square() for teacher, student in pairs]
