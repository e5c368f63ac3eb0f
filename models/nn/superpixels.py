"""Superpixel random filling (SURF), the artificial defects of TSDN (section 2.2).

SLIC depends on the clean picture only, so labels are computed once per training picture; what is redrawn at every
step - which superpixels, which colours - is a few gathers on the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Generator, Tensor

COMPACTNESS = 10.0  # of SLIC, scikit-image's default; the paper names none, and no smoothing before it


def superpixels(picture: Tensor, segments: int = 400) -> Tensor:
    """SLIC labels int16 [H, W], 0 to n - 1 without gaps and n near `segments`, of a float32 [3, H, W] in [0, 1].

    A uniform picture gives a plain raster; a tiny one may give fewer than asked.
    """
    from skimage.segmentation import slic

    array = picture.detach().cpu().numpy().transpose(1, 2, 0).astype(np.float64)
    labels = slic(array, n_segments=segments, compactness=COMPACTNESS, start_label=0, channel_axis=-1)
    present, compact = np.unique(labels, return_inverse=True)
    if len(present) > np.iinfo(np.int16).max:
        raise ValueError(f"{len(present)} superpixels; at most {np.iinfo(np.int16).max} fit")
    return torch.from_numpy(compact.reshape(labels.shape).astype(np.int16))


def label_all(pictures: Iterable[Tensor], segments: int = 400) -> Tensor:
    """Labels int16 [N, H, W] of many pictures of one size, on all cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return torch.stack(list(pool.map(lambda picture: superpixels(picture, segments), pictures)))


def counted(labels: Tensor) -> Tensor:
    """How many superpixels each of [B, H, W] has: int64 [B] on the CPU."""
    return labels.flatten(1).amax(1).cpu().long() + 1


def choose(
    present: Tensor, generator: Generator, *, filled: int = 50, segments: int = 400, probability: float = 1.0
) -> Tensor:
    """For pictures with so many superpixels [B] a table float32 [B, most, 4]: is it filled (0 or 1), and its colour.

    filled: how many superpixels of a picture are filled; a picture with fewer than `segments` / 2 of them has the same
    share filled instead (at least one), so that normal surface remains. probability: share of pictures that are filled
    at all. A superpixel's colour is uniform in [0, 1]^3. All is drawn on the CPU, so it does not depend on the device.
    """
    batch, most = len(present), int(present.max())
    order = torch.rand(batch, most, generator=generator)
    order[torch.arange(most) >= present[:, None]] = 2.0  # labels that a picture lacks come last
    share = (present * filled / segments).round().long().clamp_min(1)
    count = torch.where(present * 2 < segments, share, torch.full_like(present, filled)).minimum(present)
    hit = torch.rand(batch, generator=generator) < probability
    rank = order.argsort(1).argsort(1)
    chosen = (rank < count[:, None]) & hit[:, None]  # [B, most]
    colours = torch.rand(batch, most, 3, generator=generator)
    return torch.cat([chosen.float()[..., None], colours], -1)


def paint(pictures: Tensor, labels: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W], labels int [B, H, W] and a table of `choose`, all on one device -> (pictures with the
    chosen superpixels filled, mask [B, 1, H, W])."""
    index = labels.long().flatten(1)
    values = torch.stack([picture[places] for picture, places in zip(table, index, strict=True)])
    values = values.mT.view(len(pictures), 4, *pictures.shape[-2:])
    mask = values[:, :1]
    return torch.where(mask > 0, values[:, 1:], pictures), mask.contiguous()


def fill(
    pictures: Tensor, labels: Tensor, generator: Generator, *, filled: int = 50, segments: int = 400,
    probability: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`choose` and `paint` in one: (pictures with some superpixels filled, mask [B, 1, H, W])."""
    table = choose(counted(labels), generator, filled=filled, segments=segments, probability=probability)
    return paint(pictures, labels.to(pictures.device), table.to(pictures.device))
