"""Perlin noise against a plain loop over pixels; masks, texture operations and pasting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.base import ModelError
from models.nn import perlin


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_by_loop(height: int, width: int, scale: tuple[int, int], angle: np.ndarray) -> np.ndarray:
    """Gradient noise as it is usually written: four corners per pixel."""
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y, x = row / height * scale[0], column / width * scale[1]
            j, i = int(y), int(x)
            v, u = y - j, x - i
            dots = {
                (a, b): math.cos(angle[j + a, i + b]) * (u - b) + math.sin(angle[j + a, i + b]) * (v - a)
                for a in (0, 1) for b in (0, 1)
            }
            fade = [6 * t**5 - 15 * t**4 + 10 * t**3 for t in (v, u)]
            top = dots[0, 0] + fade[1] * (dots[0, 1] - dots[0, 0])
            bottom = dots[1, 0] + fade[1] * (dots[1, 1] - dots[1, 0])
            out[row, column] = math.sqrt(2) * (top + fade[0] * (bottom - top))
    return out


def test_noise_equals_the_loop_over_pixels() -> None:
    shape = (6, 24, 40)
    found = perlin.perlin_noise(shape, seeded(3))
    g = seeded(3)
    scale = 2 ** torch.randint(0, 6, (2, 6), generator=g)
    angle = torch.rand(6, 33, 33, generator=g) * (2 * math.pi)
    assert len({tuple(s) for s in scale.T.tolist()}) > 1  # the samples really have scales of their own
    for b in range(6):
        expected = noise_by_loop(24, 40, (int(scale[0, b]), int(scale[1, b])), angle[b].double().numpy())
        np.testing.assert_allclose(found[b].numpy(), expected, atol=2e-5)


def test_rotation_by_ninety_degrees_is_exact() -> None:
    x = torch.rand(2, 3, 16, 16)
    np.testing.assert_allclose(perlin.rotate(x, torch.tensor([0.0, 0.0])), x, atol=1e-5)
    turned = perlin.rotate(x, torch.tensor([90.0, -90.0]))
    np.testing.assert_allclose(turned[0], torch.rot90(x[0], 1, (1, 2)), atol=1e-4)
    np.testing.assert_allclose(turned[1], torch.rot90(x[1], -1, (1, 2)), atol=1e-4)


def test_rotation_of_an_oblong_picture_keeps_lengths() -> None:
    x = torch.zeros(1, 1, 41, 81)
    x[0, 0, 20, 25:56] = 1  # a line of 31 pixels along the long side, through the centre
    turned = perlin.rotate(x, torch.tensor([90.0]))[0, 0]
    assert turned[:, 40].gt(0.5).sum() == 31 and turned[20, :30].sum() == 0


def test_masks_are_binary_not_empty_and_repeatable() -> None:
    masks = perlin.perlin_mask((64, 48, 48), seeded(1))
    assert masks.shape == (64, 1, 48, 48) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.flatten(1).any(1).all() and masks.flatten(1).mean(1).max() < 0.9
    assert torch.equal(masks, perlin.perlin_mask((64, 48, 48), seeded(1)))
    assert not torch.equal(masks, perlin.perlin_mask((64, 48, 48), seeded(2)))


def test_empty_draws_are_repeated_and_an_impossible_threshold_is_an_error() -> None:
    assert perlin.perlin_mask((40, 32, 32), seeded(), threshold=0.85).flatten(1).any(1).all()
    with pytest.raises(ModelError, match="threshold 3"):
        perlin.perlin_mask((1, 8, 8), seeded(), threshold=3.0)


def test_paste_is_equation_1_and_beta_lets_the_picture_through() -> None:
    images, textures = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    mask = (torch.rand(2, 1, 8, 8) > 0.5).float()
    np.testing.assert_allclose(perlin.paste(images, textures, mask), images * (1 - mask) + textures * mask, atol=1e-6)
    mixed = perlin.paste(images, textures, mask, torch.tensor([0.0, 0.75]))
    expected = images[1] * (1 - mask[1]) + mask[1] * (0.25 * textures[1] + 0.75 * images[1])
    np.testing.assert_allclose(mixed[1], expected, atol=1e-6)


@pytest.mark.parametrize("operation", perlin.OPERATIONS, ids=lambda f: f.__name__)
def test_every_operation_keeps_shape_and_range(operation) -> None:
    x = torch.rand(5, 3, 20, 24)
    x[0], x[1], x[2] = 0.0, 1.0, 0.4  # uniform pictures
    out = operation(x, torch.rand(5, 4, generator=seeded()))
    assert out.shape == x.shape and out.isfinite().all()
    assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6


def test_operations_against_hand_made_values() -> None:
    x = torch.tensor([0.0, 0.2, 0.8, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2).contiguous()
    u = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]])
    np.testing.assert_allclose(perlin.gamma(x, u), x, atol=1e-6)  # 0.5 + 1.5/3 = 1
    np.testing.assert_allclose(perlin.invert(x, u), 1 - x)
    np.testing.assert_allclose(perlin.solarise(x, torch.tensor([[0.0, 0.0, 0, 0]])).flatten()[:4], [0, 0.8, 0.2, 0],
                               atol=1e-6)
    np.testing.assert_allclose(perlin.solarise(x, torch.tensor([[0.0, 0.9, 0, 0]])), x)
    one_bit = perlin.posterise(x, torch.zeros(1, 4))
    np.testing.assert_allclose(one_bit.flatten()[:4], [0, 0, 128 / 255, 128 / 255], atol=1e-6)
    np.testing.assert_allclose(perlin.hue_saturation(x, torch.rand(1, 4)), x, atol=2e-3)  # grey has no hue
    np.testing.assert_allclose(perlin.sharpness(x, torch.full((1, 4), 0.5)), x, atol=1e-6)


def test_autocontrast_and_equalise_follow_the_histogram() -> None:
    ramp = torch.linspace(0.2, 0.6, 32 * 32).view(1, 1, 32, 32).expand(1, 3, 32, 32).contiguous()
    stretched = perlin.autocontrast(ramp, torch.zeros(1, 4))
    assert stretched.min() < 0.02 and stretched.max() > 0.98
    skewed = ramp**6
    skewed = skewed / skewed.max()
    level = perlin.equalise(skewed, torch.zeros(1, 4))[0, 0].flatten()
    expected = np.linspace(0, 1, 32 * 32)
    assert np.abs(level.sort().values.numpy() - expected).mean() < 0.1
    assert np.abs(skewed[0, 0].flatten().numpy() - expected).mean() > 0.2


def test_augment_uses_different_operations_and_only_the_generator() -> None:
    x = torch.rand(16, 3, 16, 16)
    before = x.clone()
    out = perlin.augment(x, seeded(5))
    assert torch.equal(x, before) and torch.equal(out, perlin.augment(x, seeded(5)))
    assert not torch.equal(out, perlin.augment(x, seeded(6)))


def test_artificial_defects_change_only_the_mask_and_spare_the_clean_share() -> None:
    images, textures = torch.rand(32, 3, 32, 32), torch.rand(32, 3, 32, 32)
    out, mask = perlin.artificial_defects(images, textures, seeded(), probability=0.5)
    outside = (mask == 0).expand_as(images)
    assert torch.equal(out[outside], images[outside])
    assert 4 < mask.flatten(1).any(1).sum() < 28
    assert (out[~outside] != images[~outside]).float().mean() > 0.8
