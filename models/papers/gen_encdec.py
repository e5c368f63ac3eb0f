"""Noisy pictures restored by a VGG19 + transformer encoder and a decoder with attention on its skips.

Mekhilef et al.: A Generative Encoder-Decoder Model for Automated Quality Control Inspections. "open" marks what the
paper does not state; docs/methods_gen_encdec.md lists each such point with its default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.floor import compared, floor, mean_error
from models.nn.gms import mean_filter, msgms
from models.nn.noise import Spread, each_alone, gaussian, picture_generators
from models.nn.preprocess import imagenet
from models.nn.pretrained import vgg_features
from models.nn.schedule import Schedule, schedulers
from models.nn.ssim import ssim
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import Best, autocast, generator, key_of, split
from models.registry import register
from models.weights import WeightStore

# Printed for each category; each was tried with several rates and the best kept (4.B).
NOISE_RATES = {
    "bottle": 0.1, "cable": 0.25, "capsule": 0.2, "hazelnut": 0.2, "metal_nut": 0.3, "pill": 0.09, "screw": 0.2,
    "toothbrush": 0.3, "transistor": 0.3, "zipper": 0.1, "carpet": 0.4, "grid": 0.16, "leather": 0.1, "tile": 0.11,
    "wood": 0.09, "constructed_button": 0.09, "button": 0.09,
}
DEFAULT_RATE = 0.2
VGG = "vgg19.tv_in1k"
WIDTHS = (64, 128, 256)
BLOCKS = ((0, 5), (5, 10), (10, 19))  # of torchvision's vgg19.features, pooling included: 1/2, 1/4, 1/8 of the picture


@dataclass(frozen=True, kw_only=True)
class GenEncDecConfig(TrainedConfig):
    """Defaults are the paper's or, where open, those of the docs page."""

    size: int = 224  # height and width
    noise_rate: float | None = None  # None: the printed rate of the category, 0.2 for one without; 0: no noise
    noise_spread: Spread = "uniform"  # open: what N(0, sigma) with a "maximum" sigma means
    clip_noise: bool = False  # open
    test_noise: float = 0.0  # open: deviation of the noise at test over the noise rate, one for all pictures; 0: none
    test_draws: int = 1  # maps averaged when there is noise at test
    pyramid: bool = True  # pooled-image features for each block
    train_vgg: bool = True  # open
    imagenet_norm: bool = True  # open: VGG normalises its own copy; input and target stay in [0, 1]
    depth: int = 1  # open: transformer blocks
    width: int = 512  # values of a token
    heads: int = 4
    mlp_ratio: int = 4  # open
    dropout: float = 0.25
    skip_attention: bool = True  # on the first two skips
    skip_heads: tuple[int, ...] = (1, 2)
    reductions: tuple[int, ...] = (8, 4)  # per side
    skip_residual: bool = True  # open
    lr: float = 1e-4  # Adam
    schedule: Schedule = "constant"  # of the learning rate
    train_batch: int = 8
    epochs: int = 2000
    stop_from: int = 800  # epochs before early stopping looks at the validation loss
    patience: int = 300
    held_back: float = 0.2  # of the training pictures, for validation
    scales: int = 4  # open: of MSGMS
    filter: int = 21  # mean filter of both parts of the map

    def __post_init__(self) -> None:
        sizes = [self.size // 2, self.size // 4]
        if self.size % 16 or self.size < 32 or any(s % r for s, r in zip(sizes, self.reductions, strict=True)):
            raise ModelError(
                f"size={self.size} must be a multiple of 16, and the skip maps' sides {sizes} multiples of "
                f"reductions={self.reductions}"
            )
        if self.width % self.heads:
            raise ModelError(f"heads={self.heads} must divide width={self.width}")
        if self.filter % 2 == 0 or self.filter // 2 >= self.size:
            raise ModelError(f"filter={self.filter} must be odd and smaller than twice the size")
        if self.test_noise < 0 or self.test_draws < 1:
            raise ModelError(f"test_noise={self.test_noise} must not be negative, test_draws={self.test_draws} from 1")


def rate_of(config: GenEncDecConfig, category: str | None) -> tuple[float, str]:
    """(noise rate, where it comes from: 'setting', 'paper' or 'default')."""
    if config.noise_rate is not None:
        return config.noise_rate, "setting"
    if category in NOISE_RATES:
        return NOISE_RATES[category], "paper"
    return DEFAULT_RATE, "default"


class PyramidFeature(nn.Module):
    """Convolution 2x2 and ReLU of a pooled picture [B, 3, h, w], added to a block's output [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 2)

    def forward(self, picture: Tensor, block: Tensor) -> Tensor:
        return block + F.relu(self.conv(F.pad(picture, (0, 1, 0, 1))))  # open: one zero row and column keep the size


class SkipAttention(nn.Module):
    """Attention of every position to the map reduced by R per side, then convolution 3x3 and ReLU: same shape."""

    def __init__(self, channels: int, heads: int, reduction: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)  # eq. 2: reshape, then W: C R^2 -> C
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = self.norm(self.reduce(x).flatten(2).transpose(1, 2))
        found, _ = self.attention(x.flatten(2).transpose(1, 2), small, small, need_weights=False)
        found = found.transpose(1, 2).unflatten(2, x.shape[-2:])
        return F.relu(self.conv(x + found if self.residual else found))


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)  # open


class EncoderDecoder(nn.Module):
    """Noisy picture [B, 3, s, s] -> restored [B, 3, s, s]."""

    def __init__(self, config: GenEncDecConfig, store: WeightStore) -> None:
        super().__init__()
        self.imagenet_norm = config.imagenet_norm
        layers = vgg_features(VGG, store, BLOCKS[-1][1])
        self.vgg = nn.ModuleList(layers[first:last] for first, last in BLOCKS)
        self.vgg.requires_grad_(config.train_vgg)
        self.pyramid = nn.ModuleList(PyramidFeature(c) for c in WIDTHS) if config.pyramid else None

        self.embed = nn.Linear(WIDTHS[2], config.width)  # open: a token is one position of the last map
        self.position = nn.Parameter(torch.zeros(1, (config.size // 8) ** 2, config.width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(
            nn.TransformerEncoderLayer(
                config.width, config.heads, config.mlp_ratio * config.width, config.dropout, "gelu",
                batch_first=True, norm_first=True,
            ) for _ in range(config.depth)
        ))
        self.skips = nn.ModuleList(
            SkipAttention(c, heads, reduction, config.skip_residual)
            for c, heads, reduction in zip(WIDTHS[:2], config.skip_heads, config.reductions, strict=True)
        ) if config.skip_attention else None

        def conv(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=1)

        self.from_tokens, self.d3 = conv(config.width, 256), conv(256 + 256, 256)
        self.d2, self.d1, self.d0, self.last = conv(256 + 128, 128), conv(128 + 64, 64), conv(64, 32), conv(32, 3)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The three block outputs, each with its pooled-image feature."""
        picture, found = x, []
        x = imagenet(x) if self.imagenet_norm else x
        for k, block in enumerate(self.vgg):
            x, picture = block(x), F.avg_pool2d(picture, 2)
            if self.pyramid is not None:
                x = self.pyramid[k](picture, x)
            found.append(x)
        return found

    def bottleneck(self, x: Tensor) -> Tensor:
        """[B, 256, n, n] -> tokens through the transformer -> [B, 256, n, n]."""
        tokens = self.blocks(self.embed(x.flatten(2).transpose(1, 2)) + self.position)
        return self.from_tokens(tokens.transpose(1, 2).unflatten(2, x.shape[-2:]))

    def forward(self, x: Tensor) -> Tensor:
        e1, e2, e3 = self.encode(x)
        y = self.bottleneck(e3)
        if self.skips is not None:
            e1, e2 = self.skips[0](e1), self.skips[1](e2)
        y = F.relu(self.d3(torch.cat([y, e3], 1)))  # open: the third skip is plain
        y = F.relu(self.d2(torch.cat([up(y), e2], 1)))
        y = F.relu(self.d1(torch.cat([up(y), e1], 1)))
        return torch.sigmoid(self.last(F.relu(self.d0(up(y)))))


QUICK: dict[str, Any] = {
    "size": 64, "filter": 7, "epochs": 12, "stop_from": 2, "train_batch": 4, "lr": 1e-3, "schedule": "warm_cosine",
    "shortened": True,
}


@register(
    "gen_encdec",
    presets={
        "paper": GenEncDecConfig(),
        "quick": GenEncDecConfig(**QUICK),
        "quick_noisy_test": GenEncDecConfig(**QUICK, test_noise=0.5),  # the mean deviation of the training's noise
        "quick_noisy_test_8": GenEncDecConfig(**QUICK, test_noise=0.5, test_draws=8),
        "noisy_test": GenEncDecConfig(test_noise=0.5),
        "noisy_test_8": GenEncDecConfig(test_noise=0.5, test_draws=8),
        "no_noise": GenEncDecConfig(noise_rate=0.0),
        "no_attention": GenEncDecConfig(skip_attention=False),
        "no_pyramid": GenEncDecConfig(pyramid=False),
    },
)
class GenEncDec(Trained):
    """Generative encoder-decoder (Mekhilef et al.): denoising VGG19-transformer, map from MSGMS and squared error."""

    Config = GenEncDecConfig
    config: GenEncDecConfig
    normalise = False
    channels_last = True

    def __init__(self, config: GenEncDecConfig, context: Context) -> None:
        super().__init__(config, context)
        self.rate, self.rate_from = rate_of(config, context.extras.get("category"))
        self.net = EncoderDecoder(config, context.weights)
        self._trained(net=self.net)

    def fit(self, train_images: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Train with early stopping on a fifth of the training pictures; the best epoch's weights are kept.

        The dataset's own validation pictures are not used. The log names the noise rate and marks the printed rates
        as tuned. Raises ModelError with fewer than 10 pictures or when the loss diverges.
        """
        every = self._pictures(train_images)
        same = replace(self.config, test_noise=0.0, test_draws=1)  # which matter to `predict` only
        key = (self.name, key_of(same), self.rate, len(every))
        return self._once(key, lambda: self._trained_log(every, progress))

    def _trained_log(self, every: Tensor, progress: Progress) -> dict[str, Any]:
        config, device = self.config, self.context.device
        used, held = split(len(every), config.held_back, self.context)
        data, check = every[used], every[held]

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            x = data[indices]
            return self._loss(x, self._noisy(x, noise))

        def validate() -> float:
            noise = generator(self.context, "validation", device)  # the same noise after each epoch
            losses = [self._loss(x, self._noisy(x, noise))["loss"] * len(x) for x in check.split(config.train_batch)]
            return float(torch.stack(losses).sum()) / len(check)

        optimizer = torch.optim.Adam(self._parameters(), lr=config.lr, fused=True)
        log = self._train(
            step, [optimizer], len(data), progress, key=self.rate, validate=validate,
            stop=Best(config.patience, config.stop_from),
            schedulers=schedulers(config.schedule, optimizer, config.epochs),
        )
        log |= {"noise_rate": self.rate, "noise_rate_from": self.rate_from, "rate_tuned": self.rate_from == "paper"}
        compared(log, floor(data, self._error), mean_error(data, self.net, self._error), log["loss"])
        return log

    def _noisy(self, x: Tensor, noise: torch.Generator) -> Tensor:
        if self.rate == 0:
            return x
        noisy = gaussian(x, self.rate, noise, self.config.noise_spread)
        return noisy.clamp(0, 1) if self.config.clip_noise else noisy

    def _error(self, x: Tensor, y: Tensor) -> Tensor:
        """Eq. 6, with 1 - SSIM (eq. 5) for the SSIM that it prints: what it would reward is errors. [B]."""
        return (x - y).square().flatten(1).mean(1) + 1 - ssim(x, y)

    def _loss(self, x: Tensor, noisy: Tensor) -> dict[str, Tensor]:
        """Squared error plus structural dissimilarity to the clean picture."""
        with autocast(x.device, self.config.precision):
            y = self.net(noisy)
        y = y.float()
        l2, similarity = F.mse_loss(y, x), ssim(x, y).mean()
        return {"loss": l2 + 1 - similarity, "l2": l2, "ssim": similarity}

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """Map: smoothed 1 - MSGMS plus smoothed squared error. Score: its maximum."""
        config, x = self.config, self._seen(batch)
        deviation = config.test_noise * self.rate
        generators = picture_generators(batch, self.context.seed)

        def noisy(picture: Tensor, noise: torch.Generator) -> Tensor:
            picture = gaussian(picture, deviation, noise, "fixed")
            return picture.clamp(0, 1) if config.clip_noise else picture

        draws = config.test_draws if deviation else 1
        total, restored = 0.0, 0.0
        for _ in range(draws):
            seen = each_alone(x, generators, noisy) if deviation else x
            y = self.net(seen.contiguous(memory_format=torch.channels_last))
            l2 = (x - y).square().mean(1, keepdim=True)
            total = total + mean_filter(1 - msgms(x, y, config.scales), config.filter) + mean_filter(l2, config.filter)
            restored = restored + y
        maps = (total / draws)[:, 0].cpu()
        return Prediction(maps, maps.flatten(1).amax(1), {"reconstruction": restored / draws})
