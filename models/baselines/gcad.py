"""GCAD (Bergmann et al., IJCV 130, 2022): a local and a global branch, for structural and for logical anomalies.

Local: R_loc, a U-Net, learns the descriptors E_loc of a frozen teacher of patches of p px (as in US,
`models/descriptor`). Global: E_glo must draw its 10 channels from a code of 32 values that has no place, so that it
knows the whole picture only; three 1x1 convolutions U raise them to the teacher's, and R_glo, a U-Net as well, learns
E_glo itself. Loss = mean over places of |E_loc - U(E_glo)|^2 / 128 + |E_loc - R_loc|^2 / 128 + |E_glo - R_glo|^2 / 10,
the last one from epoch 50 on; skip connections of E_glo fade over the first 100 epochs, the largest map's first. Map =
|E_loc - R_loc| and |E_glo - R_glo|, each less its mean and by its deviation over normal validation pictures, added;
mean over p = 17 and 33, a model each; score = its maximum. The method's code was never published, nor does another
library have it; the paper is followed as detailed notes of it have it (256 px, Adam 1e-4 with decay 1e-5, 500 epochs,
U-Nets down to 16x16x1024). Chosen here, since not public: batch 1; the widths of E_glo; R_glo's error moves R_glo only,
so that E_glo cannot make itself easy; a tenth of the training pictures where a data set has no validation part. Left:
the paper's augmentation, which differs by category.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, Prediction, Progress, no_progress
from models.descriptor import DescriptorConfig, learnt, taught, teachers
from models.nn.gcad_networks import SLOPE, Global, UNet, fading
from models.nn.trained import Trained
from models.nn.training import split
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class GcadConfig(DescriptorConfig):
    """The paper, as far as it is known."""

    patches: tuple[int, ...] = (17, 33)
    width: int = 64  # of the U-Nets' first level
    global_width: int = 32  # of the global encoder's first maps
    bottleneck: int = 32  # g
    global_channels: int = 10  # d_glo
    fade: float = 0.2  # share of the epochs over which the skip connections disappear: the paper's 100 of 500
    join: float = 0.1  # share of the epochs before R_glo is trained: 50 of 500
    held_out: float = 0.1
    epochs: int = 500
    train_batch: int = 1
    lr: float = 1e-4


@register("gcad", presets={
    "paper": GcadConfig(),
    "p17": GcadConfig(patches=(17,)),
    "p33": GcadConfig(patches=(33,)),
    "quick": GcadConfig(
        patches=(17,), narrow=16, layer="layer3", textures="embedded", natural_size=128, teacher_steps=1000,
        teacher_batch=32, teacher_lr=2e-3, width=8, global_width=8, size=64, epochs=8, train_batch=2, lr=1e-3,
        shortened=True,
    ),
})
class Gcad(Trained):
    """GCAD: a local and a global branch regress descriptors, for structural and for logical anomalies"""

    Config = GcadConfig
    config: GcadConfig
    kept = ("normal",)

    def __init__(self, config: GcadConfig, context: Context) -> None:
        super().__init__(config, context)
        own = teachers(config, context)
        branches = {f"branches{p}": Branches(config, own[f"teacher{p}"].channels) for p in config.patches}
        self._trained(**own, **branches)
        self.normal = torch.tensor([[[0.0, 1.0]] * 2] * len(config.patches))  # mean and deviation, local and global

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        config, pictures = self.config, self._pictures(train)
        used, held = (pictures[part] for part in split(len(pictures), config.held_out, self.context, minimum=2))
        if validation is not None and len(validation):
            used, held = pictures, self._pictures(validation)
        logs = taught(self.trained, config, self.context, used, progress)
        optimizer = Adam(self._parameters(), config.lr, weight_decay=1e-5)
        first, steps = self._parameters()[0], -(-len(used) // config.train_batch)

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            epoch = int(optimizer.state[first].get("step", 0)) // steps  # Adam counts on the CPU
            found = zip(*(self._losses(used[indices], patch, epoch) for patch in config.patches), strict=True)
            drawn, local, consistent = map(sum, found)  # apart: without a gradient Adam leaves R_glo as it is
            loss = drawn + local + (consistent if epoch >= config.join * config.epochs else 0)
            return {"loss": loss, "drawn": drawn, "local": local, "global": consistent}

        log = self._train(step, [optimizer], len(used), progress)
        with torch.no_grad():
            parts = [torch.cat([self._distances(x, patch) for x in held.split(1)]) for patch in config.patches]
            self.normal = torch.stack([
                torch.stack([p.mean((0, 2, 3)), p.std((0, 2, 3)).clamp_min(1e-12)], 1) for p in parts
            ]).cpu()
            left = [torch.stack(self._losses(x, p, config.epochs)) for p in config.patches for x in held.split(1)]
            drawn, local, _ = torch.stack(left).mean(0).tolist()
        # the teacher's channels have variance 1: 1 is what their mean would leave
        learnt(log, logs)
        return {**log, **logs, "unexplained": {"local": local, "drawn from the code": drawn}}

    def _losses(self, x: Tensor, patch: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The three terms of the loss."""
        config, (target, branches) = self.config, (self.trained[f"{name}{patch}"] for name in ("teacher", "branches"))
        weights = fading(epoch / (config.fade * config.epochs), len(branches.encoder.down))
        target, code = target(x), branches.encoder(x, weights)
        return (
            (target - branches.raise_(code)).square().mean(), (target - branches.local(x)).square().mean(),
            (code.detach() - branches.regress(x)).square().mean(),
        )

    def _distances(self, x: Tensor, patch: int) -> Tensor:
        """|E_loc - R_loc| and |E_glo - R_glo| of every place: [B, 2, h, w]."""
        branches = self.trained[f"branches{patch}"]
        pairs = (self.trained[f"teacher{patch}"](x), branches.local(x)), (branches.encoder(x), branches.regress(x))
        return torch.stack([(a - b).norm(dim=1) for a, b in pairs], 1)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x, maps = self._seen(batch), []
        for patch, normal in zip(self.config.patches, self.normal.to(x.device), strict=True):
            mean, deviation = normal.T.view(2, 2, 1, 1)
            maps.append(((self._distances(x, patch) - mean) / deviation).sum(1))
        return Prediction(torch.stack(maps).mean(0), None)


class Branches(nn.Module):
    """What is trained for one teacher of `channels`: R_loc, E_glo, U and R_glo."""

    def __init__(self, config: GcadConfig, channels: int) -> None:
        super().__init__()
        small = config.global_channels
        self.local, self.regress = UNet(config.width, channels), UNet(config.width, small)
        self.encoder = Global(config.size, config.global_width, config.bottleneck, small)
        self.raise_ = nn.Sequential(
            nn.Conv2d(small, channels, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(channels, channels, 1), nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 1),
        )
