"""AST: a normalising flow as teacher, a plain convolutional network as student, on frozen features (RGB only).

Rudolph, Wehrbein, Rosenhahn, Wandt, "Asymmetric Student-Teacher Networks for Industrial Anomaly Detection", WACV 2023.
Section and equation numbers are the paper's. Its public code (github.com/marco-rudolph/AST) is configured for MVTec
3D-AD; the preset `paper` follows the paper's settings for MVTec AD.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone, extract
from models.nn.preprocess import Preprocess
from models.nn.training import key_of
from models.nn.training import train as fit_network
from models.registry import register

UPSAMPLE = 8  # the public code raises the maps from 24 to 192 positions per side, bicubic


@dataclass(frozen=True, kw_only=True)
class AstConfig(Config):
    backbone: str = "tf_efficientnet_b5.aa_in1k"  # section 4.2; the weights that the authors' library loads
    layer: str = "blocks.5"  # the 36th block of EfficientNet-B5: 304 channels at 1/32 (section 4.2)
    size: int = 768  # px (section 4.2)
    positions: int = 32  # channels of the positional encoding; 0 for none (section 3.2)
    coupling_blocks: int = 4  # of the teacher
    teacher_channels: int = 1024  # hidden channels of the teacher's subnetworks (MVTec AD)
    clamp: float = 3.0  # alpha of the soft clamping (MVTec AD)
    residual_blocks: int = 4  # of the student
    student_channels: int = 1024
    slope: float = 0.2  # of the student's leaky ReLU
    epochs: int = 240  # of the teacher, and as many of the student (MVTec AD)
    train_batch: int = 8
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    score: Literal["mean", "max"] = "mean"  # over the map; the mean where no foreground mask exists (section 4.2)
    cut: Literal["difference", "student", "teacher"] = "difference"  # what `feature_maps` gives to an ensemble


SMALL = {"teacher_channels": 64, "student_channels": 128, "shortened": True}


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
        """Teacher by maximum likelihood, then the student against it (section 3), `epochs` epochs each.

        The log's `loss` is the student's, `teacher_loss` the flow's negative log likelihood. Raises ModelError when
        either diverges.
        """
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
            lambda index: F.mse_loss(self.student(features[index]), targets[index]),
            lambda done, total, /, **values: progress(total + done, 2 * total, **values),
        )
        return {**student, "teacher_loss": teacher["loss"], "grid": list(features.shape[-2:])}

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
        """Mean squared distance per position (Eq. 8), raised eightfold; score: its mean, or maximum, over positions."""
        teacher, student = self._outputs(batch)
        distance = (teacher - student).square().mean(1)
        positions = distance.flatten(1)
        score = positions.mean(1) if self.config.score == "mean" else positions.amax(1)
        raised = F.interpolate(distance[:, None], scale_factor=UPSAMPLE, mode="bicubic", align_corners=False)[:, 0]
        return Prediction(raised, score)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """One map [B, C, h, w]: by `cut` the squared difference per channel, the student's or the teacher's output."""
        teacher, student = self._outputs(batch)
        maps = {"difference": (teacher - student).square(), "student": student, "teacher": teacher}
        return [maps[self.config.cut]]

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict(), "student": self.student.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self.student.load_state_dict(state["student"])


class Teacher(nn.Module):
    """Conditional normalising flow (section 3.2): [B, C, h, w] -> latent [B, C, h, w] and log|det J| [B]."""

    def __init__(self, channels: int, config: AstConfig) -> None:
        super().__init__()
        from FrEIA.framework import SequenceINN
        from FrEIA.modules import GLOWCouplingBlock, PermuteRandom

        alpha = config.clamp
        self.positions = config.positions
        # FrEIA asks for the spatial size only to compare it with the condition's: 1 x 1 leaves it open
        self.flow = SequenceINN(channels, 1, 1)
        with _numpy_state():  # PermuteRandom seeds NumPy's global generator
            for block in range(config.coupling_blocks):
                size = 5 if block == config.coupling_blocks - 1 else 3

                def subnet(before: int, after: int, size: int = size) -> nn.Module:
                    return Subnet(before, config.teacher_channels, after, size)

                condition = {"cond": 0, "cond_shape": (config.positions, 1, 1)} if config.positions else {}
                self.flow.append(PermuteRandom, seed=block)
                self.flow.append(
                    GLOWCouplingBlock, subnet_constructor=subnet, clamp=alpha,
                    clamp_activation=lambda s: 0.636 * torch.atan(s / alpha), **condition,
                )

    def forward(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        condition = [encoding(x, self.positions)] if self.positions else None
        return self.flow(x, c=condition, rev=inverse)


class Subnet(nn.Module):
    """Scale and shift of a coupling; the gain starts at zero, so that the flow starts as the identity."""

    def __init__(self, before: int, hidden: int, after: int, size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, hidden, size, padding=size // 2, padding_mode="replicate")
        self.second = nn.Conv2d(hidden, after, size, padding=size // 2, padding_mode="replicate")
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x))) * self.gain


class Student(nn.Module):
    """Residual convolutional network (section 3.3): [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int, config: AstConfig) -> None:
        super().__init__()
        self.positions, self.slope = config.positions, config.slope
        hidden = config.student_channels
        self.first = nn.Conv2d(channels + config.positions, hidden, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(hidden, config.slope) for _ in range(config.residual_blocks)))
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.positions:
            x = torch.cat([x, encoding(x, self.positions)], 1)
        return self.last(self.blocks(F.leaky_relu(self.first(x), self.slope)))


class Residual(nn.Module):
    """x plus two times (3x3 convolution, batch norm, leaky ReLU)."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.body = nn.Sequential(*(
            layer
            for _ in range(2)
            for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(slope))
        ))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def encoding(x: Tensor, channels: int) -> Tensor:
    """Sine and cosine of column and row, [B, channels, h, w] for a map x [B, C, h, w]; channels a multiple of 4.

    The first half of the channels encodes the column, the second the row, in alternating sine and cosine.
    """
    batch, _, height, width = x.shape
    rate = torch.exp(torch.arange(0, channels // 2, 2, device=x.device) * (-math.log(1e4) / (channels // 2)))

    def waves(count: int) -> Tensor:
        angle = rate[:, None] * torch.arange(count, device=x.device)
        return torch.stack([angle.sin(), angle.cos()], 1).flatten(0, 1)  # [channels / 2, count]

    columns = waves(width)[:, None].expand(-1, height, -1)
    rows = waves(height)[:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows]).to(x.dtype).expand(batch, -1, -1, -1)


def flow_loss(latent: Tensor, log_det: Tensor) -> Tensor:
    """Negative log likelihood per position without its constant (Eq. 5): mean of |z|^2 / 2 - log|det J|."""
    positions = latent.shape[-2] * latent.shape[-1]
    return (latent.square().sum((1, 2, 3)) / 2 - log_det).mean() / positions


@contextmanager
def _numpy_state() -> Iterator[None]:
    """Puts NumPy's global generator back where it was."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
