"""RIAD (Zavrtanik, Kristan & Skocaj, Pattern Recognition 2021): reconstruction by inpainting.

A picture is cut into cells of k x k pixels that are dealt at random into n = 3 disjoint sets; the network sees the
picture without one set and fills it in; the three fillings make one reconstruction. Loss = squared error + MSGMS +
SSIM, weights 1. Map: mean over k of the reconstructions' 1 - MSGMS after a mean filter. The authors published no code;
compared with plutoyuxie/Reconstruction-by-inpainting-for-visual-anomaly-detection at e351058, another's. The same: 256
px in [-1, 1], U-Net of 64 to 512 channels with convolutions 4x4 of stride 2 and tanh; k drawn from 2, 4, 8, 16 for each
batch; Adam 1e-4 with decay 1e-5, times 0.1 after 250 of 300 epochs, batch 4, a fifth held out and the epoch kept that
is best on it; GMS with Prewitt / 3 of the channel mean on four scales, c = 0.0026; SSIM of 11x11. Other: the map is
smoothed by the paper's mean filter, of 21x21 as that code's unused part has it (it uses a Gaussian of sigma 7 and
divides by (256 / k)^2, so that k = 16 decides); maps are not scaled over the test set. Score = the map's maximum, as in
that code.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.floor import against_floor, mean_error
from models.nn.gms import mean_filter, msgms
from models.nn.ssim import ssim
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import Best, generator, split
from models.registry import register

SETS = 3


@dataclass(frozen=True, kw_only=True)
class RiadConfig(TrainedConfig):
    """As quoted from the paper, and the code named above."""

    cells: tuple[int, ...] = (2, 4, 8, 16)  # k, sides of a cell in pixels
    width: int = 64  # channels of the first level
    epochs: int = 300
    train_batch: int = 4
    lr: float = 1e-4
    held_out: float = 0.2
    filter: int = 21  # side of the mean filter in pixels


@register("riad", presets={
    "paper": RiadConfig(),
    "quick": RiadConfig(size=64, width=8, epochs=10, lr=1e-3, filter=5, shortened=True),
})
class Riad(Trained):
    """RIAD: reconstruction by inpainting of random cells, map = 1 - MSGMS over several sizes of cells"""

    Config = RiadConfig
    config: RiadConfig
    normalise = False
    channels_last = True
    kept = ("drawn",)

    def __init__(self, config: RiadConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size % 16 or any(config.size % k for k in config.cells):
            raise ModelError(f"riad: size={config.size} must be a multiple of 16 and of every cell in {config.cells}")
        self._trained(net=UNet(config.width))
        self.drawn = generator(context, "test cells").initial_seed()

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, pictures = self.config, self._pictures(train) * 2 - 1
        chosen, held = split(len(train), config.held_out, self.context)
        learn = torch.tensor(chosen, device=self.context.device)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            k = config.cells[int(torch.randint(len(config.cells), (1,)))]  # from the state that checkpoints restore
            x = pictures[learn[indices]]
            return errors(x, self._rebuilt(x, cells(len(x), config.size, k, noise))).mean()

        def validate() -> float:
            return mean_error(pictures[held], self._fixed, errors, config.batch)

        optimizer = Adam(self._parameters(), config.lr, weight_decay=1e-5)
        later = MultiStepLR(optimizer, [max(1, config.epochs * 250 // 300)])
        best = Best(patience=config.epochs)
        log = self._train(step, [optimizer], len(chosen), progress, validate=validate, stop=best, schedulers=[later])
        against_floor(log, pictures, self._fixed, errors)
        return {**log, "held_out": len(held)}

    def _rebuilt(self, x: Tensor, sets: Tensor) -> Tensor:
        """Each of the three sets [B, h, w] (values 0, 1, 2) is taken from the filling of the picture without it."""
        parts = [(sets == i).unsqueeze(1) for i in range(SETS)]
        return sum(self.trained["net"](x * ~part) * part for part in parts)

    def _dealt(self, count: int, k: int, device: torch.device) -> Tensor:
        """The same sets for every picture at test, so that a map does not hang on its batch: [B, h, w]."""
        dealt = cells(1, self.config.size, k, torch.Generator().manual_seed(self.drawn + k))
        return dealt.to(device).expand(count, -1, -1)

    def _fixed(self, x: Tensor) -> Tensor:
        return self._rebuilt(x, self._dealt(len(x), self.config.cells[len(self.config.cells) // 2], x.device))

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x = self._seen(batch) * 2 - 1
        rebuilt = [self._rebuilt(x, self._dealt(len(x), k, x.device)) for k in self.config.cells]
        maps = torch.stack([mean_filter(1 - msgms(x, y), self.config.filter)[:, 0] for y in rebuilt]).mean(0)
        return Prediction(maps, None, {"reconstruction": (rebuilt[-1] + 1) / 2})


def cells(count: int, size: int, k: int, random: torch.Generator) -> Tensor:
    """Which of three sets of equal number each pixel belongs to, by cells of k x k: int64 [count, size, size]."""
    side = size // k
    order = torch.rand(count, side * side, generator=random, device=random.device).argsort(1)
    return (order % SETS).view(count, side, side).repeat_interleave(k, 1).repeat_interleave(k, 2)


def errors(x: Tensor, y: Tensor) -> Tensor:
    """Loss of each picture [B, 3, h, w] in [-1, 1]: squared error + (1 - MSGMS) + (1 - SSIM): [B]."""
    return (x - y).square().mean((1, 2, 3)) + (1 - msgms(x, y)).mean((1, 2, 3)) + 1 - ssim(x, y, data_range=2.0)


class UNet(nn.Module):
    """Five levels of `width` x 1, 2, 4, 8, 8 channels with skips: [B, 3, h, w] -> the same in (-1, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.first = _activated(nn.Conv2d(3, width, 3, padding=1))
        self.down, self.up, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for a, b in itertools.pairwise(widths):
            self.down.append(_activated(nn.Conv2d(a, b, 4, 2, 1)).extend(_activated(nn.Conv2d(b, b, 3, padding=1))))
            self.up.insert(0, _activated(nn.ConvTranspose2d(b, a, 4, 2, 1)))
            merge = _activated(nn.Conv2d(2 * a, a, 3, padding=1))
            self.merge.insert(0, merge.extend(_activated(nn.Conv2d(a, a, 3, padding=1))))
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.first(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
        return self.out(x).tanh()


def _activated(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())
