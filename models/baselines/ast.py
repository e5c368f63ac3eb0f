"""AST (Rudolph et al., WACV 2023): a normalising flow as teacher, a plain network as student, on frozen features.

RGB only. Teacher Sec. 3.1, student 3.2, likelihood Eq. 3, distance Eq. 4; settings for MVTec AD Sec.
4.2.3 and 4.2.4, known at second hand.

Compared with the authors' code (marco-rudolph/AST at de57741, set up for MVTec 3D-AD), equal with copied weights:
networks, encoding, both losses, distance, bicubic map. Other, by the paper's settings for MVTec AD: 1024 instead of 64
hidden channels, alpha 3 instead of 1.9, slope 0.2 instead of 0.01, 240 epochs instead of 72; and by us: the last,
smaller batch of an epoch is used too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone, extract
from models.nn.ast_networks import Student, Teacher
from models.nn.preprocess import Preprocess
from models.nn.training import key_of
from models.nn.training import train as fit_network
from models.registry import register

UPSAMPLE = 8  # the authors' code raises the maps from 24 to 192 positions per side, bicubic
SMALL = {"teacher_channels": 64, "student_channels": 128, "shortened": True}


@dataclass(frozen=True, kw_only=True)
class AstConfig(Config):
    """Sec. 4.2 of the paper."""

    backbone: str = "tf_efficientnet_b5.aa_in1k"  # the weights that the authors' library loads
    layer: str = "blocks.5"  # the 36th block of EfficientNet-B5: 304 channels at 1/32
    size: int = 768  # px
    positions: int = 32  # channels of the positional encoding (Sec. 3.1); 0 for none
    coupling_blocks: int = 4  # of the teacher
    teacher_channels: int = 1024  # hidden channels of the teacher's subnetworks (MVTec AD, Sec. 4.2.3)
    clamp: float = 3.0  # alpha of the soft clamping (MVTec AD, Sec. 4.2.3)
    residual_blocks: int = 4  # of the student
    student_channels: int = 1024
    slope: float = 0.2  # of the student's leaky ReLU (Sec. 4.2.4)
    epochs: int = 240  # of the teacher, and as many of the student (MVTec AD, Sec. 4.2.3)
    train_batch: int = 8
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    score: Literal["mean", "max"] = "mean"  # over the map; the mean where only RGB is given (Sec. 4.2.4)
    cut: Literal["student", "difference", "teacher"] = "student"  # what `feature_maps` gives to an ensemble


@register("ast", presets={
    "paper": AstConfig(),
    "quick": AstConfig(backbone="resnet18.tv_in1k", layer="layer3", size=256, epochs=10, **SMALL),
    "tiny": AstConfig(backbone="resnet18.tv_in1k", layer="layer2", size=128, positions=8, coupling_blocks=2,
                      residual_blocks=1, epochs=8, teacher_channels=16, student_channels=32, shortened=True),
})
class Ast(Detector):
    """Distance of a convolutional student to a normalising-flow teacher."""

    Config = AstConfig
    config: AstConfig

    def __init__(self, config: AstConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.positions % 4:
            raise ModelError(f"ast: positions={config.positions} must be a multiple of 4 (sine and cosine on two axes)")
        self.preprocess = Preprocess((config.size, config.size))
        self.backbone = backbone(config.backbone, [config.layer], context.weights, context.device)
        channels = self.backbone.channels[config.layer]
        self.teacher = Teacher(channels, config).to(context.device).eval()
        self.student = Student(channels, config).to(context.device).eval()

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Teacher by maximum likelihood, then the student against it (Sec. 3); `loss` in the log is the student's."""
        if not len(train):
            raise ModelError("ast: there are no training pictures; check the category's train folder")
        features = torch.cat([
            found[self.config.layer]
            for found in extract(self.backbone, self.preprocess, train, self.context.device, self.context.features)
        ])
        teacher = self._train(
            "teacher", self.teacher, len(features), lambda index: flow_loss(*self.teacher(features[index])),
            lambda done, total, /, **values: progress(done, 2 * total, **values),
        )
        self.teacher.requires_grad_(False)
        with torch.no_grad():
            targets = torch.cat([self.teacher(x)[0] for x in features.split(self.config.train_batch)])
        student = self._train(
            "student", self.student, len(features),
            lambda index: distance(targets[index], self.student(features[index])).mean(),
            lambda done, total, /, **values: progress(total + done, 2 * total, **values),
        )
        of_teacher = {f"teacher_{name}": teacher[name] for name in ("loss", "resumed_after_epoch") if name in teacher}
        return {**student, **of_teacher, "grid": list(features.shape[-2:])}

    def _train(
        self, name: str, net: nn.Module, count: int, loss: Callable[[Tensor], Tensor], progress: Progress
    ) -> dict[str, Any]:
        config, scratch = self.config, self.context.scratch
        parameters = [p for p in net.parameters() if p.requires_grad]
        return fit_network(
            lambda index, noise: loss(index), {name: net},
            [torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)],
            count=count, batch=config.train_batch, epochs=config.epochs, key=key_of(config), progress=progress,
            context=replace(self.context, scratch=scratch / name if scratch else None),
        )

    def _outputs(self, batch: Images) -> tuple[Tensor, Tensor]:
        """Teacher and student outputs, each [B, C, h, w]."""
        parts = [
            (self.teacher(x)[0], self.student(x))
            for found in extract(self.backbone, self.preprocess, batch, self.context.device, self.context.features)
            for x in found.values()
        ]
        return torch.cat([t for t, _ in parts]), torch.cat([s for _, s in parts])

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """Mean squared distance per position (Eq. 4), raised eightfold; score: its mean, or maximum, over positions."""
        cells = distance(*self._outputs(batch))
        score = cells.mean((1, 2)) if self.config.score == "mean" else cells.amax((1, 2))
        raised = F.interpolate(cells[:, None], scale_factor=UPSAMPLE, mode="bicubic", align_corners=False)[:, 0]
        return Prediction(raised, score)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """One map [B, C, h, w]: by `cut` the student's output, the teacher's, or teacher less student."""
        teacher, student = self._outputs(batch)
        return [{"difference": teacher - student, "student": student, "teacher": teacher}[self.config.cut]]

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict(), "student": self.student.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self.student.load_state_dict(state["student"])


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference over the channels (Eq. 4): [B, C, h, w] twice -> [B, h, w]."""
    return (teacher - student).square().mean(1)


def flow_loss(latent: Tensor, log_det: Tensor) -> Tensor:
    """Negative log likelihood per position without its constant (Eq. 3): mean of |z|^2 / 2 - log|det J|."""
    return (latent.square().sum((1, 2, 3)) / 2 - log_det).mean() / latent[0, 0].numel()
