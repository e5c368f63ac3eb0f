"""Reference-based autoencoder for textures (Luo et al., "Reference-Based Autoencoder for Surface Defect Detection").

Phase 1 teaches encoder and decoder to rebuild normal texture, and the encoder to tell pasted defects from texture pixel
by pixel. Phase 2 freezes the encoder and trains the repair of features from one reference picture, the decoder, and a
small multi-scale segmentation head. Sections and equations below are the paper's; docs/methods_rb_ae.md lists what it
leaves open and the settings that stand for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone
from models.nn.attention import ReferenceAttention
from models.nn.focal import focal_loss
from models.nn.perlin import artificial_defects
from models.nn.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from models.nn.ssim import WINDOW, ssim_map
from models.nn.textures import EMBEDDED, Textures
from models.nn.training import Checkpoint, autocast, generator, key_of, load_pictures
from models.nn.training import train as train_loop
from models.nn.upconv import UpConv
from models.registry import register

CHECKPOINT_S = 60.0  # seconds between checkpoints
VGG = "vgg16.tv_in1k"
VGG_LAYERS = {  # III-E: "the first five feature maps from the ReLU activation layers"
    "first5": tuple(f"features.{i}" for i in (1, 3, 6, 8, 11)),
    "last_of_block": tuple(f"features.{i}" for i in (3, 8, 15, 22, 29)),
}
REPAIRED = (2, 3, 4)  # indices of layers 3 to 5, which hold an RBAM (III-C4)


@dataclass(frozen=True, kw_only=True)
class RBAEConfig(Config):
    size: int = 256  # IV-A
    textures: str | None = None  # folder of natural pictures (III-B: ImageNet), or 'embedded'
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # open
    patch_sizes: tuple[int, ...] = (2, 4)  # III-C2
    similarity_scale: float = 1.0  # Eq. 4 has none; 10 as in contextual attention
    reference: Literal["index", "seed", "medoid"] = "index"  # open: which training picture is the reference
    reference_index: int = 0  # of the training pictures in file order, for reference=index
    p_defect: float = 1.0  # share of pictures with an artificial defect; DRAEM 0.5
    beta: tuple[float, float] = (0.0, 0.0)  # range of what shows through a defect; Eq. 1 is opaque
    mask_threshold: float = 0.5
    epochs_phase1: int = 400  # IV-A2
    epochs_phase2: int = 200  # IV-A2
    train_batch: int = 8  # open
    learning_rate: float = 1e-4  # IV-A2
    weight_decay: float = 1e-5  # IV-A2
    weight_rec: float = 100.0  # III-E
    weight_per: float = 1.0  # III-E; 0 leaves VGG-16 out
    weight_pixel: float = 1.0  # III-E; 0 leaves the pixel-level discrimination loss out
    weight_repair: float = 1.0  # III-E
    weight_seg: float = 1.0  # III-E
    normalisation: Literal["sample", "batch", "sigmoid"] = "sample"  # N of Eq. 2, open
    normalisation_gradient: bool = False  # through minimum and maximum
    vgg_layers: Literal["first5", "last_of_block"] = "first5"
    repair_factor: Literal["printed", "mean"] = "printed"  # Eq. 9: 1/(l2-l1) = 1/2 of three layers, or 1/3
    focal_gamma: float = 2.0  # open
    focal_alpha: float | None = None  # open
    focal_channels: Literal[1, 2] = 1  # sigmoid, or a softmax over two channels as in DRAEM
    rbam: bool = True  # Table V: without it the unrepaired features go to the decoder
    segmentation: Literal["msfdm", "pixel_gap", "msfr", "ssim"] = "msfdm"  # Table V
    map_weights: tuple[float, ...] = (0.2, 0.2, 0.6)  # Eq. 11
    score: Literal["max", "top"] = "max"  # open; top: mean of the highest 0.1 % of pixels
    smoothing: float = 0.0  # sigma of a Gaussian over the map; the paper has none


PAPER = RBAEConfig()
QUICK = RBAEConfig(
    size=128, textures=EMBEDDED, widths=(16, 32, 64, 96, 96), epochs_phase1=20, epochs_phase2=20, learning_rate=1e-3,
    weight_per=0.0, shortened=True,  # VGG-16 alone would take nine tenths of a step of this small network
)


def double_conv(width_in: int, width_out: int, *, up: bool = False) -> nn.Sequential:
    """Twice: 3x3 convolution, batch norm, ReLU. up: after nearest upsampling by 2."""
    first = UpConv(width_in, width_out, bias=False) if up else nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
    second = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(width_out), nn.ReLU(), second, nn.BatchNorm2d(width_out), nn.ReLU())


class Encoder(nn.Module):
    """Five layers; the first works at full size, every further one after a 2x2 max pool."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            double_conv(before, after) for before, after in zip((3, *widths[:-1]), widths, strict=True)
        )

    def forward(self, x: Tensor, depth: int = 5) -> list[Tensor]:
        """[B, 3, H, W] -> the first `depth` maps, layer l of size H / 2^(l-1)."""
        maps = []
        for index, layer in enumerate(self.layers[:depth]):
            x = layer(F.max_pool2d(x, 2) if index else x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Layer 5 is decoded, layers 4 and 3 join on the way; none from layers 1 and 2, which hold no repair."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths
        self.up5 = UpConv(w5, w4)
        self.merge4 = double_conv(2 * w4, w4)
        self.up4 = UpConv(w4, w3)
        self.merge3 = double_conv(2 * w3, w3)
        self.layer2 = double_conv(w3, w2, up=True)
        self.layer1 = double_conv(w2, w1, up=True)
        self.out = nn.Conv2d(w1, 3, 3, padding=1)

    def forward(self, f3: Tensor, f4: Tensor, f5: Tensor) -> Tensor:
        """Maps of layers 3, 4, 5 -> picture [B, 3, H, W] in (0, 1)."""
        x = self.merge4(torch.cat([self.up5(f5), f4], 1))
        x = self.merge3(torch.cat([self.up4(x), f3], 1))
        return self.out(self.layer1(self.layer2(x))).sigmoid()


class Discriminator(nn.Module):
    """FDM of one layer: features of picture and reconstruction [B, 2C, h, w] -> defect probability [B, 1, h, w]."""

    def __init__(self, width: int, channels: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU(),
            nn.Conv2d(width // 2, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x.sigmoid() if x.shape[1] == 1 else x.softmax(1)[:, 1:]


@dataclass
class Output:
    """One pass of phase 2 or of the test. features: of the input; repaired: layers 3 to 5; maps: AM_1 to AM_3."""

    features: list[Tensor]
    repaired: list[Tensor]
    reconstruction: Tensor
    features_rec: list[Tensor]
    maps: list[Tensor]


class Network(nn.Module):
    """Encoder, decoder, one RBAM per layer 3 to 5, one FDM per layer 1 to 3."""

    def __init__(self, config: RBAEConfig) -> None:
        super().__init__()
        if len(config.widths) != 5 or min(config.widths) < 2:
            raise ModelError(f"rb_ae: widths={config.widths}; five numbers of channels from 2 on are needed")
        if config.size < 32 or config.size % 16:
            raise ModelError(f"rb_ae: size={config.size} must be a multiple of 16 from 32 on: four pools halve it")
        self.encoder = Encoder(config.widths)
        self.decoder = Decoder(config.widths)
        self.rbam = nn.ModuleList(
            ReferenceAttention(config.widths[i], config.size >> i, config.patch_sizes, config.similarity_scale)
            for i in REPAIRED
        ) if config.rbam else None
        self.fdm = nn.ModuleList(Discriminator(width, config.focal_channels) for width in config.widths[:3])

    def forward(self, x: Tensor, reference: list[Tensor]) -> Output:
        """Pictures [B, 3, H, W] in [0, 1] and the reference's maps of layers 3 to 5 [1, C, h, w]."""
        features = self.encoder(x)
        deep = [features[i] for i in REPAIRED]
        if self.rbam is not None:
            deep = [module(f, r) for module, f, r in zip(self.rbam, deep, reference, strict=True)]
        reconstruction = self.decoder(*deep)
        again = self.encoder(reconstruction, depth=3)
        maps = [fdm(torch.cat(pair, 1)) for fdm, *pair in zip(self.fdm, features[:3], again, strict=True)]
        return Output(features, deep, reconstruction, again, maps)


# --- losses (all norms are means over elements, so that the weights 100 : 1 : 1 : 1 balance)


def normalise(x: Tensor, how: str = "sample", gradient: bool = False, epsilon: float = 1e-8) -> Tensor:
    """N of Eq. 2 for maps [B, h, w] >= 0: min-max per map or over the batch, or 2 sigmoid(x) - 1 (0 stays 0)."""
    if how == "sigmoid":
        return 2 * x.sigmoid() - 1
    axes = (1, 2) if how == "sample" else (0, 1, 2)
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    if not gradient:
        low, high = low.detach(), high.detach()
    return (x - low) / (high - low + epsilon)


def resize_mask(mask: Tensor, like: Tensor) -> Tensor:
    """Mask [B, 1, H, W] at the size of a map, bilinear."""
    if mask.shape[-2:] == like.shape[-2:]:
        return mask
    return F.interpolate(mask, like.shape[-2:], mode="bilinear", align_corners=False)


def pixel_discrimination(
    clean: list[Tensor], defective: list[Tensor], mask: Tensor, how: str = "sample", gradient: bool = False
) -> Tensor:
    """Eq. 2: at each layer the normalised channel mean of the squared feature difference should be the mask."""
    terms = []
    for ours, theirs in zip(clean, defective, strict=True):
        residual = normalise((ours - theirs).square().mean(1), how, gradient)
        terms.append(F.mse_loss(residual, resize_mask(mask, ours)[:, 0]))
    return torch.stack(terms).mean()


def repair_loss(repaired: list[Tensor], clean: list[Tensor], factor: str = "printed") -> Tensor:
    """Eq. 9 over layers 3 to 5: the sum of squared differences over l2 - l1 = 2 as printed, or over 3 ('mean')."""
    total = torch.stack([F.mse_loss(r, c) for r, c in zip(repaired, clean, strict=True)]).sum()
    return total / (len(repaired) - 1 if factor == "printed" else len(repaired))


def segmentation_loss(maps: list[Tensor], mask: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Eq. 10: mean focal loss of the anomaly maps against the mask at their sizes."""
    return torch.stack([focal_loss(m, resize_mask(mask, m), gamma, alpha) for m in maps]).mean()


class Perceptual(nn.Module):
    """Eq. 13: mean over VGG-16 maps of the L1 distance; frozen, input normalised for ImageNet."""

    def __init__(self, vgg: nn.Module) -> None:
        super().__init__()
        self.vgg = vgg
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, clean: Tensor, reconstruction: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.vgg((clean - self.mean) / self.std)
        found = self.vgg((reconstruction - self.mean) / self.std)
        return torch.stack([F.l1_loss(found[layer], target[layer]) for layer in target]).mean()


def final_map(output: Output, picture: Tensor, config: RBAEConfig) -> Tensor:
    """Anomaly map [B, H, W]: Eq. 11, or one of Table V's other rules on the same network."""
    size = picture.shape[-2:]
    if config.segmentation == "pixel_gap":
        return (picture - output.reconstruction).square().mean(1)
    if config.segmentation == "ssim":
        distance = 1 - ssim_map(picture, output.reconstruction).mean(1, keepdim=True)
        return F.pad(distance, [WINDOW // 2] * 4, mode="replicate")[:, 0]  # the map lacks half a window on each side
    if config.segmentation == "msfr":
        pairs = zip(output.features[:3], output.features_rec, strict=True)
        maps = [(ours - theirs).square().mean(1, keepdim=True) for ours, theirs in pairs]
        weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    else:
        maps, weights = output.maps, config.map_weights
    scaled = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
    return sum(w * m for w, m in zip(weights, scaled, strict=True))[:, 0]


@register(
    "rb_ae",
    presets={
        "paper": PAPER,
        "quick": QUICK,
        "a": PAPER,  # Table V, from here
        "b": replace(PAPER, rbam=False),
        "c": replace(PAPER, weight_pixel=0.0),
        "d": replace(PAPER, segmentation="pixel_gap"),
        "e": replace(PAPER, segmentation="msfr"),
        "f": replace(PAPER, segmentation="ssim"),
    },
)
class RBAE(Detector):
    """Reference-based autoencoder for textures: features repaired with patches of a fixed normal picture."""

    Config = RBAEConfig
    config: RBAEConfig

    def __init__(self, config: RBAEConfig, context: Context) -> None:
        super().__init__(config, context)
        self.preprocess = Preprocess((config.size, config.size), normalise=False)
        self.net = Network(config).to(context.device, memory_format=torch.channels_last)
        self.reference: Tensor | None = None  # [1, 3, size, size]
        self._reference_maps: list[Tensor] = []

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Both phases. `validation` is not used: the last epoch counts (the paper names no selection).

        Raises ModelError without a source of natural pictures, without the reference picture, or when a loss is NaN.
        """
        config, context = self.config, self.context
        textures = Textures(config.textures or context.extras.get("textures"), self.preprocess.size)
        if not len(train) or (config.reference == "index" and not 0 <= config.reference_index < len(train)):
            raise ModelError(
                f"rb_ae: no reference picture {config.reference_index} among {len(train)} training pictures; "
                "choose a `reference_index` below their number"
            )
        # the maps of Table V differ in how the trained network is read: one training serves them in one process
        key = ("rb_ae", key_of(replace(
            config, segmentation="msfdm", smoothing=0.0, score="max", map_weights=PAPER.map_weights,
        )), len(train), textures.describe()["names_sha256"])
        shared = context.extras.get("members", {})
        if key in shared:
            state, weights, log = shared[key]
            self.load_state_dict(state)
            context.weights.used.update(weights)
            return {**log, "shared": "trained earlier in the same process for another map of the same network"}
        log = self._train(train, textures, key, progress)
        state = {"net": {name: tensor.cpu() for name, tensor in self.net.state_dict().items()},
                 "reference": self.reference.cpu()}
        shared[key] = (state, dict(context.weights.used), log)
        return log

    def _train(self, train: Images, textures: Textures, key: Any, progress: Progress) -> dict[str, Any]:
        config, context, net = self.config, self.context, self.net
        perceptual = None
        if config.weight_per:
            perceptual = Perceptual(backbone(VGG, VGG_LAYERS[config.vgg_layers], context.weights)).to(context.device)
        pictures = load_pictures(train, self.preprocess, context.device)
        per_epoch = -(-len(pictures) // config.train_batch)
        steps = [epochs * per_epoch for epochs in (config.epochs_phase1, config.epochs_phase2)]
        steps_done = 0

        def report(done: int, total: int, /, **values: float) -> None:
            progress(steps_done + done, sum(steps), **values)

        def run(phase: int, step: Any, modules: dict[str, nn.Module], epochs: int) -> dict[str, Any]:
            parameters = [p for module in modules.values() for p in module.parameters()]
            optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
            folder = context.scratch / f"phase{phase}" if context.scratch else None
            return train_loop(
                step, modules, [optimizer], count=len(pictures), batch=config.train_batch, epochs=epochs,
                context=replace(context, scratch=folder), key=(phase, key), progress=report,
                checkpoint_s=CHECKPOINT_S,
            )

        first = {"encoder": net.encoder, "decoder": net.decoder}
        finished = Checkpoint(context.scratch / "phase1_done" if context.scratch else None, (key, context.seed))
        saved = finished.load(context.device)
        if saved is not None:
            for name, module in first.items():
                module.load_state_dict(saved["modules"][name])
            log1 = saved["log"]
        else:
            log1 = run(1, lambda i, _: self._phase1(pictures[i], textures, perceptual), first, config.epochs_phase1)
            finished.save(config.epochs_phase1, {"modules": {n: m.state_dict() for n, m in first.items()}, "log": log1})
        steps_done = steps[0]

        net.encoder.eval().requires_grad_(False)
        index = self._reference_index(pictures)
        self._set_reference(pictures[index : index + 1])
        second: dict[str, nn.Module] = {"decoder": net.decoder, "fdm": net.fdm}
        if net.rbam is not None:
            second["rbam"] = net.rbam
        log2 = run(2, lambda i, _: self._phase2(pictures[i], textures, perceptual), second, config.epochs_phase2)
        net.eval()
        return {
            "loss": log1["loss"] + log2["loss"], "epochs": log1["epochs"] + log2["epochs"], "phase1": log1,
            "phase2": log2, "reference": index, "textures": textures.describe(),
        }

    def _defects(self, clean: Tensor, textures: Textures) -> tuple[Tensor, Tensor]:
        """Defective pictures and masks. The seed comes from torch's global state, which checkpoints restore."""
        config = self.config
        random = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
        return artificial_defects(
            clean, textures.draw(len(clean), random), random, probability=config.p_defect, beta=config.beta,
            threshold=config.mask_threshold,
        )

    def _rebuilding(
        self, clean: Tensor, rebuilt: Tensor, perceptual: Perceptual | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms that both phases have (Eq. 12 and 13), and their weighted sum."""
        values = {"rec": F.mse_loss(rebuilt, clean)}
        loss = self.config.weight_rec * values["rec"]
        if perceptual is not None:
            values["per"] = perceptual(clean, rebuilt).float()
            loss = loss + self.config.weight_per * values["per"]
        return values, loss

    def _phase1(self, clean: Tensor, textures: Textures, perceptual: Perceptual | None) -> dict[str, Tensor]:
        """Eq. 14. Clean and defective pictures share one pass, so that both enter the encoder's batch statistics."""
        config, net = self.config, self.net
        defective, mask = self._defects(clean, textures)
        with autocast(clean.device, config.precision):
            both = net.encoder(torch.cat([clean, defective]).contiguous(memory_format=torch.channels_last))
            ours, theirs = zip(*(features.chunk(2) for features in both), strict=True)
            rebuilt = net.decoder(*(ours[i] for i in REPAIRED)).float()
            values, loss = self._rebuilding(clean, rebuilt, perceptual)
        if config.weight_pixel:
            values["pixel"] = pixel_discrimination(
                [f.float() for f in ours], [f.float() for f in theirs], mask, config.normalisation,
                config.normalisation_gradient,
            )
            loss = loss + config.weight_pixel * values["pixel"]
        return {"loss": loss, **values}

    def _phase2(self, clean: Tensor, textures: Textures, perceptual: Perceptual | None) -> dict[str, Tensor]:
        """The weighted sum of phase 2: the encoder is frozen, gradients pass through it into the reconstruction."""
        config, net = self.config, self.net
        defective, mask = self._defects(clean, textures)
        with autocast(clean.device, config.precision):
            out = net(defective.contiguous(memory_format=torch.channels_last), self._reference_maps)
            values, loss = self._rebuilding(clean, out.reconstruction.float(), perceptual)
        values["seg"] = segmentation_loss(
            [m.float() for m in out.maps], mask, config.focal_gamma, config.focal_alpha
        )
        loss = loss + config.weight_seg * values["seg"]
        if net.rbam is not None:
            with torch.no_grad(), autocast(clean.device, config.precision):
                target = net.encoder(clean.contiguous(memory_format=torch.channels_last))
            values["repair"] = repair_loss(
                [f.float() for f in out.repaired], [target[i].float() for i in REPAIRED], config.repair_factor
            )
            loss = loss + config.weight_repair * values["repair"]
        return {"loss": loss, **values}

    @torch.no_grad()
    def _reference_index(self, pictures: Tensor) -> int:
        """Which training picture is the reference; medoid: least summed distance in layer 5 to all the others."""
        if self.config.reference == "index":
            return self.config.reference_index
        if self.config.reference == "seed":
            return int(torch.randint(len(pictures), (1,), generator=generator(self.context, "reference")))
        deep = torch.cat([self.net.encoder(chunk)[-1].flatten(1) for chunk in pictures.split(8)])
        return int(torch.cdist(deep, deep).sum(1).argmin())

    @torch.no_grad()
    def _set_reference(self, picture: Tensor) -> None:
        """Keep the reference [1, 3, size, size] and its maps of layers 3 to 5, fixed from here on."""
        size = self.config.size
        if picture.shape != (1, 3, size, size):
            raise ModelError(f"rb_ae: the reference is {tuple(picture.shape)}, (1, 3, {size}, {size}) is needed")
        self.net.encoder.eval()
        self.reference = picture.to(self.context.device).clone()
        maps = self.net.encoder(self.reference.contiguous(memory_format=torch.channels_last))
        self._reference_maps = [maps[i] for i in REPAIRED]

    @torch.inference_mode()
    def inspect(self, batch: Images) -> tuple[Tensor, Output]:
        """The input [B, 3, size, size] and everything the network makes of it, for figures."""
        if self.reference is None:
            raise ModelError("rb_ae: predict needs a reference picture; call fit or load_state_dict first")
        x = self.preprocess(batch, self.context.device).contiguous(memory_format=torch.channels_last)
        return x, self.net.eval()(x, self._reference_maps)

    @torch.inference_mode()
    def predict(self, batch: Images) -> Prediction:
        """Maps [B, size, size] (Eq. 11); score: maximum of the map, or the mean of its highest 0.1 %."""
        x, output = self.inspect(batch)
        maps = final_map(output, x, self.config).float().contiguous()
        if self.config.smoothing:
            kernel = 2 * round(4 * self.config.smoothing) + 1
            maps = gaussian_blur(maps[:, None], [kernel] * 2, [self.config.smoothing] * 2)[:, 0]
        flat = maps.flatten(1)
        top = 1 if self.config.score == "max" else max(1, round(flat.shape[1] * 0.001))
        panels = {"reconstruction": output.reconstruction}
        return Prediction(maps, flat.topk(top, 1).values.mean(1), panels)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "reference": self.reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        if state["reference"] is not None:
            self._set_reference(state["reference"])
