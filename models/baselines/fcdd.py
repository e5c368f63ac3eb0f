"""FCDD (Liznerski et al., ICLR 2021, arXiv 2007.01760): a fully convolutional one-class network with made anomalies.

The network maps a picture to A = sqrt(phi^2 + 1) - 1 on a coarse grid. The loss (1 - y) mean(A) - y log(1 -
exp(-mean(A))) draws A to 0 on normal pictures and away from 0 on pictures with confetti. Map: A upsampled by a
transposed convolution with a fixed Gaussian over the receptive field. Compared with the authors' code (liznerski/fcdd
at b2fc0fe and e8d71d0). The same: vgg11_bn of ImageNet, frozen up to its third pooling (the running statistics of its
batch norms go on), two convolutions trained further and a 1x1 convolution to one channel; crops of 224 of 240 px or a
resize, one of two strengths of jitter, noise in half of the pictures, contrast by the picture's mean and mean absolute
value; SGD with Nesterov 0.9, 1e-3 times 0.985 an epoch, decay 1e-4, 128 pictures a step, 200 epochs of 10 rounds;
confetti in half of the pictures: coloured and white squares of 8 to 54 px, turned by up to 45 degrees, blurred by 5 px;
Gaussian of standard deviation 12, stride 8; score = mean of A. Left: the loss sees A as the paper writes it (the code:
the upsampled map, some 14 times as large); the range of contrast is the training pictures' (the code: constants of each
class); jitter is of brightness and contrast; a picture with confetti has one square at least; its colours are uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from models.base import Context, Images, Prediction, Progress, no_progress
from models.features import architecture
from models.nn.confetti import confetti, varied
from models.nn.preprocess import Preprocess
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import load_pictures
from models.registry import register
from models.weights import load_into

STRIDE, STD = 8, 12.0  # of the network's grid, and of the Gaussian, in pixels


@dataclass(frozen=True, kw_only=True)
class FcddConfig(TrainedConfig):
    """The authors' code."""

    backbone: str = "vgg11_bn.tv_in1k"
    frozen: int = 15  # entries of its `features` that are not trained
    last: int = 21  # entries that are used
    field: int = 62  # side of the receptive field in pixels
    size: int = 224
    epochs: int = 200
    rounds: int = 10  # times that an epoch has each picture
    train_batch: int = 128


@register("fcdd", presets={
    "paper": FcddConfig(),
    "quick": FcddConfig(
        backbone="squeezenet1_1.tv_in1k", frozen=6, last=8, field=63, size=128, epochs=10, rounds=1, train_batch=8,
        shortened=True,
    ),
})
class Fcdd(Trained):
    """FCDD: a fully convolutional one-class network trained against confetti"""

    Config = FcddConfig
    config: FcddConfig
    normalise = False
    kept = ("low", "high")

    def __init__(self, config: FcddConfig, context: Context) -> None:
        super().__init__(config, context)
        layers = architecture(config.backbone).features[: config.last]
        named = nn.ModuleDict({"features": layers})  # the names a weights file uses
        if (state := context.weights.load(config.backbone, named.state_dict())) is not None:
            load_into(named, state, config.backbone)
        for module in layers.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        layers[: config.frozen].requires_grad_(False)
        with torch.no_grad():
            width = layers.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        self._trained(net=nn.Sequential(layers, nn.Conv2d(width, 1, 1)))
        self.low = self.high = torch.empty(0)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, side = self.config, self.config.size
        stored = round(side * 240 / 224)
        larger = Preprocess((stored, stored), normalise=False)
        pictures = load_pictures(train, larger, self.context.device, notes=self.notes)
        contrast = contrasted(F.interpolate(pictures, (side, side)))
        self.low, self.high = contrast.amin((0, 2, 3), keepdim=True), contrast.amax((0, 2, 3), keepdim=True)

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            x = varied(pictures[indices % len(pictures)], side, noise)
            marked = torch.rand(len(x), generator=noise, device=x.device) < 0.5
            x = torch.where(marked.view(-1, 1, 1, 1), confetti(x, noise), x)
            grid = distances(self.trained["net"](self._scaled(x)))
            means = grid.mean((1, 2))
            return {"loss": one_class_loss(grid, marked).mean(), "normal": means[~marked].sum() / len(means),
                    "confetti": means[marked].sum() / len(means)}

        optimizer = SGD(self._parameters(), config.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
        return self._train(
            step, [optimizer], len(pictures) * config.rounds, progress, schedulers=[ExponentialLR(optimizer, 0.985)]
        )

    def _scaled(self, x: Tensor) -> Tensor:
        low, high = self.low.to(x.device), self.high.to(x.device)
        return (contrasted(x) - low) / (high - low).clamp_min(1e-6)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        grid = distances(self.trained["net"](self._scaled(self._seen(batch))))
        return Prediction(upsampled(grid, self.config.field, self.config.size), grid.mean((1, 2)))


def distances(phi: Tensor) -> Tensor:
    """A of phi [B, 1, h, w]: [B, h, w]."""
    return ((phi.square() + 1).sqrt() - 1)[:, 0]


def one_class_loss(grid: Tensor, marked: Tensor) -> Tensor:
    """Loss of each picture, [B]: A [B, h, w], and bool [B] whether it has confetti."""
    mean = grid.mean((1, 2))
    return torch.where(marked, -(-torch.expm1(-mean)).clamp_min(1e-9).log(), mean)


def upsampled(grid: Tensor, field: int, size: int) -> Tensor:
    """A [B, h, w] -> [B, size, size]: a Gaussian of the receptive field's size for each value, cut to the picture."""
    offsets = torch.arange(field, device=grid.device) - (field - 1) / 2
    line = torch.exp(-offsets.square() / (2 * STD**2))
    full = F.conv_transpose2d(grid.unsqueeze(1), torch.outer(line, line)[None, None], stride=STRIDE)
    cut = (full.shape[-1] - size) // 2
    return full[:, 0, cut : cut + size, cut : cut + size]


def contrasted(x: Tensor) -> Tensor:
    """Pictures less their mean, divided by their mean absolute value, over all colours."""
    x = x - x.mean((1, 2, 3), keepdim=True)
    return x / x.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-6)
