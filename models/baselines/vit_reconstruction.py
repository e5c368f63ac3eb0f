"""What Dinomaly and INP-Former share: a decoder rebuilds the tokens of a frozen DINOv2, in two groups of its blocks.

Both authors' code is the same here (guojiajeremy/Dinomaly, luow23/INP-Former): blocks 2 to 9 of ViT-B/14 with
registers, averaged in two groups of four; StableAdamW with amsgrad, a warm-up of 100 steps from a learning rate of 0
and a cosine over all steps, gradients clipped at 0.1; batches of 16, an incomplete last one dropped; initial weights
from a normal of 0.01; the map on the tokens' grid brought to the crop's size (corners aligned), to 256 and through a
5 x 5 Gaussian of sigma 4 with zeros around; the image score is the mean of its highest 1 %.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Config, Context, Images, ModelError, Prediction, Progress, no_progress
from models.features import room
from models.nn.preprocess import Preprocess
from models.nn.trained import Trained
from models.nn.training import generator
from models.nn.transfer import together
from models.vit import VitTokens

MAP = 256  # side of the map that is smoothed and scored


@dataclass(frozen=True, kw_only=True)
class TokenConfig(Config):
    """The authors' values for one model per class on MVTec AD."""

    encoder: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    blocks: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9)  # the authors take every second from 4 on with ViT-L
    size: int = 448
    crop: int = 392
    train_batch: int = 16
    lr: float = 2e-3
    final_lr: float = 2e-4
    warmup: int = 100  # steps
    epsilon: float = 1e-8  # of the optimizer


class TokenReconstruction(Trained):
    """Base class; a subclass gives the decoder, the weights of its gradients, and the number of steps."""

    config: TokenConfig  # type: ignore[assignment]
    keep_prefix: ClassVar[bool]  # whether class and register tokens go through the decoder

    def __init__(self, config: TokenConfig, context: Context) -> None:
        super().__init__(config, context)  # type: ignore[arg-type]
        self.encoder = VitTokens(config.encoder, config.blocks, context.weights).to(context.device)
        if config.crop % self.encoder.patch or not 0 < config.crop <= config.size or len(config.blocks) % 2:
            raise ModelError(
                f"{self.name}: crop={config.crop}, size={config.size}, {len(config.blocks)} blocks; give a crop of "
                f"whole patches ({self.encoder.patch} pixels) that is no larger than size, and an even number of blocks"
            )
        self.preprocess = Preprocess((config.size, config.size), (config.crop, config.crop))
        decoder = self._decoder(self.encoder.channels, self.encoder.channels // 64)
        for module in decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
                nn.init.zeros_(module.bias)
        self._trained(decoder=decoder)

    @abstractmethod
    def _decoder(self, channels: int, heads: int) -> nn.Module:
        """Tokens [B, T, C] -> as many outputs [B, T, C] as there are blocks, first to last, and a further loss."""

    @abstractmethod
    def _weights(self, distance: Tensor, step: int) -> Tensor:
        """Factor of each point's gradient, from its distance [B, N]."""

    @abstractmethod
    def _steps(self, per_epoch: int) -> int:
        """How many steps the training has."""

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from models.nn.stable_adamw import StableAdamW  # as in the authors' code

        config, decoder = self.config, self.trained["decoder"]
        pictures = self._pictures(train)
        kept = self._kept_groups(pictures)
        per_epoch = max(1, len(pictures) // config.train_batch)
        count, total = min(len(pictures), per_epoch * config.train_batch), self._steps(per_epoch)
        parameters = list(decoder.parameters())
        optimizer = StableAdamW(parameters, lr=config.lr, weight_decay=1e-4, amsgrad=True, eps=config.epsilon)

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(parameters, 0.1)

        optimizer.register_step_pre_hook(clip)

        def step(places: Tensor, noise: torch.Generator) -> Tensor:
            done = optimizer.state[parameters[0]].get("step", 0)
            for group in optimizer.param_groups:
                group["lr"] = rate(done, total, config.warmup, config.lr, config.final_lr)
            order = torch.randperm(len(pictures), generator=generator(self.context, f"order {done // per_epoch}"))
            chosen = together(places.device, order)[0][places]
            groups = kept[:, chosen] if kept is not None else self._groups(pictures[chosen])
            rebuilt, further = self._rebuilt(groups)
            return cosine_loss(self._patches(groups), rebuilt, lambda d: self._weights(d, done)) + further

        return self._train(step, [optimizer], count, progress, epochs=math.ceil(total / per_epoch))

    def _groups(self, x: Tensor) -> Tensor:
        """Tokens of each group of blocks, averaged: [2, B, T, C]."""
        tokens = [t if self.keep_prefix else t[:, self.encoder.prefix :] for t in self.encoder(x)]
        half = len(tokens) // 2
        return torch.stack([torch.stack(part).mean(0) for part in (tokens[:half], tokens[half:])])

    def _kept_groups(self, pictures: Tensor) -> Tensor | None:
        """The groups of all pictures, so that the encoder runs once, where memory suffices; nothing changes by it."""
        one = self._groups(pictures[:1])
        if one.nbytes * len(pictures) > room(pictures.device):
            return None
        return torch.cat([self._groups(part) for part in pictures.split(8)], 1)

    def _rebuilt(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder makes of the average of all blocks, in groups, the last outputs against the first blocks."""
        outputs, further = self.trained["decoder"](groups.mean(0))
        outputs = outputs[::-1]
        half = len(outputs) // 2
        rebuilt = torch.stack([torch.stack(part).mean(0) for part in (outputs[:half], outputs[half:])])
        return self._patches(rebuilt), further

    def _patches(self, groups: Tensor) -> Tensor:
        return groups[:, :, self.encoder.prefix :] if self.keep_prefix else groups

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """What the decoder makes of a picture's tokens, a map [B, C, h, w] for each group of blocks."""
        rebuilt, _ = self._rebuilt(self._groups(self._seen(batch)))
        side = math.isqrt(rebuilt.shape[2])
        return [group.transpose(1, 2).unflatten(-1, (side, side)) for group in rebuilt]

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        groups = self._groups(self._seen(batch))
        rebuilt, _ = self._rebuilt(groups)
        distance = 1 - F.cosine_similarity(self._patches(groups), rebuilt, dim=-1)  # [2, B, N]
        side = math.isqrt(distance.shape[-1])
        grids = distance.view(2, len(batch), side, side).transpose(0, 1)
        maps = F.interpolate(grids, self.preprocess.output, mode="bilinear", align_corners=True).mean(1, keepdim=True)
        maps = smoothed(F.interpolate(maps, (MAP, MAP), mode="bilinear", align_corners=False))[:, 0]
        score = maps.flatten(1).topk(int(MAP * MAP * 0.01), dim=1)[0].mean(1)
        return Prediction(maps.float(), score.float())


def rate(step: int, total: int, warmup: int, start: float, end: float) -> float:
    """Learning rate of a step, from 0: up from 0 over `warmup` steps, a cosine down to `end`; 0 after the last."""
    if step >= total:
        return 0.0  # the rest of a last epoch that is longer than needed changes nothing
    if step < warmup:
        return float(np.linspace(0, start, warmup)[step])
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def cosine_loss(target: Tensor, made: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over groups of 1 - cosine of whole pictures, [G, B, N, C] each; gradients of points times their weights.

    weights: from each point's own distance [B, N] to the factor of its gradient.
    """
    losses = []
    for a, b in zip(target.detach(), made.unbind(0), strict=True):
        b = b.clone()  # of its own, so that the hook sees this group's gradient
        with torch.no_grad():
            factor = weights(1 - F.cosine_similarity(a, b, dim=-1)).unsqueeze(-1)
        if b.requires_grad:
            b.register_hook(lambda gradient, factor=factor: gradient * factor)
        losses.append((1 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)).mean())
    return torch.stack(losses).mean()


def smoothed(maps: Tensor) -> Tensor:
    """[B, 1, h, w] through a 5 x 5 Gaussian of sigma 4, zeros around."""
    line = torch.exp(-torch.arange(-2.0, 3.0, device=maps.device).square() / 32)
    kernel = line[:, None] * line
    return F.conv2d(maps, (kernel / kernel.sum())[None, None], padding=2)


class Mlp(nn.Sequential):
    """Linear, GELU, linear, with dropout between and after, and before where `first` says so."""

    def __init__(self, channels: int, drop: float = 0.0, first: bool = False) -> None:
        start = [nn.Dropout(drop)] if first else []
        super().__init__(*start, nn.Linear(channels, 4 * channels), nn.GELU(), nn.Dropout(drop),
                         nn.Linear(4 * channels, channels), nn.Dropout(drop))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, heads, T, C / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """[B, heads, T, d] -> [B, T, heads * d]."""
    return x.transpose(1, 2).flatten(2)


