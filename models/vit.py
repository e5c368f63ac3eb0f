"""Frozen DINOv2 transformers as tokens of their blocks, at any grid, with the position embeddings of the authors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import ModelError
from models.features import current_precision
from models.nn.memory import note
from models.weights import WeightStore, load_into


class VitTokens(nn.Module):
    """float32 [B, 3, h, w], normalised -> the tokens after each of `blocks`: [B, prefix + h/p * w/p, C] float32.

    The prefix is the class token, then the registers. Position embeddings are resized as in facebookresearch/dinov2:
    bicubic by a factor with an offset of 0.1, not antialiased; timm antialiases them instead, which changes features
    at every size but the 518 pixels of training. The modules and the weights' names are timm's.

    In bf16 (`features.precision`) the network computes in it, and its tokens are brought back to float32.

    tag: `vit_small_patch14_dinov2.lvd142m` and the like. blocks: from 0, or from -1 back.
    norm: give the last norm of the network to what is returned.
    Raises ModelError for a tag that is no such network, WeightsError when weights are missing or do not fit.
    """

    def __init__(self, tag: str, blocks: Sequence[int], store: WeightStore, *, norm: bool = False) -> None:
        super().__init__()
        import timm

        name = tag.partition(".")[0]
        if "dinov2" not in name or not timm.is_model(name):
            known = ", ".join(timm.list_models("vit_*dinov2"))
            raise ModelError(f"{tag!r} is no DINOv2 transformer that timm knows; it knows {known}")
        with torch.random.fork_rng(devices=[]):  # in the store's mode 'none': random, but the same in every run
            torch.manual_seed(0)
            net = timm.create_model(name, pretrained=False, num_classes=0)
        state = store.load(tag, net.state_dict())
        if state is not None:
            load_into(net, state, tag)
        depth = len(net.blocks)
        if not all(-depth <= block < depth for block in blocks):
            raise ModelError(f"{tag} has blocks 0 to {depth - 1}, not {', '.join(map(str, blocks))}")
        self.tag, self.wanted = tag, tuple(block % depth for block in blocks)
        net.blocks = net.blocks[: max(self.wanted) + 1]
        self.net = net.eval().requires_grad_(False)
        self.norm = net.norm if norm else nn.Identity()
        self.patch = int(net.patch_embed.patch_size[0])
        self.prefix, self.channels = int(net.num_prefix_tokens), int(net.embed_dim)

    def train(self, mode: bool = True) -> VitTokens:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        low = current_precision() == "bf16"
        if low:
            note("frozen backbone computed in bf16")
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            return [tokens.float() for tokens in self._tokens(x)]

    def _tokens(self, x: Tensor) -> list[Tensor]:
        net, grid = self.net, (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        patches = net.patch_embed.proj(x).flatten(2).transpose(1, 2)
        place = net.pos_embed
        if not net.no_embed_class:
            first, place = place[:, :1], place[:, 1:]
        patches = patches + resized_positions(place, grid)
        start = net.cls_token if net.no_embed_class else net.cls_token + first
        tokens = [start] if net.reg_token is None else [start, net.reg_token]
        x = torch.cat([*(t.expand(len(patches), -1, -1) for t in tokens), patches], 1)
        found = {}
        for i, block in enumerate(net.blocks):
            x = block(x)
            found[i] = x
        return [self.norm(found[i]) for i in self.wanted]


def resized_positions(place: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings [1, n * n, C] at another grid: [1, h * w, C], as in the code of DINOv2."""
    side = round(place.shape[1] ** 0.5)
    if grid == (side, side):
        return place
    maps = place.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = [(cells + 0.1) / side for cells in grid]
    maps = F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).flatten(1, 2)
