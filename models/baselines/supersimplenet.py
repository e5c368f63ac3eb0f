"""SuperSimpleNet (Rolih, Fucka & Skocaj, ICPR 2024): noise in feature space teaches two heads; scores are logits.

One head segments, one classifies. The conference version, and its extension of 2025 in the Journal of Intelligent
Manufacturing (preset `journal`), whose classification head sees the features before the adaptor.

Compared with the authors' code for the conference (blaz-r/SuperSimpleNet at 9c6867c), equal: features enlarged twofold
with aligned corners, 3x3 means, adaptor and heads (anomalib's) with their start and rates, both copies of a batch
noised inside thresholded Perlin noise of which every second mask is emptied, loss, no clipping of gradients without
labels, last epoch, the map's Gaussian of sigma 4 that ends at 3 sigma with mirrored borders. Other: scores and maps are
not passed through a sigmoid or scaled by the test set's extremes. anomalib differs: corners not aligned, and noise that
nowhere exceeds the threshold is stretched until it does. For the journal version anomalib was the only source at hand.
"""

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
from models.nn.focal import focal_loss
from models.nn.perlin import perlin_noise
from models.nn.smooth import gaussian_smooth
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import step_generator
from models.nn.transfer import together
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class SuperSimpleNetConfig(TrainedConfig):
    """Sec. 4.2 of the paper, unsupervised; the last epoch is kept."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    layers: tuple[str, ...] = ("layer2", "layer3")
    epochs: int = 300
    lr: float = 1e-4  # of the adaptor, twice that of the heads; times 0.4 after 80 % and 90 % of the epochs
    threshold: float = 0.2  # of the Perlin noise
    noise: float = 0.015  # standard deviation
    adapt_scores: bool = True  # the classification head sees adapted features (conference); False: raw ones (journal)


@register("supersimplenet", presets={
    "wrn50": SuperSimpleNetConfig(),
    "journal": SuperSimpleNetConfig(adapt_scores=False),
    "resnet18": SuperSimpleNetConfig(backbone="resnet18.tv_in1k"),
    "quick": SuperSimpleNetConfig(backbone="resnet18.tv_in1k", size=128, epochs=6, train_batch=8, shortened=True),
})
class SuperSimpleNet(Trained):
    """SuperSimpleNet (ICPR 2024): noise in feature space teaches a segmentation and a classification head"""

    Config = SuperSimpleNetConfig
    config: SuperSimpleNetConfig

    def __init__(self, config: SuperSimpleNetConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 128:
            raise ModelError(f"supersimplenet: size={config.size}; its Perlin noise needs maps of 32, so at least 128")
        from anomalib.models.image.supersimplenet import torch_model as parts

        self.net = backbone(config.backbone, config.layers, context.weights, context.device)
        channels = sum(self.net.channels.values())
        self._trained(adaptor=parts.FeatureAdapter(channels),
                      heads=parts.SegmentationDetectionModule(channels, stop_grad=True))

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        """[B, C, 2h, 2w] for the first layer's h x w."""
        maps = list(self.net(x).values())
        size = [2 * side for side in maps[0].shape[-2:]]
        raised = [F.interpolate(m, size, mode="bilinear", align_corners=True) for m in maps]
        return F.avg_pool2d(torch.cat(raised, 1), 3, 1, 1)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        pictures, lr = self._pictures(train), self.config.lr
        adaptor, heads = self.trained["adaptor"], self.trained["heads"]

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            raw = self._features(pictures[indices])
            both = (2 * len(raw), *raw.shape[1:])
            mask = anomalies((both[0], *both[2:]), self.config.threshold, step_generator(), raw.device)
            added = torch.randn(both, generator=noise, device=raw.device) * self.config.noise * mask
            adapted = adaptor(raw).repeat(2, 1, 1, 1) + added
            seen = adapted if self.config.adapt_scores else raw.repeat(2, 1, 1, 1) + added
            return loss(*heads(seg_features=adapted, cls_features=seen), mask)

        optimizer = AdamW([{"params": adaptor.parameters(), "lr": lr},
                           {"params": heads.parameters(), "lr": 2 * lr, "weight_decay": 1e-5}])
        milestones = [int(self.config.epochs * share) for share in (0.8, 0.9)]
        schedule = MultiStepLR(optimizer, milestones, 0.4)
        return self._train(step, [optimizer], len(train), progress, schedulers=[schedule])

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """The segmentation head's map, enlarged and smoothed; the score is the classification head's own."""
        raw = self._features(self.preprocess(batch, self.context.device))
        adapted = self.trained["adaptor"](raw)
        seen = adapted if self.config.adapt_scores else raw
        maps, scores = self.trained["heads"](seg_features=adapted, cls_features=seen)
        full = F.interpolate(maps, self.preprocess.output, mode="bilinear")
        return Prediction(gaussian_smooth(full[:, 0], 4.0, "mirror", cut=3.0), scores)


def anomalies(
    shape: tuple[int, int, int], threshold: float, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """Where noise is added, float32 [B, 1, h, w] in {0, 1} (Sec. 3.3): Perlin noise over the threshold; half are empty.

    Drawn at the next powers of 2 and brought to size bilinearly, as in the authors' code.
    """
    batch, *size = shape
    powers = (1 << (side - 1).bit_length() for side in size)
    noise = F.interpolate(perlin_noise((batch, *powers), generator, device)[:, None], size, mode="bilinear")
    kept = torch.rand(batch, generator=generator) <= 0.5
    return (noise > threshold).float() * together(device, kept)[0].view(-1, 1, 1, 1)


def loss(maps: Tensor, scores: Tensor, mask: Tensor, margin: float = 0.5) -> Tensor:
    """Sec. 3.4 for logits: maps [B, 1, h, w], scores [B], mask [B, 1, h, w] in {0, 1}.

    Truncated L1 towards -margin where the mask is 0 and +margin where it is 1, each averaged on its own; focal loss
    (gamma 4) of every position, and of every picture against whether its mask has anything.
    """
    normal, anomalous = (margin + maps).clamp_min(0) * (1 - mask), (margin - maps).clamp_min(0) * mask
    l1 = normal.sum() / (1 - mask).sum().clamp_min(1) + anomalous.sum() / mask.sum().clamp_min(1)
    labels = mask.amax((1, 2, 3))
    return l1 + focal_loss(maps.sigmoid(), mask, gamma=4.0) + focal_loss(scores.sigmoid(), labels, gamma=4.0)
