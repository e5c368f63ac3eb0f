"""The convolutional autoencoder of Bergmann et al. (VISIGRAPP 2019, arXiv 1807.02011), in two halves."""

from __future__ import annotations

from torch import Tensor, nn

from models.base import ModelError

STAGES = ((4, 2, 32), (3, 1, 32), (4, 2, 64), (3, 1, 64), (4, 2, 128), (3, 1, 64), (3, 1, 32))  # kernel, stride, width
LAST = 8  # side of the last map, which one kernel covers


def halves(size: int, outputs: int, latent: int) -> tuple[nn.Module, nn.Module]:
    """Encoder [B, 3, size, size] -> [B, outputs], linear; decoder [B, latent] -> [B, 3, size, size] in (0, 1).

    128 px as in the paper's table; 256 px has one more first stage of 32 channels. Raises ModelError for other sizes.
    """
    if size not in (128, 256):
        raise ModelError(f"size={size}: this autoencoder takes 128 or 256 pixels")
    stages = ((4, 2, 32),) * (size // 128) + STAGES
    widths, down, up = [3, *(width for *_, width in stages)], [], []
    for (kernel, stride, width), before in zip(stages, widths, strict=False):
        down += [nn.Conv2d(before, width, kernel, stride, 1), nn.LeakyReLU(0.2)]
        up += [nn.ConvTranspose2d(width, before, kernel, stride, 1), nn.LeakyReLU(0.2)][::-1]
    encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], outputs, LAST), nn.Flatten())
    decoder = nn.Sequential(
        nn.Unflatten(1, (latent, 1, 1)), nn.ConvTranspose2d(latent, widths[-1], LAST), *up[::-1], nn.Sigmoid()
    )
    return encoder, decoder


class ConvAE(nn.Module):
    """Encoder and decoder: [B, 3, size, size] -> the same in (0, 1)."""

    def __init__(self, size: int, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder = halves(size, latent, latent)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
