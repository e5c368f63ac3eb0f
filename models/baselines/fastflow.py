"""FastFlow (Yu et al., arXiv 2111.07677, 2021): 2D normalising flows over three stages of a frozen backbone.

The authors published no code; compared with the paper and with the re-implementation that the field uses
(gathierry/FastFlow at 1feadbc, which anomalib took over). The same: layer norm with weights per position before each
flow, 8 steps of alternately 3x3 and 1x1 kernels (3x3 only for ResNet-18), clamp 2, hidden ratio 1, loss = sum over
stages of the negative log-likelihood, Adam 1e-3 with decay 1e-5, batch 32, 500 epochs, last epoch; map = mean over
stages of -exp(-mean(z^2)/2); score = its maximum. Left: an incomplete last batch is trained on (theirs is dropped).
Blocks are FrEIA's. The backbone runs once per picture, not in every epoch: its features do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, WIDE50, backbone
from models.frozen import FrozenFeatures
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class FastFlowConfig(TrainedConfig):
    """Yu et al., 2021 (arXiv 2111.07677), Sec. 4.2; the last epoch is kept."""

    backbone: str = WIDE50
    epochs: int = 500
    lr: float = 1e-3
    steps: int = 8
    conv3x3_only: bool = False
    hidden_ratio: float = 1.0


@register("fastflow", presets={
    "wrn50": FastFlowConfig(),
    "resnet18": FastFlowConfig(backbone=RESNET18, conv3x3_only=True),
    "quick": FastFlowConfig(
        backbone=RESNET18, size=128, epochs=8, train_batch=8, steps=4, hidden_ratio=0.25, shortened=True
    ),
})
class FastFlow(Trained):
    """FastFlow: 2D normalising flows over three stages of a frozen backbone"""

    Config = FastFlowConfig
    config: FastFlowConfig

    def __init__(self, config: FastFlowConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.image.fastflow.torch_model import create_fast_flow_block

        if config.size % 16:
            raise ModelError(f"fastflow: size={config.size} must be a multiple of 16, the third stage's stride")
        self.net = backbone(config.backbone, STAGES, context.weights, context.device)
        norms, flows = nn.ModuleList(), nn.ModuleList()
        before = np.random.get_state()  # noqa: NPY002 - FrEIA draws its permutations from NumPy's global state
        np.random.seed(context.seed % 2**32)  # noqa: NPY002
        for k, channels in enumerate(self.net.channels.values()):
            shape = [channels, config.size // 2 ** (k + 2), config.size // 2 ** (k + 2)]
            norms.append(nn.LayerNorm(shape))
            flows.append(create_fast_flow_block(shape, config.conv3x3_only, config.hidden_ratio, config.steps))
        np.random.set_state(before)  # noqa: NPY002
        self._trained(norms=norms, flows=flows)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        features = FrozenFeatures(self.net, self.preprocess, train, self.context.device, self.context.features)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            return likelihood_loss(*self._latent(features(indices)))

        return self._train(step, [Adam(self._parameters(), self.config.lr, weight_decay=1e-5)], len(train), progress)

    def _latent(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Latent variables [B, C, h, w] and log-determinants [B] of each stage."""
        stages = zip(self.trained["norms"], self.trained["flows"], features, strict=True)
        latent, jacobians = zip(*(flow(norm(feature)) for norm, flow, feature in stages), strict=True)
        return list(latent), list(jacobians)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        latent, _ = self._latent(list(self.net(self.preprocess(batch, self.context.device)).values()))
        return Prediction(likelihood_map(latent, self.preprocess.output), None)


def likelihood_loss(latent: list[Tensor], jacobians: list[Tensor]) -> Tensor:
    """Sum over stages of |z|^2 / 2 - log|det J|, mean over pictures: the negative log-likelihood but for a constant."""
    stages = zip(latent, jacobians, strict=True)
    return torch.stack([(0.5 * z.square().flatten(1).sum(1) - jacobian).mean() for z, jacobian in stages]).sum()


def likelihood_map(latent: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Minus the mean over stages of exp(-mean over channels of z^2 / 2), upsampled to `size`: [B, H, W]."""
    stages = [-torch.exp(-0.5 * z.square().mean(1, keepdim=True)) for z in latent]
    full = [F.interpolate(stage, size, mode="bilinear", align_corners=False) for stage in stages]
    return torch.stack(full).mean(0)[:, 0]
