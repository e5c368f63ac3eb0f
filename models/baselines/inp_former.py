"""INP-Former (Luo et al., CVPR 2025; arXiv 2503.02424): tokens rebuilt from normal prototypes of the picture itself.

Compared with the paper's facts, anomalib's code and public copies of the authors' files (of luow23/INP-Former itself
the training and model files could not be read), for one model per class: prototypes are six learnt tokens that
gather from the picture's patches by one block of cross attention; the decoder's queries are the patches, its keys and
values the prototypes, with cosine attention, a learnt scale per head and ReLU, without a shortcut around the attention;
the loss is the cosine with gradients weighted by the third power of a point's distance over the mean one, and 0.2 times
the distance of every patch to its nearest prototype; the last of 200 epochs counts. Left: as in `dinomaly.py`, whose
frame it shares; they compare maps with masks at 256 pixels. anomalib's model moves the learning rate once an epoch and
smooths and scores at 392 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.baselines.vit_reconstruction import Mlp, TokenConfig, TokenReconstruction, joined, split_heads
from models.registry import register


@dataclass(frozen=True, kw_only=True)
class InpFormerConfig(TokenConfig):
    epochs: int = 200
    lr: float = 1e-3
    final_lr: float = 1e-4
    epsilon: float = 1e-10
    prototypes: int = 6
    layers: int = 8
    power: float = 3.0  # of a point's distance over the mean one, as the factor of its gradient
    gather: float = 0.2  # weight of the prototypes' own loss


class CrossAttention(nn.Module):
    """[B, T, C] asks [B, S, C]. cosine: normalised queries and keys, a learnt scale per head, ReLU for softmax."""

    def __init__(self, channels: int, heads: int, cosine: bool) -> None:
        super().__init__()
        self.heads, self.cosine = heads, cosine
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        if cosine:
            self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor, asked: Tensor) -> Tensor:
        q = split_heads(self.q(x), self.heads)
        k, v = (split_heads(part, self.heads) for part in self.kv(asked).chunk(2, -1))
        if self.cosine:
            weight = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale).relu()
        else:
            weight = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.out(joined(weight @ v))


class CrossBlock(nn.Module):
    """A block around cross attention; the decoder's ones have no shortcut around it, so normal is all that passes."""

    def __init__(self, channels: int, heads: int, decoder: bool) -> None:
        super().__init__()
        self.shortcut = not decoder
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-8), nn.LayerNorm(channels, eps=1e-8)
        self.attention, self.mlp = CrossAttention(channels, heads, cosine=decoder), Mlp(channels)

    def forward(self, x: Tensor, asked: Tensor) -> Tensor:
        y = self.attention(self.norm1(x), self.norm1(asked))
        x = x + y if self.shortcut else y
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Prototypes of the picture, the bottleneck, and blocks that rebuild the patches from the prototypes alone."""

    def __init__(self, channels: int, heads: int, config: InpFormerConfig) -> None:
        super().__init__()
        self.weight = config.gather
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, channels))
        self.extractor = CrossBlock(channels, heads, decoder=False)
        self.bottleneck = Mlp(channels)
        self.blocks = nn.ModuleList([CrossBlock(channels, heads, decoder=True) for _ in range(config.layers)])

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        prototypes = self.extractor(self.prototypes.expand(len(x), -1, -1), x)
        gathered = (1 - F.cosine_similarity(x.unsqueeze(2), prototypes.unsqueeze(1), dim=-1)).min(2)[0].mean()
        x, outputs = self.bottleneck(x), []
        for block in self.blocks:
            x = block(x, prototypes)
            outputs.append(x)
        return outputs, self.weight * gathered


@register("inp_former", presets={
    "base": InpFormerConfig(),
    "demo": InpFormerConfig(encoder="vit_small_patch14_reg4_dinov2.lvd142m", size=128, crop=112, epochs=2,
                            train_batch=4, shortened=True),
})
class InpFormer(TokenReconstruction):
    """INP-Former: tokens of a frozen DINOv2 rebuilt from normal prototypes of the picture itself"""

    Config = InpFormerConfig  # type: ignore[assignment]
    config: InpFormerConfig
    keep_prefix = False

    def _decoder(self, channels: int, heads: int) -> nn.Module:
        return Decoder(channels, heads, self.config)

    def _steps(self, per_epoch: int) -> int:
        return self.config.epochs * per_epoch

    def _weights(self, distance: Tensor, step: int) -> Tensor:
        return (distance / distance.mean()) ** self.config.power
