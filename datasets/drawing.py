"""Shapes with soft edges as weights in [0, 1], drawn from distances so that no drawing library decides on pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator


def _grid(shape: tuple[int, int], centre: Sequence[float], angle: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across an axis at `angle` through `centre` (y, x)."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    y, x = y - centre[0], x - centre[1]
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _soft(distance: np.ndarray) -> np.ndarray:
    """Signed distance in pixels (negative inside) -> weight with an edge one pixel wide."""
    return (0.5 - distance).clip(0, 1)


def disc(shape: tuple[int, int], centre: Sequence[float], radius: float) -> np.ndarray:
    """A filled circle."""
    along, across = _grid(shape, centre)
    return _soft(np.hypot(along, across) - radius)


def ring(shape: tuple[int, int], centre: Sequence[float], outer: float, inner: float) -> np.ndarray:
    """A circle with a hole."""
    along, across = _grid(shape, centre)
    radius = np.hypot(along, across)
    return _soft(np.maximum(radius - outer, inner - radius))


def rod(shape: tuple[int, int], centre: Sequence[float], angle: float, half_length: float, radius: float) -> np.ndarray:
    """A bar with round ends."""
    along, across = _grid(shape, centre, angle)
    return _soft(np.hypot(along - along.clip(-half_length, half_length), across) - radius)


def segment(shape: tuple[int, int], centre: Sequence[float], angle: float, length: float, width: float) -> np.ndarray:
    """A thin line, `width` pixels across."""
    return rod(shape, centre, angle, length / 2, width / 2)


def hexagon(shape: tuple[int, int], centre: Sequence[float], angle: float, apothem: float) -> np.ndarray:
    """A regular hexagon with a round hole of 0.45 of its apothem."""
    along, across = _grid(shape, centre, angle)
    sides = [np.abs(along * np.cos(a) + across * np.sin(a)) for a in (0, np.pi / 3, 2 * np.pi / 3)]
    return _soft(np.maximum(np.max(sides, axis=0) - apothem, 0.45 * apothem - np.hypot(along, across)))


def rectangle(shape: tuple[int, int], centre: Sequence[float], half_height: float, half_width: float) -> np.ndarray:
    """An upright rectangle."""
    along, across = _grid(shape, centre)
    return _soft(np.maximum(np.abs(across) - half_height, np.abs(along) - half_width))


def blob(rng: Generator, shape: tuple[int, int], centre: Sequence[float], radius: float) -> np.ndarray:
    """An irregular spot of about `radius` pixels with an edge a few pixels wide."""
    along, across = _grid(shape, centre)
    theta = np.arctan2(across, along)
    wobble = sum(rng.uniform(-0.18, 0.18) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    return ((radius * (1 + wobble) - np.hypot(along, across)) / 3 + 0.5).clip(0, 1)


def smooth_noise(rng: Generator, shape: tuple[int, int], scale: int) -> np.ndarray:
    """Noise in about [-1, 1] that changes over `scale` pixels: random values on a grid, joined by cosines."""
    rows, columns = shape[0] // scale + 2, shape[1] // scale + 2
    values = rng.uniform(-1, 1, (rows, columns))

    def weights(length: int) -> tuple[np.ndarray, np.ndarray]:
        position = np.arange(length) / scale
        index = position.astype(int)
        return index, (1 - np.cos(np.pi * (position - index))) / 2

    (i, u), (j, v) = weights(shape[0]), weights(shape[1])
    upper = values[np.ix_(i, j)] * (1 - v) + values[np.ix_(i, j + 1)] * v
    lower = values[np.ix_(i + 1, j)] * (1 - v) + values[np.ix_(i + 1, j + 1)] * v
    return upper * (1 - u)[:, None] + lower * u[:, None]
