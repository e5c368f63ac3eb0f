"""StableAdamW of Dinomaly's authors' code (as anomalib has it) without its waits for the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from anomalib.models.image.dinomaly.components.optimizer import StableAdamW as Waiting


class StableAdamW(Waiting):
    """The library's optimizer, to the last bit: its step is cut where the update's mean square exceeds the threshold.

    The library reads that mean square on the host, once or twice for each parameter and step; here it stays on the
    device. Always with amsgrad, as it is used.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                        state[name] = torch.zeros_like(p)
                state["step"] += 1
                mean, square, largest = state["exp_avg"], state["exp_avg_sq"], state["max_exp_avg_sq"]
                mean.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                torch.maximum(largest, square, out=largest)
                below = (largest.sqrt() / math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
                root = (p.grad / below).norm(2) / p.numel() ** 0.5
                size = group["lr"] / (1 - beta1 ** state["step"]) / (root / group["clip_threshold"]).clamp_min(1.0)
                p.add_((mean * -size).div_(below))
