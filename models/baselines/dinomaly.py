"""Dinomaly (Guo et al., CVPR 2025; arXiv 2405.14325): a noisy bottleneck and linear attention rebuild DINOv2's tokens.

Compared with the authors' code for one model per class (guojiajeremy/Dinomaly, `dinomaly_mvtec_sep.py`): all is theirs,
from the resize to the score. Left: pictures are resized by torch instead of Pillow; maps come back to the pictures'
size and are compared there, while they compare at 256 pixels inside the crop. The tokens of a frozen encoder on
pictures that never change are kept instead of computed again for 5,000 steps. anomalib's model moves the learning rate
once an epoch, so that 100 epochs are warm-up, gives its map unsmoothed, and has no biases in the bottleneck.
Not here: one model for all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.baselines.vit_reconstruction import Mlp, TokenConfig, TokenReconstruction, joined, split_heads
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class DinomalyConfig(TokenConfig):
    steps: int = 5000
    drop: float = 0.2  # in the bottleneck
    layers: int = 8
    easy: float = 0.9  # share of the points whose gradient is cut, reached after `rise` steps
    rise: int = 1000
    cut: float = 0.1


class LinearAttention(nn.Module):
    """softmax-free attention with ELU + 1 as feature map: [B, T, C] -> [B, T, C], linear in T."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
        summed = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        return self.out(joined(q @ (k.transpose(-2, -1) @ v) / summed))


class Block(nn.Module):
    """A transformer's block around linear attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-8), nn.LayerNorm(channels, eps=1e-8)
        self.attention, self.mlp = LinearAttention(channels, heads), Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """The bottleneck, a perceptron with dropout and no shortcut, and the blocks, whose outputs are all given."""

    def __init__(self, channels: int, heads: int, layers: int, drop: float) -> None:
        super().__init__()
        self.bottleneck = Mlp(channels, drop, first=True)
        self.blocks = nn.ModuleList([Block(channels, heads) for _ in range(layers)])

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x, outputs = self.bottleneck(x), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs, x.new_zeros(())


@register("dinomaly", presets={
    "base": DinomalyConfig(),
    "demo": DinomalyConfig(encoder="vit_small_patch14_reg4_dinov2.lvd142m", size=128, crop=112, steps=10, train_batch=4,
                           shortened=True),
})
class Dinomaly(TokenReconstruction):
    """Dinomaly: a noisy bottleneck and linear attention rebuild the tokens of a frozen DINOv2"""

    Config = DinomalyConfig  # type: ignore[assignment]
    config: DinomalyConfig
    keep_prefix = True

    def _decoder(self, channels: int, heads: int) -> nn.Module:
        return Decoder(channels, heads, self.config.layers, self.config.drop)

    def _steps(self, per_epoch: int) -> int:
        return self.config.steps

    def _weights(self, distance: Tensor, step: int) -> Tensor:
        """The easiest points' gradients are cut: `easy` of them in the end, none at the start."""
        share = min(self.config.easy * step / self.config.rise, self.config.easy)
        hard = max(1, int(distance.numel() * (1 - share)))
        limit = distance.flatten().topk(hard)[0][-1]
        return torch.where(distance < limit, self.config.cut, 1.0)
