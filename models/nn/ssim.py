"""Structural similarity (Wang et al. 2004) as a map and as a mean, differentiable, on the device of its inputs."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
BLOCK = 64  # results of one matrix product of the blur


def ssim_map(
    x: Tensor, y: Tensor, *, window: int = WINDOW, sigma: float = SIGMA, data_range: float = 1.0,
    k1: float = K1, k2: float = K2, dtype: torch.dtype = torch.float64,
) -> Tensor:
    """SSIM of two batches [B, C, H, W], channel by channel: float32 [B, C, H - window + 1, W - window + 1].

    y may have one channel, to which every channel of x is compared; its mean is then blurred once.
    Gaussian window; variances are those of the window's weights (no n - 1). Border: only positions where the whole
    window lies inside the picture are returned, so the map is window - 1 smaller than its inputs.
    dtype: of the computation. The variances are differences of squares: float32 is off by up to about 5e-5 at single
        positions (not in the mean), float64 agrees with scikit-image to 1e-5 everywhere at about twice the time.
    Raises ValueError when the shapes differ or a side is shorter than the window.
    """
    if x.ndim != 4 or y.shape not in (x.shape, (len(x), 1, *x.shape[2:])):
        raise ValueError(f"SSIM needs two batches [B, C, H, W] of one shape, got {list(x.shape)} and {list(y.shape)}")
    if min(x.shape[-2:]) < window:
        raise ValueError(f"SSIM needs pictures of at least {window} pixels a side, got {list(x.shape[-2:])}")
    with torch.autocast(x.device.type, enabled=False):
        # around zero the squares are small, and so is float32's error in the differences of squares below
        middle = data_range / 2
        a, b = x.to(dtype) - middle, y.to(dtype) - middle
        mean_a, mean_b = _blur(a, window, sigma), _blur(b, window, sigma)
        squares, products = _blur(torch.stack([a * a + b * b, a * b]), window, sigma)
        variance = squares - mean_a**2 - mean_b**2
        covariance = products - mean_a * mean_b
        mean_a, mean_b = mean_a + middle, mean_b + middle
        c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        return (luminance * (2 * covariance + c2) / (variance + c2)).float()


def ssim(
    x: Tensor, y: Tensor, *, window: int = WINDOW, sigma: float = SIGMA, data_range: float = 1.0
) -> Tensor:
    """Mean of `ssim_map` for each picture, computed in float32 (for losses): float32 [B]."""
    values = ssim_map(x, y, window=window, sigma=sigma, data_range=data_range, dtype=torch.float32)
    return values.flatten(1).mean(1)


def _blur(x: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian window over [..., H, W] without padding.

    As matrix products, BLOCK results at a time, since most of a whole band matrix is zero: on a CPU many times faster
    than convolutions of one channel, backward included, and on a GPU full float32, where convolutions round to TF32
    unless told otherwise.
    """
    height, width = (n - window + 1 for n in x.shape[-2:])
    columns = [
        x[..., i : i + n + window - 1] @ _band(n, window, sigma, x.device, x.dtype)
        for i in range(0, width, BLOCK) for n in [min(BLOCK, width - i)]
    ]
    x = torch.cat(columns, -1)
    rows = [
        _band(n, window, sigma, x.device, x.dtype).T @ x[..., i : i + n + window - 1, :]
        for i in range(0, height, BLOCK) for n in [min(BLOCK, height - i)]
    ]
    return torch.cat(rows, -2)


@lru_cache(maxsize=32)
def _band(count: int, window: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[count + window - 1, count]: column i holds the window's weights (sum 1) from row i on; made in float64."""
    offsets = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    band = torch.zeros(count + window - 1, count, dtype=torch.float64)
    for i in range(count):
        band[i : i + window, i] = weights / weights.sum()
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in a later training
        return band.clone().to(device, dtype)
