"""PUAD (Sugawara and Imamura, ICIP 2024; arXiv 2402.15143): EfficientAD, and how unusual its features are on the whole.

Logical anomalies that no place shows move the mean of the student's features over the picture; its Mahalanobis distance
to the training pictures' means is a second score. Compared with the authors' code (LeapMind/PUAD): equal are the 384
channels that the student shares with the teacher, the Ledoit-Wolf covariance of the pictures it was trained on, the
pseudo-inverse, and the sum of both scores, each less its mean and over its deviation on the validation pictures.
Other: EfficientAD is ours (`efficientad.py`), with anomalib's published teacher where they distil one for 60,000 steps,
and without a validation split a tenth of the training pictures stands for it, not 15 %. Maps are EfficientAD's alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.base import Images, ModelError, Prediction, Progress, no_progress
from models.baselines.efficientad import CHANNELS, EfficientAd, EfficientAdConfig
from models.nn.training import split
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class PuadConfig(EfficientAdConfig):
    """EfficientAD's settings; the second score has none."""


@register("puad", presets={
    "small": PuadConfig(),
    "medium": PuadConfig(model="medium"),
    "quick": PuadConfig(steps=6, textures="embedded", shortened=True),
})
class Puad(EfficientAd):
    """PUAD: EfficientAD, and the distance of a picture's mean features to those of normal pictures"""

    Config = PuadConfig
    config: PuadConfig
    kept = ("centre", "inverse", "scales")

    centre: Tensor  # [C] float64
    inverse: Tensor  # [C, C] float64, of the covariance
    scales: list[float]  # mean and deviation of EfficientAD's score, then of the distance

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from sklearn.covariance import LedoitWolf

        kept, held = split(len(train), 0.1, self.context, minimum=2)  # as EfficientAD has held them back
        used, checked = [train[i] for i in kept], [train[i] for i in held]
        if validation is not None and len(validation):
            used, checked = train, validation
        if len(checked) < 2:
            raise ModelError(f"puad: {len(checked)} validation pictures; both scores are scaled by two or more")
        log = super().fit(train, validation, progress)
        means = torch.cat([self._means(batch) for batch in self._batches(used)]).cpu().double().numpy()
        self.centre = torch.from_numpy(means.mean(0))
        self.inverse = torch.from_numpy(np.linalg.pinv(LedoitWolf().fit(means).covariance_))
        scores = [torch.cat(parts).double() for parts in zip(*map(self._scores, self._batches(checked)), strict=True)]
        self.scales = [float(v) for part in scores for v in (part.mean(), part.std(correction=0))]
        return log

    def _batches(self, images: Images) -> Iterator[Images]:
        for start in range(0, len(images), self.config.batch):
            yield [images[i] for i in range(start, min(start + self.config.batch, len(images)))]

    @torch.no_grad()
    def _means(self, batch: Images) -> Tensor:
        """Means over the picture of the student's channels [B, 384]."""
        x = self.preprocess(batch, self.context.device)
        return self.trained["model"].student(x)[:, :CHANNELS].mean((2, 3))

    def _scores(self, batch: Images) -> tuple[Tensor, Tensor]:
        """EfficientAD's score and the Mahalanobis distance, [B] each."""
        maps = super().predict(batch).anomaly_map
        assert maps is not None
        return maps.flatten(1).amax(1), self._distance(batch)

    def _distance(self, batch: Images) -> Tensor:
        off = self._means(batch).cpu().double() - self.centre
        return torch.einsum("bi,ij,bj->b", off, self.inverse, off).clamp_min(0).sqrt()

    def predict(self, batch: Images) -> Prediction:
        maps = super().predict(batch).anomaly_map
        assert maps is not None
        own, distance = maps.flatten(1).amax(1).cpu().double(), self._distance(batch)
        mean, deviation, other_mean, other_deviation = self.scales
        score = (own - mean) / deviation + (distance - other_mean) / other_deviation
        return Prediction(maps, score.float().to(maps.device))
