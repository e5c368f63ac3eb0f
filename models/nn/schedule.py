"""Learning rates over a training."""

from __future__ import annotations

import math
from typing import Literal

import torch

Schedule = Literal["constant", "warm_cosine"]


def schedulers(
    kind: Schedule, optimizer: torch.optim.Optimizer, epochs: int
) -> list[torch.optim.lr_scheduler.LRScheduler]:
    """What `train` steps once per epoch: nothing for 'constant'.

    warm_cosine: half a cosine from the full rate to 0 over the epochs, of which the first three get a quarter, half and
    three quarters. For few and large steps: at its full height from the first one the rate puts out units that do not
    come back, and without the fall its noise hides what was learnt.
    """
    if kind == "constant":
        return []
    return [torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: min(1, (epoch + 1) / 4) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    )]
