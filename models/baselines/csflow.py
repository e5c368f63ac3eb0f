"""CS-Flow (Rudolph et al., WACV 2022): one normalising flow over the features of three image scales.

Compared with the authors' code (marco-rudolph/cs-flow, config.py at 0d8d0ac, train.py at 787f5b1). The same: features
of EfficientNet-B5, 304 channels, at 768, 384 and 192 px (nearest resizes); 4 coupling blocks with 1024 hidden channels,
the last with 5x5 kernels, clamp 3; channel permutations drawn from seeds 0 to 3, another one for each scale (anomalib
repeats one); loss (negative log-likelihood over the number of dimensions), Adam 2e-4 with its default betas, epsilon
1e-4, decay 1e-5, gradient norm at most 1, batch 16, 240 epochs; score = mean of z^2 / 2 over all scales; map = mean of
z^2 at the largest scale. Left: the last epoch is kept (their commits keep the last, or the best on the test set); B5 is
torchvision's, which has the weights of their package but pads evenly where theirs pads as TensorFlow does.
Preset `anomalib`: betas 0.5 and 0.9, and the map as the product of the three scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
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
    betas: tuple[float, ...] = (0.9, 0.999)
    blocks: int = 4
    hidden: int = 1024
    clamp: float = 3.0
    scales: int = 1  # of the map: 1 is the largest scale alone, 3 the product of all (anomalib)
    cut: Literal["latent", "square"] = "latent"  # what `feature_maps` gives to an ensemble; the square for comparison


class ClippedAdam(Adam):
    """Adam on gradients of norm 1 at most."""

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


@register("csflow", presets={
    "paper": CsFlowConfig(),
    "anomalib": CsFlowConfig(betas=(0.5, 0.9), scales=3),
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
        from anomalib.models.image.csflow.torch_model import CrossScaleFlow, ParallelGlowCouplingLayer, ParallelPermute

        self.net = backbone(config.backbone, (self.layer,), context.weights, context.device)
        flow = CrossScaleFlow((3, config.size, config.size), config.blocks, config.clamp, config.hidden)
        permute(flow, context.device)
        kinds = (ParallelPermute, ParallelGlowCouplingLayer)
        flow.forward = partial(through, [m for m in flow.modules() if isinstance(m, kinds)])
        self._trained(flow=flow)

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
        scales, config = self._scales(train), self.config

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            z, jacobian = self.trained["flow"]([scale[indices] for scale in scales])
            return likelihood_loss(z, jacobian)

        optimizer = ClippedAdam(self._parameters(), config.lr, config.betas, eps=1e-4, weight_decay=1e-5)
        return self._train(step, [optimizer], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        z, _ = self.trained["flow"](self._scales(batch))
        maps = likelihood_map(z[: self.config.scales], self.preprocess.output)
        return Prediction(maps, torch.cat([part.flatten(1) for part in z], 1).square().mean(1) / 2)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """By `cut` the latent variables z or z squared, at three scales, [B, 304, h, w] each."""
        latent = self.trained["flow"](self._scales(batch))[0]
        return [z.square() if self.config.cut == "square" else z for z in latent]


def permute(flow: nn.Module, device: torch.device) -> None:
    """Gives each block's permutation of channels the authors' values: NumPy's stream of seed k, scale after scale."""
    from anomalib.models.image.csflow.torch_model import ParallelPermute

    for k, block in enumerate(m for m in flow.modules() if isinstance(m, ParallelPermute)):
        random = np.random.RandomState(k)
        orders = [torch.from_numpy(random.permutation(channels)) for channels in block.in_channels]
        block.perm = [order.to(device) for order in orders]
        block.perm_inv = [order.argsort().to(device) for order in orders]


def through(blocks: Sequence[nn.Module], scales: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """What the flow makes of the scales, and its log-determinants: its blocks one after the other.

    The library's own way through them brings a zero to the device for every block, and waits each time.
    """
    jacobian = scales[0].new_zeros(len(scales[0]))
    for block in blocks:
        scales, change = block(scales)
        jacobian = jacobian + change
    return scales, jacobian


def likelihood_loss(z: list[Tensor], jacobian: Tensor) -> Tensor:
    """Mean over pictures of |z|^2 / 2 - log|det J|, divided by the number of dimensions.

    z: [B, C, h, w] per scale; jacobian: log-determinants summed over the batch, as anomalib's couplings give them (one
    number, or that number B times).
    """
    flat = torch.cat([part.flatten(1) for part in z], 1)
    return (0.5 * flat.square().sum() - jacobian.mean()) / flat.numel()


def likelihood_map(z: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Product over the given scales of the mean over channels of z^2, upsampled to `size`: [B, H, W]."""
    full = [F.interpolate(part.square().mean(1, keepdim=True), size, mode="bilinear", align_corners=False)
            for part in z]
    return torch.stack(full).prod(0)[:, 0]
