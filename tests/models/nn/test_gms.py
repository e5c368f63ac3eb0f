"""GMS and MSGMS against a reference in NumPy and SciPy; the noise kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data

from models.nn.gms import gms, gradient_magnitude, mean_filter, msgms
from models.nn.noise import corrupt, gaussian, picture_generators


def pair(height: int = 64, width: int = 72) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = data.astronaut()[40 : 40 + height, 180 : 180 + width] / 255.0
    return x, ndimage.gaussian_filter(x, (1, 1, 0)) + rng.normal(0, 0.02, x.shape)


def reference_gms(x: np.ndarray, y: np.ndarray, c: float = 0.0026) -> np.ndarray:
    """From grey pictures float64 [H, W]."""
    def magnitude(grey: np.ndarray) -> np.ndarray:
        return np.hypot(*(ndimage.prewitt(grey, axis, mode="nearest") / 3 for axis in (0, 1)))

    a, b = magnitude(x), magnitude(y)
    return (2 * a * b + c) / (a**2 + b**2 + c)


def halved(grey: np.ndarray) -> np.ndarray:
    return (grey[::2, ::2] + grey[1::2, ::2] + grey[::2, 1::2] + grey[1::2, 1::2]) / 4


def enlarged(small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear between pixel centres, edges repeated."""
    coordinates = np.meshgrid(
        *((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, small.shape, strict=True)), indexing="ij"
    )
    return ndimage.map_coordinates(small, coordinates, order=1, mode="nearest")


def as_batch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float().permute(2, 0, 1).unsqueeze(0)


def test_single_scale_equals_the_reference() -> None:
    x, y = pair()
    expected = reference_gms(x.mean(2), y.mean(2))
    np.testing.assert_allclose(gms(as_batch(x), as_batch(y))[0, 0].numpy(), expected, atol=1e-5)
    assert expected.min() < 0.5  # the pair differs enough to tell right from wrong


@pytest.mark.parametrize("scales", [1, 2, 4])
def test_several_scales_equal_the_reference(scales: int) -> None:
    x, y = pair()
    a, b = x.mean(2), y.mean(2)
    expected = reference_gms(a, b)
    for _ in range(scales - 1):
        a, b = halved(a), halved(b)
        expected = expected + enlarged(reference_gms(a, b), x.shape[:2])
    found = msgms(as_batch(x), as_batch(y), scales)[0, 0].numpy()
    np.testing.assert_allclose(found, expected / scales, atol=1e-5)


def test_flat_pictures_have_no_gradient_and_a_finite_slope() -> None:
    x = torch.full((1, 3, 16, 16), 0.7, requires_grad=True)
    assert float(gradient_magnitude(x).max().detach()) < 2e-6
    gms(x, torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_too_small_for_the_scales() -> None:
    with pytest.raises(ValueError, match="at least 8 pixels"):
        msgms(torch.zeros(1, 3, 7, 20), torch.zeros(1, 3, 7, 20))


def test_mean_filter_equals_scipy() -> None:
    x = np.random.default_rng(0).random((30, 41))
    expected = ndimage.uniform_filter(x, 21, mode="mirror")
    found = mean_filter(torch.from_numpy(x).float()[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_noise_levels() -> None:
    x = torch.full((6, 3, 64, 64), 0.5)
    assert float((corrupt(x, "gaussian", 0.1, rng()) - x).std()) == pytest.approx(0.1, rel=0.02)
    pepper = corrupt(x, "salt_pepper", 0.2, rng())
    assert float((pepper == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((pepper == 1).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert bool(((pepper == 0).all(1) | (pepper != 0).all(1)).all())  # a pixel goes with all its channels
    masked = corrupt(x, "masking", 0.2, rng())
    assert float((masked == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(corrupt(x, "gaussian", 3.0, rng()).amin()) == 0.0  # clipped
    assert torch.equal(x, torch.full_like(x, 0.5))


def test_spread_of_the_standard_deviation() -> None:
    x = torch.zeros(400, 1, 24, 24)
    uniform = gaussian(x, 0.3, rng()).flatten(1).std(1)
    assert float(uniform.mean()) == pytest.approx(0.15, abs=0.01)
    assert float(uniform.max()) < 0.33
    assert float(uniform.min()) < 0.01
    assert float(gaussian(x, 0.3, rng(), "fixed").std()) == pytest.approx(0.3, rel=0.02)
    assert float(gaussian(x, 0.09, rng(), "variance").std()) == pytest.approx(0.3, rel=0.02)


def test_noise_of_a_picture_hangs_on_its_pixels_only() -> None:
    a, b = (np.full((4, 5, 3), value, np.uint8) for value in (10, 11))
    def first(pictures: list[np.ndarray], seed: int) -> list[float]:
        return [float(torch.rand(1, generator=g)) for g in picture_generators(pictures, seed)]

    assert first([a, b], 0) == first([b, a], 0)[::-1]
    assert first([a], 0) != first([b], 0)
    assert first([a], 0) != first([a], 1)
