"""Test pictures as a factory may come to see them: other light, blur, noise, a part that lies askew.

Severities 1 to 5. Brightness, contrast, noise and JPEG have the constants of ImageNet-C (Hendrycks, Dietterich 2019);
lengths are shares of the shorter side, theirs of 224 pixels, so that a severity means the same at every resolution.
Turns and shifts are ours; what comes in at the border is mirrored, in masks too.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

import numpy as np

BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the value (HSV)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of the distance to the picture's mean
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation
JPEG = (25, 18, 15, 10, 7)  # quality
BLUR = (1, 2, 3, 4, 6)  # standard deviation, pixels of 224
MOTION = (5, 9, 13, 17, 21)  # length of a straight path, pixels of 224
TURN = (1, 2, 4, 7, 10)  # degrees, to a side that is drawn
SHIFT = (0.01, 0.02, 0.04, 0.07, 0.1)  # share of the shorter side, in a direction that is drawn

Drawn = np.random.Generator


def corrupt(picture: np.ndarray, kind: str, severity: int, name: str, seed: int) -> np.ndarray:
    """The picture uint8 [H, W, 3] under a corruption; same shape and type. name: of the picture, for what is drawn."""
    if kind in MOVES:
        return moved(picture, kind, severity, name, seed)
    values = KINDS[kind](picture.astype(np.float32) / 255, severity - 1, _drawing(kind, name, seed))
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def moved(values: np.ndarray, kind: str, severity: int, name: str, seed: int) -> np.ndarray:
    """A picture [H, W, 3], or its mask [H, W] (uint8 or bool), turned or shifted alike; masks get no new values."""
    from skimage.transform import warp

    back = MOVES[kind](values.shape[0], values.shape[1], severity - 1, _drawing(kind, name, seed))
    found = warp(values.astype(np.float32), back, order=0 if values.ndim == 2 else 1, mode="reflect")
    return found > 0.5 if values.dtype == bool else np.rint(found).astype(values.dtype)


def _drawing(kind: str, name: str, seed: int) -> Drawn:
    """The same for every severity of a kind, so that severities of one picture can be compared."""
    return np.random.default_rng([seed, zlib.crc32(f"{kind} {name}".encode())])


def _brightness(x: np.ndarray, level: int, _: Drawn) -> np.ndarray:
    value = x.max(2, keepdims=True)
    brighter = np.minimum(value + BRIGHTNESS[level], 1)
    return np.where(value > 0, x * brighter / np.maximum(value, 1e-6), brighter)  # hue and saturation stay


def _contrast(x: np.ndarray, level: int, _: Drawn) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * CONTRAST[level] + mean


def _noise(x: np.ndarray, level: int, drawing: Drawn) -> np.ndarray:
    return x + NOISE[level] * drawing.standard_normal(x.shape, np.float32)


def _jpeg(x: np.ndarray, level: int, _: Drawn) -> np.ndarray:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(np.rint(x * 255).astype(np.uint8)).save(held, "JPEG", quality=JPEG[level])
    return np.asarray(Image.open(held), np.float32) / 255


def _blur(x: np.ndarray, level: int, _: Drawn) -> np.ndarray:
    from skimage.filters import gaussian

    return gaussian(x, BLUR[level] / 224 * min(x.shape[:2]), mode="reflect", channel_axis=2)


def _motion(x: np.ndarray, level: int, drawing: Drawn) -> np.ndarray:
    from scipy.ndimage import uniform_filter1d

    length = max(round(MOTION[level] / 224 * min(x.shape[:2])), 2)
    return uniform_filter1d(x, length, axis=int(drawing.integers(2)), mode="reflect")


def _turn(height: int, width: int, level: int, drawing: Drawn) -> np.ndarray:
    angle = np.deg2rad(TURN[level]) * (1 if drawing.integers(2) else -1)
    y, x = (height - 1) / 2, (width - 1) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]]) @ turn @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])


def _shift(height: int, width: int, level: int, drawing: Drawn) -> np.ndarray:
    angle, length = drawing.uniform(0, 2 * np.pi), SHIFT[level] * min(height, width)
    return np.array([[1, 0, round(length * np.cos(angle))], [0, 1, round(length * np.sin(angle))], [0, 0, 1]], float)


KINDS: dict[str, Callable[[np.ndarray, int, Drawn], np.ndarray]] = {
    "brightness": _brightness, "contrast": _contrast, "blur": _blur, "motion": _motion, "noise": _noise, "jpeg": _jpeg,
}
"""Values in [0, 1], severity from 0, drawing -> values."""

MOVES: dict[str, Callable[[int, int, int, Drawn], np.ndarray]] = {"turn": _turn, "shift": _shift}
"""Height, width, severity from 0, drawing -> matrix 3 x 3 from places (x, y, 1) in the new picture to the old one."""
