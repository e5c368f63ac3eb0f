"""Two-stream decoder network (Park et al., "Two-Stream Decoder Feature Normality Estimating Network for Industrial
Anomaly Detection").

A U-shaped network sees a picture with randomly filled superpixels. Decoder A predicts where they are; the feature
normality estimator (FNE) weights the bottleneck's channels by how unlike that mask they are; decoder N rebuilds the
clean picture from the weighted bottleneck. At test time only decoder N's reconstruction error counts. Sections and
equations below are the paper's; docs/methods_tsdn.md lists what it leaves open and the settings that stand for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.floor import against_floor
from models.nn.gms import msgms
from models.nn.normality import Estimator, cross_entropy, learnt, normality_target
from models.nn.preprocess import imagenet
from models.nn.smooth import gaussian_smooth
from models.nn.ssim import WINDOW, ssim
from models.nn.superpixels import choose, counted, label_all, paint
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import autocast, generator, step_generator
from models.nn.transfer import together
from models.nn.unet import Decoder, pyramid
from models.registry import register
from models.weights import WeightStore

PROBED = 32  # training pictures on which the record says what the estimator learnt


@dataclass(frozen=True, kw_only=True)
class TSDNConfig(TrainedConfig):
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
    skip_filter: Literal["none", "mask"] = "none"  # open: decoder N's skips as they are, or times 1 - M'
    mask_product: Literal["inverse", "literal"] = "inverse"  # variant E: F times 1 - M', or times M'
    segments: int = 400  # N_s, 3.1
    filled: int = 50  # S_s, 3.1
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
    # Of the cross entropy over channels. As a mean, 5e-5 times it leaves the estimator untrained (worse than always
    # 0.5); as a sum it is of the size of the other weighted terms, which 3.1 says the weights are for. docs: Evidence.
    fne_reduction: Literal["sum", "mean"] = "sum"
    distance: Literal["squared", "root"] = "squared"  # |I, R| in L_r and in Eq. 4
    blur: float = 4.0  # sigma of G in Eq. 4, in pixels of the map, open
    lr: float = 7e-5  # 3.1
    epochs: int = 200  # open
    train_batch: int = 8  # open


PAPER = TSDNConfig()
QUICK = TSDNConfig(
    size=64, encoder="tf_efficientnet_b0.aa_in1k", reduced=32, mlp=(64, 64), widths=(64, 48, 32, 16, 16), blur=1.0,
    lr=1e-3, epochs=8, shortened=True,
)
ONE_STREAM = replace(PAPER, decoder_a=False, fne=False, skips=False, surf=False)


@dataclass
class Output:
    """features: F [B, C, h, w]; mask: M' [B, 1, H, W] or None; weights: W' [B, C] or None; reconstruction: R."""

    features: Tensor
    mask: Tensor | None
    weights: Tensor | None
    reconstruction: Tensor


class Network(nn.Module):
    """The encoder, the decoders that the config asks for, and the estimator (2.4: convolution, three-layer MLP)."""

    def __init__(self, config: TSDNConfig, store: WeightStore) -> None:
        super().__init__()
        if config.size < 32 or config.size % 32:
            raise ModelError(f"tsdn: size={config.size} must be a multiple of 32: the encoder halves it five times")
        if not config.decoder_a and (config.fne or config.skip_filter == "mask"):
            needs = "fne" if config.fne else "skip_filter=mask"
            raise ModelError(f"tsdn: {needs} needs decoder_a, whose mask it works with")
        if config.fne_size is not None and config.fne_size < WINDOW:
            raise ModelError(f"tsdn: fne_size={config.fne_size} is smaller than the SSIM window of {WINDOW}")
        if len(config.widths) != 5:
            raise ModelError(f"tsdn: widths={config.widths}; five decoder blocks are needed")
        self.config = config
        self.encoder, channels = pyramid(config.encoder, store)
        self.encoder.requires_grad_(config.train_encoder)
        self.reduce = nn.Conv2d(channels[-1], config.reduced, 1)
        skips = tuple(channels[-2::-1]) if config.skips else ()
        self.decoder_a = Decoder(config.reduced, skips, config.widths, 1) if config.decoder_a else None
        self.decoder_n = Decoder(config.reduced, skips, config.widths, 3)
        self.estimator = Estimator(config.reduced, config.size // 32, config.mlp) if config.fne else None

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        self.encoder.train(mode and self.config.train_encoder)
        return self

    def forward(self, x: Tensor, mask: bool = False) -> Output:
        """Pictures [B, 3, H, W] in [0, 1]. mask: run decoder A also where, in evaluation, nothing needs its mask."""
        config = self.config
        *maps, deepest = self.encoder(imagenet(x))
        features, skips = self.reduce(deepest), maps[::-1]
        found = None
        if self.decoder_a is not None and (mask or self.training or not config.fne or config.skip_filter == "mask"):
            found = self.decoder_a(features, skips)
        weights = None if self.estimator is None else self.estimator(features)
        normal = features
        if weights is not None:
            normal = features * weights[..., None, None]
        elif found is not None:  # Table 4, variant E
            small = F.adaptive_avg_pool2d(found, features.shape[-2:])
            normal = features * (small if config.mask_product == "literal" else 1 - small)
        if config.skip_filter == "mask" and found is not None:
            skips = [skip * (1 - F.adaptive_avg_pool2d(found, skip.shape[-2:])) for skip in skips]
        return Output(features, found, weights, self.decoder_n(normal, skips))


def l2(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """|a, b| per pixel [B, H, W]: squared differences summed over channels, or the root of that."""
    squared = (a - b).square().sum(1)
    return squared if distance == "squared" else (squared + 1e-12).sqrt()


@register(
    "tsdn",
    presets={
        "paper": PAPER,
        "quick": QUICK,
        "lite0": replace(QUICK, encoder="tf_efficientnet_lite0.in1k"),  # a small relative of the B5
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
class TSDN(Trained):
    """Two-stream decoder network with superpixel random filling and a feature normality estimator."""

    Config = TSDNConfig
    config: TSDNConfig
    normalise, channels_last = False, True

    def __init__(self, config: TSDNConfig, context: Context) -> None:
        super().__init__(config, context)
        self.net = Network(config, context.weights)
        self._trained(net=self.net)
        self._choose = partial(choose, filled=config.filled, segments=config.segments, probability=config.p_surf)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Train on filled pictures. `validation` is not used: the last epoch counts (the paper names no selection)."""
        config, device, pictures = self.config, self.context.device, self._pictures(train)
        # SLIC once per picture: superpixels depend on the clean picture only
        labels = label_all(pictures.cpu(), config.segments).to(device) if config.surf else None
        present = None if labels is None else counted(labels)

        def step(indices: Tensor, _: torch.Generator) -> dict[str, Tensor]:
            drawn = () if present is None else (self._choose(present[indices], step_generator()),)
            places, *table = together(device, indices, *drawn)  # the step's only copy
            clean = pictures[places]
            return self._losses(clean, *self._filled(clean, None if labels is None else labels[places], *table))

        adam = torch.optim.Adam(self._parameters(), config.lr, fused=True)
        log = self._train(step, [adam], len(pictures), progress, host_indices=True)
        if present is not None:
            log["superpixels"] = {"per_picture": round(float(present.double().mean()), 1), "fewest": int(present.min())}
        if config.fne:
            log["fne"] = self._probe(pictures[:PROBED], None if labels is None else labels[:PROBED])
        against_floor(
            log, pictures, lambda x: self.net(x).reconstruction, lambda a, b: l2(a, b, config.distance).mean((1, 2))
        )
        return log

    def _filled(self, clean: Tensor, labels: Tensor | None, table: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """SURF (2.2): pictures with the superpixels of `table` filled, and where those are [B, 1, H, W]."""
        if labels is None or table is None:
            return clean, torch.zeros_like(clean[:, :1])
        filled, mask = paint(clean, labels, table)
        return filled.contiguous(memory_format=torch.channels_last), mask

    def _losses(self, clean: Tensor, filled: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Eq. 3 and its terms; bce_above_entropy: what the estimator could still learn, per channel."""
        config = self.config
        with autocast(clean.device, config.precision):
            out = self.net(filled)
        rebuilt = out.reconstruction.float()
        scale = 3 if config.distance == "squared" else 1  # of the squared form: the mean over channels too
        values = {
            "r": l2(clean, rebuilt, config.distance).mean() / scale,
            "s": 1 - ssim(clean, rebuilt).mean(),
            "g": 1 - msgms(clean, rebuilt, config.gms_scales).mean(),
        }
        seen = {}
        if out.mask is not None:
            values["m"] = F.mse_loss(out.mask.float(), mask)
        if out.weights is not None:
            target = self._target(out)
            terms = cross_entropy(out.weights.float(), target)
            values["f"] = (terms.sum(1) if config.fne_reduction == "sum" else terms.mean(1)).mean()
            seen["bce_above_entropy"] = (terms.detach() - cross_entropy(target, target)).mean()
        loss = sum(getattr(config, f"weight_{name}") * value for name, value in values.items())
        return {"loss": loss, **values, **seen}

    def _target(self, out: Output) -> Tensor:
        """W_gt of a pass with its mask."""
        config = self.config
        return normality_target(
            out.features, out.mask, size=config.fne_size, scaling=config.fne_scaling, norm=config.fne_norm
        )

    @torch.inference_mode()
    def _probe(self, pictures: Tensor, labels: Tensor | None) -> dict[str, float]:
        """What the estimator learnt, on filled training pictures."""
        table = None if labels is None else self._choose(counted(labels), generator(self.context, "probe"))
        filled, _ = self._filled(pictures, labels, None if table is None else table.to(pictures.device))
        outs = [self.net(x, mask=True) for x in filled.split(self.config.batch)]
        return learnt(torch.cat([out.weights for out in outs]), torch.cat([self._target(out) for out in outs]))

    @torch.inference_mode()
    def predict(self, batch: Images) -> Prediction:
        """Maps [B, size, size] (Eq. 4) and their maxima (2.6)."""
        rebuilt = self.net(x := self._seen(batch)).reconstruction
        maps = gaussian_smooth(l2(x, rebuilt.float(), self.config.distance), self.config.blur).contiguous()
        panels: dict[str, Any] = {"reconstruction": rebuilt}
        if self.net.decoder_a is not None:
            panels["predicted mask"] = lambda: self.net(x, mask=True).mask[:, 0]
        return Prediction(maps, maps.amax((1, 2)), panels)
