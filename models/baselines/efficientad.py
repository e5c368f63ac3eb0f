"""EfficientAD (Batzner et al., WACV 2024): a student and an autoencoder against a small pretrained teacher.

Networks are anomalib's. The authors published no code; compared with the one that reaches their figures
(nelson1425/EfficientAD at a44786c), equal: losses, penalty pictures, the tenth held back, quantiles of maps before the
padding, zeros around the scaled map, its maximum as score. Other: the decoder has the dropout of App. A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import room
from models.nn.preprocess import imagenet
from models.nn.textures import Textures
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import split
from models.nn.transfer import Ahead, Packed
from models.registry import register
from models.weights import load_into

CHANNELS = 384  # of the teacher; the student has them twice


@dataclass(frozen=True, kw_only=True)
class EfficientAdConfig(TrainedConfig):
    """Sec. 3 and 4 and App. A of the paper; one picture a step."""

    model: Literal["small", "medium"] = "small"
    steps: int = 70_000
    train_batch: int = 1
    lr: float = 1e-4  # a tenth of it for the last 5 % of the steps
    textures: str | None = None  # natural pictures for the penalty: a folder (ImageNet in the paper), or 'embedded'


@register("efficientad", presets={
    "small": EfficientAdConfig(),
    "medium": EfficientAdConfig(model="medium"),
    "quick": EfficientAdConfig(steps=6, textures="embedded", shortened=True),
})
class EfficientAd(Trained):
    """EfficientAD: student and autoencoder against a small pretrained teacher"""

    Config = EfficientAdConfig
    config: EfficientAdConfig
    normalise = False  # the networks do it themselves
    channels_last = True

    def __init__(self, config: EfficientAdConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 256:
            raise ModelError(f"efficientad: size={config.size}; its autoencoder needs at least 256")
        from anomalib.models.image.efficient_ad import torch_model as parts

        parts.imagenet_norm_batch = imagenet  # theirs brings the same constants to the device in every pass, and waits
        model = parts.EfficientAdModel(model_size=parts.EfficientAdModelSize(config.model))
        tag = f"pretrained_teacher_{config.model}"  # the file name in anomalib's release of these weights
        if (state := context.weights.load(tag, model.teacher.state_dict())) is not None:
            load_into(model.teacher, state, tag)
        model.requires_grad_(False)
        self._trained(model=model)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from torchvision.transforms import functional

        config, model = self.config, self.trained["model"]
        twice = (2 * config.size, 2 * config.size)
        source = config.textures or self.context.extras.get("textures")
        natural = Textures(source, twice, seed=self.context.seed, most=config.steps)  # another picture for every step
        pictures = self._pictures(train)
        used, held = (pictures[part] for part in split(len(pictures), 0.1, self.context, minimum=2))
        if validation is not None and len(validation):
            used, held = pictures, self._pictures(validation)
        outputs = self._teacher_statistics(used)
        device = self.context.device
        low, high = config.size // 2, config.size // 2 + config.size

        def drawn(count: int, random: torch.Generator) -> tuple[Packed, str, float]:
            """Natural pictures for the penalty, and what changes the training picture by which factor."""
            other = natural.draw(count, random)[..., low:high, low:high]
            if torch.rand(1, generator=random) < 0.3:
                other = functional.rgb_to_grayscale(other, 3)
            return Packed(device, other), *change(random)

        ahead = Ahead(drawn, device)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            x = used[indices]
            natural, kind, factor = ahead(1)
            return self._loss(x, getattr(functional, f"adjust_{kind}")(x, factor), *natural.arrive(),
                              None if outputs is None else outputs[indices])

        model.student.requires_grad_(True)
        model.ae.requires_grad_(True)
        count = min(len(used), config.steps)  # a short setting does not reach every picture
        epochs = max(1, round(config.steps / count))
        optimizer = Adam([p for p in model.parameters() if p.requires_grad], config.lr, weight_decay=1e-5,
                         fused=True)
        schedule = StepLR(optimizer, max(1, int(0.95 * epochs)), 0.1)
        log = self._train(step, [optimizer], count, progress, schedulers=[schedule], epochs=epochs)
        self._quantiles(held)
        return {**log, "textures": natural.describe()}

    def _teacher(self, x: Tensor, output: Tensor | None = None) -> Tensor:
        """The teacher's channels with mean 0 and deviation 1 over the training pictures; output: its own, if known."""
        mean, std = (self.trained["model"].mean_std[key] for key in ("mean", "std"))
        return (((self.trained["model"].teacher(x) if output is None else output) - mean) / std).detach()

    def _half(self, x: Tensor, part: slice) -> Tensor:
        """The student's channels `part`, without the time for the others."""
        student = self.trained["model"].student
        name, last = [(k, layer) for k, layer in student.named_children() if isinstance(layer, nn.Conv2d)][-1]
        return functional_call(student, {f"{name}.{key}": value[part] for key, value in last.named_parameters()}, x)

    def _loss(self, x: Tensor, altered: Tensor, natural: Tensor, output: Tensor | None = None) -> Tensor:
        """The hardest distances to the teacher and the output on natural pictures (Sec. 3.2); on altered pictures the
        autoencoder against the teacher, and the student's second half against the autoencoder (Sec. 3.3)."""
        model = self.trained["model"]
        first, second = slice(CHANNELS), slice(CHANNELS, None)
        distance = (self._teacher(x, output) - self._half(x, first)).square()
        hard = distance >= torch.quantile(distance.flatten(), 0.999)
        rebuilt = model.ae(altered, altered.shape[-2:])
        terms = self._teacher(altered) - rebuilt, self._half(altered, second) - rebuilt
        penalty = self._half(natural, first)
        return (distance * hard).sum() / hard.sum() + sum(t.square().mean() for t in (penalty, *terms))

    @torch.no_grad()
    def _teacher_statistics(self, pictures: Tensor) -> Tensor | None:
        """Mean and deviation of each channel of the teacher over the pictures; its outputs, if memory holds them."""
        model, sums, kept = self.trained["model"], [], []
        for x in pictures.split(1):
            output = model.teacher(x)
            sums.append(torch.stack([y.mean((0, 2, 3)) for y in (output.double(), output.double().square())]))
            if output.nbytes * len(pictures) <= room(output.device):
                kept.append(output)
        powers = torch.stack(sums).mean(0).view(2, 1, -1, 1, 1)
        model.mean_std["mean"].copy_(powers[0])
        model.mean_std["std"].copy_((powers[1] - powers[0].square()).clamp_min(1e-12).sqrt())
        return torch.cat(kept) if len(kept) == len(pictures) else None

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances of the student to teacher and autoencoder, [B, 1, h, w] on the teacher's grid."""
        near, far = self.trained["model"].student(x).split(CHANNELS, 1)
        parts = self._teacher(x) - near, self.trained["model"].ae(x, x.shape[-2:]) - far
        return tuple(part.square().mean(1, keepdim=True) for part in parts)

    @torch.no_grad()
    def _quantiles(self, pictures: Tensor) -> None:
        """Both maps' 0.9 and 0.995 quantiles over pictures held back, for their common scale (Sec. 3.4)."""
        for part, maps in zip(("st", "ae"), zip(*map(self._maps, pictures.split(1)), strict=True), strict=True):
            for key, value in zip(("qa", "qb"), np.quantile(torch.cat(maps).cpu().numpy(), (0.9, 0.995)), strict=True):
                self.trained["model"].quantiles[f"{key}_{part}"].fill_(float(value))

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        """The mean of both maps, each scaled so that its two quantiles become 0 and 0.1 (Sec. 3.4)."""
        q = self.trained["model"].quantiles
        maps = zip(("st", "ae"), self._maps(self.preprocess(batch, self.context.device)), strict=True)
        total = sum(0.05 * (found - q[f"qa_{part}"]) / (q[f"qb_{part}"] - q[f"qa_{part}"]) for part, found in maps)
        padded = F.pad(total, (4, 4, 4, 4))  # what the layers without padding lose
        return Prediction(F.interpolate(padded, self.preprocess.output, mode="bilinear")[:, 0], None)


def change(generator: torch.Generator) -> tuple[str, float]:
    """Brightness, contrast or saturation, and a factor for it between 0.8 and 1.2 (App. A)."""
    kind = ("brightness", "contrast", "saturation")[int(torch.randint(3, (1,), generator=generator))]
    return kind, 0.8 + 0.4 * float(torch.rand(1, generator=generator))
