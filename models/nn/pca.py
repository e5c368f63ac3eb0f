"""Principal components of many feature vectors, from a covariance summed in float64 chunk by chunk.

Memory is D x D and a chunk, whatever the number of vectors, and the vectors need never stand in one matrix. The
components are those of scikit-learn's PCA: eigenvectors of the same covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.base import ModelError

CHUNK = 4096  # vectors per product
BLOCK = 256  # channels per product


class Covariance:
    """Running mean and covariance of vectors with D channels, in float64 on `device`."""

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._shift = torch.zeros_like(self._sum)  # the first chunk's mean: sums of squares about it do not cancel
        self._products = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, vectors: Tensor) -> None:
        """Take in vectors [n, D] of any float type. Raises ModelError for values that are not finite."""
        for chunk in vectors.split(CHUNK):
            part = chunk.to(self._sum.device, torch.float64)
            if not torch.isfinite(part).all():
                raise ModelError("PCA: the features hold NaN or infinite values; their method has diverged")
            if self.count == 0:
                self._shift = part.mean(0)
            part = part - self._shift
            self._sum += part.sum(0)
            for start in range(0, part.shape[1], BLOCK):  # the upper triangle only: half of the work
                end = start + BLOCK
                self._products[:end, start:end] += part[:, :end].T @ part[:, start:end]
            self.count += len(part)

    @property
    def mean(self) -> Tensor:
        """float64 [D]."""
        return self._shift + self._sum / max(self.count, 1)

    @property
    def matrix(self) -> Tensor:
        """Sample covariance (divided by n - 1), float64 [D, D]."""
        if self.count < 2:
            raise ModelError(f"PCA needs at least two feature vectors, got {self.count}")
        centre = self._sum / self.count
        products = self._products.triu() + self._products.triu(1).T
        return (products - self.count * torch.outer(centre, centre)) / (self.count - 1)


@dataclass(frozen=True)
class Components:
    """A PCA's result. mean [D]; directions [k, D], orthonormal; variance [k], falling; total: variance of all channels.

    Everything is float64. The sign of a direction is such that its largest loading is positive.
    """

    mean: Tensor
    directions: Tensor
    variance: Tensor
    total: float

    @property
    def explained(self) -> float:
        """Share of the variance that the kept directions hold."""
        return float(self.variance.sum() / self.total) if self.total > 0 else 0.0


def principal_components(covariance: Covariance, keep: int | float, scale: Tensor | None = None) -> Components:
    """The directions of largest variance of channels multiplied by `scale` [D].

    keep: an int is the number of directions, a float in (0, 1) the share of variance that they must reach.
    mean and directions refer to the scaled channels. Raises ModelError when more directions are asked for than there
    are channels, or than the number of vectors can determine.
    """
    matrix, mean = covariance.matrix, covariance.mean
    channels = len(mean)
    if scale is not None:
        scale = scale.to(matrix)
        matrix, mean = matrix * torch.outer(scale, scale), mean * scale
    if isinstance(keep, int) and keep > channels:
        raise ModelError(f"PCA: {keep} components asked for, but there are only {channels} channels; ask for fewer")
    if isinstance(keep, int) and keep > covariance.count - 1:
        raise ModelError(
            f"PCA: {keep} components asked for, but {covariance.count} feature vectors determine at most "
            f"{covariance.count - 1}; ask for fewer, or give more positions or pictures"
        )
    if not (isinstance(keep, int) and keep >= 1) and not (isinstance(keep, float) and 0 < keep < 1):
        raise ModelError(f"PCA: keep={keep!r} must be a count of at least 1 or a share of variance between 0 and 1")
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).T
    total = float(values.sum())
    if isinstance(keep, float):
        shares = values.cumsum(0) / max(total, torch.finfo(torch.float64).tiny)
        keep = min(int((shares < keep).sum()) + 1, channels, covariance.count - 1)
    directions = vectors[:keep]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    return Components(mean, directions, values[:keep], total)


def positions(maps: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` positions of each map, drawn without repetition, or all: [B, D, h, w] -> [B * count, D]."""
    batch, channels, height, width = maps.shape
    vectors = maps.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    if count >= height * width:
        return vectors.flatten(0, 1)
    drawn = [torch.randperm(height * width, generator=generator)[:count] for _ in range(batch)]
    return torch.cat([vectors[i, index.to(maps.device)] for i, index in enumerate(drawn)])


def loadings(components: Components, sizes: Sequence[int]) -> list[float]:
    """Share of the squared loadings of the kept directions that falls on each group of channels of the given sizes."""
    squares = components.directions.square().sum(0)
    return [float(part.sum() / squares.sum()) for part in squares.split(list(sizes))]
