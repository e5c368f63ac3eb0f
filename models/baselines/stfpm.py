"""STFPM (Wang et al., BMVC 2021): a student learns a frozen teacher's feature pyramid.

Compared with the authors' code (gdwang08/STFPM, main.py at 3bc63bb). The same: torchvision's ResNet with its initial
weights as the student (timm's zeroes the last batch norm of every block), loss = sum over stages of the mean squared
distance of normalised features, SGD 0.4 with momentum 0.9 and decay 1e-4, batch 32, 100 epochs, 20 % of the pictures
held out and the epoch kept whose maps on them are lowest; map = product of the stages' squared distances at the first
stage's size, upsampled; score = its maximum. Left: the unit's seed chooses the held-out pictures; the last
stage of the student, which they build but neither train nor read, is not built. The teacher runs once per picture.
anomalib sums halved errors over the batch (16 times the loss at batch 32), learns all pictures, keeps the last epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, backbone
from models.frozen import FrozenFeatures
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import Best, split
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class StfpmConfig(TrainedConfig):
    """Wang et al., BMVC 2021, Sec. 4.1 and the authors' code."""

    backbone: str = RESNET18
    layers: tuple[str, ...] = STAGES
    lr: float = 0.4
    weight_decay: float = 1e-4
    held_out: float = 0.2  # share of the training pictures that choose the epoch


@register("stfpm", presets={
    "resnet18": StfpmConfig(),
    "quick": StfpmConfig(epochs=8, train_batch=8, shortened=True),
    "demo": StfpmConfig(size=128, epochs=15, train_batch=8, lr=0.2, shortened=True),
})
class Stfpm(Trained):
    """STFPM: a student matches a frozen teacher's feature pyramid on normal pictures"""

    Config = StfpmConfig
    config: StfpmConfig
    channels_last = True

    def __init__(self, config: StfpmConfig, context: Context) -> None:
        super().__init__(config, context)
        from torchvision.models import get_model, list_models
        from torchvision.models.feature_extraction import create_feature_extractor

        name = config.backbone.partition(".")[0]
        if name not in list_models():
            raise ModelError(f"stfpm: backbone={config.backbone!r}: the student needs a network of torchvision's")
        self.teacher = backbone(config.backbone, config.layers, context.weights, context.device)
        self._trained(student=create_feature_extractor(get_model(name, weights=None), list(self.teacher.layers)))

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, pictures = self.config, self._pictures(train)
        teacher = FrozenFeatures(self.teacher, self.preprocess, train, self.context.device, self.context.features)
        chosen, held = split(len(train), config.held_out, self.context)
        learn = torch.tensor(chosen, device=self.context.device)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            return pyramid_loss(teacher(learn[indices]), self._student(pictures[learn[indices]]))

        def validate() -> float:
            held_out = torch.tensor(held, device=self.context.device).split(config.batch)
            parts = [product_map(teacher(indices), self._student(pictures[indices])) for indices in held_out]
            return float(torch.cat(parts).mean())

        optimizer = SGD(self._parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay)
        log = self._train(
            step, [optimizer], len(chosen), progress, validate=validate, stop=Best(patience=config.epochs)
        )
        return {**log, "held_out": len(held)}

    def _student(self, x: Tensor) -> list[Tensor]:
        return list(self.trained["student"](x).values())

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x = self._seen(batch)
        maps = product_map(list(self.teacher(x).values()), self._student(x)).unsqueeze(1)
        return Prediction(F.interpolate(maps, self.preprocess.output, mode="bilinear", align_corners=False)[:, 0], None)


def _squared(teacher: list[Tensor], student: list[Tensor]) -> list[Tensor]:
    """Per stage the squared distance of the features normalised at each position, [B, 1, h, w]."""
    return [(F.normalize(t) - F.normalize(s)).square().sum(1, keepdim=True)
            for t, s in zip(teacher, student, strict=True)]


def pyramid_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Sum over stages of the mean squared distance (Eq. 1 and 2, without the halves of Eq. 1, as the code has it)."""
    return torch.stack([distance.mean() for distance in _squared(teacher, student)]).sum()


def product_map(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Eq. 4: product over stages of the squared distances at the first stage's size, [B, h, w]."""
    maps = _squared(teacher, student)
    full = [F.interpolate(m, maps[0].shape[-2:], mode="bilinear", align_corners=False) for m in maps]
    return torch.stack(full).prod(0)[:, 0]
