"""Denoising and contractive autoencoders with an own, a VGG16 or a ResNet50 encoder.

Kumar, Malik, Puglisi: Unsupervised Anomaly Detection in Industrial Image Data with Autoencoders. Sections in the
comments are the paper's; "open" marks what it does not state (docs/methods_dae_cae.md lists each such point).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.contractive import DenseCode, dense_contraction
from models.nn.floor import code_used, compared, floor
from models.nn.noise import Kind, corrupt, each_alone, picture_generators
from models.nn.preprocess import imagenet
from models.nn.pretrained import resnet50_features, vgg_features
from models.nn.schedule import Schedule, schedulers
from models.nn.ssim import ssim
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import autocast
from models.nn.upconv import UpConv
from models.registry import register
from models.weights import WeightStore

Encoder = Literal["own", "vgg16", "resnet50"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(TrainedConfig):
    """What both families share; defaults are the paper's or, where open, those of the docs page."""

    encoder: Encoder = "own"  # 3.3
    loss: Literal["mse", "ssim"] = "mse"  # 3.3.1; also the error that is compared with the threshold
    size: int = 256  # 3.2, height and width
    widths: tuple[int, ...] = (32, 64, 128, 256)  # open: only in the figures
    dense: int = 512  # open: values in a dense bottleneck
    initialisation: Literal["he", "torch"] = "he"  # open; torch's default needs 1.5 times the epochs to the same loss
    extra_conv: bool = False  # open: a sixth convolution in the decoder
    imagenet_norm: bool = False  # open: normalise what enters a pretrained encoder
    lr: float = 1e-4  # 3.3.2, Adam
    encoder_rate: float = 1.0  # open: rate of a pretrained encoder, relative to lr
    frozen_norm: bool = False  # open: batch norm by all training pictures before the first step, and left so
    schedule: Schedule = "constant"  # open: of the learning rate
    train_batch: int = 32  # 3.3.2
    epochs: int = 400  # open; at this rate and batch the mean picture is passed at about 200 (docs)

    def __post_init__(self) -> None:
        grid = 16 if self.encoder == "own" else 32
        if self.size % grid or self.size < 32:
            raise ModelError(f"size={self.size}: encoder {self.encoder} needs a multiple of {grid}, at least 32")
        if len(self.widths) != 4 or min(self.widths) < 1:
            raise ModelError(f"widths={self.widths} must be four positive numbers: the encoder has four steps")
        if not 0 < self.encoder_rate <= 1:
            raise ModelError(f"encoder_rate={self.encoder_rate}: a share of lr, above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class DaeConfig(AutoencoderConfig):
    """The denoising family."""

    noise: Kind = "gaussian"  # open
    noise_level: float = 0.1  # open: standard deviation, or share of pixels
    test_noise: bool = True  # 3.2: test pictures are corrupted too
    vgg_dense: bool = True  # open: a dense bottleneck after VGG16 in this family as well


@dataclass(frozen=True, kw_only=True)
class CaeConfig(AutoencoderConfig):
    """The contractive family."""

    contraction: float = 1e-6  # open: weight of the penalty; a hundred times as much leaves the code unused (docs)


class Autoencoder(nn.Module):
    """encoder -> bottleneck -> decoder; pictures [B, 3, s, s] in [0, 1] to the same.

    A dense bottleneck is `DenseCode` of the flattened encoder output, with a linear layer back.
    """

    def __init__(self, config: AutoencoderConfig, dense: bool, store: WeightStore) -> None:
        super().__init__()
        self.frozen = False
        widths, grid = config.widths, config.size // 16
        self.normalise = config.imagenet_norm and config.encoder != "own"
        channels, side = {"own": (widths[3], grid), "vgg16": (512, grid // 2), "resnet50": (2048, grid // 2)}[
            config.encoder
        ]
        self.to_code = DenseCode(channels * side * side, config.dense) if dense else None
        if dense:
            self.back: nn.Module = nn.Sequential(
                nn.Linear(config.dense, widths[3] * grid * grid), nn.Unflatten(1, (widths[3], grid, grid))
            )
        elif config.encoder == "own":
            self.back = nn.Identity()
        else:
            self.back = nn.Sequential(nn.Conv2d(channels, widths[3], 1), nn.Upsample(scale_factor=2, mode="bilinear"))
        layers: list[nn.Module] = [nn.Conv2d(widths[3], widths[3], 3, padding=1), nn.ReLU()]
        for before, after in zip(widths[:0:-1], widths[2::-1], strict=True):
            layers += [UpConv(before, after), nn.ReLU()]
        if config.extra_conv:
            layers += [UpConv(widths[0], widths[0]), nn.ReLU(), nn.Conv2d(widths[0], 3, 3, padding=1)]
        else:
            layers += [UpConv(widths[0], 3)]
        self.decoder = nn.Sequential(*layers, nn.Sigmoid())
        steps: list[nn.Module] = []
        for before, after in zip((3, *widths[:3]), widths, strict=True):
            steps += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.encoder: nn.Module = nn.Sequential(*steps)
        if config.initialisation == "he":
            self.apply(he)
        if config.encoder == "vgg16":
            self.encoder = vgg_features("vgg16.tv_in1k", store)
        elif config.encoder == "resnet50":
            self.encoder = resnet50_features("resnet50.tv_in1k", store)

    def train(self, mode: bool = True) -> Autoencoder:
        """With `frozen`, batch norm keeps its statistics in training too."""
        super().train(mode)
        for module in self.modules() if self.frozen else ():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        return self

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(encoder output a [B, C, h, w], code: [B, dense] in (0, 1), or a itself without a dense bottleneck)."""
        a = self.encoder(imagenet(x) if self.normalise else x)
        return a, a if self.to_code is None else self.to_code(a.flatten(1))

    def decode(self, code: Tensor) -> Tensor:
        return self.decoder(self.back(code).contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[1])


def he(layer: nn.Module) -> None:
    """He et al. 2015 for the layers before a ReLU; the code's own start is left as it is."""
    if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, DenseCode):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


class AutoencoderDetector(Trained):
    """Reconstruction error against a threshold from the training errors (3.3.3)."""

    config: AutoencoderConfig
    normalise = False
    channels_last = True
    kept = ("threshold",)

    def __init__(self, config: AutoencoderConfig, context: Context) -> None:
        super().__init__(config, context)
        self.net = Autoencoder(config, self._is_dense(), context.weights)
        self._trained(net=self.net)

    @abstractmethod
    def _is_dense(self) -> bool:
        """Whether the bottleneck is a dense layer."""

    @abstractmethod
    def _objective(self, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """The loss of a clean batch and its parts, one of them the 'reconstruction' error."""

    def _input(self, pictures: Images, x: Tensor) -> Tensor:
        """What the network sees of pictures `x` [B, 3, s, s] outside of training."""
        return x

    def _error(self, x: Tensor, y: Tensor) -> Tensor:
        """The variant's own measure for each picture: float32 [B]."""
        if self.config.loss == "mse":
            return (x - y.float()).square().flatten(1).mean(1)
        return 1 - ssim(x, y)

    def fit(self, train_images: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Train to the last epoch and set the threshold. Validation pictures of the dataset are not used.

        The log has the loss and its parts by epoch, the training errors' mean and standard deviation, the mean
        picture's error, and how far the code is used. Raises ModelError when the loss diverges.
        """
        config = self.config
        data = self._pictures(train_images)
        encoder = list(self.net.encoder.parameters())
        rest = [*self.net.back.parameters(), *self.net.decoder.parameters(),
                *(self.net.to_code.parameters() if self.net.to_code is not None else ())]
        rate = config.lr if config.encoder == "own" else config.lr * config.encoder_rate
        optimizer = torch.optim.Adam([{"params": rest}, {"params": encoder, "lr": rate}], lr=config.lr, fused=True)
        if config.frozen_norm:
            self.net.frozen = False  # of an earlier fit
            self._settle(train_images, data)
            self.net.frozen = True
        log = self._train(
            lambda indices, noise: self._objective(data[indices], noise), [optimizer], len(data), progress,
            schedulers=schedulers(config.schedule, optimizer, config.epochs),
        )
        if not config.frozen_norm:
            self._settle(train_images, data)
        errors = torch.cat([
            self._compare(train_images[start : start + config.batch])[0].cpu()
            for start in range(0, len(data), config.batch)
        ]).double()
        self.threshold = float(errors.mean())  # 3.3.3
        log |= {"error_std": float(errors.std(correction=0)), "threshold": self.threshold}
        compared(log, floor(data, self._error, config.batch), self.threshold, log["reconstruction"])
        if self.net.to_code is not None:
            self._look_at_the_code(log, data)
        return log

    def _settle(self, pictures: Images, data: Tensor) -> None:
        """Batch norm, of a dense code and of ResNet50, by all training pictures as they are seen at test.

        What training leaves are averages over its last batches, behind weights that still move at a constant rate: on
        bottle the error at test was three times that of training (docs).
        """
        count = max(1, len(data) // self.config.train_batch)  # parts of at least a batch: one picture has no spread
        edges = [len(data) * i // count for i in range(count + 1)]
        update_bn((self._input(pictures[a:b], data[a:b]).contiguous(memory_format=torch.channels_last)
                   for a, b in pairwise(edges) if b - a > 1), self.net)

    @torch.no_grad()
    def _look_at_the_code(self, log: dict[str, Any], data: Tensor) -> None:
        """Spread of the code over the training pictures, and what the error becomes with the mean code for all."""
        parts = data.split(self.config.batch)
        code = torch.cat([self.net.encode(x)[1] for x in parts])

        def error(codes: Tensor) -> float:
            each = zip(parts, codes.split(self.config.batch), strict=True)
            return float(torch.cat([self._error(x, self.net.decode(c)) for x, c in each]).mean())

        log["code_spread"] = float(code.double().std(0, correction=0).mean())
        code_used(log, error(code.mean(0).expand_as(code)) / error(code))

    def predict(self, batch: Images) -> Prediction:
        """Score: the reconstruction error. Map: squared differences (mean over channels), which the paper has not."""
        error, x, y = self._compare(batch)
        return Prediction((x - y).square().mean(1).cpu(), error.cpu(), {"reconstruction": y})

    @torch.no_grad()
    def _compare(self, pictures: Images) -> tuple[Tensor, Tensor, Tensor]:
        """(error [B], clean pictures, reconstructions [B, 3, s, s]); the clean picture is always the reference."""
        x = self._seen(pictures)
        y = self.net(self._input(pictures, x).contiguous(memory_format=torch.channels_last))
        return self._error(x, y), x, y


# small pictures, batches of four and a rate that rises and falls: at one that is constant, or full from the first step,
# the mean picture is not passed in as many steps (docs/methods_dae_cae.md)
OWN: dict[str, Any] = {
    "size": 64, "train_batch": 4, "lr": 1e-3, "schedule": "warm_cosine", "epochs": 40, "shortened": True,
}
# eight pictures are too few for the statistics of batch norm, and a random encoder that moves as fast as the rest loses
# what it tells pictures apart by (docs); VGG16 has no batch norm within to hold it
RESNET: dict[str, Any] = {
    **OWN, "encoder": "resnet50", "size": 32, "train_batch": 8, "encoder_rate": 0.1, "frozen_norm": True,
}
VGG: dict[str, Any] = {**RESNET, "encoder": "vgg16", "encoder_rate": 0.01}
# what noise of 0.1 at 256 px is after the reduction to 32 px, where 0.1 hides the differences between pictures (docs)
FAINT: dict[str, Any] = {"noise_level": 0.0125}
# without a dense code the mean picture itself takes longer to learn
NO_CODE: dict[str, Any] = {**RESNET, "lr": 2e-3, "encoder_rate": 0.05, "epochs": 80}


@register(
    "dae",
    presets={
        "mse": DaeConfig(),
        "ssim": DaeConfig(loss="ssim"),
        "vgg16_mse": DaeConfig(encoder="vgg16"),
        "vgg16_ssim": DaeConfig(encoder="vgg16", loss="ssim"),
        "resnet50_mse": DaeConfig(encoder="resnet50"),
        "resnet50_ssim": DaeConfig(encoder="resnet50", loss="ssim"),
        "quick": DaeConfig(**OWN),
        "quick_ssim": DaeConfig(loss="ssim", **OWN),
        "quick_vgg16_mse": DaeConfig(**VGG, **FAINT),
        "quick_vgg16_ssim": DaeConfig(loss="ssim", **VGG, **FAINT),
        "quick_resnet50_mse": DaeConfig(**NO_CODE, **FAINT),
        "quick_resnet50_ssim": DaeConfig(loss="ssim", **NO_CODE, **FAINT),
    },
)
class Dae(AutoencoderDetector):
    """Denoising autoencoder (Kumar et al.): noisy picture in, clean one out; threshold = mean training error."""

    Config = DaeConfig
    config: DaeConfig

    def _is_dense(self) -> bool:
        return self.config.encoder == "vgg16" and self.config.vgg_dense

    def _noisy(self, x: Tensor, noise: torch.Generator) -> Tensor:
        return corrupt(x, self.config.noise, self.config.noise_level, noise)

    def _objective(self, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        with autocast(x.device, self.config.precision):
            y = self.net(self._noisy(x, noise))
        error = self._error(x, y).mean()
        return {"loss": error, "reconstruction": error}

    def _input(self, pictures: Images, x: Tensor) -> Tensor:
        """Noise of each picture from its own pixels and the unit's seed: the same in the threshold pass and at test."""
        if not self.config.test_noise:
            return x
        return each_alone(x, picture_generators(pictures, self.context.seed), self._noisy)


@register(
    "cae",
    presets={
        "mse": CaeConfig(),
        "ssim": CaeConfig(loss="ssim"),
        "vgg16_mse": CaeConfig(encoder="vgg16"),
        "vgg16_ssim": CaeConfig(encoder="vgg16", loss="ssim"),
        "resnet50_mse": CaeConfig(encoder="resnet50"),
        "resnet50_ssim": CaeConfig(encoder="resnet50", loss="ssim"),
        "quick": CaeConfig(**OWN),
        "quick_ssim": CaeConfig(loss="ssim", **OWN),
        "quick_vgg16_mse": CaeConfig(**VGG),
        "quick_vgg16_ssim": CaeConfig(loss="ssim", **VGG),
        "quick_resnet50_mse": CaeConfig(**RESNET),
        "quick_resnet50_ssim": CaeConfig(loss="ssim", **RESNET),
    },
)
class Cae(AutoencoderDetector):
    """Contractive autoencoder (Kumar et al.): penalty on the code's Jacobian; threshold = mean training error."""

    Config = CaeConfig
    config: CaeConfig

    def _is_dense(self) -> bool:
        return True

    def _objective(self, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Reconstruction and penalty (3.3.1: "the bottleneck ... is used to compute the contractive loss")."""
        assert self.net.to_code is not None
        with autocast(x.device, self.config.precision):
            code = self.net.encode(x)[1]
            y = self.net.decode(code)
        penalty = dense_contraction(code.float(), self.net.to_code.matrix()).mean()
        reconstruction = self._error(x, y).mean()
        return {
            "loss": reconstruction + self.config.contraction * penalty,
            "reconstruction": reconstruction, "contraction": penalty,
        }
