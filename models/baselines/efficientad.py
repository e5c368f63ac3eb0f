"""EfficientAD (Batzner et al., WACV 2024) on anomalib's networks and loss.

The teacher comes from anomalib's release `efficientad_pretrained_weights`: put `pretrained_teacher_small.pth` (or
`_medium.pth`) into the weights directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import generator, split
from models.registry import register
from models.weights import load_into


@dataclass(frozen=True, kw_only=True)
class EfficientAdConfig(TrainedConfig):
    """Sec. 3 and 4 and App. A of the paper; one picture a step."""

    model: Literal["small", "medium"] = "small"
    steps: int = 70_000
    train_batch: int = 1
    lr: float = 1e-4  # a tenth of it for the last 5 % of the steps
    penalty: str | None = None  # folder of natural pictures (ImageNet in the paper), or 'embedded'


@register("efficientad", presets={
    "small": EfficientAdConfig(),
    "medium": EfficientAdConfig(model="medium"),
    "quick": EfficientAdConfig(steps=6, penalty="embedded", shortened=True),
})
class EfficientAd(Trained):
    """EfficientAD: student and autoencoder against a small pretrained teacher"""

    Config = EfficientAdConfig
    config: EfficientAdConfig
    normalise = False  # the networks do it themselves

    def __init__(self, config: EfficientAdConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 256:
            raise ModelError(f"efficientad: size={config.size}; its autoencoder needs at least 256")
        from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize

        model = EfficientAdModel(model_size=EfficientAdModelSize(config.model))
        tag = f"pretrained_teacher_{config.model}"  # the file name in anomalib's release of these weights
        state = context.weights.load(tag, model.teacher.state_dict())
        if state is not None:
            load_into(model.teacher, state, tag)
        model.requires_grad_(False)
        self._trained(model=model)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from models.nn.textures import Textures

        config, model = self.config, self.trained["model"]
        natural = Textures(config.penalty, (2 * config.size, 2 * config.size))
        pictures = self._pictures(train)
        if validation is not None and len(validation):
            held, used = self._pictures(validation), pictures
        else:
            kept, out = split(len(pictures), 0.1, self.context, minimum=2)
            held, used = pictures[out], pictures[kept]
        self._teacher_statistics(used)
        own = generator(self.context, "penalty")
        low, high = config.size // 2, config.size // 2 + config.size

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            other = natural.draw(1, own)[..., low:high, low:high].to(used.device)
            if torch.rand(1, generator=own) < 0.3:
                other = other.mean(1, keepdim=True).expand_as(other)
            student, autoencoder, both = model(used[indices], other)
            return {"loss": student + autoencoder + both}

        model.student.requires_grad_(True)
        model.ae.requires_grad_(True)
        count = min(len(used), config.steps)  # a short setting does not reach every picture
        epochs = max(1, round(config.steps / count))
        optimizer = Adam([*model.student.parameters(), *model.ae.parameters()], config.lr, weight_decay=1e-5)
        schedule = StepLR(optimizer, max(1, int(0.95 * epochs)), 0.1)
        log = self._train(step, [optimizer], count, progress, schedulers=[schedule], epochs=epochs)
        self._quantiles(held)
        return {**log, "penalty": natural.describe()}

    @torch.no_grad()
    def _teacher_statistics(self, pictures: Tensor) -> None:
        """Mean and standard deviation of each channel of the teacher over the training pictures."""
        model, sums, squares, count = self.trained["model"], 0.0, 0.0, 0
        for x in pictures.split(1):
            y = model.teacher(x).double()
            sums, squares = sums + y.sum((0, 2, 3)), squares + y.square().sum((0, 2, 3))
            count += y[:, 0].numel()
        mean = sums / count
        model.mean_std["mean"].copy_(mean.view(1, -1, 1, 1))
        model.mean_std["std"].copy_((squares / count - mean.square()).clamp_min(1e-12).sqrt().view(1, -1, 1, 1))

    @torch.no_grad()
    def _quantiles(self, pictures: Tensor) -> None:
        """Both maps' 0.9 and 0.995 quantiles over pictures held back, for their common scale."""
        model = self.trained["model"]
        for part, maps in zip(("st", "ae"), zip(*map(model.get_maps, pictures.split(1)), strict=True), strict=True):
            values = torch.cat(maps).flatten().cpu().numpy()
            for key, q in ((f"qa_{part}", 0.9), (f"qb_{part}", 0.995)):
                model.quantiles[key].copy_(torch.tensor(float(np.quantile(values, q))))

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        result = self.trained["model"](self.preprocess(batch, self.context.device))
        return Prediction(result.anomaly_map[:, 0], None)
