"""Reverse Distillation (Deng & Li, CVPR 2022): a decoder restores a teacher's features from a one-class bottleneck.

Compared with the authors' code (hq-deng/RD4AD, main.py at d773d36). The same: teacher, bottleneck (of a wide ResNet as
wide as its blocks, 67.3 M parameters) and decoder with their initial weights (layers from anomalib), loss (Eq. 2 as the
code has it: one cosine over a picture's whole map per stage, not one per position), Adam 0.005 with betas 0.5 and
0.999, batch 16, 200 epochs, last epoch; map = sum of 1 - cosine over the stages, upsampled with aligned corners and
smoothed with SciPy's Gaussian of sigma 4; score = its maximum. Left: the teacher runs once per picture, not in every
epoch, for its features do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, WIDE50, backbone
from models.frozen import FrozenFeatures
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
    cut: Literal["difference", "student"] = "difference"  # what `feature_maps` gives to an ensemble


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
        bottleneck, decoder = networks(config.backbone)
        self.teacher = backbone(config.backbone, STAGES, context.weights, context.device)
        self._trained(bottleneck=bottleneck, decoder=decoder)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        teacher = FrozenFeatures(self.teacher, self.preprocess, train, self.context.device, self.context.features)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            wanted = teacher(indices)
            return cosine_loss(wanted, self._student(wanted))

        return self._train(step, [Adam(self._parameters(), self.config.lr, (0.5, 0.999))], len(train), progress)

    def _student(self, teacher: list[Tensor]) -> list[Tensor]:
        return self.trained["decoder"](self.trained["bottleneck"](teacher))

    def _pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        teacher = list(self.teacher(x).values())
        return teacher, self._student(teacher)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        maps = distances(*self._pairs(self.preprocess(batch, self.context.device)), self.preprocess.output)
        return Prediction(gaussian_smooth(maps, self.config.sigma, "reflect"), None)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """One map per stage [B, C, h, w]: teacher less student, both normalised per position, or the student alone."""
        pairs = zip(*self._pairs(self.preprocess(batch, self.context.device)), strict=True)
        student_only = self.config.cut == "student"
        return [F.normalize(s) if student_only else F.normalize(t) - F.normalize(s) for t, s in pairs]


def networks(tag: str) -> tuple[nn.Module, nn.Module]:
    """Bottleneck and decoder for the backbone of a tag. Raises ModelError when it is not a ResNet."""
    from anomalib.models.components.backbone import get_decoder
    from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer

    name = tag.partition(".")[0]
    width = 128 if name.startswith("wide_") else 64  # anomalib leaves the bottleneck's at 64
    try:
        return get_bottleneck_layer(name, width_per_group=width), get_decoder(name)
    except ValueError as error:
        raise ModelError(f"reverse_distillation: backbone={tag!r}: use a ResNet; {error}") from error


def cosine_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Sum over stages of 1 - cosine of the flattened maps [B, C, h, w], mean over pictures."""
    pairs = zip(teacher, student, strict=True)
    return torch.stack([(1 - F.cosine_similarity(t.flatten(1), s.flatten(1))).mean() for t, s in pairs]).sum()


def distances(teacher: list[Tensor], student: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum over stages of 1 - cosine at each position, upsampled to `size`: [B, H, W]."""
    parts = [1 - F.cosine_similarity(t, s).unsqueeze(1) for t, s in zip(teacher, student, strict=True)]
    return sum(F.interpolate(part, size, mode="bilinear", align_corners=True) for part in parts)[:, 0]
