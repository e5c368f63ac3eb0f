"""Artificial anomalies made from normal pictures, for choosing weights and fitting combiners without test labels.

Structural: a natural texture, or the picture's own from elsewhere, in the shape of a Perlin mask (after DRAEM, section
3.3, which pastes natural textures only). Logical: a patch of the picture erased (filled from its border) or duplicated
elsewhere. Each comes in grades from faint to plain, so that they tell good detectors from better ones: when all of them
are plain, every detector finds every one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator

from models.base import Images
from models.nn.perlin import augment, perlin_mask
from models.nn.textures import Textures

STRUCTURAL = ("foreign", "own")
LOGICAL = ("erased", "duplicated")
KINDS = (*STRUCTURAL, *LOGICAL)
TRIES = 12  # places tried for a patch; the one that changes the picture most is taken
LEAST = 4  # px, shortest side of a patch
THRESHOLD = 0.2  # of the Perlin noise within a patch: about a third of it is anomalous
OCTAVE = 2  # at most four cells of Perlin noise across a patch


@dataclass(frozen=True)
class Grade:
    """opacity: share of the anomaly in the blend with the picture. sides: of the patch, as shares of the picture's."""

    name: str
    opacity: float
    sides: tuple[float, float]


GRADES = (
    Grade("faint", 0.15, (0.05, 0.1)),
    Grade("weak", 0.3, (0.05, 0.15)),
    Grade("clear", 0.6, (0.1, 0.2)),
    Grade("plain", 1.0, (0.1, 0.3)),
)


@dataclass(frozen=True)
class PseudoAnomaly:
    """picture: uint8 [H, W, 3]; mask: bool [H, W], the pixels that changed; kind: one of KINDS; grade: the name of one
    of GRADES; source: the normal picture's index."""

    picture: np.ndarray
    mask: np.ndarray
    kind: str
    grade: str
    source: int


def pseudo_anomalies(images: Images, textures: Textures, generator: Generator) -> Iterator[PseudoAnomaly]:
    """A structural and a logical anomaly per picture, their kinds and grades in turns."""
    for index in range(len(images)):
        picture, turn = images[index], index // 2
        for kinds, shift in ((STRUCTURAL, 0), (LOGICAL, len(GRADES) // 2)):
            grade = GRADES[(turn + shift) % len(GRADES)]
            yield _anomaly(picture, kinds[index % 2], grade, textures, generator, index)


def _anomaly(
    picture: np.ndarray, kind: str, grade: Grade, textures: Textures, generator: Generator, index: int
) -> PseudoAnomaly:
    height, width = picture.shape[:2]
    natural = _natural(textures, (height, width), generator) if kind == "foreign" else picture
    strongest = -1.0
    for _ in range(TRIES):
        h, w = (_side(length, grade.sides, generator) for length in (height, width))
        top, left = _between(1, height - h - 1, generator), _between(1, width - w - 1, generator)
        place = (slice(top, top + h), slice(left, left + w))
        if kind == "foreign":
            fill = natural[place]
        elif kind == "erased":
            fill = _from_border(picture[top - 1 : top + h + 1, left - 1 : left + w + 1].astype(np.float64))
        else:
            y, x = _between(0, height - h, generator), _between(0, width - w, generator)
            fill = picture[y : y + h, x : x + w]
            if kind == "own":  # turned half round: not a plain copy
                fill = fill[::-1, ::-1]
        change = float(np.abs(picture[place].astype(np.float64) - fill).mean())
        if change > strongest:
            strongest, chosen, box = change, np.asarray(fill, np.float64), place
    if kind in STRUCTURAL:
        shape = perlin_mask((1, *chosen.shape[:2]), generator, threshold=THRESHOLD, max_octave=OCTAVE)[0, 0].numpy()
    else:
        shape = np.ones(chosen.shape[:2])
    changed, before = picture.copy(), picture[box].astype(np.float64)
    changed[box] = np.round(before + grade.opacity * shape[..., None] * (chosen - before))
    return PseudoAnomaly(changed, (changed != picture).any(2), kind, grade.name, index)


def _natural(textures: Textures, size: tuple[int, int], generator: Generator) -> np.ndarray:
    """A natural texture after DRAEM's random operations, in [0, 255], [H, W, 3]."""
    texture = augment(textures.draw(1, generator), generator)
    if texture.shape[-2:] != size:
        texture = F.interpolate(texture, size, mode="bilinear", align_corners=False)
    return texture[0].permute(1, 2, 0).mul(255).clamp(0, 255).numpy()


def _from_border(around: np.ndarray) -> np.ndarray:
    """A patch with its border, [h + 2, w + 2, 3] -> [h, w, 3] blended from left and right, upper and lower border."""
    h, w = around.shape[0] - 2, around.shape[1] - 2
    across, down = np.linspace(0, 1, w)[None, :, None], np.linspace(0, 1, h)[:, None, None]
    rows = around[1:-1, :1] * (1 - across) + around[1:-1, -1:] * across
    columns = around[:1, 1:-1] * (1 - down) + around[-1:, 1:-1] * down
    return (rows + columns) / 2


def _side(length: int, shares: tuple[float, float], generator: Generator) -> int:
    share = shares[0] + (shares[1] - shares[0]) * float(torch.rand(1, generator=generator))
    return min(max(LEAST, round(length * share)), length - 2)


def _between(low: int, high: int, generator: Generator) -> int:
    """A random whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))
