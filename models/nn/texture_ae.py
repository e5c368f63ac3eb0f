"""The network of RB-AE: encoder of five layers, repair by the reference, decoder, discriminators of defects (III)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ModelError
from models.nn.attention import ReferenceAttention, Similarity
from models.nn.upconv import UpConv

REPAIRED = (2, 3, 4)  # indices of layers 3 to 5, which hold an RBAM (III-C4)


def double_conv(width_in: int, width_out: int, *, up: bool = False) -> nn.Sequential:
    """Twice: 3x3 convolution, batch norm, ReLU. up: after nearest upsampling by 2."""
    first = UpConv(width_in, width_out, bias=False) if up else nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
    second = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(width_out), nn.ReLU(), second, nn.BatchNorm2d(width_out), nn.ReLU())


class Encoder(nn.Module):
    """Five layers; the first works at full size, every further one after a 2x2 max pool."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            double_conv(before, after) for before, after in zip((3, *widths[:-1]), widths, strict=True)
        )

    def forward(self, x: Tensor, depth: int = 5) -> list[Tensor]:
        """[B, 3, H, W] -> the first `depth` maps, layer l of size H / 2^(l-1)."""
        maps = []
        for index, layer in enumerate(self.layers[:depth]):
            x = layer(F.max_pool2d(x, 2) if index else x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Layer 5 is decoded, layers 4 and 3 join on the way; none from layers 1 and 2, which hold no repair."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths
        self.up5 = UpConv(w5, w4)
        self.merge4 = double_conv(2 * w4, w4)
        self.up4 = UpConv(w4, w3)
        self.merge3 = double_conv(2 * w3, w3)
        self.layer2 = double_conv(w3, w2, up=True)
        self.layer1 = double_conv(w2, w1, up=True)
        self.out = nn.Conv2d(w1, 3, 3, padding=1)

    def forward(self, f3: Tensor, f4: Tensor, f5: Tensor) -> Tensor:
        """Maps of layers 3, 4, 5 -> picture [B, 3, H, W] in (0, 1)."""
        x = self.merge4(torch.cat([self.up5(f5), f4], 1))
        x = self.merge3(torch.cat([self.up4(x), f3], 1))
        return self.out(self.layer1(self.layer2(x))).sigmoid()


def discriminator(width: int) -> nn.Sequential:
    """FDM of one layer: features of picture and reconstruction [B, 2C, h, w] -> defect probability [B, 1, h, w]."""
    return nn.Sequential(
        nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU(),
        nn.Conv2d(width // 2, 1, 1), nn.Sigmoid(),
    )


@dataclass
class Output:
    """features: of the input; repaired: layers 3 to 5; maps: AM_1 to AM_3; features_rec: of the reconstruction."""

    features: list[Tensor]
    repaired: list[Tensor]
    reconstruction: Tensor
    features_rec: list[Tensor]
    maps: list[Tensor]


class Network(nn.Module):
    """Encoder, decoder, one RBAM per layer 3 to 5 (or none), one FDM per layer 1 to 3, the reference's maps 3 to 5.

    size: side of the pictures; rbam: patch sizes, similarity, its scale. Raises ModelError for sizes that do not fit.
    """

    def __init__(
        self, size: int, widths: tuple[int, ...], rbam: tuple[tuple[int, ...], Similarity, float] | None
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(widths) < 2:
            raise ModelError(f"rb_ae: widths={widths}; five numbers of channels from 2 on are needed")
        if size < 32 or size % 16:
            raise ModelError(f"rb_ae: size={size} must be a multiple of 16 from 32 on: four pools halve it")
        self.encoder, self.decoder = Encoder(widths), Decoder(widths)
        sides = [(widths[i], size >> i) for i in REPAIRED]
        self.rbam = None if rbam is None else nn.ModuleList(ReferenceAttention(*side, *rbam) for side in sides)
        self.fdm = nn.ModuleList(discriminator(width) for width in widths[:3])
        for layer, (width, side) in enumerate(sides, 3):
            self.register_buffer(f"reference{layer}", torch.zeros(1, width, side, side))

    @property
    def reference(self) -> list[Tensor]:
        return [self.reference3, self.reference4, self.reference5]

    @torch.no_grad()
    def refer(self, picture: Tensor) -> None:
        """Take the maps of a picture [1, 3, H, W] as the reference's, from here on."""
        maps = self.encoder(picture)
        for held, i in zip(self.reference, REPAIRED, strict=True):
            held.copy_(maps[i])

    def forward(self, x: Tensor) -> Output:
        """Pictures [B, 3, H, W] in [0, 1]."""
        features = self.encoder(x)
        deep = [features[i] for i in REPAIRED]
        if self.rbam is not None:
            deep = [module(f, r) for module, f, r in zip(self.rbam, deep, self.reference, strict=True)]
        reconstruction = self.decoder(*deep)
        again = self.encoder(reconstruction, depth=3)
        maps = [fdm(torch.cat(pair, 1)) for fdm, *pair in zip(self.fdm, features[:3], again, strict=True)]
        return Output(features, deep, reconstruction, again, maps)
