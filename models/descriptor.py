"""Teachers of US/ST and GCAD: a network that describes the patch around every pixel, distilled from a pretrained one.

Bergmann et al., CVPR 2020, Sec. 3.1: a small network T of patches of 17, 33 or 65 px, with a linear decoder, learns to
give the pooled features of ResNet-18 on patches of natural pictures (ImageNet in the paper; Eq. 1), while the
correlations of its values among each other are kept small (Eq. 5). Without padding T gives one descriptor of a patch;
for all pixels of a picture the poolings are taken at every place and their four phases go on apart (Bailer et al., BMVC
2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, ModelError, Progress
from models.features import RESNET18, backbone
from models.nn.floor import mark
from models.nn.patch_encoder import crops
from models.nn.preprocess import imagenet
from models.nn.textures import Textures
from models.nn.trained import TrainedConfig
from models.nn.training import key_of, own_random_state, train

POOL = (0, 0)
LAYERS = {  # (side, channels) by side of the patch: Tables 4 and 5; two sides that cannot be are mended as by others
    17: ((6, 128), (5, 256), (5, 256), (4, 128)),
    33: ((5, 128), POOL, (5, 256), POOL, (2, 256), (4, 128)),
    65: ((5, 128), POOL, (5, 128), POOL, (5, 256), POOL, (4, 256), (1, 128)),
}
UNLEARNT = 0.95  # share of the features' variance; whoever leaves more unexplained has learnt next to nothing
ROUND = 500  # steps that one value of the log is the mean of
_made: dict[Any, tuple[dict[str, Tensor], dict[str, Any]]] = {}  # teachers do not hang on the category


@dataclass(frozen=True, kw_only=True)
class DescriptorConfig(TrainedConfig):
    """Sec. 3.1 and 4 of the paper, for the teachers; lambda_k = lambda_c = 1, lambda_m = 0 (Sec. 4.2)."""

    patches: tuple[int, ...] = (17, 33, 65)  # sides of the teachers' patches, a model each
    narrow: int = 1  # what the channels are divided by
    backbone: str = RESNET18
    layer: str = "layer4"  # pooled over its places
    textures: str | None = None  # natural pictures: a folder (ImageNet in the paper), or 'embedded'
    natural: int = 4096  # at most so many of them, held on the device
    natural_size: int = 256
    teacher_steps: int = 50_000
    teacher_batch: int = 64
    teacher_lr: float = 2e-4


class Descriptor(nn.Module):
    """Pictures [B, 3, h, w] -> a descriptor of the patch around each pixel, [B, 128 / narrow, h, w]; zeros around."""

    def __init__(self, patch: int, narrow: int = 1) -> None:
        super().__init__()
        if patch not in LAYERS or 128 % narrow:
            raise ModelError(f"patches of {patch} px, narrow={narrow}: use {', '.join(map(str, LAYERS))} px and a "
                             "divisor of 128")
        self.patch, layers, before = patch, [], 3
        for side, channels in LAYERS[patch]:
            if (side, channels) == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(before, channels // narrow, side), nn.LeakyReLU(5e-3)]
            before = channels // narrow
        self.layers, self.channels = nn.Sequential(*layers[:-1]), before

    def of_patches(self, x: Tensor) -> Tensor:
        """[N, 3, patch, patch] -> [N, 128 / narrow]."""
        return self.layers(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x, pools = F.pad(x, (self.patch // 2,) * 4), 0
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                x, pools = _phases(F.max_pool2d(x, 2, 1)), pools + 1
            else:
                x = layer(x)
        for _ in range(pools):
            x = x.unflatten(0, (2, 2, -1)).permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)
        return x[..., :height, :width]


def _phases(x: Tensor) -> Tensor:
    """[B, C, h, w] -> its even and odd lines apart, one after the other: [4 B, C, h / 2, w / 2], rounded up."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(3, 5, 0, 1, 2, 4).flatten(0, 2)


class Teacher(Descriptor):
    """A `Descriptor` with mean and deviation of its channels over the training pictures; frozen."""

    def __init__(self, patch: int, narrow: int = 1) -> None:
        super().__init__(patch, narrow)
        self.register_buffer("mean", torch.zeros(self.channels, 1, 1))
        self.register_buffer("std", torch.ones(self.channels, 1, 1))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) - self.mean) / self.std

    @torch.no_grad()
    def standardise(self, pictures: Tensor) -> None:
        """Take mean and deviation of every channel over all places of pictures [N, 3, h, w]."""
        found = (super(Teacher, self).forward(x).double() for x in pictures.split(1))
        mean, square = torch.stack([torch.stack([y, y.square()]).mean((1, 3, 4)) for y in found]).mean(0)
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_((square - mean.square()).clamp_min(1e-12).sqrt().view(-1, 1, 1))

    def distil(self, config: DescriptorConfig, context: Context, progress: Progress) -> dict[str, Any]:
        """Learn from the backbone; the log, with the share of its features' variance on new patches not explained.

        Done once in a process for one backbone, source of pictures, and settings. Raises ModelError where there are no
        natural pictures, WeightsError where the backbone's weights are missing.
        """
        device, source = context.device, config.textures or context.extras.get("textures")
        natural = Textures(source, (config.natural_size,) * 2, seed=context.seed, most=config.natural)
        net = backbone(config.backbone, (config.layer,), context.weights, device)
        key = (self.patch, net.identity, str(natural.describe()), key_of(config), context.seed, str(device))
        if key in _made:
            state, log = _made[key]
            self.load_state_dict(state)
            return {**log, "shared": "distilled earlier in the same process"}
        pool = torch.stack(list(natural.each())[: config.natural]).to(device)
        self.requires_grad_(True)
        decoder = nn.Linear(self.channels, net.channels[config.layer]).to(device)

        def drawn(count: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
            """Patches, and what the backbone says of them: of squares of one side per step, down to the patch's."""
            side = int(torch.randint(self.patch, pool.shape[-1] + 1, (1,)))
            which = torch.randint(len(pool), (count,), generator=noise, device=device)
            start = torch.randint(pool.shape[-1] - side + 1, (2, count), generator=noise, device=device)
            x = crops(pool[which], side, start).float().div(255)
            x = imagenet(F.interpolate(x, (self.patch,) * 2, mode="bilinear", align_corners=False, antialias=True))
            with torch.no_grad():
                return x, net(x)[config.layer].mean((2, 3))

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            x, target = drawn(len(indices), noise)
            rows = self.of_patches(x)
            distance, compact = (decoder(rows) - target).square().sum(1).mean(), compactness(rows)
            return {"loss": distance + compact, "distance": distance, "compactness": compact}

        rounds = math.ceil(config.teacher_steps / ROUND)
        log = train(
            step, {"teacher": self, "decoder": decoder},
            [Adam([*self.parameters(), *decoder.parameters()], config.teacher_lr, weight_decay=1e-5)],
            count=min(ROUND, config.teacher_steps) * config.teacher_batch, batch=config.teacher_batch, epochs=rounds,
            context=replace(context, scratch=context.scratch / f"teacher{self.patch}" if context.scratch else None),
            key=key, progress=progress, keep_end=True,
        )
        self.requires_grad_(False)
        with torch.no_grad():
            x, target = drawn(4 * config.teacher_batch, torch.Generator(device).manual_seed(context.seed))
            left = (decoder(self.of_patches(x)) - target).square().mean() / target.var(0, correction=0).mean()
        log |= {"unexplained": float(left), "natural": natural.describe()}
        _made[key] = {name: value.clone() for name, value in self.state_dict().items()}, log
        return log


def compactness(rows: Tensor) -> Tensor:
    """Sum of the correlations of every two values over a batch of descriptors [N, d] (Eq. 5).

    As printed. Its least value, -d, is reached where the values add up to a constant, however alike two of them are; a
    sum of squares, as in L2-Net (Tian et al., CVPR 2017), would not be. Which one the authors ran is not public.
    """
    unit = F.normalize(rows - rows.mean(0), dim=0)
    correlation = unit.T @ unit
    return correlation.sum() - correlation.diagonal().sum()


def learnt(log: dict[str, Any], teachers: Mapping[str, Mapping[str, Any]]) -> None:
    """Mark a training log ('floor') where a teacher says hardly more of new patches than the mean of its target does.

    teachers: their logs by name. What students of such a teacher miss is no more than some random network's output.
    """
    for name, found in teachers.items():
        if found["unexplained"] > UNLEARNT:
            explained = 1 - found["unexplained"]
            mark(log, "floor", f"{name} explains {explained:.1%} of the variance of the features that it was to learn: "
                               "distil it longer (teacher_steps)")


def teachers(config: DescriptorConfig, context: Context) -> dict[str, Teacher]:
    """'teacher<patch>' for each side in `config.patches`, started from a random state of their own."""
    with own_random_state(context, "teachers"):
        return {f"teacher{patch}": Teacher(patch, config.narrow) for patch in config.patches}


def taught(
    modules: Mapping[str, Any], config: DescriptorConfig, context: Context, pictures: Tensor, progress: Progress
) -> dict[str, Any]:
    """Distil the teachers among `modules` and standardise them on pictures [N, 3, h, w]; their logs by name."""
    logs = {}
    for name in (f"teacher{patch}" for patch in config.patches):
        logs[name] = modules[name].distil(config, context, progress)
        modules[name].standardise(pictures)
    return logs
