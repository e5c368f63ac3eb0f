"""Patch-SVDD (Yi & Yoon, ACCV 2020, arXiv 2006.16067): patches are embedded so that near ones lie together.

An encoder of patches of 64 and of 32 px is trained from nothing by two tasks: patches that lie close by get embeddings
close by (SVDD with a centre of each patch's own), and from two embeddings a classifier tells in which of eight
directions the second patch lies. A patch's anomaly is the distance to the nearest embedding of all training patches.
Compared with the authors' code (nuclearboy95/Anomaly-Detection-PatchSVDD-PyTorch at 934d623). The same: pictures of 256
px less the training pictures' mean; eight convolutions to 64 values for 32 px, four quadrants of them joined for 64 px;
loss = cross entropy at both sizes + lambda x (mean distance at both), steps of up to K / 32 px for neighbours and of
3/4 to 1 K for directions, those patches with colour shift and noise of 0.02; the classifier's last weights are
normalised and never trained; Adam 1e-4, batch 64, 300 epochs of 100 draws a picture, lambda 1; every 16 px at 64 and
every 4 px at 32; a pixel's value = mean over the patches on it; map = product of both sizes; score = its maximum. Left:
the nearest neighbours at 32 px are exact (theirs: approximate); the last epoch is kept (theirs tests and saves every
epoch; the paper's lambda per class is unpublished). Embeddings of all patches come from one dense pass, since no
convolution is padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.floor import mark
from models.nn.neighbours import knn
from models.nn.patch_encoder import BIG, DIRECTIONS, SMALL, Classifier, Encoder, directed, near, spread_over
from models.nn.trained import Trained, TrainedConfig
from models.registry import register

GUESS = math.log(len(DIRECTIONS))  # cross entropy of a classifier that has learnt nothing


@dataclass(frozen=True, kw_only=True)
class PatchSvddConfig(TrainedConfig):
    """The authors' code."""

    draws: int = 100  # of each picture in an epoch
    weight: float = 1.0  # lambda
    strides: tuple[int, ...] = (16, 4)  # of the patches of 64 and of 32 px at test
    epochs: int = 300
    train_batch: int = 64
    lr: float = 1e-4


@register("patch_svdd", presets={
    "paper": PatchSvddConfig(),
    "quick": PatchSvddConfig(
        size=128, draws=2, weight=1e-3, strides=(16, 8), epochs=2, train_batch=16, lr=1e-3, shortened=True
    ),
})
class PatchSvdd(Trained):
    """Patch-SVDD: self-supervised embeddings of patches at two sizes, distance to the nearest training patch"""

    Config = PatchSvddConfig
    config: PatchSvddConfig
    normalise = False

    def __init__(self, config: PatchSvddConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 2 * BIG or any(stride % 2 for stride in config.strides):
            raise ModelError(f"patch_svdd: size={config.size} must be at least {2 * BIG}, and strides even")
        self._trained(encoder=Encoder(), big=Classifier(), small=Classifier())
        self.mean, self.bank = torch.empty(0), [torch.empty(0)] * 2

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        pictures = self._pictures(train)
        self.mean = pictures.mean(0, keepdim=True)
        pictures = pictures - self.mean

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            x, found, encoder = pictures[indices % len(pictures)], {}, self.trained["encoder"]
            for name, side in (("big", BIG), ("small", SMALL)):
                one, other = near(x, side, noise)
                found[f"svdd_{name}"] = (encoder(one) - encoder(other)).norm(dim=1).mean()
                first, second, label = directed(x, side, noise)
                logits = self.trained[name](encoder(first) - encoder(second))
                found[f"direction_{name}"] = F.cross_entropy(logits, label)
            svdd = found["svdd_big"] + found["svdd_small"]
            return {"loss": found["direction_big"] + found["direction_small"] + self.config.weight * svdd, **found}

        count = len(pictures) * self.config.draws
        log = self._train(step, [Adam(self._parameters(), self.config.lr)], count, progress)
        with torch.no_grad():
            parts = [self._embedded(x) for x in pictures.split(self.config.batch)]
        self.bank = [torch.cat([part[i].flatten(0, 2) for part in parts]) for i in range(2)]
        for name in ("big", "small"):
            if (reached := log[f"direction_{name}"][-1]) > 0.99 * GUESS:
                mark(log, "floor", f"the classifier of directions ({name} patches) does no better than a guess "
                                   f"(cross entropy {reached:.3f}, a guess {GUESS:.3f}): train it longer")
        big, small = (float(rows.std(0).mean()) for rows in self.bank)
        return {**log, "spread_big": big, "spread_small": small}

    def _embedded(self, x: Tensor) -> list[Tensor]:
        """Embeddings of the patches of 64 and of 32 px at the strides of the config: [B, n, n, 64] each."""
        encoder, found = self.trained["encoder"], []
        dense = encoder.small(x)  # every 2 pixels, since the first convolution has that stride
        for maps, stride in zip((encoder.joined(dense, SMALL // 2), dense), self.config.strides, strict=True):
            found.append(maps[..., :: stride // 2, :: stride // 2].permute(0, 2, 3, 1))
        return found

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        total = torch.ones(len(batch), *self.preprocess.output, device=self.context.device)
        found = self._embedded(self._seen(batch) - self.mean.to(self.context.device))
        for rows, bank, side, stride in zip(found, self.bank, (BIG, SMALL), self.config.strides, strict=True):
            distances = knn(rows.flatten(0, 2), bank.to(rows.device))[0].view(rows.shape[:3])
            total *= spread_over(distances, side, stride, self.config.size)
        return Prediction(total, None)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean, "bank": self.bank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.mean, self.bank = state["mean"], state["bank"]
