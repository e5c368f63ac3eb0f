"""Transformation blocks: members' maps scaled, reduced by principal components and joined on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Config, ModelError
from models.ensembles.grid import to_grid
from models.ensembles.maps import MapStore
from models.ensembles.members import CHUNK, Member
from models.nn.pca import Components, Covariance, loadings, positions, principal_components


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Config):
    """Settings of a transformation block; the thesis names the two blocks and leaves the numbers open."""

    block: Literal["global", "independent"] = "global"
    grid: int = 32  # positions per side of the joined map; open in the thesis
    maps: int = 512  # global block: components kept; open in the thesis
    member_maps: tuple[int, ...] = (128,)  # independent block: per member, one number for all or one each; open
    variance: float = 0.0  # above 0: keep enough components for this share of variance instead of a fixed number
    scaling: Literal["member", "channel", "none"] = "member"  # before PCA: one scalar per member, per channel, or none
    whiten: bool = False  # after PCA: every component to unit variance, instead of unit variance on average
    pca_positions: int = 100_000  # drawn over all training pictures


class Projection(nn.Module):
    """Centring, scaling, PCA and final scaling of the channels: [B, D, h, w] -> [B, k, h, w]."""

    def __init__(self, mean: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("weight", weight)

    def forward(self, maps: Tensor) -> Tensor:
        centred = maps - self.mean[:, None, None]  # first: a mean far above the spread would cancel in float32
        return F.conv2d(centred, self.weight[:, :, None, None])


class Block(nn.Module):
    """A transformation block: one list of maps per member -> joined features [B, N, grid, grid].

    global: resize every map to the grid, concatenate, one PCA. independent: a PCA per map on its own grid, resize,
    concatenate. Maps are resized bilinearly to the whole picture's field of view: a member that crops is continued at
    the border by its nearest value, as its anomaly maps are.
    """

    def __init__(self, kind: str, grid: int) -> None:
        super().__init__()
        self.kind, self.grid = kind, grid
        self.projections = nn.ModuleList()

    def forward(self, maps: Sequence[Sequence[Tensor]], members: Sequence[Member]) -> Tensor:
        groups = self._groups(maps, members)
        projected = [projection(x) for projection, x in zip(self.projections, groups, strict=True)]
        if self.kind == "global":
            return projected[0]
        views = [member.detector.preprocess for member, own in zip(members, maps, strict=True) for _ in own]
        return torch.cat([to_grid(x, view, self.grid) for x, view in zip(projected, views, strict=True)], 1)

    def _groups(self, maps: Sequence[Sequence[Tensor]], members: Sequence[Member]) -> list[Tensor]:
        """What each PCA sees: all resized maps in one, or every map by itself."""
        if self.kind == "independent":
            return [m.float() for own in maps for m in own]
        resized = [
            to_grid(m.float(), member.detector.preprocess, self.grid)
            for member, own in zip(members, maps, strict=True) for m in own
        ]
        return [torch.cat(resized, 1)]

    def fit(
        self, members: Sequence[Member], stores: Sequence[Sequence[MapStore]], config: BlockConfig,
        random: torch.Generator, device: torch.device,
    ) -> dict[str, Any]:
        """PCA on positions drawn from the training maps. Returns per member `maps`, `explained` and `loading`."""
        count = len(stores[0][0])
        each = -(-config.pca_positions // count)
        sums: list[Covariance] = []
        for start in range(0, count, CHUNK):
            groups = self._groups([[s.read(start, device) for s in own] for own in stores], members)
            sums = sums or [Covariance(group.shape[1], device) for group in groups]
            for covariance, group in zip(sums, groups, strict=True):
                covariance.add(positions(group, each, random))
        channels = [[s.channels for s in own] for own in stores]
        if self.kind == "global":
            sizes = [sum(own) for own in channels]
            return self._fit_global(sums[0], sizes, [m.spec for m in members], config)
        return self._fit_independent(sums, channels, [m.spec for m in members], config)

    def _fit_global(
        self, covariance: Covariance, sizes: list[int], specs: list[str], config: BlockConfig
    ) -> dict[str, Any]:
        scale = torch.cat([
            _scale(variances, config.scaling) for variances in covariance.matrix.diagonal().split(sizes)
        ])
        keep = config.variance or config.maps
        found = self._add(covariance, keep, scale, config.whiten)
        shares = loadings(found, sizes)
        return {
            "maps": len(found.directions), "explained": round(found.explained, 4),
            "loading": {spec: round(share, 4) for spec, share in zip(specs, shares, strict=True)},
        }

    def _fit_independent(
        self, sums: list[Covariance], channels: list[list[int]], specs: list[str], config: BlockConfig
    ) -> dict[str, Any]:
        wanted = config.member_maps * len(specs) if len(config.member_maps) == 1 else config.member_maps
        rest = iter(sums)
        maps, explained = {}, {}
        for spec, own, number in zip(specs, channels, wanted, strict=True):
            parts = spread(number, own, spec)
            found = []
            for part in parts:
                covariance = next(rest)
                scale = _scale(covariance.matrix.diagonal(), config.scaling)
                found.append(self._add(covariance, config.variance or part, scale, config.whiten))
            maps[spec] = sum(len(f.directions) for f in found)
            explained[spec] = round(sum(float(f.variance.sum()) for f in found) / sum(f.total for f in found), 4)
        total = sum(maps.values())
        return {"maps": total, "explained": explained, "loading": {s: round(n / total, 4) for s, n in maps.items()}}

    def _add(self, covariance: Covariance, keep: int | float, scale: Tensor, whiten: bool) -> Components:
        found = principal_components(covariance, keep, scale)
        variance = found.variance if whiten else found.variance.mean()
        gain = variance.clamp_min(1e-12 * max(found.total, torch.finfo(torch.float64).tiny)).rsqrt()
        weight = (found.directions.T * gain).T
        self.projections.append(Projection(covariance.mean.float(), (weight * scale).float()))
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict whose projections' sizes are not known beforehand."""
        count = len({key.split(".")[1] for key in state})
        self.projections = nn.ModuleList(
            Projection(state[f"projections.{i}.mean"], state[f"projections.{i}.weight"]) for i in range(count)
        )


def _scale(variances: Tensor, scaling: str) -> Tensor:
    """What a member's channels are multiplied by before PCA, from their variances [D]: float64 [D]."""
    if scaling == "none":
        return torch.ones_like(variances)
    spread = variances if scaling == "channel" else variances.mean().expand_as(variances)
    return torch.where(spread > 0, spread.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 1.0)


def spread(number: int, channels: Sequence[int], spec: str) -> list[int]:
    """`number` components over the maps of one member, as evenly as their channels allow; exactly `number` in all."""
    if number > sum(channels):
        raise ModelError(
            f"feature_ensemble: {number} components asked of member {spec}, whose maps have {sum(channels)} channels "
            f"({', '.join(map(str, channels))}); give fewer in member_maps"
        )
    if number < len(channels):
        raise ModelError(
            f"feature_ensemble: {number} components asked of member {spec}, which has {len(channels)} maps; give at "
            "least one for each in member_maps"
        )
    parts = [0] * len(channels)
    for _ in range(number):
        open_ = [i for i, most in enumerate(channels) if parts[i] < most]
        parts[min(open_, key=lambda i: parts[i])] += 1
    return parts
