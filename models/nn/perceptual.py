"""Distance of two pictures in the maps of a frozen network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.preprocess import imagenet


class Perceptual(nn.Module):
    """Mean over the network's maps of their L1 distance, for pictures in [0, 1] that are normalised for ImageNet here.

    network: pictures -> maps by name, frozen. The gradient reaches the second picture only.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clean: Tensor, reconstruction: Tensor) -> Tensor:
        """[B, 3, H, W] twice -> scalar."""
        with torch.no_grad():
            target = self.network(imagenet(clean))
        found = self.network(imagenet(reconstruction))
        return torch.stack([F.l1_loss(found[layer], target[layer]) for layer in target]).mean()
