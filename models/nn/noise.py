"""Corruptions of pictures in [0, 1], drawn on the pictures' device from a given generator."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["gaussian", "salt_pepper", "masking"]
Spread = Literal["uniform", "fixed", "variance"]


def corrupt(x: Tensor, kind: Kind, level: float, generator: torch.Generator) -> Tensor:
    """A noisy copy of [B, C, H, W] in [0, 1], on the generator's device; values stay in [0, 1].

    level: standard deviation for 'gaussian'; share of pixels (all channels together) set to 0 or 1 for 'salt_pepper',
        or to 0 for 'masking'.
    """
    if kind == "gaussian":
        return (x + level * torch.randn(x.shape, generator=generator, device=x.device)).clamp_(0, 1)
    draw = torch.rand(x.shape[0], 1, *x.shape[2:], generator=generator, device=x.device)
    noisy = x.masked_fill(draw < level, 0.0)
    if kind == "salt_pepper":
        noisy = noisy.masked_fill(draw < level / 2, 1.0)
    return noisy


def gaussian(x: Tensor, rate: float, generator: torch.Generator, spread: Spread = "uniform") -> Tensor:
    """x + Gaussian noise for each pixel and channel, not clipped.

    spread: 'uniform' draws each picture's standard deviation from U(0, rate); 'fixed' uses rate; 'variance' its root.
    """
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    if spread == "uniform":
        rate_of = rate * torch.rand(x.shape[0], 1, 1, 1, generator=generator, device=x.device)
        return x + rate_of * noise
    return x + (rate if spread == "fixed" else rate**0.5) * noise


def each_alone(
    x: Tensor, generators: Sequence[torch.Generator], noise: Callable[[Tensor, torch.Generator], Tensor]
) -> Tensor:
    """`noise(picture [1, C, H, W], its generator)` for every picture of x [B, C, H, W], on the CPU; back on x's device.

    With `picture_generators` a second call with the same generators gives the pictures' second draws.
    """
    drawn = [noise(one, generator) for one, generator in zip(x.cpu().split(1), generators, strict=True)]
    return torch.cat(drawn).to(x.device)


def picture_generators(pictures: Sequence[np.ndarray], seed: int) -> list[torch.Generator]:
    """One CPU generator for each picture, seeded by its pixels and `seed`.

    Noise at test is then the same whatever the order, the batch size and the device.
    """
    found = []
    for picture in pictures:
        digest = zlib.crc32(np.ascontiguousarray(picture))
        state = np.random.SeedSequence([seed % 2**32, digest]).generate_state(1)
        found.append(torch.Generator().manual_seed(int(state[0])))
    return found
