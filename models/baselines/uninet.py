"""UniNet (Wei et al., CVPR 2025): a student restores, crosswise, what a frozen and a trained teacher see.

Compared with the authors' code for one model per class (pangdatangtt/UniNet at 7b3469f, setting 'oc'). The same: both
teachers, bottleneck (twice as wide as anomalib's) and decoder with their start, the crossing (the student that saw the
trained teacher's features answers to the frozen one, and the other way round), selection of features, loss with its
gradient into the trained teacher, both AdamW, batch 8; settings by category of MVTec AD (`SHARP`, and for transistor no
selection and a faster teacher), which preset `one_for_all` does without; map unsmoothed, score as the mean of the k
largest values of the smoothed map. The weights of the selection stay 1, since their code never gives them to an
optimizer. Left: the last of 100 epochs is kept, theirs is the best on the test set (by AUPRO, looked at every 10
epochs, which also ends the training): their figures are higher for that reason alone. Pictures are resized
bilinearly, theirs by Lanczos; the frozen teacher runs once per picture. anomalib has other weights (tv2_in1k), one
temperature, a further loss on labels, amsgrad, and the smoothed map's maximum as its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, WIDE50, backbone
from models.frozen import FrozenFeatures
from models.nn.smooth import gaussian_smooth
from models.nn.trained import Trained, TrainedConfig
from models.registry import register

SHARP = ("bottle", "cable", "grid", "pill", "transistor")  # of MVTec AD: temperature 0.1
COSINE = 0.7  # weight of the cosine distance; the contrast has the rest
ALPHA, BETA = 0.01, 3e-5  # share of the pixels that make the score: ALPHA times the distance, at least BETA


@dataclass(frozen=True, kw_only=True)
class UniNetConfig(TrainedConfig):
    """The authors' defaults for MVTec AD, one model per class."""

    backbone: str = WIDE50
    train_batch: int = 8
    lr: float = 5e-3  # of bottleneck and student
    teacher_lr: float = 1e-6
    temperature: float = 2.0
    by_category: bool = True  # the authors' settings for single categories of MVTec AD


@register("uninet", presets={
    "wrn50": UniNetConfig(),
    "one_for_all": UniNetConfig(by_category=False),
    "quick": UniNetConfig(backbone=RESNET18, size=64, epochs=8, shortened=True),
})
class UniNet(Trained):
    """UniNet: a student restores crosswise what a frozen and a trained teacher see, under a contrastive loss"""

    Config = UniNetConfig
    config: UniNetConfig

    def __init__(self, config: UniNetConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size % 32:
            raise ModelError(f"uninet: size={config.size} must be a multiple of 32, the bottleneck's stride")
        where = (context.extras.get("dataset"), context.extras.get("category"))
        category = where[1] if config.by_category and where[0] == "mvtec_ad" else None
        self.temperature = 0.1 if category in SHARP else config.temperature
        self.selects = category != "transistor"
        self.teacher_lr = 1e-4 if category == "transistor" else config.teacher_lr
        bottleneck, student = networks(config.backbone)
        self.source, self.target = (
            backbone(config.backbone, STAGES, context.weights, context.device, trained=trained)
            for trained in (False, True)
        )
        self.target.net.requires_grad_(True)
        self._trained(target=self.target.net, bottleneck=bottleneck, student=student)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        frozen = FrozenFeatures(self.source, self.preprocess, train, self.context.device, self.context.features)
        pictures = self._pictures(train)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            teacher, student = self._pairs(frozen(indices), pictures[indices])
            if self.selects:
                student = [selected(s, t) for s, t in zip(student, teacher, strict=True)]
            return uninet_loss(teacher, student, self.temperature)

        student = [p for name in ("bottleneck", "student") for p in self.trained[name].parameters()]
        optimizers = [AdamW(student, self.config.lr, weight_decay=1e-5),
                      AdamW(self.trained["target"].parameters(), self.teacher_lr, weight_decay=1e-5)]
        log = self._train(step, optimizers, len(train), progress,
                          key=(self.temperature, self.selects, self.teacher_lr))
        return {**log, "temperature": self.temperature, "selects": self.selects, "teacher_lr": self.teacher_lr}

    def _pairs(self, source: list[Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Six maps each [B, C, h, w]: of the frozen and of the trained teacher, and the student's answers to them."""
        target = list(self.target(x).values())
        given = [torch.cat(pair) for pair in zip(target, source, strict=True)]
        halves = [maps.chunk(2) for maps in self.trained["student"](self.trained["bottleneck"](given))]
        return [*source, *target], [half[i] for i in range(2) for half in halves]  # crossed: the first saw the target

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x = self._seen(batch)
        pairs = zip(*self._pairs(list(self.source(x).values()), x), strict=True)
        return Prediction(*map_and_score([1 - F.cosine_similarity(t, s) for t, s in pairs], self.preprocess.output))

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """Six maps [B, C, h, w]: teacher less student, both normalised per position."""
        x = self._seen(batch)
        pairs = zip(*self._pairs(list(self.source(x).values()), x), strict=True)
        return [F.normalize(t) - F.normalize(s) for t, s in pairs]


def networks(tag: str) -> tuple[nn.Module, nn.Module]:
    """Bottleneck and student for the backbone of a tag. Raises ModelError when it is not a ResNet."""
    from anomalib.models.components.backbone import get_decoder
    from anomalib.models.image.uninet.components import AttentionBottleneck, BottleneckLayer

    name = tag.partition(".")[0]
    block: Any = AttentionBottleneck
    if name in ("resnet18", "resnet34"):
        block = type("BasicAttentionBottleneck", (AttentionBottleneck,), {"channel_expansion": 1})
    try:
        student = get_decoder(name)
    except ValueError as error:
        raise ModelError(f"uninet: backbone={tag!r}: use a ResNet; {error}") from error
    return BottleneckLayer(block, 3, width_per_group=128 if name.startswith("wide_") else 64), student


def selected(student: Tensor, teacher: Tensor) -> Tensor:
    """Student features [B, C, h, w], each channel weighted where the teacher's is high (domain-related selection)."""
    weights = teacher.flatten(2).softmax(2).view_as(teacher)
    return student * weights * (1 + teacher.mean((2, 3), keepdim=True))


def uninet_loss(teacher: list[Tensor], student: list[Tensor], temperature: float) -> Tensor:
    """Sum over pairs of maps [B, C, h, w]; p is how surely a position finds its own among the teacher's positions.

    0.7 (1 - cosine) + 0.3 (-log p) + (1 - p), each a mean over positions; gradients reach teachers that have some.
    """
    total = []
    for t, s in zip(teacher, student, strict=True):
        t, s = (F.normalize(x.flatten(2).transpose(1, 2), dim=2) for x in (t, s))
        p = (s @ t.transpose(1, 2) / temperature).softmax(2).diagonal(dim1=1, dim2=2)
        cosine = 1 - (s * t).sum(2)
        total.append((COSINE * cosine - (1 - COSINE) * (p + 1e-8).log() + (1 - p)).mean())
    return torch.stack(total).sum()


def map_and_score(distances: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Distances [B, h, w] per map -> their sum [B, *size], and scores [B].

    Score: mean of the k largest values of the sum smoothed with sigma 4, where k is a share of the pixels: ALPHA times
    the mean of those maps' largest distances that stand out among the maps, at least BETA.
    """
    full = [F.interpolate(d[:, None], size, mode="bilinear", align_corners=True) for d in distances]
    maps = torch.stack(full).sum(0)[:, 0]
    peaks = torch.stack([d.flatten(1).amax(1) for d in distances], 1)
    scores = []
    for peak, smooth in zip(peaks, gaussian_smooth(maps, 4.0, "reflect"), strict=True):
        chance = peak.softmax(0)
        dominant = peak[chance > chance.mean()]
        share = max(ALPHA * float(dominant.mean()) if len(dominant) else 0.0, BETA)
        scores.append(smooth.flatten().topk(max(1, int(smooth.numel() * share))).values.mean())
    return maps, torch.stack(scores)
