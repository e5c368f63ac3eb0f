"""FastFlow (Yu et al., arXiv 2111.07677, 2021): 2D normalising flows over three stages of a frozen backbone.

Networks and losses are anomalib's, trained by our own loop and scored from their raw output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Context, Images, Prediction, Progress, no_progress
from models.features import RESNET18, STAGES, WIDE50, backbone
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

    def _latent(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad():
            features = self.net(x).values()
        pairs = zip(self.trained["norms"], self.trained["flows"], features, strict=True)
        latent, jacobians = zip(*(flow(norm(feature)) for norm, flow, feature in pairs), strict=True)
        return list(latent), list(jacobians)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.fastflow.loss import FastflowLoss

        pictures, loss = self._pictures(train), FastflowLoss()

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            return loss(*self._latent(pictures[indices]))

        return self._train(step, [Adam(self._parameters(), self.config.lr, weight_decay=1e-5)], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        from anomalib.models.image.fastflow.anomaly_map import AnomalyMapGenerator

        latent, _ = self._latent(self.preprocess(batch, self.context.device))
        return Prediction(AnomalyMapGenerator(self.preprocess.output)(latent)[:, 0], None)
