"""US, also ST (Bergmann et al., CVPR 2020, arXiv 1911.02357): uninformed students of a teacher of patches.

A teacher that describes the patch around every pixel is distilled on natural pictures (Sec. 3.1, Eq. 1, 5 and 6,
`models/descriptor`); three students of the same form, started apart, learn its descriptors of normal pictures (Sec.
3.2, Eq. 7). Map = regression error of the students' mean, and their variance, each less its mean and by its deviation
over normal validation pictures, added (Eq. 9 to 11); mean over teachers of 17, 33 and 65 px (Sec. 3.3, Eq. 12). The
authors published no code; compared with two others' (LuyaooChen/uninformed-students-pytorch at b77a0c5,
denguir/student-teacher-anomaly-detection at fc279ef). As quoted from the paper (Sec. 4.2, Tables 4 and 5): networks,
loss ||D(T) - P||^2 + correlations, Adam 2e-4 and decay 1e-5 in 50,000 steps of 64; students: 256 px, Adam 1e-4, decay
1e-5, batch 1, 100 epochs. Chosen here: squares of natural pictures of any side from the patch's on are scaled to it
(LuyaooChen the like; the paper's scale is not public), a tenth of the training pictures is the validation part, zeros
around, score = the map's maximum, as in the authors' paper of 2022. Left: scales and students are trained side by side,
which changes no gradient. Where the two codes depart (descriptors compared over the wrong axis, means of each picture,
a teacher trained on the category) neither is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, Prediction, Progress, no_progress
from models.descriptor import Descriptor, DescriptorConfig, learnt, taught, teachers
from models.nn.trained import Trained
from models.nn.training import split
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class UsConfig(DescriptorConfig):
    """The paper, Sec. 4.2."""

    students: int = 3
    held_out: float = 0.1  # of the training pictures, where there are no validation pictures
    epochs: int = 100
    train_batch: int = 1
    lr: float = 1e-4


@register("us", presets={
    "paper": UsConfig(),
    "p17": UsConfig(patches=(17,)),
    "p33": UsConfig(patches=(33,)),
    "p65": UsConfig(patches=(65,)),
    "quick": UsConfig(
        patches=(33,), narrow=16, layer="layer3", textures="embedded", natural_size=128, teacher_steps=1000,
        teacher_batch=32, teacher_lr=2e-3, size=128, epochs=3, lr=1e-3, shortened=True,
    ),
})
class Us(Trained):
    """US (ST): students learn a distilled teacher's descriptors, their error and their variance"""

    Config = UsConfig
    config: UsConfig
    kept = ("normal",)

    def __init__(self, config: UsConfig, context: Context) -> None:
        super().__init__(config, context)
        own = teachers(config, context)
        students = {
            f"students{patch}": nn.ModuleList(Descriptor(patch, config.narrow) for _ in range(config.students))
            for patch in config.patches
        }
        self._trained(**own, **students)
        self.normal = torch.tensor([[[0.0, 1.0]] * 2] * len(config.patches))  # mean and deviation of error and variance

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        pictures = self._pictures(train)
        used, held = (pictures[part] for part in split(len(pictures), self.config.held_out, self.context, minimum=2))
        if validation is not None and len(validation):
            used, held = pictures, self._pictures(validation)
        logs = taught(self.trained, self.config, self.context, used, progress)

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            found = {f"p{patch}": self._loss(used[indices], patch) for patch in self.config.patches}
            return {"loss": torch.stack(list(found.values())).sum(), **found}

        log = self._train(step, [Adam(self._parameters(), self.config.lr, weight_decay=1e-5)], len(used), progress)
        with torch.no_grad():
            parts = [torch.stack([self._parts(x, patch) for x in held.split(1)]) for patch in self.config.patches]
            self.normal = torch.stack([
                torch.stack([p.mean((0, 1, 3, 4)), p.std((0, 1, 3, 4)).clamp_min(1e-12)], 1) for p in parts
            ]).cpu()
            left = {patch: torch.stack([self._loss(x, patch) for x in held.split(1)]).mean() /
                    (self.config.students * self.trained[f"teacher{patch}"].channels) for patch in self.config.patches}
        learnt(log, logs)
        return {**log, **logs, "unexplained": {str(patch): float(value) for patch, value in left.items()}}

    def _loss(self, x: Tensor, patch: int) -> Tensor:
        """Sum over students of the mean squared distance to the teacher's descriptors (Eq. 7)."""
        target = self.trained[f"teacher{patch}"](x)
        apart = [(student(x) - target).square().sum(1).mean() for student in self.trained[f"students{patch}"]]
        return torch.stack(apart).sum()

    def _parts(self, x: Tensor, patch: int) -> Tensor:
        found = torch.stack([student(x) for student in self.trained[f"students{patch}"]])
        return error_and_variance(found, self.trained[f"teacher{patch}"](x))

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        x, maps = self._seen(batch), []
        for patch, normal in zip(self.config.patches, self.normal.to(x.device), strict=True):
            mean, deviation = normal.T.view(2, 2, 1, 1)
            maps.append(((self._parts(x, patch) - mean) / deviation).sum(1))
        return Prediction(torch.stack(maps).mean(0), None)


def error_and_variance(students: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the mean of students [M, B, d, h, w] and their variance (Eq. 9 and 10): [B, 2, h, w]."""
    mean = students.mean(0)
    variance = students.square().sum(2).mean(0) - mean.square().sum(1)
    return torch.stack([(mean - teacher).square().sum(1), variance], 1)
