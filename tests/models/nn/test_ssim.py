"""SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import structural_similarity

from models.nn.ssim import ssim, ssim_map


def pair(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 pictures [H, W, 3] in [0, 1]."""
    rng = np.random.default_rng(5)
    if kind == "photograph":
        x = data.astronaut()[100:190, 60:131] / 255.0
        return x, (x + rng.normal(0, 0.05, x.shape)).clip(0, 1)
    if kind == "noise":
        return rng.random((40, 33, 3)), rng.random((40, 33, 3))
    x = np.full((48, 48, 3), 0.97)  # bright and flat: the hardest for differences of squares
    x[20:30, 20:30] = 0.02
    return x, (x + rng.normal(0, 0.01, x.shape)).clip(0, 1)


def reference(x: np.ndarray, y: np.ndarray, data_range: float = 1.0) -> np.ndarray:
    """scikit-image's map on the positions where the whole 11 x 11 window lies inside the picture."""
    full = structural_similarity(
        x, y, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=data_range,
        full=True,
    )[1]
    return full[5:-5, 5:-5]


def as_batch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float().permute(2, 0, 1).unsqueeze(0)


@pytest.mark.parametrize("kind", ["photograph", "noise", "bright"])
def test_map_and_mean_equal_scikit_image(kind: str) -> None:
    x, y = pair(kind)
    expected = reference(x, y)
    found = ssim_map(as_batch(x), as_batch(y))[0].permute(1, 2, 0).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(ssim(as_batch(x), as_batch(y))[0]) == pytest.approx(expected.mean(), abs=1e-5)


def test_data_range_scales_the_constants() -> None:
    x, y = pair("photograph")
    expected = reference(x * 255, y * 255, 255)
    found = ssim_map(as_batch(x * 255), as_batch(y * 255), data_range=255)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradient_and_batch() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 14, 15, generator=rng)
    y = (x + 0.1 * torch.rand(x.shape, generator=rng)).requires_grad_()
    both = ssim(x, y)
    both.sum().backward()
    assert both.shape == (2,)
    torch.testing.assert_close(both[1:], ssim(x[1:], y[1:]))
    assert torch.allclose(ssim(x, x), torch.ones(2))
    # the slope along a direction agrees with a finite difference
    direction = torch.rand(x.shape, generator=rng) - 0.5
    with torch.no_grad():
        step = 1e-3
        slope = (ssim(x, y + step * direction) - ssim(x, y - step * direction)).sum() / (2 * step)
    assert float((y.grad * direction).sum()) == pytest.approx(float(slope), rel=2e-2)


@pytest.mark.parametrize("shapes", [((1, 3, 20, 20), (1, 3, 20, 21)), ((1, 3, 10, 20), (1, 3, 10, 20))])
def test_bad_shapes_are_named(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="SSIM needs"):
        ssim_map(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
