"""Both halves of a U-shaped network: timm's networks as encoders to be trained further, and a decoder with skips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import ModelError
from models.weights import WeightStore, load_into

SCALES = [2, 4, 8, 16, 32]


def pyramid(tag: str, store: WeightStore) -> tuple[nn.Module, list[int]]:
    """The network of `tag` (`tf_efficientnet_b5.aa_in1k`) without its head, and the channels of its five maps.

    The network gives a list of maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input. In the store's mode 'none' it starts
    at random. Raises ModelError for a network that timm does not know or that has other scales, WeightsError when the
    weights are missing or do not fit.
    """
    import timm

    try:
        net = timm.create_model(tag.partition(".")[0], pretrained=False, features_only=True)
    except RuntimeError as error:
        raise ModelError(f"timm has no network of features for encoder={tag!r}: {error}") from error
    if net.feature_info.reduction() != SCALES:
        raise ModelError(f"encoder={tag!r} has scales {net.feature_info.reduction()}; {SCALES} are needed")
    state = store.load(tag, net.state_dict())
    if state is not None:
        load_into(net, state, tag)
    return net, net.feature_info.channels()


def activated(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


class Decoder(nn.Module):
    """One block per entry of `widths`: transposed convolution to twice the size, the skip beside it, 3x3 convolution.

    skips: widths of the encoder's maps that join the first blocks, deepest first; () for none.
    """

    def __init__(self, width: int, skips: tuple[int, ...], widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.skips = len(skips)
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        beside = (*skips, *[0] * (len(widths) - len(skips)))
        for before, skip, after in zip((width, *widths[:-1]), beside, widths, strict=True):
            self.up.append(activated(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)))
            self.merge.append(activated(nn.Conv2d(after + skip, after, 3, padding=1, bias=False)))
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """[B, width, h, w] and the skips, deepest first -> [B, channels, h * 2^blocks, w * 2^blocks] in (0, 1)."""
        for i, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            x = merge(torch.cat([up(x), skips[i]], 1) if i < self.skips else up(x))
        return self.out(x).sigmoid()
