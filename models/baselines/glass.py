"""GLASS (Chen et al., ECCV 2024; arXiv 2407.09359): two kinds of artificial anomalies around normal features.

Global ones are normal features with noise, moved up the discriminator's loss and kept within a shell; local ones are
natural pictures pasted in. Compared with the authors' code (cqylunlun/GLASS at 23e2e2c, run-mvtec.sh), equal: features
(those of SimpleNet) and both networks with their start and optimizers; 20 steps of ascent and the shell they are pushed
into every fifth, around each feature (manifold) or around the mean feature of its position (hypersphere: the five
categories of MVTec AD in their table, elsewhere by their test of the mean picture's spectrum); Perlin masks, opacity
and operations of the textures; loss, last layer and map. Left: their foreground masks, a download of its own, without
which anomalies also fall on the background (lower figures, says their issue 18); the last epoch is kept (theirs is the
best of 640 on the test set: their figures are higher for that reason alone); textures are squashed to the square;
pictures weigh alike in the mean features (theirs are means of batches); scores are logits (maps need the sigmoid, for
they are smoothed after it). anomalib has other weights (racm_in1k), one shape for all categories, textures at 20 to
100 %, and no limit to the pictures of an epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam, AdamW

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, WIDE50, backbone
from models.frozen import FrozenFeatures
from models.nn.discriminator import Discriminator, map_and_score, start
from models.nn.focal import focal_loss
from models.nn.patches import patch_features
from models.nn.perlin import Operation, augment, blobs, equalise, paste, turn
from models.nn.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from models.nn.textures import Textures
from models.nn.trained import Trained, TrainedConfig
from models.nn.transfer import Ahead, Packed
from models.registry import register

LAYERS = ("layer2", "layer3")
HYPERSPHERE = ("bottle", "cable", "pill", "screw", "transistor")  # of MVTec AD, in the authors' table
LARGE = ("toothbrush", "wood")  # of MVTec AD: resized to 329/288 of the size, and cropped
NOISE, ASCENT, STEP, EVERY = 0.015, 20, 0.001, 5  # Sec. 3.3: deviation, steps of ascent, their length, pushes
RADIUS, QUANTILE = 0.5, 0.75  # manifold: of the shell; hypersphere: which distance from the centre is its radius


@dataclass(frozen=True, kw_only=True)
class GlassConfig(TrainedConfig):
    """Settings of the authors' run script for MVTec AD."""

    backbone: str = WIDE50
    size: int = 288
    epochs: int = 640
    train_batch: int = 8
    lr: float = 1e-4  # of the projection; the discriminator's is twice that
    dimension: int = 1536
    hidden: int = 1024
    limit: int = 392  # pictures of an epoch, drawn anew for each, where there are more
    textures: str | None = None  # folder of natural pictures (DTD in the paper), or 'embedded'


@register("glass", presets={
    "wrn50": GlassConfig(),
    "quick": GlassConfig(backbone=RESNET18, size=96, epochs=10, dimension=192, hidden=64, textures="embedded",
                         shortened=True),
})
class Glass(Trained):
    """GLASS: anomalies made by ascent among features and by pasted textures teach a discriminator"""

    Config = GlassConfig
    config: GlassConfig

    def __init__(self, config: GlassConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 32:
            raise ModelError(f"glass: size={config.size}; give at least 32 pixels, the stride of its masks is 8")
        extras = context.extras
        self.category = str(extras.get("category")) if extras.get("dataset") == "mvtec_ad" else None
        side, crop = config.size, (config.size, config.size)
        larger = round(side * 329 / 288) if self.category in LARGE else side
        self.preprocess = Preprocess((larger, larger), crop if larger > side else None)
        self.net = backbone(config.backbone, LAYERS, context.weights, context.device)
        projection, discriminator = nn.Linear(config.dimension, config.dimension), Discriminator(
            config.dimension, config.hidden)
        start((projection, *discriminator))
        self._trained(projection=projection, discriminator=discriminator)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, device = self.config, self.context.device
        source = config.textures or self.context.extras.get("textures")
        textures = Textures(source, self.preprocess.output, seed=self.context.seed)
        pictures = self._pictures(train)
        frozen = FrozenFeatures(self.net, self.preprocess, train, device, self.context.features)
        sums = [sum(maps) for maps in zip(*([m.sum(0, keepdim=True) for m in frozen(part)] for part in
                                            torch.arange(len(train), device=device).split(8)), strict=True)]
        mean = self._rows([total / len(train) for total in sums])  # pooling and projection are linear: once is enough
        named = self.category in HYPERSPHERE if self.category else hypersphere(pictures.mean(0))
        projection, discriminator = self.trained["projection"], self.trained["discriminator"]
        count = min(len(train), (config.limit // config.train_batch + 1) * config.train_batch)  # until over the limit
        ahead = Ahead(lambda batch, random: self._drawn(batch, textures, random), device)
        done, epoch = 0, {}

        def step(indices: Tensor, noise: Generator) -> dict[str, Tensor]:
            nonlocal done
            if done % math.ceil(count / config.train_batch) == 0:  # a new epoch
                epoch["centre"] = projection(mean).detach()
                epoch["chosen"] = torch.randperm(len(train), generator=noise, device=device)
            done += 1
            chosen = epoch["chosen"][indices]
            on_host = noise.device.type == "cpu"
            drawn = self._drawn(len(indices), textures, noise) if on_host else ahead(len(indices))
            broken, mask = self._pasted(pictures[chosen], drawn)
            with torch.no_grad():
                changed = self._rows(list(self.net(broken).values()))
            true, fake = projection(self._rows(frozen(chosen))), projection(changed)
            centre = epoch["centre"].repeat(len(indices), 1)
            defect = F.adaptive_max_pool2d(mask, self._grid).flatten()
            added = torch.randn(true.shape, generator=noise, device=device) * NOISE
            return glass_loss(discriminator, true, fake, defect, added, centre if named else None)

        optimizers = [Adam(projection.parameters(), config.lr, weight_decay=1e-5),
                      AdamW(discriminator.parameters(), 2 * config.lr)]
        log = self._train(step, optimizers, count, progress)
        return {**log, "hypersphere": named, "textures": textures.describe()}

    def _drawn(self, count: int, textures: Textures, random: Generator) -> Packed:
        """Textures, masks, and how much of each picture stays visible: 20 to 80 %."""
        mask = local_masks((count, *self.preprocess.output), random)
        texture = augment(textures.draw(count, random), random, among=OPERATIONS)
        visible = (0.5 + 0.1 * torch.randn(count, generator=random)).clamp(0.2, 0.8)
        return Packed(self.context.device, texture, mask, visible)

    def _pasted(self, clean: Tensor, drawn: Packed) -> tuple[Tensor, Tensor]:
        """Normalised pictures with a texture in a mask, and the masks [B, 1, h, w] in {0, 1}."""
        texture, mask, visible = drawn.arrive()
        return paste(clean, self.preprocess.normalised(texture), mask, visible), mask

    @property
    def _grid(self) -> tuple[int, int]:
        return tuple(math.ceil(side / 8) for side in self.preprocess.output)  # type: ignore[return-value]

    def _rows(self, maps: list[Tensor]) -> Tensor:
        """Features before the projection, a row per position: [B * h * w, dimension]."""
        joined = patch_features(dict(zip(LAYERS, maps, strict=True)), LAYERS, 3, self.config.dimension)
        return joined.permute(0, 2, 3, 1).flatten(0, 2)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """Map: the discriminator's probability, raised and smoothed. Score: its largest logit over positions."""
        rows = self.trained["projection"](self._rows(list(self.net(self._seen(batch)).values())))
        cells = self.trained["discriminator"](rows).view(len(batch), 1, *self._grid)
        maps, _ = map_and_score(cells.sigmoid(), self.preprocess.output, 4.0)
        return Prediction(maps, cells.flatten(1).amax(1).float().cpu())

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """Projected features float32 [B, dimension, h, w], one map in a list, for ensembles."""
        rows = self.trained["projection"](self._rows(list(self.net(self._seen(batch)).values())))
        return [rows.view(len(batch), *self._grid, -1).permute(0, 3, 1, 2).contiguous()]


def pushed(points: Tensor, origin: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Rows [n, d] moved along their direction from `origin` [n, d] to a distance in [low, high] (Eq. 6)."""
    away = points - origin
    distance = away.norm(dim=1, keepdim=True)
    return origin + away * (distance.clamp(low, high) / (distance + 1e-10))


def glass_loss(
    discriminator: nn.Module, true: Tensor, fake: Tensor, defect: Tensor, noise: Tensor, centre: Tensor | None
) -> dict[str, Tensor]:
    """'loss' and its parts: 'normal', 'global' (both binary cross entropies) and 'local' (focal, of the hard half).

    true, fake: projected features [n, d] of normal pictures and of the same with textures. defect: [n] in {0, 1},
    where textures are. noise: [n, d], added to `true`. centre: [n, d], mean features; None: manifold.
    """
    radius: Tensor | float = RADIUS
    if centre is not None:
        with torch.no_grad():
            outside = (fake - centre).norm(dim=1).masked_fill(defect > 0, torch.nan)  # pasted positions do not count
            radius = torch.cat([outside, (true - centre).norm(dim=1)]).nanquantile(QUANTILE)
        fake = torch.where(defect[:, None] > 0, pushed(fake, centre, 2 * radius, 4 * radius), fake)
    moved = true + noise
    for i in range(1, ASCENT + 1):
        scored = discriminator(torch.cat([true, moved])).chunk(2)[1]
        slope = torch.autograd.grad(F.binary_cross_entropy_with_logits(scored, torch.ones_like(scored)), moved)[0]
        with torch.no_grad():
            moved.add_(STEP * slope / (slope.norm(dim=1, keepdim=True) + 1e-10))
        if i % EVERY == 0:
            moved = pushed(moved, true if centre is None else centre, radius, 2 * radius)
    normal, anomalous = discriminator(torch.cat([true, moved])).chunk(2)
    probability = discriminator(fake)[:, 0].sigmoid()
    hard = (probability.detach() - defect).square().topk(math.ceil(len(defect) / 2)).indices
    parts = {
        "normal": F.binary_cross_entropy_with_logits(normal, torch.zeros_like(normal)),
        "global": F.binary_cross_entropy_with_logits(anomalous, torch.ones_like(anomalous)),
        "local": focal_loss(probability[hard], defect[hard], epsilon=0.0, smooth=1e-5),
    }
    return {"loss": parts["normal"] + parts["global"] + parts["local"], **parts}


def local_masks(shape: tuple[int, int, int], random: Generator) -> Tensor:
    """Where textures go, float32 [B, 1, H, W] in {0, 1}, none empty: a third each of one Perlin mask, both, either."""
    mask = torch.zeros(shape[0], 1, *shape[1:])
    missing = torch.arange(shape[0])
    while len(missing):
        part = (len(missing), *shape[1:])
        one, other = blobs(part, random), blobs(part, random)
        share = torch.rand(len(missing), generator=random).view(-1, 1, 1, 1)
        drawn = torch.where(share > 2 / 3, torch.maximum(one, other), torch.where(share > 1 / 3, one * other, one))
        mask[missing] = drawn
        missing = missing[~drawn.flatten(1).any(1)]
    return mask


def hypersphere(mean: Tensor) -> bool:
    """Whether the mean training picture [3, h, w], normalised, has a spectrum as of one centred object (App. A.2).

    The blurred picture's strong frequencies must fill the box or the disk around them, reach 12 and be more than 60.
    """
    import numpy as np
    from scipy.ndimage import uniform_filter

    values = mean.cpu() * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    grey = (values * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)[None, None] * 255
    grey = F.interpolate(grey, (289, 289), mode="bilinear")[0, 0].numpy()
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(uniform_filter(grey, 39, mode="mirror"))))
    y, x = (axis - 144 for axis in np.nonzero(20 * np.log(spectrum + 1e-12) > 170))
    if len(y) <= 60:
        return False
    reach = np.hypot(y, x).max()
    places = np.arange(-144, 434)  # their disk may leave the picture at the lower right only
    box = 4 * max(np.abs(x).max(), 1) * max(np.abs(y).max(), 1)
    disk = (np.hypot(places[:, None], places[None]) <= reach).sum()
    return bool(reach > 12 and max(len(y) / box, len(y) / disk) > 0.21)


def _vision() -> Any:
    """torchvision's operations, imported when the first picture is changed."""
    from torchvision.transforms.v2 import functional

    return functional


def _factor(low: float, high: float, share: Tensor) -> float:
    return low + (high - low) * float(share)


OPERATIONS: tuple[Operation, ...] = (  # x [1, 3, h, w] in [0, 1], u [1, 4] in [0, 1)
    lambda x, u: _vision().adjust_contrast(x, _factor(0.8, 1.2, u[0, 0])),
    lambda x, u: _vision().adjust_brightness(x, _factor(0.8, 1.2, u[0, 0])),
    lambda x, u: _vision().adjust_hue(
        _vision().adjust_saturation(x, _factor(0.8, 1.2, u[0, 0])), _factor(-0.2, 0.2, u[0, 1])
    ),
    lambda x, u: x.flip(3),
    lambda x, u: x.flip(2),
    lambda x, u: _vision().rgb_to_grayscale(x, 3),
    lambda x, u: _vision().autocontrast(x),
    equalise,
    turn,
)
