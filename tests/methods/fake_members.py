"""A quick detector with feature maps, for the tests of the ensembles; counts how often each preset was fitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, Prediction, Progress, no_progress
from models.nn.preprocess import Aspect, Preprocess
from models.registry import register

FITS: Counter[str] = Counter()


@dataclass(frozen=True, kw_only=True)
class FakeMapsConfig(Config):
    size: int = 32
    crop: int = 0
    aspect: Aspect = "squash"
    channels: tuple[int, ...] = (6,)  # one map per number, each half as fine as the one before
    seed: int = 0
    gain: float = 1.0
    maps: bool = True  # whether `predict` gives a map
    noise: float = 0.0  # added to the map, as a share of its largest value


@register("fake_maps", presets={
    "one": FakeMapsConfig(), "two": FakeMapsConfig(size=64, channels=(8, 12), seed=1, gain=20.0),
    "crop": FakeMapsConfig(size=40, crop=32, channels=(5,), seed=2), "plain": FakeMapsConfig(seed=3, maps=False),
    "noisy": FakeMapsConfig(seed=4, noise=0.2),
})
class FakeMaps(Detector):
    """Distance to the mean picture; its feature maps are random mixtures of the difference."""

    Config = FakeMapsConfig
    config: FakeMapsConfig

    def __init__(self, config: FakeMapsConfig, context: Context) -> None:
        super().__init__(config, context)
        crop = (config.crop, config.crop) if config.crop else None
        self.preprocess = Preprocess((config.size, config.size), crop, normalise=False, aspect=config.aspect)
        generator = torch.Generator().manual_seed(config.seed)
        self.mixes = [torch.randn(c, 3, generator=generator) for c in config.channels]
        self.start = torch.rand(1)  # from the global generator, as a network's first weights are

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        FITS[str(self.config.seed)] += 1
        self.mean = torch.stack([self.preprocess([train[i]])[0] for i in range(len(train))]).mean(0)
        progress(1, 1, loss=0.5)
        return {"loss": [0.5], "pictures": len(train)}

    def predict(self, batch: Images) -> Prediction:
        distance = (self.preprocess(batch) - self.mean).square().mean(1) * self.config.gain
        if self.config.noise:
            random = torch.Generator().manual_seed(int(distance.sum()))
            distance = distance + self.config.noise * distance.max() * torch.rand(distance.shape, generator=random)
        return Prediction(distance if self.config.maps else None, distance.flatten(1).amax(1))

    def feature_maps(self, batch: Images) -> list[Tensor]:
        x = (self.preprocess(batch) - self.mean) * self.config.gain
        return [
            torch.tanh(torch.einsum("kc,bchw->bkhw", mix, F.avg_pool2d(x, 2 ** (i + 1)))) + self.start
            for i, mix in enumerate(self.mixes)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.start = state["mean"], state["start"]
