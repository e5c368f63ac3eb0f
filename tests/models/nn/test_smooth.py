"""Gaussian smoothing: SciPy's values with both borders, and its reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from models.nn.smooth import gaussian_smooth


@pytest.mark.parametrize("border", ["mirror", "reflect"])
@pytest.mark.parametrize("size", [(70, 90), (20, 33)])  # larger and smaller than the kernel's 33 pixels
def test_equals_scipy(border: str, size: tuple[int, int]) -> None:
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    expected = np.stack([gaussian_filter(m.double().numpy(), 4.0, mode=border) for m in maps])
    np.testing.assert_allclose(gaussian_smooth(maps, 4.0, border).numpy(), expected, atol=1e-5)


def test_borders_differ_where_the_kernel_reaches_over_the_edge() -> None:
    maps = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    away = (gaussian_smooth(maps, 4.0, "mirror") - gaussian_smooth(maps, 4.0, "reflect"))[0].abs()
    assert away[17:-17, 17:-17].max() < 1e-6 and 0.02 < away.max() < 0.2


def test_smaller_maps_and_a_shorter_kernel() -> None:
    for border in ("mirror", "reflect"):
        assert gaussian_smooth(torch.ones(1, 6, 9), 4.0, border).allclose(torch.ones(1, 6, 9))
    assert gaussian_smooth(torch.ones(1, 1, 1), 4.0).shape == (1, 1, 1)
    spot = torch.zeros(1, 41, 41)
    spot[0, 20, 20] = 1
    assert int((gaussian_smooth(spot, 4.0, cut=3.0)[0, 20] > 0).sum()) == 25  # kernel of torchvision at 3 sigma
    assert torch.equal(gaussian_smooth(spot, 0.0), spot)
