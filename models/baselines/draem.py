"""DRAEM (Zavrtanik et al., ICCV 2021): artificial defects are reconstructed away and segmented.

Networks and losses are anomalib's, trained by our own loop and scored from their raw output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from models.base import Context, Images, Prediction, Progress, no_progress
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import generator
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class DraemConfig(TrainedConfig):
    """Zavrtanik et al., ICCV 2021, Sec. 4.1 and the authors' code; the last epoch is kept."""

    epochs: int = 700
    train_batch: int = 8
    lr: float = 1e-4  # times 0.2 after 80 % and 90 % of the epochs
    textures: str | None = None  # folder of natural textures (DTD in the paper), or 'embedded'
    beta: float = 0.8  # a defect lets up to this share of the picture through
    rotate: float = 0.3  # share of the training pictures that are rotated first
    average: int = 21  # image score: largest mean over a square of this side


@register("draem", presets={
    "paper": DraemConfig(),
    "anomalib": DraemConfig(average=1, rotate=0.0),
    "quick": DraemConfig(size=64, epochs=3, train_batch=4, textures="embedded", shortened=True),
})
class Draem(Trained):
    """DRAEM: reconstructs pasted-in defects away and segments them from the two pictures"""

    Config = DraemConfig
    config: DraemConfig
    normalise = False

    def __init__(self, config: DraemConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.image.draem.torch_model import DraemModel

        self._trained(model=DraemModel())

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.draem.loss import DraemLoss

        from models.nn.perlin import artificial_defects, rotate
        from models.nn.textures import Textures

        config, loss = self.config, DraemLoss().to(self.context.device)
        textures = Textures(config.textures or self.context.extras.get("textures"), self.preprocess.output)
        pictures = self._pictures(train)
        own = generator(self.context, "defects")

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            random = noise if noise.device.type == "cpu" else own
            clean = pictures[indices]
            turned = torch.rand(len(clean), generator=random) < config.rotate
            if turned.any():
                degrees = torch.rand(int(turned.sum()), generator=random) * 180 - 90
                clean[turned.to(clean.device)] = rotate(clean[turned.to(clean.device)], degrees.to(clean.device))
            drawn = textures.draw(len(clean), random)
            broken, mask = artificial_defects(clean, drawn, random, probability=0.5, beta=(0.0, config.beta))
            reconstruction, prediction = self.trained["model"](broken)
            return loss(clean, reconstruction, mask, prediction)

        optimizer = Adam(self._parameters(), config.lr)
        milestones = [int(config.epochs * share) for share in (0.8, 0.9)]
        log = self._train(step, [optimizer], len(train), progress, schedulers=[MultiStepLR(optimizer, milestones, 0.2)])
        return {**log, "textures": textures.describe()}

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        maps = self.trained["model"](self.preprocess(batch, self.context.device)).anomaly_map
        side = self.config.average
        means = F.avg_pool2d(maps.unsqueeze(1), side, 1, side // 2)
        return Prediction(maps, means.flatten(1).amax(1))

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """The segmentation decoder's last map, [B, 64, h, w]."""
        found: list[Tensor] = []
        last = self.trained["model"].discriminative_subnetwork.decoder_segment.fin_out
        handle = last.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        try:
            self.trained["model"](self.preprocess(batch, self.context.device))
        finally:
            handle.remove()
        return found
