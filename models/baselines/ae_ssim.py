"""AE_SSIM and AE_L2 (Bergmann et al., VISIGRAPP 2019, arXiv 1807.02011): a convolutional autoencoder, two losses.

Loss and map are the squared error of a pixel (presets with `l2`) or 1 - SSIM of the 11x11 pixels around it. The authors
published no code; compared with plutoyuxie/AutoEncoder-SSIM-for-unsupervised-anomaly-detection- at 1bd6651, another's.
The same: network of the paper's table, values in [0, 1], sigmoid; textures: 256 px, patches of 128 px and d = 100, at
test every 32 px with overlaps averaged; objects: 256 px whole and d = 500; Adam 2e-4 with decay 1e-5, batch 128, 200
epochs of 10,000 patches. Left: no rotation nor flips of the patches, no pictures held out; that code also joins both
maps, cuts the border off, opens with a disk and masks the background, which is no plain baseline. SSIM has the
libraries' constants 0.01^2 and 0.03^2 (the paper prints 0.01 and 0.03). The paper has no image score: the map's maximum
here. The rates "correct of normal / of anomalous" that Bergmann et al. (CVPR 2019) print are no AUROC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.conv_ae import ConvAE
from models.nn.floor import against_floor
from models.nn.ssim import WINDOW, ssim, ssim_map
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class AeSsimConfig(TrainedConfig):
    """The code named above."""

    loss: Literal["ssim", "l2"] = "ssim"
    patch: int = 256  # side of what the network sees; smaller than `size`: random patches, at test overlapping ones
    stride: int = 32  # of the patches at test
    latent: int = 500
    samples: int = 10_000  # patches an epoch; at least every picture once
    epochs: int = 200
    train_batch: int = 128
    lr: float = 2e-4


@register("ae_ssim", presets={
    "objects": AeSsimConfig(),
    "textures": AeSsimConfig(patch=128, latent=100),
    "objects_l2": AeSsimConfig(loss="l2"),
    "textures_l2": AeSsimConfig(loss="l2", patch=128, latent=100),
    "quick": AeSsimConfig(
        size=128, patch=128, latent=100, samples=0, epochs=15, train_batch=8, lr=1e-3, shortened=True
    ),
    "quick_l2": AeSsimConfig(
        loss="l2", size=128, patch=128, latent=100, samples=0, epochs=15, train_batch=8, lr=1e-3, shortened=True
    ),
})
class AeSsim(Trained):
    """AE_SSIM, AE_L2: a convolutional autoencoder, map = 1 - SSIM or squared error"""

    Config = AeSsimConfig
    config: AeSsimConfig
    normalise = False

    def __init__(self, config: AeSsimConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.patch > config.size or (config.size - config.patch) % config.stride:
            raise ModelError(
                f"ae_ssim: patches of {config.patch} px every {config.stride} px do not cover {config.size} px"
            )
        self._trained(net=ConvAE(config.patch, config.latent))

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        pictures, net, side = self._pictures(train), self.trained["net"], self.config.patch
        room = self.config.size - side + 1

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            x = pictures[indices % len(pictures)]
            if room > 1:
                drawn = torch.randint(room, (2, len(x), 1), generator=noise, device=x.device)
                rows, columns = (start + torch.arange(side, device=x.device) for start in drawn)
                which = torch.arange(len(x), device=x.device).view(-1, 1, 1)
                x = x[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
            return errors(x, net(x), self.config.loss).mean()

        optimizer = Adam(self._parameters(), self.config.lr, weight_decay=1e-5)
        log = self._train(step, [optimizer], max(self.config.samples, len(pictures)), progress)
        against_floor(log, pictures[..., :side, :side], net, lambda x, y: errors(x, y, self.config.loss))
        return log

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x, net, side, stride = self._seen(batch), self.trained["net"], self.config.patch, self.config.stride
        total, count = torch.zeros_like(x[:, 0]), torch.zeros_like(x[0, 0])
        for top in range(0, self.config.size - side + 1, stride):
            for left in range(0, self.config.size - side + 1, stride):
                place = (..., slice(top, top + side), slice(left, left + side))
                patch = x[place].contiguous()
                total[place] += error_map(patch, net(patch), self.config.loss)
                count[place] += 1
        return Prediction(total / count, None)


def errors(x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Loss of each picture [B, 3, h, w]: 1 - mean SSIM, or the sum of squared errors: [B]."""
    return 1 - ssim(x, y) if loss == "ssim" else (x - y).square().sum((1, 2, 3))


def error_map(x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Mean over colours of 1 - SSIM or of the squared error, [B, h, w]; at the border the nearest whole window's."""
    if loss == "l2":
        return (x - y).square().mean(1)
    return F.pad(1 - ssim_map(x, y).mean(1), (WINDOW // 2,) * 4, mode="replicate")
