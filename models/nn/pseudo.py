"""Artificial anomalies made from normal pictures, for choosing weights and fitting combiners without test labels.

Structural: a natural texture pasted through a Perlin mask, as in DRAEM (section 3.3). Logical: a patch of the picture
erased (filled from its border) or duplicated elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator

from models.base import Images
from models.nn.perlin import artificial_defects
from models.nn.textures import Textures

KINDS = ("structural", "erased", "duplicated")
SIDES = (0.1, 0.3)  # of a patch, as a share of the picture's sides
TRIES = 12  # places tried for a patch; the one that changes the picture most is taken


@dataclass(frozen=True)
class PseudoAnomaly:
    """picture: uint8 [H, W, 3]; mask: bool [H, W] of what changed; kind: one of KINDS; source: the picture's index."""

    picture: np.ndarray
    mask: np.ndarray
    kind: str
    source: int


def pseudo_anomalies(images: Images, textures: Textures, generator: Generator) -> Iterator[PseudoAnomaly]:
    """Two anomalies per picture: a structural one and, in turns, an erased or a duplicated patch."""
    for index in range(len(images)):
        picture = images[index]
        yield _structural(picture, textures, generator, index)
        yield (_erased if index % 2 == 0 else _duplicated)(picture, generator, index)


def _structural(picture: np.ndarray, textures: Textures, generator: Generator, index: int) -> PseudoAnomaly:
    size = picture.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
    texture = textures.draw(1, generator)
    if texture.shape[-2:] != size:
        texture = F.interpolate(texture, size, mode="bilinear", align_corners=False)
    changed, mask = artificial_defects(x, texture, generator, beta=(0.0, 0.8))
    array = changed[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
    return PseudoAnomaly(array, mask[0, 0].numpy() > 0.5, "structural", index)


def _erased(picture: np.ndarray, generator: Generator, index: int) -> PseudoAnomaly:
    """A patch filled by blending between its left and right, and its upper and lower borders."""
    height, width = picture.shape[:2]
    best: tuple[float, np.ndarray, tuple[slice, slice]] | None = None
    for _ in range(TRIES):
        h, w = _sides(height, width, generator)
        top, left = _between(1, height - h - 1, generator), _between(1, width - w - 1, generator)
        box = (slice(top, top + h), slice(left, left + w))
        across = np.linspace(0, 1, w)[None, :, None]
        down = np.linspace(0, 1, h)[:, None, None]
        around = picture[top - 1 : top + h + 1, left - 1 : left + w + 1].astype(np.float64)
        rows = around[1:-1, :1] * (1 - across) + around[1:-1, -1:] * across
        columns = around[:1, 1:-1] * (1 - down) + around[-1:, 1:-1] * down
        fill = (rows + columns) / 2
        best = _stronger(best, picture, fill, box)
    return _patched(picture, best, "erased", index)


def _duplicated(picture: np.ndarray, generator: Generator, index: int) -> PseudoAnomaly:
    """A patch of the picture copied to another place in it."""
    height, width = picture.shape[:2]
    best: tuple[float, np.ndarray, tuple[slice, slice]] | None = None
    for _ in range(TRIES):
        h, w = _sides(height, width, generator)
        top, left, source_top, source_left = (_between(0, limit, generator) for limit in (height - h, width - w) * 2)
        box = (slice(top, top + h), slice(left, left + w))
        best = _stronger(best, picture, picture[source_top : source_top + h, source_left : source_left + w], box)
    return _patched(picture, best, "duplicated", index)


def _stronger(best: tuple | None, picture: np.ndarray, fill: np.ndarray, box: tuple[slice, slice]) -> tuple:
    """`best` or this patch, whichever changes its pixels more on average."""
    change = float(np.abs(picture[box].astype(np.float64) - fill).mean())
    return (change, fill, box) if best is None or change > best[0] else best


def _patched(picture: np.ndarray, best: tuple, kind: str, index: int) -> PseudoAnomaly:
    _, fill, box = best
    changed, mask = picture.copy(), np.zeros(picture.shape[:2], bool)
    changed[box] = np.round(fill)
    mask[box] = True
    return PseudoAnomaly(changed, mask, kind, index)


def _sides(height: int, width: int, generator: Generator) -> tuple[int, int]:
    low, high = SIDES
    shares = low + (high - low) * torch.rand(2, generator=generator)
    return max(1, round(height * float(shares[0]))), max(1, round(width * float(shares[1])))


def _between(low: int, high: int, generator: Generator) -> int:
    """A random whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))
