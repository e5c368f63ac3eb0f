"""SimpleNet (Liu et al., CVPR 2023): noise on adapted features of normal pictures teaches what normal is.

Settings as in the paper's section 4.1 and the run script of the authors' code (DonaldRR/SimpleNet at 15f87c5); where
the two differ the code is followed, and the field says so. Compared with the code, equal: features, start, noise, loss,
both optimizers, map and score. Other: both sides are resized (theirs the shorter one; the same on square pictures), and
the last epoch is kept (theirs the best of 40 evaluations on the test set).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone, extract
from models.nn.discriminator import TRAIN_BATCH, Discriminator, map_and_score, noise_loss, optimizer, start
from models.nn.memory import available, note
from models.nn.patches import patch_features
from models.nn.preprocess import Aspect, Preprocess
from models.nn.training import key_of, train
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class SimpleNetConfig(Config):
    """Defaults are the paper's."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # 4.1
    layers: tuple[str, ...] = ("layer2", "layer3")  # 4.1
    resize: int = 329  # code
    crop: int | None = 288  # code; the paper's text says 256 and 224
    aspect: Aspect = "squash"  # code: 'short', which cuts the ends of long pictures off, where LOCO has defects
    patch: int = 3  # neighbourhood, 3.2
    dimension: int = 1536  # 4.1, of the features and of the adapter
    hidden: int = 1024  # code, width of the discriminator
    noise_std: float = 0.015  # 3.3, 4.1
    margin: float = 0.5  # 3.4, th+ and th-
    epochs: int = 160  # 4.1; in the code 40 evaluations of 4 epochs each
    train_batch: int = TRAIN_BATCH
    lr: float = 2e-4  # 4.1, discriminator, Adam with weight decay 1e-5
    adapter_lr: float = 1e-4  # 4.1, AdamW
    sigma: float = 4.0  # of the Gaussian that smooths the map, 3.5
    keep_gb: float = 8.0  # training features stay in memory up to this size and half of what is free there

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop > self.resize:
            raise ModelError(f"simplenet: crop={self.crop} is larger than resize={self.resize}")


@register(
    "simplenet",
    presets={
        "wrn50": SimpleNetConfig(),
        "resnet18": SimpleNetConfig(
            backbone="resnet18.tv_in1k", resize=256, crop=None, dimension=384, hidden=256, epochs=40, shortened=True
        ),
        "demo": SimpleNetConfig(
            backbone="resnet18.tv_in1k", resize=128, crop=None, dimension=384, hidden=128, epochs=20, shortened=True
        ),
    },
)
class SimpleNet(Detector):
    """SimpleNet (Liu et al., CVPR 2023): feature adapter and discriminator on noised features, last epoch."""

    Config = SimpleNetConfig
    config: SimpleNetConfig

    def __init__(self, config: SimpleNetConfig, context: Context) -> None:
        super().__init__(config, context)
        crop = (config.crop, config.crop) if config.crop else None
        self.preprocess = Preprocess((config.resize, config.resize), crop, aspect=config.aspect)
        self.backbone = backbone(config.backbone, config.layers, context.weights, context.device)
        self.adapter = nn.Linear(config.dimension, config.dimension)
        self.discriminator = Discriminator(config.dimension, config.hidden)
        start((self.adapter, *self.discriminator))
        self.adapter.to(context.device).eval()
        self.discriminator.to(context.device).eval()

    def fit(self, train_images: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Train adapter and discriminator; validation pictures are not used. Returns the loss of each epoch."""
        config = self.config
        if not len(train_images):
            raise ModelError("simplenet: there are no training pictures; check the category's train folder")
        kept = self._kept(train_images)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            x = kept[indices] if kept is not None else self._patches([train_images[i] for i in indices.tolist()])
            real = self.adapter(x.flatten(0, 1))
            return noise_loss(self.discriminator, real, config.noise_std, config.margin, noise)

        optimizers = [
            torch.optim.AdamW(self.adapter.parameters(), lr=config.adapter_lr, fused=True),
            optimizer(self.discriminator, config.lr),
        ]
        return train(
            step, {"adapter": self.adapter, "discriminator": self.discriminator}, optimizers,
            count=len(train_images), batch=config.train_batch, epochs=config.epochs, context=self.context,
            key=key_of(config), progress=progress,
        )

    def predict(self, batch: Images) -> Prediction:
        """Map: minus the discriminator's output, upsampled and smoothed. Score: its largest value over the patches."""
        with torch.no_grad():
            features = self._features(batch)
            adapted = self.adapter(features.flatten(2).transpose(1, 2))
            patches = -self.discriminator(adapted.flatten(0, 1)).view(len(batch), 1, *features.shape[-2:])
        return Prediction(*map_and_score(patches, self.preprocess.output, self.config.sigma))

    def feature_maps(self, batch: Images) -> list[Tensor]:
        """Adapted features float32 [B, dimension, h, w], one map in a list, for ensembles."""
        with torch.no_grad():
            features = self._features(batch)
            adapted = self.adapter(features.flatten(2).transpose(1, 2))
        return [adapted.transpose(1, 2).unflatten(2, features.shape[-2:]).contiguous()]

    def state_dict(self) -> dict[str, Any]:
        return {"adapter": self.adapter.state_dict(), "discriminator": self.discriminator.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adapter.load_state_dict(state["adapter"])
        self.discriminator.load_state_dict(state["discriminator"])

    def _features(self, images: Images) -> Tensor:
        """[B, dimension, h, w] before the adapter."""
        config = self.config
        passes = extract(self.backbone, self.preprocess, images, self.context.device, self.context.features)
        return torch.cat([patch_features(found, config.layers, config.patch, config.dimension) for found in passes])

    def _patches(self, images: Images) -> Tensor:
        """[B, h*w, dimension] before the adapter."""
        return self._features(images).flatten(2).transpose(1, 2)

    def _kept(self, images: Images) -> Tensor | None:
        """Features of all training pictures [N, h*w, dimension], since nothing before the adapter is trained."""
        first = self._patches([images[0]])
        if first.nbytes * len(images) > min(self.config.keep_gb * 2**30, available(first.device) / 2):
            note(f"features of {self.config.backbone} did not fit into memory and were computed anew in every epoch")
            return None
        kept = torch.empty(len(images), *first.shape[1:], device=first.device)
        done = 0
        for found in extract(self.backbone, self.preprocess, images, self.context.device, self.context.features):
            x = patch_features(found, self.config.layers, self.config.patch, self.config.dimension)
            kept[done : done + len(x)] = x.flatten(2).transpose(1, 2)
            done += len(x)
        return kept
