"""Members' raw scores and maps, and their calibration on normal pictures that no member has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.base import Images, ModelError
from models.ensembles.members import Member, chunks

Kind = Literal["ecdf", "zscore", "minmax"]
STEPS = 1000  # order statistics that an empirical distribution keeps


@torch.no_grad()
def raw_values(members: Sequence[Member], images: Images, side: int) -> tuple[Tensor, Tensor | None]:
    """Members' own scores float64 [n, m], and their maps float32 [n, m, side, side] or None when one has none.

    A member without a score of its own gets its map's maximum. Raises ModelError for one that gives neither.
    """
    scores, maps, complete = [], [], True
    for _, pictures in chunks(images):
        row, layers = [], []
        for member in members:
            found = member.detector.predict(pictures)
            if found.score is None and found.anomaly_map is None:
                raise ModelError(f"score_ensemble: member {member.spec} gave neither a score nor a map")
            if found.anomaly_map is not None:
                sizes = [picture.shape[:2] for picture in pictures]
                restored = member.detector.preprocess.restore(found.anomaly_map, sizes, (side, side))
                layers.append(torch.stack(restored).float().cpu())
            own = found.anomaly_map.flatten(1).amax(1) if found.score is None else found.score
            row.append(own.double().cpu())
        complete = complete and len(layers) == len(members)
        scores.append(torch.stack(row, 1))
        if complete:
            maps.append(torch.stack(layers, 1))
    return torch.cat(scores), torch.cat(maps) if complete else None


def table(normal: np.ndarray, kind: Kind) -> Tensor:
    """What `calibrate` needs, from the raw normal values [m, n] of m members: float64 [m, k]."""
    own = normal.astype(np.float64)
    if kind == "zscore":
        return torch.from_numpy(np.stack([own.mean(1), own.std(1)], 1))
    if kind == "minmax":
        return torch.from_numpy(np.stack([own.min(1), own.max(1) - own.min(1)], 1))
    shares = np.linspace(0, 1, min(STEPS, own.shape[1]))
    knots = np.stack([np.quantile(row, shares, method="higher") for row in own])
    return torch.from_numpy(np.concatenate([knots, own.std(1)[:, None]], 1))


def calibrate(values: Tensor, table: Tensor, kind: Kind) -> Tensor:
    """Raw values of one member -> float64 of the same shape, strictly increasing in the raw value.

    zscore: table is (mean, standard deviation). minmax: (smallest, range); nothing is clamped.
    ecdf: table is the sorted normal values and, last, their standard deviation. The result is the share of normal
        values that are not above, linear in between. Plain, this ties everything above the highest normal value,
        where anomalies lie; so beyond it the value goes on rising from 1 towards one further step, and below the
        lowest it falls from the first step towards 0, both with the distance in standard deviations.
    """
    values = values.double()
    if kind != "ecdf":
        return (values - table[0]) / _positive(table[1])
    knots, spread = table[:-1], _positive(table[-1])
    count = len(knots)
    above = torch.searchsorted(knots, values.contiguous(), right=True)  # how many knots are not above
    low, high = knots[(above - 1).clamp_min(0)], knots[above.clamp_max(count - 1)]
    between = (values - low) / _positive(high - low)
    over, under = ((values - knots[-1]) / spread).clamp_min(0), ((knots[0] - values) / spread).clamp_min(0)
    step = torch.where(above == count, over / (1 + over), between)
    step = torch.where(above == 0, 1 / (1 + under), step)
    return (above + step) / count


def _positive(x: Tensor) -> Tensor:
    """x where it is above zero, else 1: a constant member divides by nothing."""
    return torch.where(x > 0, x, 1.0)
