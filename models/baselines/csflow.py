"""CS-Flow (Rudolph et al., WACV 2022): one normalising flow over the features of three image scales.

Networks and losses are anomalib's, trained by our own loop and scored from their raw output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from models.base import Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone
from models.nn.trained import Trained, TrainedConfig
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class CsFlowConfig(TrainedConfig):
    """Rudolph et al., WACV 2022, Sec. 4.2 and the authors' code; the last epoch is kept."""

    backbone: str = "efficientnet_b5.tv_in1k"
    size: int = 768
    epochs: int = 240
    train_batch: int = 16
    lr: float = 2e-4
    blocks: int = 4
    hidden: int = 1024
    clamp: float = 3.0


class ClippedAdam(Adam):
    """Adam on gradients of norm 1 at most."""

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


@register("csflow", presets={
    "paper": CsFlowConfig(),
    "quick": CsFlowConfig(size=256, epochs=10, train_batch=8, hidden=32, shortened=True),
})
class CsFlow(Trained):
    """CS-Flow: a normalising flow over features of three image scales at once"""

    Config = CsFlowConfig
    config: CsFlowConfig
    layer: ClassVar[str] = "features.6.8"  # the 304-channel maps of the paper

    def __init__(self, config: CsFlowConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size % 128:
            raise ModelError(f"csflow: size={config.size} must be a multiple of 128, the smallest scale's stride")
        from anomalib.models.image.csflow.torch_model import CrossScaleFlow

        self.net = backbone(config.backbone, (self.layer,), context.weights, context.device)
        dims = (3, config.size, config.size)
        self._trained(flow=CrossScaleFlow(dims, config.blocks, config.clamp, config.hidden))

    @torch.no_grad()
    def _scales(self, images: Images) -> list[Tensor]:
        """[N, 304, h, w] at full, half and quarter size."""
        parts = []
        for start in range(0, len(images), 8):
            x = self.preprocess([images[i] for i in range(start, min(start + 8, len(images)))], self.context.device)
            sizes = [self.config.size // 2**k for k in range(3)]
            resized = [x, *(F.interpolate(x, (s, s)) for s in sizes[1:])]
            parts.append([self.net(y)[self.layer] for y in resized])
        return [torch.cat(scale) for scale in zip(*parts, strict=True)]

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        scales = self._scales(train)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            z, jacobian = self.trained["flow"]([scale[indices] for scale in scales])
            flat = torch.cat([part.flatten(1) for part in z], 1)
            # anomalib's coupling sums log-determinants over the batch; the likelihood needs their mean
            return (0.5 * flat.square().sum(1).mean() - jacobian.mean() / len(indices)) / flat.shape[1]

        optimizer = ClippedAdam(self._parameters(), self.config.lr, (0.5, 0.9), eps=1e-4, weight_decay=1e-5)
        return self._train(step, [optimizer], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        z, _ = self.trained["flow"](self._scales(batch))
        full = [
            F.interpolate(part.square().mean(1, keepdim=True), self.preprocess.output, mode="bilinear",
                          align_corners=False) for part in z
        ]
        score = torch.cat([part.flatten(1) for part in z], 1).square().mean(1) / 2
        return Prediction(torch.stack(full).prod(0)[:, 0], score)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """The latent variables at three scales, [B, 304, h, w] each."""
        return list(self.trained["flow"](self._scales(batch))[0])
