"""VAE (Kingma & Welling, ICLR 2014), the plain one: an error of reconstruction, no gradients of the latent.

At least four methods stand as "VAE" in tables of MVTec AD: Bergmann et al. (CVPR 2020) a plain one, Liu et al. (CVPR
2020, in TSDN's table) attention from the latent, Dehaene et al. (ICLR 2020, in RB-AE's tables) descent on the picture,
and PaDiM's authors one of their own with ResNet-18. This is the first kind. None of its settings was published, so
network and schedule are those of the same authors' autoencoder (`models/nn/conv_ae.py`, `ae_ssim`): loss = sum of
squared errors / 2 + KL divergence to N(0, 1), which is minus the evidence bound for a Gaussian decoder of variance 1
(Kingma & Welling, ICLR 2014, Eq. 10 and appendix B), divided by `variance` in its first part; map = squared error of
the mean code's reconstruction; score = its maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from models.base import Context, Images, Prediction, Progress, no_progress
from models.nn.conv_ae import halves
from models.nn.floor import against_floor
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class VaeConfig(TrainedConfig):
    """Settings of `ae_ssim`'s objects; `variance` is ours: 0.01 lets a code of a picture cost some tens of nats."""

    latent: int = 500
    variance: float = 0.01  # of the decoder's Gaussian, for values in [0, 1]
    epochs: int = 200
    train_batch: int = 128
    lr: float = 2e-4


@register("vae", presets={
    "plain": VaeConfig(),
    "quick": VaeConfig(size=128, latent=100, epochs=15, train_batch=8, lr=1e-3, shortened=True),
})
class Vae(Trained):
    """VAE: plain variational autoencoder, squared error of the mean code's reconstruction"""

    Config = VaeConfig
    config: VaeConfig
    normalise = False

    def __init__(self, config: VaeConfig, context: Context) -> None:
        super().__init__(config, context)
        encoder, decoder = halves(config.size, 2 * config.latent, config.latent)
        self._trained(encoder=encoder, decoder=decoder)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        pictures = self._pictures(train)

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            x = pictures[indices]
            mean, log_variance = self._code(x)
            drawn = torch.randn(mean.shape, generator=noise, device=x.device)
            y = self.trained["decoder"](mean + (log_variance / 2).exp() * drawn)
            error, divergence = bound(x, y, mean, log_variance, self.config.variance)
            return {"loss": (error + divergence).mean(), "divergence": divergence.mean()}

        log = self._train(step, [Adam(self._parameters(), self.config.lr, weight_decay=1e-5)], len(pictures), progress)
        against_floor(log, pictures, self._rebuilt, lambda x, y: (x - y).square().sum((1, 2, 3)))
        return log

    def _code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, [B, latent] each."""
        mean, log_variance = self.trained["encoder"](x).chunk(2, 1)
        return mean, log_variance

    def _rebuilt(self, x: Tensor) -> Tensor:
        return self.trained["decoder"](self._code(x)[0])

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x = self._seen(batch)
        y = self._rebuilt(x)
        return Prediction((x - y).square().mean(1), None, {"reconstruction": y})


def bound(x: Tensor, y: Tensor, mean: Tensor, log_variance: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Both parts of minus the evidence bound, up to a constant, of each picture [B, 3, h, w]: [B], [B]."""
    error = (x - y).square().sum((1, 2, 3)) / (2 * variance)
    return error, (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
