"""Reference-based autoencoder for textures (Luo et al., "Reference-Based Autoencoder for Surface Defect Detection").

Phase 1 teaches encoder and decoder to rebuild normal texture, and the encoder to tell pasted defects from texture pixel
by pixel. Phase 2 freezes the encoder and trains the repair of features from one reference picture, the decoder, and a
small multi-scale segmentation head. Sections and equations below are the paper's; docs/methods_rb_ae.md lists what it
leaves open and the settings that stand for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Config, Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone
from models.nn.attention import Similarity, acts
from models.nn.discrimination import pixel_discrimination, repair_loss, resize_mask, segmentation_loss
from models.nn.floor import against_floor
from models.nn.perceptual import Perceptual
from models.nn.perlin import Defects
from models.nn.smooth import gaussian_smooth
from models.nn.ssim import WINDOW, ssim_map
from models.nn.texture_ae import REPAIRED, Network, Output
from models.nn.textures import EMBEDDED, Textures
from models.nn.trained import Trained
from models.nn.training import Phase, autocast, generator, key_of, train_phases
from models.nn.transfer import Ahead
from models.registry import register

VGG = "vgg16.tv_in1k"
VGG_LAYERS = {  # III-E: "the first five feature maps from the ReLU activation layers"
    "first5": tuple(f"features.{i}" for i in (1, 3, 6, 8, 11)),
    "first_of_block": tuple(f"features.{i}" for i in (1, 6, 11, 18, 25)),  # as the author's later public code
    "last_of_block": tuple(f"features.{i}" for i in (3, 8, 15, 22, 29)),
}
PROBED = 16  # training pictures on which the record says what the repair does


@dataclass(frozen=True, kw_only=True)
class RBAEConfig(Config):
    size: int = 256  # IV-A
    textures: str | None = None  # folder of natural pictures (III-B: ImageNet), or 'embedded'
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # open
    patch_sizes: tuple[int, ...] = (2, 4)  # III-C2
    # A softmax of plain cosines (Eq. 3, 4 as printed: cosine, 1) mixes nearly all patches into one: no repair, and not
    # what Fig. 3c shows. Contextual attention, which III-C builds on, chooses. docs: Evidence.
    similarity: Similarity = "contextual"
    similarity_scale: float = 10.0
    reference: Literal["index", "seed", "medoid"] = "index"  # open; the author's later code takes the first picture
    reference_index: int = 0  # of the training pictures in file order, for reference=index
    p_defect: float = 1.0  # share of pictures with an artificial defect; DRAEM 0.5
    beta: tuple[float, float] = (0.0, 0.0)  # range of what shows through a defect; Eq. 1 is opaque, DRAEM 0 to 0.8
    epochs_phase1: int = 400  # IV-A2
    epochs_phase2: int = 200  # IV-A2
    train_batch: int = 4  # open; the author's later code, whose other settings are those of IV-A2, takes 4
    lr: float = 1e-4  # IV-A2
    weight_decay: float = 1e-5  # IV-A2
    weight_rec: float = 100.0  # III-E
    weight_per: float = 1.0  # III-E; 0 leaves VGG-16 out
    weight_pixel: float = 1.0  # III-E; 0 leaves the pixel-level discrimination loss out
    weight_repair: float = 1.0  # III-E
    weight_seg: float = 1.0  # III-E
    normalisation: Literal["sample", "batch", "sigmoid"] = "sample"  # N of Eq. 2, open
    vgg_layers: Literal["first5", "first_of_block", "last_of_block"] = "first5"
    repair_factor: Literal["printed", "mean"] = "printed"  # Eq. 9: 1/(l2-l1) = 1/2 of three layers, or 1/3
    focal_gamma: float = 2.0  # open
    rbam: bool = True  # Table V: without it the unrepaired features go to the decoder
    segmentation: Literal["msfdm", "pixel_gap", "msfr", "ssim"] = "msfdm"  # Table V
    map_weights: tuple[float, ...] = (0.2, 0.2, 0.6)  # Eq. 11
    score: Literal["max", "top", "std"] = "max"  # open; top: mean of the highest 0.1 %; std: the author's later code
    smoothing: float = 0.0  # sigma of a Gaussian over the map; the paper has none, the author's later code 4


PAPER = RBAEConfig()
QUICK = RBAEConfig(  # patches as large in the picture as the paper's, relative to it, would be at 128 px
    size=64, textures=EMBEDDED, widths=(16, 32, 64, 96, 96), patch_sizes=(1, 2), epochs_phase1=8, epochs_phase2=8,
    lr=1e-3, weight_per=0.0, shortened=True,  # VGG-16 alone would take nine tenths of a step of this small network
)


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
class RBAE(Trained):
    """Reference-based autoencoder for textures: features repaired with patches of a fixed normal picture."""

    Config = RBAEConfig
    config: RBAEConfig
    normalise, channels_last = False, True

    def __init__(self, config: RBAEConfig, context: Context) -> None:
        super().__init__(config, context)
        rbam = (config.patch_sizes, config.similarity, config.similarity_scale) if config.rbam else None
        self.net = Network(config.size, config.widths, rbam)
        self._trained(net=self.net)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        """Both phases. `validation` is not used: the last epoch counts (the paper names no selection).

        Raises ModelError without a source of natural pictures, without the reference picture, or when a loss is NaN.
        """
        config, context = self.config, self.context
        source = config.textures or context.extras.get("textures")
        textures = Textures(source, self.preprocess.size, seed=context.seed)
        if not len(train) or (config.reference == "index" and not 0 <= config.reference_index < len(train)):
            raise ModelError(
                f"rb_ae: no reference picture {config.reference_index} among {len(train)} training pictures; "
                "choose a `reference_index` below their number"
            )
        # the maps of Table V differ in how the trained network is read: one training serves them in one process
        same = replace(config, segmentation="msfdm", smoothing=0.0, score="max", map_weights=PAPER.map_weights)
        key = ("rb_ae", key_of(same), len(train), textures.describe()["names_sha256"])
        return self._once(key, lambda: self._trained_log(train, textures, key, progress))

    def _trained_log(self, train: Images, textures: Textures, key: Any, progress: Progress) -> dict[str, Any]:
        config, context = self.config, self.context
        pictures = self._pictures(train)
        log = train_phases(
            self._phases(pictures, textures), epochs=config.epochs_phase1 + config.epochs_phase2, count=len(pictures),
            batch=config.train_batch, context=context, key=key, progress=progress,
        )
        log |= {"reference": self._index(pictures), "textures": textures.describe()}
        if config.rbam:
            log["repair"] = self._probe(pictures[:PROBED], textures)
        against_floor(
            log, pictures, lambda x: self.net(x).reconstruction, lambda a, b: (a - b).square().mean((1, 2, 3))
        )
        return self._noted(log)

    def _phases(self, pictures: Tensor, textures: Textures) -> Iterator[Phase]:
        config, net, perceptual = self.config, self.net, None
        defects = Ahead(lambda count, random: self._defects(count, textures, random), self.context.device)
        if config.weight_per:
            layers = VGG_LAYERS[config.vgg_layers]
            perceptual = Perceptual(backbone(VGG, layers, self.context.weights, self.context.device))

        def phase(number: int, epochs: int, modules: dict[str, nn.Module]) -> Phase:
            def step(indices: Tensor, _: torch.Generator) -> dict[str, Tensor]:
                clean = pictures[indices]
                return self._losses(number, clean, *self._defective(clean, defects(len(clean))), perceptual)

            parameters = [p for module in modules.values() for p in module.parameters()]
            adam = torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
            return Phase(f"phase{number}", step, modules, [adam], epochs)

        yield phase(1, config.epochs_phase1, {"encoder": net.encoder, "decoder": net.decoder})
        net.encoder.eval().requires_grad_(False)
        net.refer(pictures[self._index(pictures)][None])
        rbam = {"rbam": net.rbam} if net.rbam is not None else {}
        yield phase(2, config.epochs_phase2, {"decoder": net.decoder, "fdm": net.fdm, **rbam})

    def _defects(self, count: int, textures: Textures, random: torch.Generator) -> Defects:
        drawn, p = textures.draw(count, random), self.config.p_defect
        return Defects(drawn, random, self.context.device, probability=p, beta=self.config.beta)

    def _defective(self, clean: Tensor, defects: Defects) -> tuple[Tensor, Tensor]:
        """Defective pictures and masks (Eq. 1)."""
        made, mask = defects.on(clean)
        return made.contiguous(memory_format=torch.channels_last), mask

    def _losses(
        self, phase: int, clean: Tensor, defective: Tensor, mask: Tensor, perceptual: Perceptual | None
    ) -> dict[str, Tensor]:
        """The terms of a phase and their weighted sum (Eq. 12 to 14)."""
        config, net, values = self.config, self.net, {}
        with autocast(clean.device, config.precision):
            if phase == 1:  # in one pass, so that clean and defective pictures both enter the batch statistics
                ours, theirs = zip(*(f.chunk(2) for f in net.encoder(torch.cat([clean, defective]))), strict=True)
                rebuilt = net.decoder(*(ours[i] for i in REPAIRED)).float()
            else:  # the encoder is frozen, but gradients pass through it into the reconstruction
                out = net(defective)
                rebuilt = out.reconstruction.float()
                with torch.no_grad():
                    ours = net.encoder(clean)
            if perceptual is not None:
                values["per"] = perceptual(clean, rebuilt).float()
        values["rec"], normal = F.mse_loss(rebuilt, clean), [f.float() for f in ours]
        if phase == 1 and config.weight_pixel:
            values["pixel"] = pixel_discrimination(normal, [f.float() for f in theirs], mask, config.normalisation)
        if phase == 2:
            values["seg"] = segmentation_loss([m.float() for m in out.maps], mask, config.focal_gamma)
            if config.rbam:
                target = [normal[i] for i in REPAIRED]
                values["repair"] = repair_loss([f.float() for f in out.repaired], target, config.repair_factor)
        loss = sum(getattr(config, f"weight_{name}") * value for name, value in values.items())
        return {"loss": loss, **values}

    @torch.no_grad()
    def _index(self, pictures: Tensor) -> int:
        """Which training picture is the reference; medoid: least summed distance in layer 5 to all the others."""
        if self.config.reference == "index":
            return self.config.reference_index
        if self.config.reference == "seed":
            return int(torch.randint(len(pictures), (1,), generator=generator(self.context, "reference")))
        deep = torch.cat([self.net.encoder(chunk)[-1].flatten(1) for chunk in pictures.split(8)])
        return int(torch.cdist(deep, deep).sum(1).argmin())

    @torch.inference_mode()
    def _probe(self, clean: Tensor, textures: Textures) -> dict[str, Any]:
        """What the repair of each layer does on training pictures with artificial defects (`nn/attention.acts`)."""
        defective, mask = self._defective(clean, self._defects(len(clean), textures, generator(self.context, "probe")))
        ours, theirs = self.net.encoder(clean), self.net.encoder(defective)
        return {
            f"layer{i + 1}": acts(module, ours[i], theirs[i], resize_mask(mask, ours[i]), reference)
            for i, module, reference in zip(REPAIRED, self.net.rbam, self.net.reference, strict=True)
        }

    @torch.inference_mode()
    def predict(self, batch: Images) -> Prediction:
        """Maps [B, size, size] (Eq. 11) and the score of each that `score` names."""
        output = self.net(x := self._seen(batch))
        maps = gaussian_smooth(final_map(output, x, self.config).float(), self.config.smoothing, "reflect")
        flat = maps.flatten(1)
        highest = flat.topk(1 if self.config.score == "max" else max(1, round(flat.shape[1] * 0.001)), 1).values.mean(1)
        score = flat.std(1, correction=0) if self.config.score == "std" else highest
        return Prediction(maps, score, {"reconstruction": output.reconstruction})
