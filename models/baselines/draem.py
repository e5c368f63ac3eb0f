"""DRAEM (Zavrtanik et al., ICCV 2021): artificial defects are reconstructed away and segmented.

Compared with the authors' code (VitjanZ/DRAEM, commit b5b11e7). The same: both networks (layers from anomalib) and how
they are joined, initial weights, loss (squared error + 1 - SSIM with zero borders + focal loss, classes weighted 1,
smoothed by 1e-5), Adam 1e-4, batch 8, 700 epochs, rate times 0.2 after 80 % and 90 %, last epoch; half of the pictures
defective, opacity, Perlin scales, rotations of the mask and of 30 % of the pictures; plain bilinear resize; map =
softmax, score = largest 21x21 mean. Left: pictures come by permutation (theirs: with replacement); an empty mask is
drawn again (theirs stays, as normal); hue and saturation turn in YIQ, not HSV; textures are antialiased; the range
of SSIM stays 1.
Preset `anomalib`: that library's loss (with today's kornia its focal loss weights normal pixels 0: calling all pixels
defective is free), initial weights, rate, batch, opacity, resize, joining and score; not its texture operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.dcgan import dcgan_init
from models.nn.focal import focal_loss
from models.nn.preprocess import Preprocess
from models.nn.ssim import ssim
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class DraemConfig(TrainedConfig):
    """Zavrtanik et al., ICCV 2021, Sec. 4.1 and the authors' code; the last epoch is kept."""

    epochs: int = 700
    train_batch: int = 8
    lr: float = 1e-4
    width: int = 64  # channels of the segmentation's first layer; the reconstruction has twice as many
    textures: str | None = None  # folder of natural textures (DTD in the paper), or 'embedded'
    beta: float = 0.8  # a defect lets up to this share of the picture through
    rotate: float = 0.3  # share of the training pictures that are rotated first
    average: int = 21  # image score: largest mean over a square of this side
    library: bool = False  # anomalib's loss, initial weights, rate, resize and joining instead of the authors'
    # what `feature_maps` gives to an ensemble: the segmentation's last decoder map or the code between its two halves
    cut: Literal["decoder", "bottleneck"] = "decoder"


@register("draem", presets={
    "paper": DraemConfig(),
    "anomalib": DraemConfig(library=True, train_batch=32, beta=0.9, rotate=0.0, average=1),
    "quick": DraemConfig(size=64, width=8, epochs=8, train_batch=4, lr=1e-3, average=5, textures="embedded",
                         shortened=True),
})
class Draem(Trained):
    """DRAEM: reconstructs pasted-in defects away and segments them from the two pictures"""

    Config = DraemConfig
    config: DraemConfig
    channels_last = True

    def __init__(self, config: DraemConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size % 32:
            raise ModelError(f"draem: size={config.size} must be a multiple of 32, the segmentation's stride")
        self.preprocess = Preprocess((config.size, config.size), normalise=False, antialias=config.library)
        model = Network(config.width, picture_first=config.library)
        if not config.library:
            model.apply(dcgan_init)
        self._trained(model=model)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from models.nn.perlin import Defects, rotate
        from models.nn.textures import Textures
        from models.nn.transfer import Ahead, Packed

        config, device, loss = self.config, self.context.device, library_loss() if self.config.library else draem_loss
        source = config.textures or self.context.extras.get("textures")
        textures = Textures(source, self.preprocess.output, seed=self.context.seed)
        pictures = self._pictures(train)

        def drawn(count: int, random: torch.Generator) -> tuple[int, Packed, Defects]:
            """How many pictures are rotated; which (first those) and by how much; the defects."""
            turned = torch.rand(count, generator=random) < config.rotate
            degrees = torch.rand(int(turned.sum()), generator=random) * 180 - 90
            first = Packed(device, turned.nonzero()[:, 0], degrees)
            return len(degrees), first, Defects(
                textures.draw(count, random), random, device, probability=0.5, beta=(0.0, config.beta))

        ahead = Ahead(drawn, device)

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            clean = pictures[indices]
            count, first, defects = drawn(len(clean), noise) if noise.device.type == "cpu" else ahead(len(clean))
            if count:
                turned, degrees = first.arrive()
                clean[turned] = rotate(clean[turned], degrees)
            broken, mask = defects.on(clean)
            return loss(clean, *self.trained["model"](broken), mask)

        optimizer = Adam(self._parameters(), config.lr, fused=True)
        shares, factor = ((4 / 7, 6 / 7), 0.1) if config.library else ((0.8, 0.9), 0.2)
        schedule = MultiStepLR(optimizer, [int(config.epochs * share) for share in shares], factor)
        log = self._train(step, [optimizer], len(train), progress, schedulers=[schedule])
        return {**log, "textures": textures.describe()}

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        _, logits = self.trained["model"](self._seen(batch))
        maps, side = logits.softmax(1)[:, 1], self.config.average
        return Prediction(maps, F.avg_pool2d(maps, side, 1, side // 2).flatten(1).amax(1))

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """By `cut` the segmentation decoder's last map [B, 64, h, w] or its encoder's last, [B, 512, h/32, w/32]."""
        found: list[Tensor] = []
        net, decoder = self.trained["model"].discriminative_subnetwork, self.config.cut == "decoder"
        part = net.decoder_segment.fin_out if decoder else net.encoder_segment
        with part.register_forward_hook(lambda _, given, made: found.append(given[0] if decoder else made[-1])):
            self.trained["model"](self._seen(batch))
        return found


class Network(nn.Module):
    """Both subnetworks: pictures [B, 3, h, w] in [0, 1] -> (reconstruction [B, 3, h, w], logits [B, 2, h, w])."""
    def __init__(self, width: int, *, picture_first: bool = False) -> None:
        super().__init__()
        from anomalib.models.image.draem.torch_model import DiscriminativeSubNetwork, ReconstructiveSubNetwork

        self.reconstructive_subnetwork = ReconstructiveSubNetwork(base_width=2 * width)
        self.discriminative_subnetwork = DiscriminativeSubNetwork(in_channels=6, out_channels=2, base_width=width)
        self.picture_first = picture_first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rebuilt = self.reconstructive_subnetwork(x)
        joined = torch.cat([x, rebuilt] if self.picture_first else [rebuilt, x], 1)
        return rebuilt, self.discriminative_subnetwork(joined)


def draem_loss(clean: Tensor, rebuilt: Tensor, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Eq. 3 as the authors' code computes it: 'loss' and its parts 'l2', 'ssim' (1 - SSIM) and 'focal'."""
    border = (5, 5, 5, 5)  # their SSIM window sees zeros outside the picture
    parts = {
        "l2": F.mse_loss(rebuilt, clean),
        "ssim": 1 - ssim(F.pad(rebuilt, border), F.pad(clean, border)).mean(),
        "focal": focal_loss(logits.softmax(1)[:, 1], mask[:, 0], epsilon=0.0, smooth=1e-5),
    }
    return {"loss": parts["l2"] + parts["ssim"] + parts["focal"], **parts}


def library_loss() -> Any:
    """anomalib's loss in the shape of `draem_loss`."""
    from anomalib.models.image.draem.loss import DraemLoss

    loss = DraemLoss()
    return lambda clean, rebuilt, logits, mask: {"loss": loss(clean, rebuilt, mask, logits)}
