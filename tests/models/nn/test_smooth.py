"""Gaussian smoothing equals SciPy's."""

from __future__ import annotations

import numpy as np
import torch

from models.nn.smooth import gaussian_smooth


def test_smoothing_equals_scipy():
    from scipy.ndimage import gaussian_filter

    maps = torch.rand(2, 70, 90)
    expected = np.stack([gaussian_filter(m.double().numpy(), 4.0, mode="mirror") for m in maps])
    np.testing.assert_allclose(gaussian_smooth(maps, 4.0).numpy(), expected, atol=1e-5)
    assert gaussian_smooth(torch.rand(1, 6, 9), 4.0).shape == (1, 6, 9)
