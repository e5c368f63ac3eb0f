"""Denoising and contractive autoencoders with an own, a VGG16 or a ResNet50 encoder.

Kumar, Malik, Puglisi: Unsupervised Anomaly Detection in Industrial Image Data with Autoencoders. Sections in the
comments are the paper's; "open" marks what it does not state (docs/methods_dae_cae.md lists each such point).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.nn.noise import Kind, corrupt, picture_generators
from models.nn.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from models.nn.ssim import ssim
from models.nn.training import autocast, key_of, load_pictures, split, train
from models.nn.vgg import vgg_features
from models.registry import register
from models.weights import WeightStore, load_into

Encoder = Literal["own", "vgg16", "resnet50"]
COLLAPSED = 1e-5  # spread of a code in (0, 1) over the training pictures, below which it carries nothing


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Config):
    """What both families share; defaults are the paper's or, where open, those of the docs page."""

    encoder: Encoder = "own"  # 3.3
    loss: Literal["mse", "ssim"] = "mse"  # 3.4; also the error that is compared with the threshold
    size: int = 256  # 3.2, height and width
    widths: tuple[int, ...] = (32, 64, 128, 256)  # open: only in the figures
    dense: int = 512  # open: values in a dense bottleneck
    dense_input: Literal["normalised", "plain"] = "normalised"  # open; plain saturates every sigmoid within 20 steps
    extra_conv: bool = False  # open: a sixth convolution in the decoder
    fine_grid: bool = False  # open: pretrained encoders reduce by 16 instead of 32
    imagenet_norm: bool = False  # open: normalise what enters a pretrained encoder
    lr: float = 1e-4  # 3.5, Adam
    train_batch: int = 32  # 3.5
    epochs: int = 100  # open
    threshold_rule: Literal["mean", "mean_std", "quantile"] = "mean"  # 3.6: the mean of the training errors
    threshold_k: float = 1.0  # of 'mean_std'
    threshold_quantile: float = 0.95
    calibration: Literal["train", "holdout"] = "train"  # open: pictures for the threshold; 'holdout' keeps a fifth back

    def __post_init__(self) -> None:
        grid = 16 if self.encoder == "own" or self.fine_grid else 32
        if self.size % grid or self.size < 64:
            raise ModelError(f"size={self.size}: encoder {self.encoder} needs a multiple of {grid}, at least 64")
        if len(self.widths) != 4 or min(self.widths) < 1:
            raise ModelError(f"widths={self.widths} must be four positive numbers: the encoder has four steps")


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

    contraction: float = 1e-4  # open: weight of the penalty
    jacobian: Literal["hutchinson", "dense"] = "hutchinson"  # of encoder and input (estimated), or of the dense layer
    jacobian_draws: int = 1  # random directions for each picture and step
    jacobian_share: float = 0.25  # of a batch's pictures, on which the penalty is estimated

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.jacobian_share <= 1:
            raise ModelError(f"jacobian_share={self.jacobian_share} must be above 0 and at most 1")


class Pretrained(nn.Module):
    """VGG16 or ResNet50 without classifier and pooling (3.5): [B, 3, s, s] -> [B, C, s/32, s/32], or s/16."""

    def __init__(self, name: Encoder, store: WeightStore, fine_grid: bool, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        if name == "vgg16":
            self.channels = 512
            self.body: nn.Module = vgg_features("vgg16.tv_in1k", store, 30 if fine_grid else None)  # 30: last pooling
            return
        from torchvision.models import resnet50

        self.channels = 2048
        net = resnet50(weights=None)
        net.fc = nn.Identity()
        state = store.load("resnet50.tv_in1k", net.state_dict())
        if state is not None:
            load_into(net, state, "resnet50.tv_in1k")
        if fine_grid:
            net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (1, 1)
        self.body = nn.Sequential(*list(net.children())[:-2])

    def forward(self, x: Tensor) -> Tensor:
        if self.normalise:
            x = (x - x.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / x.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
        return self.body(x)


class DenseCode(nn.Linear):
    """Encoder output [B, n], flattened, to the code sigmoid(W a + b): [B, m] in (0, 1).

    With n = 65536 non-negative inputs, one step of Adam moves all of W a the same way and after some 20 steps every
    sigmoid is 0 or 1: the code no longer depends on the picture. `normalised` brings each a to mean 0 and variance 1
    and divides W by sqrt(n), so that a step changes W a by about sqrt(n) times the learning rate.
    """

    def __init__(self, n: int, m: int, normalised: bool) -> None:
        self.normalised = normalised
        super().__init__(n, m)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.normalised:  # variance 1 / 3 of W a, as for a plain layer whose inputs have mean square 1
            nn.init.uniform_(self.weight, -1, 1)

    def matrix(self) -> Tensor:
        """W [m, n] of sigmoid(W a + b), as it meets a (normalised, where that is asked)."""
        return self.weight / self.in_features**0.5 if self.normalised else self.weight

    def forward(self, a: Tensor) -> Tensor:
        if not self.normalised:
            return torch.sigmoid(super().forward(a))
        a = nn.functional.layer_norm(a, a.shape[-1:]) / self.in_features**0.5
        return torch.sigmoid(super().forward(a))


class Autoencoder(nn.Module):
    """encoder -> bottleneck -> decoder; pictures [B, 3, s, s] in [0, 1] to the same.

    A dense bottleneck is `DenseCode` of the flattened encoder output, with a linear layer back.
    """

    def __init__(self, config: AutoencoderConfig, dense: bool, store: WeightStore) -> None:
        super().__init__()
        widths, grid = config.widths, config.size // 16
        if config.encoder == "own":
            steps: list[nn.Module] = []
            for before, after in zip((3, *widths[:3]), widths, strict=True):
                steps += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            self.encoder: nn.Module = nn.Sequential(*steps)
            channels, side = widths[3], grid
        else:
            self.encoder = Pretrained(config.encoder, store, config.fine_grid, config.imagenet_norm)
            channels, side = self.encoder.channels, grid if config.fine_grid else grid // 2
        self.to_code: DenseCode | None = None
        if dense:
            self.to_code = DenseCode(channels * side * side, config.dense, config.dense_input == "normalised")
            self.back: nn.Module = nn.Sequential(
                nn.Linear(config.dense, widths[3] * grid * grid), nn.Unflatten(1, (widths[3], grid, grid))
            )
        elif config.encoder == "own":
            self.back = nn.Identity()
        else:
            enlarge = nn.Upsample(scale_factor=2, mode="bilinear") if side < grid else nn.Identity()
            self.back = nn.Sequential(nn.Conv2d(channels, widths[3], 1), enlarge)
        layers: list[nn.Module] = []
        for before, after in zip((widths[3], *widths[:0:-1]), widths[::-1], strict=True):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)]
        if config.extra_conv:
            layers += [nn.Conv2d(widths[0], widths[0], 3, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(widths[0], 3, 3, padding=1), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(encoder output a [B, C, h, w], code: [B, dense] in (0, 1), or a itself without a dense bottleneck)."""
        a = self.encoder(x)
        return a, a if self.to_code is None else self.to_code(a.flatten(1))

    def decode(self, code: Tensor) -> Tensor:
        return self.decoder(self.back(code).contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[1])


def dense_contraction(code: Tensor, weight: Tensor) -> Tensor:
    """Squared Frobenius norm of the Jacobian of sigmoid(W a + b) with respect to a, exactly: [B] from code [B, m]."""
    return (code * (1 - code)).square() @ weight.square().sum(1)


def jacobian_norm(code: Tensor, x: Tensor, draws: Tensor) -> Tensor:
    """Mean over k of |J^T v_k|^2 with J the Jacobian of each picture's code [B, m] with respect to x: [B].

    draws: [k, B, m]. With independent entries of mean 0 and variance 1 this is an unbiased estimate of the squared
    Frobenius norm of J (Hutchinson). With signs +-1 its standard deviation is at most sqrt(2 / k) of the value for
    one picture, so at most sqrt(2 / (k B)) for the mean of B equal ones. Can be differentiated.
    """
    total = torch.zeros(len(x), device=x.device)
    for v in draws:
        (gradient,) = torch.autograd.grad(code, x, v.to(code.dtype), create_graph=True)
        total = total + gradient.float().square().flatten(1).sum(1)
    return total / len(draws)


class AutoencoderDetector(Detector):
    """Reconstruction error against a threshold from the training errors (3.6)."""

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), normalise=False)
        self.net = Autoencoder(config, self._is_dense(), context.weights)
        self.net.to(context.device, memory_format=torch.channels_last).eval()

    @abstractmethod
    def _is_dense(self) -> bool:
        """Whether the bottleneck is a dense layer."""

    @abstractmethod
    def _objective(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of a clean batch and its parts."""

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

        The log has the loss and its parts by epoch, mean and standard deviation of the calibration errors, and the
        threshold. Raises ModelError when the loss diverges or there are too few pictures to hold some back.
        """
        config = self.config
        used = calibration = list(range(len(train_images)))
        if config.calibration == "holdout":
            used, calibration = split(len(train_images), 0.2, self.context)
        notes: list[str] = []
        data = load_pictures([train_images[i] for i in used], self.preprocess, self.context.device, notes=notes)
        data = data.contiguous(memory_format=torch.channels_last)

        def step(indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return self._objective(data[indices], generator)

        optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)
        log = train(
            step, {"autoencoder": self.net}, [optimizer], count=len(data), batch=config.train_batch,
            epochs=config.epochs, context=self.context, key=key_of(config), progress=progress,
        )
        errors = torch.cat([
            self._compare([train_images[i] for i in calibration[start : start + config.batch]])[0].cpu()
            for start in range(0, len(calibration), config.batch)
        ]).double()
        if self.net.to_code is not None:
            log["code_spread"] = spread = self._code_spread(data)
            if spread < COLLAPSED:
                notes.append(
                    f"the dense code hardly depends on the picture (spread {spread:.1e} over the training pictures): "
                    "the reconstruction is one picture for all"
                )
        self.threshold = self._threshold(errors)
        log |= {
            "error_mean": float(errors.mean()), "error_std": float(errors.std(correction=0)),
            "threshold": self.threshold,
        }
        if notes:
            log["notes"] = [*log.get("notes", []), *notes]
        return log

    @torch.no_grad()
    def _code_spread(self, data: Tensor) -> float:
        """Standard deviation of the code's values over pictures [N, 3, s, s], mean over the values."""
        code = torch.cat([self.net.encode(x)[1] for x in data.split(self.config.batch)])
        return float(code.double().std(0, correction=0).mean())

    def _threshold(self, errors: Tensor) -> float:
        config = self.config
        if config.threshold_rule == "quantile":
            return float(errors.quantile(config.threshold_quantile))
        extra = config.threshold_k * errors.std(correction=0) if config.threshold_rule == "mean_std" else 0.0
        return float(errors.mean() + extra)

    def predict(self, batch: Images) -> Prediction:
        """Score: the reconstruction error. Map: squared differences (mean over channels), which the paper has not."""
        error, x, y = self._compare(batch)
        return Prediction((x - y).square().mean(1).cpu(), error.cpu(), {"reconstruction": y})

    @torch.no_grad()
    def _compare(self, pictures: Images) -> tuple[Tensor, Tensor, Tensor]:
        """(error [B], clean pictures, reconstructions [B, 3, s, s]); the clean picture is always the reference."""
        x = self.preprocess(pictures, self.context.device)
        y = self.net(self._input(pictures, x).contiguous(memory_format=torch.channels_last))
        return self._error(x, y), x, y

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "threshold": self.threshold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.threshold = state["threshold"]


@register(
    "dae",
    presets={
        "mse": DaeConfig(),
        "ssim": DaeConfig(loss="ssim"),
        "vgg16_mse": DaeConfig(encoder="vgg16"),
        "vgg16_ssim": DaeConfig(encoder="vgg16", loss="ssim"),
        "resnet50_mse": DaeConfig(encoder="resnet50"),
        "resnet50_ssim": DaeConfig(encoder="resnet50", loss="ssim"),
        "quick": DaeConfig(size=128, epochs=20, train_batch=16, lr=1e-3, shortened=True),
    },
)
class Dae(AutoencoderDetector):
    """Denoising autoencoder (Kumar et al.): noisy picture in, clean one out; threshold = mean training error."""

    Config = DaeConfig
    config: DaeConfig

    def _is_dense(self) -> bool:
        return self.config.encoder == "vgg16" and self.config.vgg_dense

    def _objective(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noisy = corrupt(x, self.config.noise, self.config.noise_level, generator)
        with autocast(x.device, self.config.precision):
            y = self.net(noisy)
        return {"loss": self._error(x, y).mean()}

    def _input(self, pictures: Images, x: Tensor) -> Tensor:
        """Noise of each picture from its own pixels and the unit's seed: the same in the threshold pass and at test."""
        config = self.config
        if not config.test_noise:
            return x
        draws = zip(x.cpu().split(1), picture_generators(pictures, self.context.seed), strict=True)
        noisy = [corrupt(one, config.noise, config.noise_level, generator) for one, generator in draws]
        return torch.cat(noisy).to(x.device)


@register(
    "cae",
    presets={
        "mse": CaeConfig(),
        "ssim": CaeConfig(loss="ssim"),
        "vgg16_mse": CaeConfig(encoder="vgg16"),
        "vgg16_ssim": CaeConfig(encoder="vgg16", loss="ssim"),
        "resnet50_mse": CaeConfig(encoder="resnet50"),
        "resnet50_ssim": CaeConfig(encoder="resnet50", loss="ssim"),
        "quick": CaeConfig(size=128, dense=128, epochs=20, train_batch=16, lr=1e-3, shortened=True),
    },
)
class Cae(AutoencoderDetector):
    """Contractive autoencoder (Kumar et al.): penalty on the encoder's Jacobian; threshold = mean training error."""

    Config = CaeConfig
    config: CaeConfig

    def _is_dense(self) -> bool:
        return True

    def _objective(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        hutchinson = config.jacobian == "hutchinson" and config.contraction > 0
        assert self.net.to_code is not None
        with autocast(x.device, config.precision):
            code = self.net.encode(x)[1]
            y = self.net.decode(code)
            if hutchinson:  # the batch is in random order, so its first pictures are a random choice
                some = x[: max(1, round(len(x) * config.jacobian_share))].detach().requires_grad_()
                code = self.net.encode(some)[1]
        if hutchinson:
            shape = (config.jacobian_draws, *code.shape)
            signs = torch.randint(0, 2, shape, generator=generator, device=x.device) * 2 - 1
            penalty = jacobian_norm(code, some, signs.to(x.dtype)).mean()
        else:
            penalty = dense_contraction(code.float(), self.net.to_code.matrix()).mean()
        reconstruction = self._error(x, y).mean()
        return {
            "loss": reconstruction + config.contraction * penalty,
            "reconstruction": reconstruction, "contraction": penalty,
        }
