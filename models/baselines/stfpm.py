"""STFPM (Wang et al., BMVC 2021): a student learns a frozen teacher's feature pyramid.

Networks and losses are anomalib's, trained by our own loop and scored from their raw output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from models.base import Context, Images, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, backbone, extract
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class StfpmConfig(TrainedConfig):
    """Wang et al., BMVC 2021, Sec. 4.1; the last epoch is kept."""

    backbone: str = RESNET18
    layers: tuple[str, ...] = STAGES
    lr: float = 0.4
    weight_decay: float = 1e-4


@register("stfpm", presets={
    "resnet18": StfpmConfig(),
    "quick": StfpmConfig(epochs=15, train_batch=16, shortened=True),
    "demo": StfpmConfig(size=128, epochs=15, train_batch=8, lr=0.2, shortened=True),
})
class Stfpm(Trained):
    """STFPM: a student matches a frozen teacher's feature pyramid on normal pictures"""

    Config = StfpmConfig
    config: StfpmConfig

    def __init__(self, config: StfpmConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.components import TimmFeatureExtractor

        self.teacher = backbone(config.backbone, config.layers, context.weights, context.device)
        name = config.backbone.partition(".")[0]
        student = TimmFeatureExtractor(name, config.layers, pre_trained=False, requires_grad=True)
        self._trained(student=student)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.stfpm.loss import STFPMLoss

        pictures, loss = self._pictures(train), STFPMLoss()
        cache = self.context.features
        parts = list(extract(self.teacher, self.preprocess, train, self.context.device, cache))
        targets = {layer: torch.cat([part[layer] for part in parts]) for layer in self.teacher.layers}

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            wanted = {layer: maps[indices] for layer, maps in targets.items()}
            # anomalib sums halved errors over the batch; the authors' learning rate belongs to their mean over pictures
            return 2 * loss(wanted, self.trained["student"](pictures[indices])) / len(indices)

        optimizer = SGD(self._parameters(), self.config.lr, momentum=0.9, weight_decay=self.config.weight_decay)
        return self._train(step, [optimizer], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        from anomalib.models.image.stfpm.anomaly_map import AnomalyMapGenerator

        x = self.preprocess(batch, self.context.device)
        maps = AnomalyMapGenerator().compute_anomaly_map(
            self.teacher(x), self.trained["student"](x), self.preprocess.output
        )
        return Prediction(maps[:, 0], None)
