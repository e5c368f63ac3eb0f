"""Artificial defects from Perlin masks and natural pictures, a whole batch at a time, on any device.

The recipe is that of DRAEM (Zavrtanik et al., ICCV 2021, section 3.3, and its public code), which RB-AE (Eq. 1) takes
over: Perlin noise with a lattice of 2^k cells per axis, rotated, thresholded; the texture inside is a natural picture
after three random colour or geometry operations.

Every random number is drawn from a CPU generator, so the same seed makes the same defects on CPU and GPU. Masks are
made on the CPU: an empty one is drawn again, and to know that of one on a GPU the host would have to wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from models.base import ModelError
from models.nn.transfer import Packed, together

Operation = Callable[[Tensor, Tensor], Tensor]
MAX_OCTAVE = 5  # a lattice has 2^k cells per axis, k in 0..5
MAX_DEGREES = 90.0  # of the mask's rotation
TEXTURE_DEGREES = 45.0  # of the texture's rotation
TRIES = 200


def perlin_noise(
    shape: tuple[int, int, int], generator: Generator, device: torch.device | str = "cpu", max_octave: int = MAX_OCTAVE
) -> Tensor:
    """Perlin noise float32 [B, H, W], roughly in [-1, 1]; each picture and axis has its own scale 2^k, k <= max_octave.

    The noise of one gradient component is separable: weights along y times lattice times weights along x. Two batched
    matrix products per batch therefore replace the four gathers per pixel of the usual formulation.
    """
    batch, height, width = shape
    nodes = 2**max_octave + 1
    scale = 2 ** torch.randint(0, max_octave + 1, (2, batch), generator=generator)
    angle = torch.rand(batch, nodes, nodes, generator=generator).mul_(2 * math.pi)
    scale, angle = together(device, scale, angle)
    blend_y, offset_y = _axis(height, scale[0], nodes, device)
    blend_x, offset_x = _axis(width, scale[1], nodes, device)
    noise = (offset_y @ angle.sin()) @ blend_x.mT
    noise += (blend_y @ angle.cos()) @ offset_x.mT
    return noise.mul_(math.sqrt(2.0))


def _axis(length: int, scale: Tensor, nodes: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """[B, n, nodes] each: a lattice node's share in a pixel (quintic fade), and that share times the distance to it."""
    position = torch.arange(length, device=device) / length * scale[:, None]
    cell = position.floor()
    t = position - cell
    fade = t**3 * (t * (6 * t - 15) + 10)
    blend = torch.zeros(len(scale), length, nodes, device=device)
    index = cell.long()[..., None]
    blend.scatter_(2, index, (1 - fade)[..., None]).scatter_(2, index + 1, fade[..., None])
    distance = position[..., None] - torch.arange(nodes, device=device)
    return blend, blend * distance


def rotate(pictures: Tensor, degrees: Tensor) -> Tensor:
    """Pictures [B, C, H, W] turned about their centres by `degrees` [B], bilinear, zeros outside."""
    height, width = pictures.shape[-2:]
    turn = torch.deg2rad(degrees).to(pictures.device).view(-1, 1, 1)
    cos, sin = turn.cos(), turn.sin()
    # pixel centres on grid_sample's axes from -1 to 1 (F.affine_grid makes the same grid, four times as slowly)
    y = ((torch.arange(height, device=turn.device) * 2 + 1) / height - 1).view(1, -1, 1)
    x = ((torch.arange(width, device=turn.device) * 2 + 1) / width - 1).view(1, 1, -1)
    # the ratio of the sides keeps a turn a turn on an oblong picture
    grid = torch.stack([cos * x - (sin * height / width) * y, (sin * width / height) * x + cos * y], -1)
    return F.grid_sample(pictures, grid, padding_mode="zeros", align_corners=False)


def blobs(
    shape: tuple[int, int, int],
    generator: Generator,
    device: torch.device | str = "cpu",
    *,
    threshold: float = 0.5,
    max_octave: int = MAX_OCTAVE,
) -> Tensor:
    """Where turned Perlin noise exceeds the threshold, float32 [B, 1, H, W] in {0, 1}; nowhere in some pictures."""
    noise = perlin_noise(shape, generator, device, max_octave)
    degrees = (torch.rand(shape[0], generator=generator) * 2 - 1) * MAX_DEGREES
    return (rotate(noise[:, None], together(device, degrees)[0]) > threshold).float()


def perlin_mask(
    shape: tuple[int, int, int], generator: Generator, *, threshold: float = 0.5, max_octave: int = MAX_OCTAVE
) -> Tensor:
    """Random defect masks float32 [B, 1, H, W] in {0, 1} on the CPU, none of them empty: noise, rotation by up to 90
    degrees, threshold. Empty ones are drawn again; ModelError when the threshold leaves nothing again and again."""
    batch, height, width = shape
    mask = torch.zeros(batch, 1, height, width)
    missing = torch.arange(batch)
    for _ in range(TRIES):
        drawn = blobs((len(missing), height, width), generator, threshold=threshold, max_octave=max_octave)
        mask[missing] = drawn
        missing = missing[~drawn.flatten(1).any(1)]
        if not len(missing):
            return mask
    raise ModelError(f"no Perlin noise exceeded the mask threshold {threshold} in {TRIES} tries; use one near 0.5")


def paste(images: Tensor, textures: Tensor, mask: Tensor, beta: Tensor | float = 0.0) -> Tensor:
    """Textures [B, 3, H, W] inside the mask [B, 1, H, W], the picture [B, 3, H, W] outside (RB-AE Eq. 1, DRAEM Eq. 2).

    beta: how much of the picture stays visible inside the mask, a number or one per picture [B]; 0 is opaque.
    """
    if isinstance(beta, Tensor):
        beta = beta.to(images.device).view(-1, 1, 1, 1)
    return torch.lerp(images, textures, mask * (1.0 - beta))


class Defects:
    """Artificial defects for a batch of pictures: drawn on the CPU (a thread may), made where the pictures are.

    textures: natural pictures [B, 3, H, W] in [0, 1], augmented by `on`. probability: share of pictures that get a
    defect; the others come back unchanged with an empty mask. beta: range of what stays visible under the defect.
    device: of the pictures; all that was drawn goes there in one copy.
    """

    def __init__(
        self, textures: Tensor, generator: Generator, device: torch.device | str = "cpu", *, probability: float = 1.0,
        beta: tuple[float, float] = (0.0, 0.0), threshold: float = 0.5,
    ) -> None:
        batch, _, height, width = textures.shape
        mask = perlin_mask((batch, height, width), generator, threshold=threshold)
        if probability < 1:
            mask = mask * (torch.rand(batch, generator=generator) < probability).view(-1, 1, 1, 1)
        visible = beta[0] + (beta[1] - beta[0]) * torch.rand(batch, generator=generator)
        self.chosen, uniform = _chosen(batch, generator, 3, OPERATIONS)
        self.packed = Packed(device, textures, mask, visible, uniform)

    def on(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] in [0, 1] -> (the same with a defect pasted in, mask [B, 1, H, W] in {0, 1})."""
        textures, mask, visible, uniform = self.packed.arrive()
        return paste(images, _augmented(textures, self.chosen, uniform), mask, visible), mask


def artificial_defects(
    images: Tensor, textures: Tensor, generator: Generator, *, probability: float = 1.0,
    beta: tuple[float, float] = (0.0, 0.0), threshold: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """`Defects` drawn and made at once on `images`; textures on the CPU."""
    drawn = Defects(textures, generator, images.device, probability=probability, beta=beta, threshold=threshold)
    return drawn.on(images)


# --- the texture's operations: x [n, 3, H, W] in [0, 1], u [n, 4] uniform in [0, 1) -> x


def augment(
    textures: Tensor, generator: Generator, operations: int = 3, among: Sequence[Operation] | None = None
) -> Tensor:
    """Each picture of [B, 3, H, W] in [0, 1] through `operations` different ones, in random order.

    among: what to choose from; None: DRAEM's ten.
    """
    among = among or OPERATIONS
    chosen, uniform = _chosen(len(textures), generator, operations, among)
    return _augmented(textures, chosen, together(textures.device, uniform)[0])


def _chosen(
    batch: int, generator: Generator, operations: int, among: Sequence[Operation]
) -> tuple[list[list[Operation]], Tensor]:
    """Which operations each picture goes through, and their random numbers float32 [B, operations, 4] in [0, 1)."""
    order = torch.rand(batch, len(among), generator=generator).argsort(1)[:, :operations].tolist()
    return [[among[i] for i in row] for row in order], torch.rand(batch, operations, 4, generator=generator)


def _augmented(textures: Tensor, chosen: Sequence[Sequence[Operation]], uniform: Tensor) -> Tensor:
    out = []
    for row, order in enumerate(chosen):  # gathering the pictures of one operation copies more than it saves
        picture = textures[row : row + 1]
        for step, operation in enumerate(order):
            picture = operation(picture, uniform[row : row + 1, step])
        out.append(picture)
    return torch.cat(out)


def _each(u: Tensor, low: float, high: float) -> Tensor:
    return (low + (high - low) * u).view(-1, 1, 1, 1)


def gamma(x: Tensor, u: Tensor) -> Tensor:
    """Gamma contrast, exponent 0.5 to 2 per channel."""
    return x.clamp_min(0).pow((0.5 + 1.5 * u[:, :3])[..., None, None])


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Values times 0.8 to 1.2, plus -30 to 30 grey levels of 255."""
    return (x * _each(u[:, 0], 0.8, 1.2)).add_(_each(u[:, 1], -30 / 255, 30 / 255)).clamp_(0, 1)


def sharpness(x: Tensor, u: Tensor) -> Tensor:
    """Between a smoothed picture (0), the picture (1) and its exaggeration (2)."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).div_(13).add_(x, alpha=4 / 13)
    return torch.lerp(smooth, x, _each(u[:, 0], 0.0, 2.0)).clamp_(0, 1)


def hue_saturation(x: Tensor, u: Tensor) -> Tensor:
    """Hue turned by up to 70 degrees about the grey axis and saturation changed by up to 20 %, as one 3x3 matrix.

    DRAEM adds up to 50 of 255 steps to both channels of HSV; in YIQ the turn is linear and needs no branches.
    """
    turn = (u[:, 0] * 2 - 1) * math.radians(70)
    gain = 1 + (u[:, 1] * 2 - 1) * 0.2
    to_yiq, to_rgb = _yiq(x.device)
    cos, sin, zero, one = turn.cos() * gain, turn.sin() * gain, torch.zeros_like(gain), torch.ones_like(gain)
    change = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix = to_rgb @ change @ to_yiq
    return (matrix @ x.flatten(2)).view_as(x).clamp_(0, 1)


@lru_cache(maxsize=8)
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrix from RGB to YIQ and its inverse, float32 [3, 3], brought to a device once."""
    with torch.inference_mode(False):
        matrix = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        return matrix.to(device), torch.linalg.inv(matrix).to(device)


def solarise(x: Tensor, u: Tensor) -> Tensor:
    """Half of the pictures: values from a threshold (32 to 128 of 255) on are inverted."""
    threshold = _each(u[:, 0], 32 / 255, 128 / 255)
    return torch.where((x >= threshold) & (u[:, 1] < 0.5).view(-1, 1, 1, 1), 1 - x, x)


def posterise(x: Tensor, u: Tensor) -> Tensor:
    """Only the highest 1 to 8 of 8 bits are kept."""
    step = 2.0 ** (8 - (1 + (u[:, 0] * 8).floor())).view(-1, 1, 1, 1)
    return (x * 255).div_(step).floor_().mul_(step).div_(255)


def invert(x: Tensor, u: Tensor) -> Tensor:
    """1 - x."""
    return 1 - x


def autocontrast(x: Tensor, u: Tensor) -> Tensor:
    """Each channel stretched to [0, 1] after cutting 0 to 20 % of its pixels at either end."""
    cut = (u[:, 0] * 0.2).view(-1, 1, 1)
    counts = _histogram(_levels(x[..., ::2, ::2])).cumsum(-1)  # every fourth pixel tells the quantiles well enough
    share = counts / counts[..., -1:]
    low = (share <= cut).sum(-1).clamp_max(255)
    high = (share < 1 - cut).sum(-1).clamp_max(255)
    low, high = (v[..., None, None] / 255.0 for v in (low, high))
    low, high = torch.where(high > low, low, 0.0), torch.where(high > low, high, 1.0)
    return ((x - low) / (high - low)).clamp_(0, 1)


def equalise(x: Tensor, u: Tensor) -> Tensor:
    """Histogram equalisation per channel."""
    level = _levels(x)
    counts = _histogram(level)
    first = counts.gather(-1, (counts > 0).int().argmax(-1, keepdim=True))  # pixels of the darkest value present
    pixels = level[0, 0].numel()
    table = (counts.cumsum(-1) - first).clamp_min(0) / (pixels - first).clamp_min(1)
    table = torch.where(first == pixels, torch.arange(256, device=x.device) / 255, table)  # one value only: unchanged
    return table.gather(-1, level).view_as(x)


def turn(x: Tensor, u: Tensor) -> Tensor:
    """Rotated by up to 45 degrees, black outside."""
    return rotate(x, (u[:, 0] * 2 - 1) * TEXTURE_DEGREES)


def _levels(x: Tensor) -> Tensor:
    """The 8-bit level of each pixel, int64 [n, 3, H*W]."""
    return x.mul(255).round_().clamp_(0, 255).long().flatten(2)


def _histogram(level: Tensor) -> Tensor:
    """Counts [n, 3, 256] of the levels."""
    n, channels = level.shape[:2]
    offset = torch.arange(n * channels, device=level.device).view(n, channels, 1) * 256
    # bincount would ask the device for the largest level
    counts = torch.zeros(n * channels * 256, dtype=torch.int64, device=level.device)
    place = (level + offset).flatten()
    return counts.scatter_add_(0, place, torch.ones_like(place)).view(n, channels, 256)


OPERATIONS: tuple[Operation, ...] = (
    gamma, brightness, sharpness, hue_saturation, solarise, posterise, invert, autocontrast, equalise, turn,
)
