"""A dense code of sigmoids, and the penalty on its Jacobian in closed form (Rifai et al. 2011)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseCode(nn.Linear):
    """Encoder output [B, n], flattened, to the code sigmoid(W a + b): [B, m] in (0, 1).

    Each a_i is brought to mean 0 and variance 1 over the pictures of a batch (at test: over those seen in training)
    and W divided by sqrt(n). Otherwise the code does not depend on the picture: most of a is what the pictures of a
    category have in common, and with n = 65536 non-negative inputs one step of Adam moves all of W a the same way, so
    that after some 20 steps every sigmoid is 0 or 1.
    """

    def __init__(self, values: int, code: int) -> None:
        super().__init__(values, code)
        self.norm = nn.BatchNorm1d(values, affine=False)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.uniform_(self.weight, -1, 1)  # W a: variance 1 / 3, as of a plain layer of inputs with mean square 1

    def matrix(self) -> Tensor:
        """W [m, n] of sigmoid(W a + b), as it meets a normalised."""
        return self.weight / self.in_features**0.5

    def forward(self, a: Tensor) -> Tensor:
        norm = self.norm
        if self.training and len(a) > 1:
            a = norm(a)
        else:  # one picture has no spread
            a = nn.functional.batch_norm(a, norm.running_mean, norm.running_var, eps=norm.eps)
        return torch.sigmoid(super().forward(a / self.in_features**0.5))


def dense_contraction(code: Tensor, weight: Tensor) -> Tensor:
    """Squared Frobenius norm of the Jacobian of sigmoid(W a + b) with respect to a, exactly: [B] from code [B, m]."""
    return (code * (1 - code)).square() @ weight.square().sum(1)
