"""Superpixel random filling (SURF), the artificial defects of TSDN (section 2.2).

SLIC depends on the clean picture only, so labels are computed once per training picture; what is redrawn at every
step - which superpixels, which colours - is a few gathers on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor


def superpixels(picture: Tensor, segments: int = 400, compactness: float = 10.0, sigma: float = 0.0) -> Tensor:
    """SLIC labels int16 [H, W], 0 to n - 1 without gaps and n near `segments`, of a float32 [3, H, W] in [0, 1].

    A uniform picture gives a plain raster; a tiny one may give fewer than asked.
    """
    from skimage.segmentation import slic

    array = picture.detach().cpu().numpy().transpose(1, 2, 0).astype(np.float64)
    labels = slic(array, n_segments=segments, compactness=compactness, sigma=sigma, start_label=0, channel_axis=-1)
    present, compact = np.unique(labels, return_inverse=True)
    if len(present) > np.iinfo(np.int16).max:
        raise ValueError(f"{len(present)} superpixels; at most {np.iinfo(np.int16).max} fit")
    return torch.from_numpy(compact.reshape(labels.shape).astype(np.int16))


def label_all(
    pictures: Iterable[Tensor], segments: int = 400, compactness: float = 10.0, sigma: float = 0.0,
    done: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Labels int16 [N, H, W] of many pictures of one size, on all cores; `done` hears how many are ready."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        labels = []
        for result in pool.map(lambda picture: superpixels(picture, segments, compactness, sigma), pictures):
            labels.append(result)
            done(len(labels))
    return torch.stack(labels)


def fill(
    pictures: Tensor,
    labels: Tensor,
    generator: Generator,
    *,
    filled: int = 50,
    segments: int = 400,
    probability: float = 1.0,
    random_count: bool = False,
    colour: Literal["per_superpixel", "one"] = "per_superpixel",
) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] and labels int [B, H, W] -> (pictures with some superpixels filled, mask [B, 1, H, W]).

    filled: how many superpixels of a picture are filled; a picture with fewer than `segments` / 2 of them has the same
    share filled instead (at least one), so that normal surface remains. random_count: uniform from 1 to that number.
    probability: share of pictures that are filled at all. Colours are uniform in [0, 1]^3. All random numbers come from
    a CPU generator, so they do not depend on the device.
    """
    batch = len(pictures)
    present = labels.flatten(1).amax(1).cpu().long() + 1
    most = int(present.max())
    order = torch.rand(batch, most, generator=generator)
    order[torch.arange(most) >= present[:, None]] = 2.0  # labels that a picture lacks come last
    share = (present * filled / segments).round().long().clamp_min(1)
    count = torch.where(present * 2 < segments, share, torch.full_like(present, filled)).minimum(present)
    if random_count:
        count = 1 + (torch.rand(batch, generator=generator) * count).long().clamp_max(count - 1)
    hit = torch.rand(batch, generator=generator) < probability
    rank = order.argsort(1).argsort(1)
    chosen = (rank < count[:, None]) & hit[:, None]  # [B, most]
    colours = torch.rand(batch, most if colour == "per_superpixel" else 1, 3, generator=generator)
    colours = colours.expand(-1, most, -1)
    table = torch.cat([chosen.float()[..., None], colours], -1).to(pictures.device)  # [B, most, 4]
    index = labels.to(pictures.device).long().flatten(1)
    values = torch.stack([picture[places] for picture, places in zip(table, index, strict=True)])
    values = values.mT.view(batch, 4, *pictures.shape[-2:])
    mask = values[:, :1]
    return torch.where(mask > 0, values[:, 1:], pictures), mask.contiguous()
