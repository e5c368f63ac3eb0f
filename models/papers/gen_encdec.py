"""Noisy pictures restored by a VGG19 + transformer encoder and a decoder with attention on its skips.

Mekhilef et al.: A Generative Encoder-Decoder Model for Automated Quality Control Inspections. "open" marks what the
paper does not state; docs/methods_gen_encdec.md lists each such point with its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.nn.gms import mean_filter, msgms
from models.nn.noise import Spread, gaussian, picture_generators
from models.nn.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from models.nn.ssim import ssim
from models.nn.training import Best, autocast, generator, key_of, load_pictures, split, train
from models.nn.vgg import vgg_features
from models.registry import register
from models.weights import WeightStore

# Printed for each category; picked by the authors by the result on the test pictures.
NOISE_RATES = {
    "bottle": 0.1, "cable": 0.25, "capsule": 0.2, "hazelnut": 0.2, "metal_nut": 0.3, "pill": 0.09, "screw": 0.2,
    "toothbrush": 0.3, "transistor": 0.3, "zipper": 0.1, "carpet": 0.4, "grid": 0.16, "leather": 0.1, "tile": 0.11,
    "wood": 0.09, "constructed_button": 0.09, "button": 0.09,
}
DEFAULT_RATE = 0.2
VGG = "vgg19.tv_in1k"
WIDTHS = (64, 128, 256)
BLOCKS = ((0, 4), (5, 9), (10, 18))  # of torchvision's vgg19.features: convolutions [first, pooling)


@dataclass(frozen=True, kw_only=True)
class GenEncDecConfig(Config):
    """Defaults are the paper's or, where open, those of the docs page."""

    size: int = 224  # height and width
    noise_rate: float | None = None  # None: the printed rate of the category, 0.2 for one without; 0: no noise
    noise_spread: Spread = "uniform"  # open: what N(0, sigma) with a "maximum" sigma means
    clip_noise: bool = False  # open
    test_noise: Literal["off", "same_rate"] = "off"  # open
    test_draws: int = 1  # maps averaged when test_noise is on
    pyramid: bool = True  # pooled-image features for each block
    pyramid_source: Literal["input", "clean"] = "input"  # open: the noisy tensor, or the clean one
    pyramid_join: Literal["sum", "concat"] = "sum"  # open
    pyramid_pad: Literal["right_bottom", "resize"] = "right_bottom"  # open: how a 2x2 convolution keeps the size
    tap: Literal["after", "before"] = "after"  # open: block outputs after or before their pooling
    train_vgg: bool = True  # open
    imagenet_norm: bool = True  # open: VGG normalises its own copy; input and target stay in [0, 1]
    patch: int = 1  # open: pixels of the last map in one token, per side
    depth: int = 1  # open: transformer blocks
    width: int = 512  # values of a token
    heads: int = 4
    mlp_ratio: int = 4  # open
    dropout: float = 0.25
    skip_attention: bool = True  # on the first two skips
    skip_heads: tuple[int, ...] = (1, 2)
    reductions: tuple[int, ...] = (8, 4)  # per side
    skip_residual: bool = True  # open
    third_skip: bool = True  # open: only implied
    upsampling: Literal["bilinear", "nearest"] = "bilinear"  # open
    ssim_sign: Literal["dissimilarity", "paper"] = "dissimilarity"  # eq. 6 adds SSIM itself, which rewards errors
    lr: float = 1e-4  # Adam
    train_batch: int = 8
    epochs: int = 2000
    stop_from: int = 800  # epochs before early stopping looks at the validation loss
    patience: int = 300
    held_back: float = 0.2  # of the training pictures, for validation
    scales: int = 4  # open: of MSGMS
    l2_map: Literal["squared", "squared_sum", "root"] = "squared"  # open: over channels, the mean, the sum, the norm
    filter: int = 21  # mean filter of both parts of the map

    def __post_init__(self) -> None:
        grid = self.size // (8 if self.tap == "after" else 4)
        sizes = [self.size // (2 if self.tap == "after" else 1), self.size // (4 if self.tap == "after" else 2)]
        if self.size % 16 or self.size < 32 or any(s % r for s, r in zip(sizes, self.reductions, strict=True)):
            raise ModelError(
                f"size={self.size} must be a multiple of 16, and the skip maps' sides {sizes} multiples of "
                f"reductions={self.reductions}"
            )
        if self.patch < 1 or grid % self.patch:
            raise ModelError(f"patch={self.patch} must divide the last map's side, {grid}")
        if self.width % self.heads:
            raise ModelError(f"heads={self.heads} must divide width={self.width}")
        if self.filter % 2 == 0 or self.filter // 2 >= self.size:
            raise ModelError(f"filter={self.filter} must be odd and smaller than twice the size")


def rate_of(config: GenEncDecConfig, category: str | None) -> tuple[float, str]:
    """(noise rate, where it comes from: 'setting', 'paper' or 'default')."""
    if config.noise_rate is not None:
        return config.noise_rate, "setting"
    if category in NOISE_RATES:
        return NOISE_RATES[category], "paper"
    return DEFAULT_RATE, "default"


class PyramidFeature(nn.Module):
    """Convolution 2x2 and ReLU of a pooled picture [B, 3, h, w] -> [B, C, h, w]; joins a block's output."""

    def __init__(self, channels: int, pad: str, join: str) -> None:
        super().__init__()
        self.pad = pad
        self.conv = nn.Conv2d(3, channels, 2)
        self.project = nn.Conv2d(2 * channels, channels, 1) if join == "concat" else None

    def forward(self, picture: Tensor, block: Tensor) -> Tensor:
        if self.pad == "right_bottom":
            side = F.relu(self.conv(F.pad(picture, (0, 1, 0, 1))))
        else:
            side = F.interpolate(F.relu(self.conv(picture)), picture.shape[-2:], mode="bilinear", align_corners=False)
        return block + side if self.project is None else self.project(torch.cat([block, side], 1))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
    """Scaled dot-product attention with `heads` heads over [B, n, C], keys and values [B, m, C]."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)


class SkipAttention(nn.Module):
    """Attention of every position to the map reduced by R per side, then convolution 3x3 and ReLU: same shape."""

    def __init__(self, channels: int, heads: int, reduction: int, residual: bool) -> None:
        super().__init__()
        self.heads, self.residual = heads, residual
        self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)  # eq. 2: reshape, then W: C R^2 -> C
        self.norm = nn.LayerNorm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = self.norm(self.reduce(x).flatten(2).transpose(1, 2))
        tokens = x.flatten(2).transpose(1, 2)
        found = self.out(attend(self.query(tokens), self.key(small), self.value(small), self.heads, 0.0))
        found = found.transpose(1, 2).unflatten(2, x.shape[-2:])
        return F.relu(self.conv(x + found if self.residual else found))


class Block(nn.Module):
    """Transformer block: norm, self-attention, sum; norm, MLP, sum."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = mlp_ratio * width
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=2)
        x = x + self.out(attend(q, k, v, self.heads, self.dropout if self.training else 0.0))
        return x + self.mlp(self.norm2(x))


def up(x: Tensor, mode: str, factor: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode=mode, align_corners=False if mode == "bilinear" else None)


class EncoderDecoder(nn.Module):
    """Noisy picture [B, 3, s, s] (and the clean one, for the pyramid's alternative) -> restored [B, 3, s, s]."""

    def __init__(self, config: GenEncDecConfig, store: WeightStore) -> None:
        super().__init__()
        self.config = config
        layers = vgg_features(VGG, store, BLOCKS[-1][1] + 1)
        self.vgg = nn.ModuleList(layers[first:pool] for first, pool in BLOCKS)
        self.vgg.requires_grad_(config.train_vgg)
        self.pyramid = nn.ModuleList(
            PyramidFeature(c, config.pyramid_pad, config.pyramid_join) for c in WIDTHS
        ) if config.pyramid else None

        p, grid = config.patch, config.size // (8 if config.tap == "after" else 4) // config.patch
        self.embed = nn.Linear(WIDTHS[2] * p * p, config.width)
        self.position = nn.Parameter(torch.zeros(1, grid * grid, config.width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, config.dropout) for _ in range(config.depth)
        )
        self.skips = nn.ModuleList(
            SkipAttention(c, heads, reduction, config.skip_residual)
            for c, heads, reduction in zip(WIDTHS[:2], config.skip_heads, config.reductions, strict=True)
        ) if config.skip_attention else None

        def conv(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=1)

        self.from_tokens = conv(config.width, 256)
        self.d3 = conv(512 if config.third_skip else 256, 256)
        self.d2, self.d1, self.d0, self.last = conv(256 + 128, 128), conv(128 + 64, 64), conv(64, 32), conv(32, 3)

    def encode(self, x: Tensor, clean: Tensor | None = None) -> list[Tensor]:
        """The three block outputs, each with its pooled-image feature."""
        config, found = self.config, []
        picture = clean if clean is not None and config.pyramid_source == "clean" else x
        if config.imagenet_norm:
            x = (x - x.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / x.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
        for k, block in enumerate(self.vgg):
            if config.tap == "before" and k:
                x = F.max_pool2d(x, 2)
            x = block(x)
            if config.tap == "after":
                x = F.max_pool2d(x, 2)
            if config.tap == "after" or k:
                picture = F.avg_pool2d(picture, 2)
            if self.pyramid is not None:
                x = self.pyramid[k](picture, x)
            found.append(x)
        return found

    def bottleneck(self, x: Tensor) -> Tensor:
        """[B, 256, n, n] -> tokens through the transformer -> [B, 256, n, n]."""
        p, side = self.config.patch, x.shape[-1]
        tokens = self.embed(F.unfold(x, p, stride=p).transpose(1, 2) if p > 1 else x.flatten(2).transpose(1, 2))
        tokens = tokens + self.position
        for block in self.blocks:
            tokens = block(tokens)
        y = self.from_tokens(tokens.transpose(1, 2).unflatten(2, (side // p, side // p)))
        return up(y, self.config.upsampling, p) if p > 1 else y

    def forward(self, x: Tensor, clean: Tensor | None = None) -> Tensor:
        config = self.config
        e1, e2, e3 = self.encode(x, clean)
        y = self.bottleneck(e3)
        if self.skips is not None:
            e1, e2 = self.skips[0](e1), self.skips[1](e2)
        y = F.relu(self.d3(torch.cat([y, e3], 1) if config.third_skip else y))
        y = F.relu(self.d2(torch.cat([up(y, config.upsampling), e2], 1)))
        y = F.relu(self.d1(torch.cat([up(y, config.upsampling), e1], 1)))
        y = F.relu(self.d0(up(y, config.upsampling) if config.tap == "after" else y))
        return torch.sigmoid(self.last(y))


@register(
    "gen_encdec",
    presets={
        "paper": GenEncDecConfig(),
        "quick": GenEncDecConfig(size=128, epochs=20, stop_from=5, patience=10, lr=3e-4, shortened=True),
        "no_noise": GenEncDecConfig(noise_rate=0.0),
        "no_attention": GenEncDecConfig(skip_attention=False),
        "no_pyramid": GenEncDecConfig(pyramid=False),
    },
)
class GenEncDec(Detector):
    """Generative encoder-decoder (Mekhilef et al.): denoising VGG19-transformer, map from MSGMS and squared error."""

    Config = GenEncDecConfig
    config: GenEncDecConfig

    def __init__(self, config: GenEncDecConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), normalise=False)
        self.rate, self.rate_from = rate_of(config, context.extras.get("category"))
        self.net = EncoderDecoder(config, context.weights)
        self.net.to(context.device, memory_format=torch.channels_last).eval()

    def fit(self, train_images: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Train with early stopping on a fifth of the training pictures; the best epoch's weights are kept.

        The dataset's own validation pictures are not used. The log names the noise rate and marks the printed rates
        as tuned on the test pictures. Raises ModelError with fewer than 10 pictures or when the loss diverges.
        """
        config, device = self.config, self.context.device
        used, held = split(len(train_images), config.held_back, self.context)
        notes: list[str] = []
        every = load_pictures(train_images, self.preprocess, device, notes=notes)
        every = every.contiguous(memory_format=torch.channels_last)
        data, check = every[used], every[held]
        del every

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            x = data[indices]
            return self._loss(x, self._noisy(x, noise))

        def validate() -> float:
            noise = generator(self.context, "validation", device)  # the same noise after each epoch
            total = 0.0
            for x in check.split(config.train_batch):
                total += float(self._loss(x, self._noisy(x, noise))["loss"]) * len(x)
            return total / len(check)

        trained = [p for p in self.net.parameters() if p.requires_grad]
        log = train(
            step, {"net": self.net}, [torch.optim.Adam(trained, lr=config.lr, fused=True)], count=len(data),
            batch=config.train_batch, epochs=config.epochs, context=self.context, key=(key_of(config), self.rate),
            progress=progress, validate=validate, stop=Best(config.patience, config.stop_from),
        )
        log |= {"noise_rate": self.rate, "noise_rate_from": self.rate_from, "tuned_on_test": self.rate_from == "paper"}
        if notes:
            log["notes"] = [*log.get("notes", []), *notes]
        return log

    def _noisy(self, x: Tensor, noise: torch.Generator) -> Tensor:
        if self.rate == 0:
            return x
        noisy = gaussian(x, self.rate, noise, self.config.noise_spread)
        return noisy.clamp(0, 1) if self.config.clip_noise else noisy

    def _loss(self, x: Tensor, noisy: Tensor) -> dict[str, Tensor]:
        """Squared error plus structural dissimilarity to the clean picture (eq. 3 to 6)."""
        with autocast(x.device, self.config.precision):
            y = self.net(noisy, x)
        y = y.float()
        l2, similarity = F.mse_loss(y, x), ssim(x, y).mean()
        structure = 1 - similarity if self.config.ssim_sign == "dissimilarity" else similarity
        return {"loss": l2 + structure, "l2": l2, "ssim": similarity}

    def predict(self, batch: Images) -> Prediction:
        """Map: smoothed 1 - MSGMS plus smoothed squared error. Score: its maximum."""
        config, device = self.config, self.context.device
        x = self.preprocess(batch, device)
        if config.test_noise == "off" or self.rate == 0:
            total, restored = self._map(x, x)
        else:
            generators = picture_generators(batch, self.context.seed)
            total = torch.zeros(len(batch), 1, *self.preprocess.output, device=device)
            restored = torch.zeros_like(x)
            for _ in range(config.test_draws):
                noisy = [self._noisy(one, g) for one, g in zip(x.cpu().split(1), generators, strict=True)]
                drawn, one = self._map(x, torch.cat(noisy).to(device))
                total, restored = total + drawn / config.test_draws, restored + one / config.test_draws
        maps = total[:, 0].cpu()
        return Prediction(maps, maps.flatten(1).amax(1), {"reconstruction": restored})

    @torch.no_grad()
    def _map(self, x: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly map [B, 1, s, s] and restored pictures, of pictures and what the network sees of them."""
        config = self.config
        y = self.net(noisy.contiguous(memory_format=torch.channels_last), x)
        squared = (x - y).square()
        if config.l2_map == "squared":
            l2 = squared.mean(1, keepdim=True)
        else:
            l2 = squared.sum(1, keepdim=True)
            l2 = l2.sqrt() if config.l2_map == "root" else l2
        return mean_filter(1 - msgms(x, y, config.scales), config.filter) + mean_filter(l2, config.filter), y

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
