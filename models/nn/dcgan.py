"""The initial weights of DCGAN (Radford et al., ICLR 2016), which the authors of DRAEM and of GANomaly use."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def dcgan_init(module: nn.Module) -> None:
    """For `net.apply`: convolutions N(0, 0.02), batch norms N(1, 0.02) with bias 0; other biases keep torch's."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        module.weight.normal_(0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        module.weight.normal_(1.0, 0.02)
        module.bias.zero_()
