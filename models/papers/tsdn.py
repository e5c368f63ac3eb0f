"""Two-stream decoder network (Park et al., "Two-Stream Decoder Feature Normality Estimating Network for Industrial
Anomaly Detection").

A U-shaped network sees a picture with randomly filled superpixels. Decoder A predicts where they are; the feature
normality estimator (FNE) weights the bottleneck's channels by how unlike that mask they are; decoder N rebuilds the
clean picture from the weighted bottleneck. At test time only decoder N's reconstruction error counts. Sections and
equations below are the paper's; docs/methods_tsdn.md lists what it leaves open and the settings that stand for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.nn.gms import msgms
from models.nn.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from models.nn.ssim import WINDOW, ssim_map
from models.nn.superpixels import fill, label_all
from models.nn.training import autocast, key_of, load_pictures
from models.nn.training import train as train_loop
from models.registry import register
from models.weights import WeightStore, load_into

CHECKPOINT_S = 60.0  # seconds between checkpoints
POOLED = 11  # side that skip maps are averaged to before their estimators (skip_filter=fne); F's own side at 352 px


@dataclass(frozen=True, kw_only=True)
class TSDNConfig(Config):
    size: int = 352  # 3.1
    encoder: str = "tf_efficientnet_b5.aa_in1k"  # 3.1: EfficientNet-b5; this tag is Tan and Le's own ImageNet training
    train_encoder: bool = True  # open
    reduced: int = 128  # C of F_1/32 (2.3), open
    mlp: tuple[int, int] = (512, 256)  # 2.4 says three layers; widths open
    widths: tuple[int, ...] = (256, 128, 64, 32, 16)  # of the five decoder blocks, open
    skips: bool = True  # Tables 3 and 4: into both decoders
    surf: bool = True  # Table 4
    decoder_a: bool = True  # Tables 3 and 4: DCD_A
    fne: bool = True  # Table 4
    skip_filter: Literal["none", "mask", "fne"] = "none"  # open: what decoder N's skips pass through
    mask_product: Literal["inverse", "literal"] = "inverse"  # variant E: F times 1 - M', or times M'
    segments: int = 400  # N_s, 3.1
    filled: int = 50  # S_s, 3.1
    random_count: bool = False  # 1 to S_s instead of S_s
    compactness: float = 10.0  # SLIC, open
    sigma: float = 0.0  # SLIC, open
    colour: Literal["per_superpixel", "one"] = "per_superpixel"  # 2.2: "random colors"
    p_surf: float = 1.0  # share of training pictures that are filled, open
    weight_r: float = 1.0  # 3.1, all five
    weight_s: float = 0.5
    weight_g: float = 1.0
    weight_m: float = 1.0
    weight_f: float = 5e-5
    gms_scales: int = 1  # open
    fne_scaling: Literal["channel", "raw"] = "channel"  # each channel of F to [0, 1] before the SSIM, or as it is
    fne_norm: Literal["minmax", "fixed"] = "minmax"  # W_gt over a sample's channels, or (1 - SSIM) / 2
    fne_size: int | None = None  # side of the maps compared by SSIM; none: the input's, as 2.4 says
    fne_reduction: Literal["mean", "sum"] = "mean"  # of the cross entropy over channels
    distance: Literal["squared", "root"] = "squared"  # |I, R| in L_r and in Eq. 4
    blur: float = 4.0  # sigma of G in Eq. 4, in pixels of the map, open
    learning_rate: float = 7e-5  # 3.1
    epochs: int = 200  # open
    train_batch: int = 8  # open


PAPER = TSDNConfig()
QUICK = TSDNConfig(
    size=128, encoder="tf_efficientnet_b0.aa_in1k", reduced=32, mlp=(64, 64), widths=(64, 48, 32, 16, 16), fne_size=32,
    blur=1.5, learning_rate=1e-3, epochs=20, shortened=True,
)
ONE_STREAM = replace(PAPER, decoder_a=False, fne=False, skips=False, surf=False)


class Up(nn.Module):
    """Transposed convolution to twice the size, the skip beside it, 3x3 convolution; batch norm and ReLU after each."""

    def __init__(self, width_in: int, width_skip: int, width_out: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width_in, width_out, 4, 2, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()
        )
        self.merge = nn.Sequential(
            nn.Conv2d(width_out + width_skip, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        return self.merge(x if skip is None else torch.cat([x, skip], 1))


class Decoder(nn.Module):
    """Five blocks from F to full size. skips: widths of the encoder's maps from 1/16 to 1/2, or () for none."""

    def __init__(self, width_in: int, skips: tuple[int, ...], widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        inputs = (width_in, *widths[:-1])
        self.skips = len(skips)
        beside = (*skips, *[0] * (len(widths) - len(skips)))
        self.blocks = nn.ModuleList(Up(*sizes) for sizes in zip(inputs, beside, widths, strict=True))
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """F [B, C, h, w] and the skips, deepest first -> [B, channels, 32h, 32w] in (0, 1)."""
        for index, block in enumerate(self.blocks):
            x = block(x, skips[index] if index < self.skips else None)
        return self.out(x).sigmoid()


class Estimator(nn.Module):
    """The FNE's estimator (2.4): convolution, flatten, three fully connected layers -> W' [B, C] in (0, 1).

    side: of the map that is flattened; larger maps are averaged down to it.
    """

    def __init__(self, width: int, side: int, mlp: tuple[int, int], hidden: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, hidden, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.mlp = nn.Sequential(
            nn.Linear(hidden * side * side, mlp[0]), nn.ReLU(), nn.Linear(mlp[0], mlp[1]), nn.ReLU(),
            nn.Linear(mlp[1], width), nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(self.pool(F.relu(self.conv(features))).flatten(1))


@dataclass
class Output:
    """features: F [B, C, h, w]; mask: M' [B, 1, H, W] or None; weights: pairs (map the FNE weighted, W' [B, C])."""

    features: Tensor
    mask: Tensor | None
    weights: list[tuple[Tensor, Tensor]]
    reconstruction: Tensor


def make_encoder(tag: str, store: WeightStore) -> tuple[nn.Module, list[int]]:
    """timm's network of `tag` as five maps at 1/2 to 1/32, with its weights, and the maps' channels.

    Raises ModelError for a network that timm does not know or that has other scales, WeightsError without weights.
    """
    import timm

    try:
        net = timm.create_model(tag.partition(".")[0], pretrained=False, features_only=True)
    except RuntimeError as error:
        raise ModelError(f"tsdn: timm has no network of features for encoder={tag!r}: {error}") from error
    if net.feature_info.reduction() != [2, 4, 8, 16, 32]:
        raise ModelError(f"tsdn: encoder={tag!r} has scales {net.feature_info.reduction()}; 2, 4, 8, 16, 32 are needed")
    state = store.load(tag, net.state_dict())
    if state is not None:
        load_into(net, state, tag)
    return net, net.feature_info.channels()


class Network(nn.Module):
    """The encoder, the decoders that the config asks for, and the estimators."""

    def __init__(self, config: TSDNConfig, store: WeightStore) -> None:
        super().__init__()
        if config.size < 32 or config.size % 32:
            raise ModelError(f"tsdn: size={config.size} must be a multiple of 32: the encoder halves it five times")
        if config.fne and not config.decoder_a:
            raise ModelError("tsdn: fne needs decoder_a, whose mask is the estimator's target")
        if config.skip_filter == "mask" and not config.decoder_a:
            raise ModelError("tsdn: skip_filter=mask needs decoder_a")
        if config.skip_filter == "fne" and not config.fne:
            raise ModelError("tsdn: skip_filter=fne needs fne")
        if config.fne_size is not None and config.fne_size < WINDOW:
            raise ModelError(f"tsdn: fne_size={config.fne_size} is smaller than the SSIM window of {WINDOW}")
        if len(config.widths) != 5:
            raise ModelError(f"tsdn: widths={config.widths}; five decoder blocks are needed")
        self.config = config
        self.encoder, channels = make_encoder(config.encoder, store)
        self.reduce = nn.Conv2d(channels[-1], config.reduced, 1)
        skips = tuple(channels[-2::-1]) if config.skips else ()
        self.decoder_a = Decoder(config.reduced, skips, config.widths, 1) if config.decoder_a else None
        self.decoder_n = Decoder(config.reduced, skips, config.widths, 3)
        side = config.size // 32
        self.estimator = Estimator(config.reduced, side, config.mlp) if config.fne else None
        self.skip_estimators = nn.ModuleList(
            Estimator(width, min(POOLED, side), config.mlp) for width in (skips if config.skip_filter == "fne" else ())
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if not self.config.train_encoder:
            self.encoder.eval()
        return self

    def mask(self, x: Tensor) -> Tensor:
        """M' [B, 1, H, W] of decoder A, which `forward` leaves out where only figures show it."""
        assert self.decoder_a is not None
        *maps, deepest = self.encoder((x - self.mean) / self.std)
        return self.decoder_a(self.reduce(deepest), maps[::-1])

    def forward(self, x: Tensor) -> Output:
        """Pictures [B, 3, H, W] in [0, 1]. In evaluation mode decoder A runs only where its mask is used."""
        config = self.config
        *maps, deepest = self.encoder((x - self.mean) / self.std)
        features, skips = self.reduce(deepest), maps[::-1]
        mask = None
        if self.decoder_a is not None and (self.training or not config.fne or config.skip_filter == "mask"):
            mask = self.decoder_a(features, skips)
        normal, weights = features, []
        if self.estimator is not None:
            weights.append((features, self.estimator(features)))
            normal = features * weights[0][1][..., None, None]
        elif mask is not None:  # Table 4, variant E
            small = F.adaptive_avg_pool2d(mask, features.shape[-2:])
            normal = features * (small if config.mask_product == "literal" else 1 - small)
        if config.skip_filter == "mask" and mask is not None:
            skips = [skip * (1 - F.adaptive_avg_pool2d(mask, skip.shape[-2:])) for skip in skips]
        elif self.skip_estimators:
            found = [(skip, estimator(skip)) for skip, estimator in zip(skips, self.skip_estimators, strict=True)]
            skips = [skip * weight[..., None, None] for skip, weight in found]
            weights += found
        return Output(features, mask, weights, self.decoder_n(normal, skips))


# --- losses


@torch.no_grad()
def normality_target(
    features: Tensor, mask: Tensor, *, size: int | None = None, scaling: str = "channel", norm: str = "minmax",
    chunk: int = 16,
) -> Tensor:
    """W_gt [B, C] in [0, 1] (2.4, Eq. 1): low for channels of F [B, C, h, w] that look like the mask M' [B, 1, H, W].

    Eq. 1 is SSIM itself, the text wants low values for similar channels: the distance is 1 - SSIM. size: side at which
    both are compared, M' reduced by area averaging; none: the mask's own. No gradient. Works through the channels in
    chunks, since C maps at 352 px for a batch of 8 take half a GB each time they are touched.
    """
    if size is not None:
        mask = F.adaptive_avg_pool2d(mask, size)
    similarity = []
    for part in features.split(chunk, 1):
        x = F.interpolate(part, mask.shape[-2:], mode="bilinear", align_corners=False)
        if scaling == "channel":
            low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
            x = (x - low) / (high - low + 1e-8)
        similarity.append(ssim_map(x, mask.expand_as(x)).mean((2, 3)))
    distance = 1 - torch.cat(similarity, 1)
    if norm == "fixed":
        return distance.div(2).clamp(0, 1)
    low, high = distance.amin(1, keepdim=True), distance.amax(1, keepdim=True)
    return (distance - low) / (high - low + 1e-8)


def estimator_loss(weights: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Eq. 2: binary cross entropy of W' [B, C] with soft targets, mean over the batch and mean or sum over C."""
    # torch's own function stops at NaN with an error that names no epoch; the limit of -100 is torch's
    loss = -(target * weights.log().clamp_min(-100) + (1 - target) * torch.log1p(-weights).clamp_min(-100))
    return (loss.mean(1) if reduction == "mean" else loss.sum(1)).mean()


def l2(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """|a, b| per pixel [B, H, W]: squared differences summed over channels, or the root of that."""
    squared = (a - b).square().sum(1)
    return squared if distance == "squared" else (squared + 1e-12).sqrt()


def score_map(picture: Tensor, reconstruction: Tensor, distance: str = "squared", blur: float = 4.0) -> Tensor:
    """S_map of Eq. 4, [B, H, W]: the distance per pixel, blurred by a Gaussian (sigma 4: kernel 33)."""
    maps = l2(picture, reconstruction, distance)
    if not blur:
        return maps
    kernel = 2 * min(round(4 * blur), min(maps.shape[-2:]) - 1) + 1  # the reflected border is less than a picture wide
    return gaussian_blur(maps[:, None], [kernel, kernel], [blur, blur])[:, 0]


@register(
    "tsdn",
    presets={
        "paper": PAPER,
        "quick": QUICK,
        "t3_a": ONE_STREAM,  # Table 3
        "t3_b": replace(ONE_STREAM, skips=True),
        "t3_c": replace(PAPER, skips=False),
        "t3_d": PAPER,
        "t4_a": ONE_STREAM,  # Table 4
        "t4_b": replace(ONE_STREAM, surf=True),
        "t4_c": replace(ONE_STREAM, skips=True),
        "t4_d": replace(ONE_STREAM, skips=True, surf=True),
        "t4_e": replace(PAPER, fne=False),
        "t4_f": PAPER,
    },
)
class TSDN(Detector):
    """Two-stream decoder network with superpixel random filling and a feature normality estimator."""

    Config = TSDNConfig
    config: TSDNConfig

    def __init__(self, config: TSDNConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), normalise=False)
        self.net = Network(config, context.weights).to(context.device, memory_format=torch.channels_last)
        if not config.train_encoder:
            self.net.encoder.requires_grad_(False)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Train on filled pictures. `validation` is not used: the last epoch counts (the paper names no selection)."""
        config, context = self.config, self.context
        pictures = load_pictures(train, self.preprocess, context.device)
        begin = time.perf_counter()
        labels = self._labels(pictures) if config.surf else None
        slic_s = time.perf_counter() - begin
        optimizer = torch.optim.Adam(
            [p for p in self.net.parameters() if p.requires_grad], lr=config.learning_rate
        )

        def step(indices: Tensor, _: torch.Generator) -> dict[str, Tensor]:
            return self._losses(pictures[indices], None if labels is None else labels[indices])

        log = train_loop(
            step, {"net": self.net}, [optimizer], count=len(pictures), batch=config.train_batch, epochs=config.epochs,
            context=context, key=("tsdn", key_of(config), len(pictures)), progress=progress, checkpoint_s=CHECKPOINT_S,
        )
        if labels is not None:
            found = labels.flatten(1).amax(1).double() + 1
            log["superpixels"] = {
                "seconds": round(slic_s, 3), "share_of_fit": round(slic_s / (time.perf_counter() - begin), 4),
                "per_picture": round(float(found.mean()), 1), "fewest": int(found.min()),
            }
        return log

    def _labels(self, pictures: Tensor) -> Tensor:
        """SLIC labels of all training pictures, once: they depend on the clean picture only."""
        config = self.config
        labels = label_all(pictures.cpu(), config.segments, config.compactness, config.sigma)
        return labels.to(self.context.device)

    def _losses(self, clean: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Eq. 3. The filling's seed comes from torch's global state, which checkpoints restore."""
        config = self.config
        filled, mask = clean, torch.zeros_like(clean[:, :1])
        if labels is not None:
            random = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
            filled, mask = fill(
                clean, labels, random, filled=config.filled, segments=config.segments, probability=config.p_surf,
                random_count=config.random_count, colour=config.colour,
            )
        with autocast(clean.device, config.precision):
            out = self.net(filled.contiguous(memory_format=torch.channels_last))
        rebuilt = out.reconstruction.float()
        scale = 3 if config.distance == "squared" else 1  # of the squared form: the mean over channels too
        values = {
            "r": l2(clean, rebuilt, config.distance).mean() / scale,
            "s": 1 - ssim_map(clean, rebuilt).mean(),
            "g": 1 - msgms(clean, rebuilt, config.gms_scales).mean(),
        }
        if out.mask is not None:
            values["m"] = F.mse_loss(out.mask.float(), mask)
        if out.weights and out.mask is not None:
            terms = [
                estimator_loss(
                    weights.float(),
                    normality_target(
                        features.detach().float(), out.mask.detach().float(), size=config.fne_size,
                        scaling=config.fne_scaling, norm=config.fne_norm,
                    ),
                    config.fne_reduction,
                )
                for features, weights in out.weights
            ]
            values["f"] = torch.stack(terms).sum()
        loss = sum(getattr(config, f"weight_{name}") * value for name, value in values.items())
        return {"loss": loss, **values}

    @torch.inference_mode()
    def inspect(self, batch: Images) -> tuple[Tensor, Output]:
        """The input [B, 3, size, size] and the network's output; for figures the mask is computed too."""
        x = self.preprocess(batch, self.context.device).contiguous(memory_format=torch.channels_last)
        out = self.net.eval()(x)
        if out.mask is None and self.net.decoder_a is not None:
            *maps, _ = self.net.encoder((x - self.net.mean) / self.net.std)
            out.mask = self.net.decoder_a(out.features, maps[::-1])
        return x, out

    @torch.inference_mode()
    def predict(self, batch: Images) -> Prediction:
        """Maps [B, size, size] (Eq. 4) and their maxima (2.6)."""
        x = self.preprocess(batch, self.context.device).contiguous(memory_format=torch.channels_last)
        out = self.net.eval()(x)
        maps = score_map(x, out.reconstruction.float(), self.config.distance, self.config.blur).float().contiguous()
        panels: dict[str, Any] = {"reconstruction": out.reconstruction}
        if self.net.decoder_a is not None:
            panels["predicted mask"] = lambda: self.net.mask(x)[:, 0]
        return Prediction(maps, maps.amax((1, 2)), panels)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
