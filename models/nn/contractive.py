"""A dense code of sigmoids, and the penalty on its Jacobian in closed form (Rifai et al. 2011)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseCode(nn.Linear):
    """Encoder output [B, n], flattened, to the code sigmoid(W a + b): [B, m] in (0, 1).

    With n = 65536 non-negative inputs, one step of Adam moves all of W a the same way and after some 20 steps every
    sigmoid is 0 or 1: the code no longer depends on the picture. So each a is brought to mean 0 and variance 1 and W
    divided by sqrt(n): a step changes W a by about sqrt(n) times the learning rate.
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.uniform_(self.weight, -1, 1)  # W a: variance 1 / 3, as of a plain layer of inputs with mean square 1

    def matrix(self) -> Tensor:
        """W [m, n] of sigmoid(W a + b), as it meets a normalised."""
        return self.weight / self.in_features**0.5

    def forward(self, a: Tensor) -> Tensor:
        a = nn.functional.layer_norm(a, a.shape[-1:]) / self.in_features**0.5
        return torch.sigmoid(super().forward(a))


def dense_contraction(code: Tensor, weight: Tensor) -> Tensor:
    """Squared Frobenius norm of the Jacobian of sigmoid(W a + b) with respect to a, exactly: [B] from code [B, m]."""
    return (code * (1 - code)).square() @ weight.square().sum(1)
